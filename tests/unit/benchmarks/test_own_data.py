"""The comparison on data of one's own: losses, tables, and what is not run again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import own_data
from benchmarks.own_data import main, of_task, read_lines, tables
from benchmarks.own_data_cases import TASKS
from benchmarks.own_data_splits import rows_of, write_study
from hpsearch.study.study_file import load_definition

OPTIONS = argparse.Namespace(points=40)


def line(task: str, split: int, ours: float, theirs: float, points: int = 40) -> dict[str, Any]:
    (found,) = [one for one in TASKS if one.name == task]
    sides = {"hpsearch": ours, "contender": theirs, "boosting": theirs}
    results = {
        side: {"test": value, "seconds": 100.0, "cpu_seconds": 70.0, "epochs": 9} for side, value in sides.items()
    }
    return {"task": task, "split": split, "settings": found.checksum(points), "load": 0.5, **results}


def test_an_auc_of_hpsearch_becomes_a_loss_and_other_values_stay() -> None:
    text = "\n".join(tables([line("titanic-auc", 0, 0.9, 0.2), line("titanic", 0, 0.1, 0.2)], OPTIONS))
    assert "| titanic, 1 - AUC | 1 | 0.1000 | 0.2000 |" in text
    assert "| titanic, zero-one error | 1 | 10.00 % | 20.00 % |" in text


def test_differences_are_parts_of_the_contenders_mean_loss() -> None:
    lines = [line("housing", split, 51_000, 50_000) for split in range(3)]
    text = "\n".join(tables(lines, OPTIONS))
    assert "| housing, RMSE in dollars | +2.0 (+2.0 to +2.0) % | no | worse |" in text
    assert "| housing | 9 | 70 | 100 | 9 | 70 | 100 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |" in text


def test_results_of_other_settings_are_not_mixed() -> None:
    (housing,) = [task for task in TASKS if task.name == "housing"]
    lines = [line("housing", 1, 1, 1), line("housing", 0, 2, 2), line("housing", 2, 3, 3, points=5)]
    assert [one["split"] for one in of_task(lines, housing, 40)] == [0, 1]


def test_splits_that_are_there_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[int] = []

    def run_split(task: object, split: int, *_: object, num_points: int) -> dict[str, Any]:
        run.append(split)
        return {side: line("cancer", split, 0.03, 0.04)[side] for side in ("hpsearch", "contender", "boosting")}

    monkeypatch.setattr(own_data, "run_split", run_split)
    output = tmp_path / "result.json"
    output.with_suffix(".jsonl").write_text(json.dumps(line("cancer", 0, 0.03, 0.04, points=2)) + "\n")
    arguments = ["--only", "cancer", "--points", "2", "--output", str(output), "--splits"]
    main([*arguments, "2"])
    main([*arguments, "3"])
    assert run == [1, 2]
    assert len(read_lines(output.with_suffix(".jsonl"))) == 3
    result = json.loads(output.read_text())
    assert result["details"]["cancer"]["less contender"]["difference"] == pytest.approx(-0.01)


@pytest.mark.parametrize("split", [0, 7])
def test_both_sides_get_the_same_rows(split: int, tmp_path: Path) -> None:
    """The rows are drawn from what the contender reads; `rows_of` compares their checksum with hpsearch's record."""
    (cancer,) = [task for task in TASKS if task.name == "cancer"]
    rows, record = rows_of(cancer, write_study(tmp_path, cancer.study(split, 2)), tmp_path)
    assert (len(rows.train), len(rows.validation), len(rows.test)) == (284, 114, 171)
    assert len(record["preparation"]["features"]) == 30


def test_the_studies_are_study_files(tmp_path: Path) -> None:
    for task in TASKS:
        definition = load_definition(write_study(tmp_path, task.study(3, 40)))
        assert (definition.num_points, definition.data.split_seed) == (40, 3)
