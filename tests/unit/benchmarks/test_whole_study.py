"""A contender that does not do the whole work is no contender, and one that cannot start is told before."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks.usual_study import StudyResult
from benchmarks.whole_study import CONTENDERS, Contender, available_contenders, main
from hpsearch.errors import DataError, HpsearchError, InputError


def contender(program: str) -> Contender:
    return Contender(name="one", command=[sys.executable, "-c", program], parse=StudyResult.parse, num_points=4)


def printed(num_points: int) -> str:
    content = {"num_points": num_points, "trial_epochs": 8, "best_error": 0.5, "best_point": {}}
    return f"import json; print('noise'); print(json.dumps({content}))"


def test_a_run_gives_its_seconds_and_keeps_what_it_did() -> None:
    good = contender(printed(4))
    seconds = good.run()
    assert good.runs[0][0] == seconds > 0
    assert good.runs[0][1].trial_epochs == 8


def test_points_that_were_not_counted_are_an_error() -> None:
    with pytest.raises(HpsearchError, match="one counted 3 points of 4"):
        contender(printed(3)).run()


def test_a_program_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(HpsearchError, match=r"one ended with 3:\n  no data") as failure:
        contender("import sys; sys.exit(print('no data', file=sys.stderr) or 3)").run()
    assert failure.value.exit_code == 1


def test_it_runs_in_a_home_of_its_own_without_a_database_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", "postgresql://somebody@example.org/studies")
    monkeypatch.setenv("HPSEARCH_DATA", "/data")
    check = (
        "import os, sys; home = os.environ['HPSEARCH_HOME'];"
        "assert os.listdir(home) == [] and 'HPSEARCH_STORAGE' not in os.environ;"
        "assert os.environ['HPSEARCH_DATA'] == '/data';"
    )
    contender(check + printed(4)).run()


def test_an_unknown_contender_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="no 'hyperopt'") as refusal:
        main(["--contenders", "hpsearch,hyperopt"])
    assert refusal.value.hint == "choose from hpsearch,optuna,optuna-parallel,ray"


def test_ray_cannot_be_chosen_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="ray is not installed") as refusal:
        main(["--tiny", "--contenders", "hpsearch,ray"])
    assert refusal.value.hint is not None
    assert refusal.value.hint.startswith("pip install")


def test_ray_is_left_out_loudly_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert available_contenders(None) == [name for name in CONTENDERS if name != "ray"]
    assert "Ray Tune is not installed" in capsys.readouterr().err


def test_without_mnist_nothing_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPSEARCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"HPSEARCH_DATA is .*nowhere, which is not a folder"):
        main(["--contenders", "hpsearch"])
    assert capsys.readouterr().err == ""  # no contender was started
