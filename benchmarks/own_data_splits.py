"""One split of one task: hpsearch and its contenders as processes, on the same rows, one after the other."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import tomli_w

from benchmarks.own_data_cases import Task
from benchmarks.scratch import scratch_folder
from benchmarks.whole_study import environment_of, run_program
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.split_rows import SplitRows, draw_split
from hpsearch.errors import HpsearchError
from hpsearch.study.study_file import load_definition

SIDES: Final = ("hpsearch", "contender")
LIMIT_SECONDS: Final = 4 * 3600.0  # of one program


def run_split(task: Task, split: int, datasets: Path, *, num_points: int) -> dict[str, Any]:
    """Both searches on one split, the first one in turns; boosting stands beside.

    Raises:
        HpsearchError: a program failed, or the sides would have got different rows or columns.
    """
    with scratch_folder() as folder:
        study_file = write_study(folder, task.study(split, num_points))
        request = folder / "request.json"
        request.write_text(json.dumps(request_of(task, split, study_file, datasets, num_points)))
        runs = {
            "hpsearch": lambda: run_hpsearch(study_file, datasets),
            "contender": lambda: run_contender(request, folder),
        }
        turn = split % len(SIDES)
        found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
        for side in (*SIDES[turn:], *SIDES[:turn]):
            found[side] = runs[side]()
        found["boosting"] = run_contender(request, folder, "--boosting")
    return found


def write_study(folder: Path, document: Mapping[str, Any]) -> Path:
    path = folder / "study.toml"
    path.write_text(tomli_w.dumps(document))
    return path


def request_of(task: Task, split: int, study_file: Path, datasets: Path, num_points: int) -> dict[str, Any]:
    """What the contender is told: the file, the columns, and the rows of each part.

    Raises:
        HpsearchError: hpsearch chose other columns, or its record has another split.
    """
    file = None if task.file_name is None else datasets / task.file_name
    rows, record = rows_of(task, study_file, datasets)
    features = [one["name"] for one in record["preparation"]["features"]]
    if task.columns is not None and sorted(features) != sorted(task.columns):
        raise HpsearchError(f"{task.name}: hpsearch trains on {', '.join(features)}, not on {', '.join(task.columns)}")
    return {
        "file": None if file is None else str(file),
        "target": task.target,
        "columns": task.columns,
        "metric": task.metric,
        "rows": {part: getattr(rows, part).tolist() for part in ("train", "validation", "test")}
        | {"train": rows.train[: task.data.get("train_samples")].tolist()},
        "space": task.space(),
        "num_trials": num_points,
        "seed": split,
    }


def rows_of(task: Task, study_file: Path, datasets: Path) -> tuple[SplitRows, Mapping[str, Any]]:
    """The rows of each part, drawn from what pandas reads, and hpsearch's record, whose split has the same checksum."""
    settings = load_definition(study_file).data
    with scratch_folder() as cache:
        data = load_selection_data(settings, locations=DataLocations(local=datasets, cache=cache))
    if task.file_name is None:
        from sklearn.datasets import load_breast_cancer  # here: it takes a second

        target, groups = np.asarray(load_breast_cancer().target), None
        target = 1 - target  # hpsearch numbers the classes by name: benign, malignant
    else:
        frame = pd.read_csv(datasets / task.file_name)
        target = frame[task.target].to_numpy()
        groups = None if settings.group is None else frame[settings.group].to_numpy()
    assert not isinstance(settings.validation, str)
    assert not isinstance(settings.test, str)
    rows = draw_split(
        len(target),
        validation=settings.validation,
        test=settings.test,
        seed=settings.split_seed,
        source=task.name,
        classes=None if task.is_regression else target.astype(np.int64),
        groups=groups,
    )
    if rows.sha256 != data.record["split"]["sha256"]:
        raise HpsearchError(f"{task.name}: the contender would get other rows than hpsearch")
    return rows, data.record


def run_hpsearch(study_file: Path, data_folder: Path) -> dict[str, Any]:
    """`hpsearch run` and `hpsearch test`, in a home of their own. Time counts from the start of `run` to its end."""
    with scratch_folder() as home:
        environment = {
            **environment_of(home),
            "HPSEARCH_DATA": str(data_folder),
            "XDG_CACHE_HOME": str(home / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "hpsearch"]
        output, times = timed(
            "hpsearch run", [*command, "run", str(study_file), "--json", "--device", "cpu"], environment
        )
        summary = json.loads(output)
        output = run_program(
            "hpsearch test", [*command, "test", summary["name"], "--json", "--device", "cpu"], environment
        )
    opening = json.loads(output)
    return {
        "validation": summary["best"]["value"],
        "test": opening["test_value"],
        "rows": opening["num_images"],
        "params": summary["best"]["params"],
        "best_epoch": summary["best"]["best_epoch"],
        "epochs": summary["epochs"],
        "points": summary["points"],
        "verdicts": summary["verdicts"],
        **times,
    }


def run_contender(request: Path, folder: Path, *options: str) -> dict[str, Any]:
    """`usual_sklearn`, from the start of the process to its end."""
    command = [sys.executable, "-m", "benchmarks.usual_sklearn", str(request), *options]
    environment = {**environment_of(folder), "OMP_NUM_THREADS": "1"}
    output, times = timed("the contender", command, environment)
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return {**found, **times}


def timed(name: str, command: Sequence[str], environment: dict[str, str]) -> tuple[str, dict[str, float]]:
    """What a program wrote, and its times: wall, and processor time with its children's (not of a database server).

    Raises:
        HpsearchError: it failed.
    """
    before, started = _children_seconds(), time.perf_counter()
    output = run_program(name, command, environment, limit_seconds=LIMIT_SECONDS)
    wall = time.perf_counter() - started
    return output, {"seconds": round(wall, 2), "cpu_seconds": round(_children_seconds() - before, 2)}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
