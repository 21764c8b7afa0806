"""Commands on studies of programs: what they refuse, in one line, and a confirmation that is really run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import hpsearch
from hpsearch.api import Study
from hpsearch.cli.main import run_command_line
from hpsearch.errors import InputError
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import load_study, study_names
from hpsearch.study.study_file import load_definition
from hpsearch.worker.programs.preparation import prepare_program

STUDY = """
name = "mine"
[command]
run = ["sh", "-c", "echo loss={a}.{seed}"]
pattern = "loss=([0-9.]+)"
metric = "val_loss"
gpus = 0
[search]
a = [1, 2]
"""
BECAUSE = "the trials of study 'mine' are programs ([command]), which bring their own model and data"


@pytest.fixture(autouse=True)
def _in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(STUDY)


@pytest.fixture
def storage(tables_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HPSEARCH_STORAGE", tables_url)
    return tables_url


@pytest.fixture
def searched(storage: str, database: Database) -> Database:
    """The study with its points complete, though no program has run."""
    prepare_program(database, load_definition(Path("mine.toml")), Path.cwd())
    ledger = Ledger(database=database, study_id=load_study(database, "mine").study_id, owner=1)
    for claim in ledger.claim(2):
        values = {"epochs": 0, "best_epoch": 0, "stop_reason": "finished"}
        result = Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=float(claim.number), attributes=values)
        assert ledger.finish([result])
    return database


@pytest.mark.parametrize(
    ("arguments", "what", "hint"),
    [
        ("test mine", "there is no test set to open", "hpsearch export"),
        ("export mine --model a.safetensors", "a.safetensors: there is no model to write", "hpsearch.trial.folder()"),
        ("export mine -o b.json --model a.safetensors", "there is no model to write", "hpsearch.trial.folder()"),
        ("data describe mine.toml", "mine.toml: there is no data to describe", "name a data set"),
    ],
)
def test_what_needs_own_networks_is_refused_and_writes_nothing(
    searched: Database, capsys: pytest.CaptureFixture[str], arguments: str, what: str, hint: str
) -> None:
    before = sorted(Path.cwd().rglob("*.json")) + sorted(Path.cwd().rglob("*.safetensors"))
    assert run_command_line(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{what}: {BECAUSE}\n" in err
    assert hint in err.rpartition("hint: ")[2]
    assert sorted(Path.cwd().rglob("*.json")) + sorted(Path.cwd().rglob("*.safetensors")) == before


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("data.dataset=digits", "data cannot be combined with [command]: the program reads its own data"),
        ("model.family=mlp", "model cannot be combined with [command]: the program brings its own model"),
        ("training.max_epochs=3", "training cannot be combined with [command]: the program trains by itself"),
    ],
)
def test_settings_of_networks_are_refused_and_create_nothing(
    storage: str, database: Database, capsys: pytest.CaptureFixture[str], setting: str, why: str
) -> None:
    assert run_command_line(["create", "mine.toml", "--set", setting]) == 2
    assert why in capsys.readouterr().err
    assert study_names(database) == []


def test_a_higher_max_steps_is_refused_with_the_reason(searched: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["create", "mine.toml", "--set", "command.max_steps=5"]) == 2
    assert "(a program that was ended there cannot go on)" in capsys.readouterr().err


def test_how_programs_are_run_may_change(searched: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["create", "mine.toml", "--set", "command.max_attempts=5"]) == 0
    assert "command.max_attempts: 3 in the study, 5 given" in capsys.readouterr().out


def test_confirm_asks_for_consent_and_creates_nothing(searched: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["confirm", "mine"]) == 2
    told = capsys.readouterr().err
    assert "study 'mine' runs a program on this machine, which nobody has allowed: sh -c 'echo loss={a}.{seed}'" in told
    assert "hint: hpsearch confirm mine --commands" in told
    assert study_names(searched) == ["mine"]


def test_confirm_runs_the_program_over_fresh_seeds(searched: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["confirm", "mine", "--seeds", "2", "--commands", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert "at once" in err
    assert document["points"]["complete"] == 4
    assert [each["params"] for each in document["configurations"]] == [{"a": 1}, {"a": 2}]
    assert 1.0 < document["configurations"][0]["mean"] < 2.0 < document["configurations"][1]["mean"]


def test_confirm_warns_of_a_command_that_does_not_name_its_seed(
    storage: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.toml").write_text(STUDY.replace(".{seed}", ""))
    assert run_command_line(["run", "mine.toml"]) == 0
    capsys.readouterr()
    assert run_command_line(["confirm", "mine", "--seeds", "2", "--commands"]) == 0
    out, err = capsys.readouterr()
    assert "the command has no {seed}: the program must take its seed from hpsearch.trial.seed()" in err
    assert "note: the seed had no effect here" in out


@pytest.mark.parametrize(
    "call",
    [
        lambda study: study.best_parameters(),
        lambda study: study.predictor(),
        lambda study: study.predict([[0.0]]),
        lambda study: study.pictures(),
        lambda study: study.export("a.safetensors"),
        lambda study: hpsearch.objective("mine.toml"),
    ],
    ids=["best_parameters", "predictor", "predict", "pictures", "export", "objective"],
)
def test_the_api_refuses_what_needs_own_networks(
    searched: Database, storage: str, call: Callable[[Study], object]
) -> None:
    with pytest.raises(InputError, match="the trials of study 'mine' are programs") as caught:
        call(hpsearch.load("mine", storage))
    assert caught.value.hint


def test_the_api_reads_a_study_of_programs(searched: Database, storage: str) -> None:
    with hpsearch.load("mine", storage) as study:
        assert study.best.point_parameters == {"a": 1}
        assert list(study.trials_dataframe()["a"]) == [1, 2]
        assert list(study.curves_dataframe().columns[:4]) == ["number", "point", "epoch", "value"]
        assert study.optuna_study().best_params == {"a": 1}


def test_confirm_tells_of_a_wrong_device_before_it_asks_the_database(capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    assert run_command_line(["confirm", "mine", "--device", "gpu7", "--storage", nowhere]) == 2
    assert "unknown device 'gpu7'" in capsys.readouterr().err


def test_run_creates_no_study_whose_program_cannot_start_here(
    storage: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once it was created, the study could not be given another command."""
    text = STUDY.replace('["sh", "-c", "echo loss={a}.{seed}"]', '["{python}", "trane.py", "{a}"]')
    Path("mine.toml").write_text(text)
    assert run_command_line(["run", "mine.toml"]) == 3
    assert "there is no script trane.py" in capsys.readouterr().err
    assert study_names(database) == []
    Path("train.py").write_text("print('loss=0.5')")
    Path("mine.toml").write_text(text.replace("trane", "train"))
    assert run_command_line(["run", "mine.toml"]) == 0
