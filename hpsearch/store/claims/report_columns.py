"""The reports of a worker's trials as the columns of the ledger's statement RECORD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpsearch.epoch_report import EpochReport, StepReport
from hpsearch.store.rows.columns import as_columns
from hpsearch.store.rows.diagnoses import NAMES, diagnosis_values

_REPORT_NAMES = "trial_id claim previous epoch loss train_nll validation_nll learning_rate seconds " + " ".join(NAMES)


def report_columns(reports: Mapping[int, EpochReport], claim_of: Mapping[int, int]) -> dict[str, list[Any]]:
    """Return the columns of one epoch of all lanes.

    Args:
        reports: trial id -> its epoch, which has not diverged.
        claim_of: trial id -> its claim; other trials are left out.
    """
    assert not any(report.has_diverged for report in reports.values())
    rows = [
        (
            i,
            claim_of[i],
            r.epoch - 1,
            r.epoch,
            r.best.loss,
            r.train_nll,
            r.best.nll,
            r.learning_rate,
            r.seconds,
            *diagnosis_values(r.diagnosis),
        )
        for i, r in reports.items()
        if i in claim_of
    ]
    return as_columns(_REPORT_NAMES, rows)


def step_columns(
    reports: Mapping[int, Sequence[StepReport]], previous: Mapping[int, int], claim_of: Mapping[int, int]
) -> dict[str, list[Any]]:
    """Return the columns of the new reports of programs.

    Args:
        reports: trial id -> its reports, in order of steps.
        previous: trial id -> the last step that was recorded before, or 0.
        claim_of: trial id -> its claim; other trials are left out.
    """
    without = (None,) * len(NAMES)
    rows = [
        (i, claim_of[i], previous[i], r.step, r.loss, None, None, None, r.seconds, *without)
        for i, its in reports.items()
        for r in its
        if i in claim_of
    ]
    return as_columns(_REPORT_NAMES, rows)
