"""Trials of a fine grid that were really trained once, and can be looked up instead of trained again.

A file table_SEED.npz has, for every point of learning rate times lambda_2 (which varies fastest) and every epoch, the
validation error `err` and NLL `nll` [points, epochs] and the packed correctness of all validation images `bits`
[points, epochs, bytes]; `lrs` and `l2s` are the values. All trials were trained to the last epoch: where a stopping
rule would have ended them is replayed here.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import InputError
from hpsearch.search.narrowing.closed_round import KnownPoint
from hpsearch.search.stopping import StopReason, decide, stopping_rule
from hpsearch.study.settings import StoppingSettings
from hpsearch.study.space import ParameterValue, Point, rounded

RECORDED = Path(__file__).parent / "recorded"  # five seeds of a fine grid on MNIST; record_trials.py makes them
CHANCE_ERROR = 0.9  # what a trial that diverges is worth with another seed

Cell = tuple[float, float]  # learning rate, lambda_2


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One trial as its stopping rule would have left it.

    Args:
        known: the point, its best validation error, and as key the packed correctness at its best.
        epochs: trained until the rule stopped it.
    """

    known: KnownPoint
    epochs: int


@dataclass(frozen=True, kw_only=True)
class RecordedTrials:
    """All points with one seed."""

    seed: int
    cells: Mapping[Cell, Recorded]

    @property
    def learning_rates(self) -> list[float]:
        return sorted({rate for rate, _ in self.cells})

    def has(self, point: Point) -> bool:
        return _cell(point) in self.cells

    def nearest(self, point: Point) -> Recorded:
        """The cell at the point, or the nearest on the logarithmic scales; zero is near to zero alone."""
        rate, weight = _cell(point)
        weights = [other for _, other in self.cells if (other == 0) == (weight == 0)]
        return self.cells[
            min(self.learning_rates, key=lambda other: _decades(other, rate)),
            min(weights, key=lambda other: _decades(other, weight)),
        ]


def read_tables(folder: Path, stopping: StoppingSettings, num_minibatches: int) -> list[RecordedTrials]:
    """All tables of a folder, by seed.

    Args:
        num_minibatches: of an epoch.
    Raises:
        InputError: fewer than two tables: a choice is judged by other seeds than its own.
    """
    paths = sorted(folder.glob("table_*.npz"))
    if len(paths) < 2:
        raise InputError(f"{folder} has {len(paths)} files table_SEED.npz, expected at least 2")
    return [_read(path, stopping, num_minibatches) for path in paths]


def worth(cell: Point, tables: Sequence[RecordedTrials], *, without_seed: int) -> float:
    """The mean error of a cell's trials with the other seeds."""
    others = [table.nearest(cell).known.value for table in tables if table.seed != without_seed]
    return statistics.mean(CHANCE_ERROR if value is None else value for value in others)


def _read(path: Path, stopping: StoppingSettings, num_minibatches: int) -> RecordedTrials:
    with np.load(path) as table:
        errors, nlls, bits = table["err"], table["nll"], table["bits"]
        cells = list(itertools.product(map(_float, table["lrs"]), map(_float, table["l2s"])))
    recorded = {
        cell: _replayed(cell, errors[i], nlls[i], bits[i], stopping, num_minibatches) for i, cell in enumerate(cells)
    }
    return RecordedTrials(seed=int(path.stem.removeprefix("table_")), cells=recorded)


def _replayed(
    cell: Cell, errors: Any, nlls: Any, bits: Any, stopping: StoppingSettings, num_minibatches: int
) -> Recorded:
    point: dict[str, ParameterValue] = {"learning_rate": cell[0], "lambda_2": cell[1]}
    rule = stopping_rule(stopping, num_minibatches=num_minibatches)
    epoch, decision = 0, None
    while decision is None:
        epoch += 1
        validation = Validation(
            iteration=epoch * num_minibatches, loss=float(errors[epoch - 1]), nll=float(nlls[epoch - 1])
        )
        report = EpochReport(
            epoch=epoch, validations=(validation,), train_nll=validation.nll, learning_rate=cell[0], seconds=0.0
        )
        decision = decide(rule, report, len(errors))
    if decision.reason is StopReason.DIVERGED or rule.best is None:
        return Recorded(known=KnownPoint(point, None), epochs=epoch)
    best_epoch = rule.best.iteration // num_minibatches
    key = bits[best_epoch - 1].tobytes()
    return Recorded(known=KnownPoint(point, rule.best.loss, rule.best.nll, key), epochs=epoch)


def _cell(point: Point) -> Cell:
    return _float(point["learning_rate"]), _float(point["lambda_2"])


def _float(value: Any) -> float:
    return rounded(float(value))


def _decades(a: float, b: float) -> float:
    return abs(math.log10(a) - math.log10(b)) if a > 0 and b > 0 else abs(a - b)
