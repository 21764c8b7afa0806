"""Batch sizes are compared with the data before anything that takes time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpsearch.checks.batch_sizes import check_batch_sizes
from hpsearch.checks.finding import Verdict
from hpsearch.checks.isolation import ModelProcess
from hpsearch.checks.suite import check_study
from hpsearch.data.splits import SelectionData
from hpsearch.study.definition import StudyDefinition

Define = Callable[..., StudyDefinition]
IMAGE_BYTES = 4 * 784 + 8


@pytest.mark.parametrize(
    ("sections", "found", "fix"),
    [
        (
            {"training": {"batch_size": 5000}},
            "training.batch_size must be in 1..1285 (the training images), got 5000",
            "batch_size = 128  # in [training]",
        ),
        (
            {"search": {"learning_rate": [0.1], "batch_size": [20, 5000, 50]}},
            "training.batch_size must be in 1..1285 (the training images), got 5000",
            "batch_size = [20, 50]  # in [search]",
        ),
        (
            {"search": {"learning_rate": [0.1], "batch_size": [2000, 5000]}},
            "training.batch_size must be in 1..1285 (the training images), got 2000",
            "batch_size = [128]  # in [search]",
        ),
        (
            {"search": {"strategy": "listed", "points": [{"batch_size": 20}, {"batch_size": 5000}]}},
            "training.batch_size must be in 1..1285 (the training images), got 5000",
            "",
        ),
        (
            {"data": {"dataset": "digits", "max_resident_bytes": 10 * IMAGE_BYTES}},
            "data.max_resident_bytes = 31440 holds 10 training images of 3144 bytes, but a minibatch has 20",
            f"max_resident_bytes = {20 * IMAGE_BYTES}  # in [data]",
        ),
    ],
)
def test_points_that_run_would_refuse_fail(
    sections: dict[str, Any], found: str, fix: str, define: Define, digits: SelectionData
) -> None:
    finding = check_batch_sizes(define(**sections), digits)
    assert (finding.verdict, finding.found, finding.fix) == (Verdict.FAILED, found, fix)


def test_batch_sizes_that_fit_pass(define: Define, digits: SelectionData) -> None:
    study = define(
        data={"dataset": "digits", "max_resident_bytes": 1285 * IMAGE_BYTES},
        search={"learning_rate": [0.1], "batch_size": [1, 1285]},
    )
    finding = check_batch_sizes(study, digits)
    assert (finding.verdict, finding.found) == (
        Verdict.PASSED,
        "2 batch sizes of at most 1,285 among 1,285 training images",
    )


def test_they_come_first_so_that_no_limit_of_time_skips_them(
    define: Define, digits: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelProcess, "findings", lambda self, deadline: iter(()))
    report = check_study(define(), lambda: digits, version="1", seconds=1e-9)
    checks = [finding.check for finding in report.findings]
    assert checks[0] == "batch sizes"
    assert checks[-1] == "near duplicates"
    assert Verdict.SKIPPED not in {finding.verdict for finding in report.findings}
