"""The search with Ray Tune: as many trials at once as Ray has cores."""

import re
import subprocess
import sys
from pathlib import Path

from ray import tune

FOLDER = Path.cwd()
SPACE = {
    "lr": tune.grid_search([0.1, 0.01, 0.001, 0.0001]),
    "width": tune.grid_search([16, 32, 64, 128]),
}


def trial(config):
    command = [sys.executable, "train.py", f"--lr={config['lr']}", f"--width={config['width']}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=FOLDER)
    tune.report({"loss": min(float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout))})


if __name__ == "__main__":
    tuner = tune.Tuner(
        trial,
        param_space=SPACE,
        tune_config=tune.TuneConfig(metric="loss", mode="min"),
        run_config=tune.RunConfig(storage_path=str(FOLDER / "ray-results"), verbose=0),
    )
    results = tuner.fit()
    print("best", results.get_best_result().config)
