"""The search with plain Optuna, as its documentation has it: start it once per core."""

import re
import subprocess
import sys

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

SPACE = {"lr": [0.1, 0.01, 0.001, 0.0001], "width": [16, 32, 64, 128]}


def objective(trial):
    lr = trial.suggest_categorical("lr", SPACE["lr"])
    width = trial.suggest_categorical("width", SPACE["width"])
    command = [sys.executable, "train.py", f"--lr={lr}", f"--width={width}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return min(float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout))


study = optuna.create_study(
    study_name="own-script",
    storage=JournalStorage(JournalFileBackend("own-script.log")),
    sampler=optuna.samplers.GridSampler(SPACE),
    load_if_exists=True,
)
study.optimize(objective)
