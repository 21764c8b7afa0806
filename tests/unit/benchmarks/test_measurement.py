"""Rounds in turns, ratios within a round, and results that say what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import measurement
from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_measurements,
    ratio,
    run_script,
    write_result,
)
from hpsearch.errors import ArtifactError, InputError


def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    calls: list[str] = []

    def contender(name: str) -> Callable[[], float]:
        def run() -> float:
            calls.append(name)
            return float(len(calls))

        return run

    values = interleave({name: contender(name) for name in "abc"}, 3)
    assert [sorted(calls[start : start + 3]) for start in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert set(calls[3::3]) == {"a", "b", "c"}  # each comes first once
    assert {name: len(seen) for name, seen in values.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(min(seen) for seen in values.values()) == 4


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine became twice as slow in the second round: the ratio has not changed.
    assert ratio("b over a", of=[3.0, 6.0], over=[1.0, 2.0]).values == (3.0, 3.0)


def test_a_measurement_shows_its_median_its_spread_and_whether_the_goal_is_reached() -> None:
    reached = Measurement(name="speed", unit="x", values=(2.0, 4.0, 3.0), at_least=3.0)
    assert (reached.median, reached.is_reached) == (3.0, True)
    assert reached.spread == pytest.approx(2 / 3)
    assert Measurement(name="speed", unit="x", values=(2.9,), at_least=3.0).is_reached is False
    assert Measurement(name="speed", unit="x", values=(2.9,)).is_reached is None


def test_a_missed_goal_shows_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_measurements("Speed [1]", [Measurement(name="of [lanes]", unit="x", values=(2.0,), at_least=2.5)])
    title, _, row = capsys.readouterr().out.splitlines()[:3]
    assert title.strip() == "Speed [1]"
    assert row.split() == ["of", "[lanes]", "x", "2", "2", "2", "0%", "1", "at", "least", "2.5:", "NO"]


def test_a_result_says_where_when_and_with_what_it_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speed.json"
    speed = Measurement(name="speed", unit="x", values=(2.0, 4.0))
    settings = {"lanes": 8, "study": str(RESULTS / "study.toml")}
    write_result(path, title="Speed", machine=machine(), settings=settings, measurements=[speed])
    result = json.loads(path.read_text())
    assert result["settings"] == {"lanes": 8, "study": "benchmarks/results/study.toml"}
    assert result["benchmark"] == "speed"
    assert {"date", "commit", "processor", "cores", "load_average", "versions"} <= result["machine"].keys()
    assert {"hpsearch", "torch", "optuna"} <= result["machine"]["versions"].keys()
    (written,) = result["measurements"]
    assert (written["median"], written["n"], written["values"]) == (3.0, 2, [2.0, 4.0])


def test_outside_of_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_REPOSITORY", tmp_path)
    assert machine()["commit"] is None


def test_a_result_that_is_no_number_is_not_written(tmp_path: Path) -> None:
    broken = Measurement(name="speed", unit="x", values=(math.nan,))
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path / "speed.json", title="Speed", machine={}, settings={}, measurements=[broken])
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot make the folder"):
        write_result(tmp_path / "file" / "speed.json", title="Speed", machine={}, settings={})


def test_an_error_of_ours_ends_a_script_with_its_code_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise InputError("no such contender", hint="choose another")

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    assert ended.value.code == InputError.exit_code
    assert capsys.readouterr().err == "error: no such contender\nhint: choose another\n"
