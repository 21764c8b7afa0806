"""What "significance" saves and loses against DLT's 0.995: both rules replayed over the same recorded curves.

    python -m benchmarks.patience_rules [TABLE.npz ...]

A table holds one seed's curves of a whole grid, every epoch validated, none stopped early: `err` and `nll` [points,
epochs]; `bits` [points, epochs, bytes], which of the 10,000 validation images were right (numpy.packbits); `lrs` and
`l2s`, whose product the points are. Every rule sees the same numbers, so that differences are between rules only.
Epochs that were not recorded cannot be replayed: how often a rule would have gone on is told.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurement import RESULTS, Measurement, machine, run_script, say, write_result
from benchmarks.recorded_trials import RECORDED
from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.search.significance import discordant, is_significant_gain
from hpsearch.search.stopping import GeometricPatience, SignificancePatience, StoppingRule, StopReason, decide

NUM_IMAGES = 10_000
NUM_MINIBATCHES = 1000  # per epoch: 20,000 training images in minibatches of 20
INCREASE = 2.0
PATIENCES = (2000, 5000)  # minibatches: 2 and 5 epochs
NUM_RESAMPLES = 2000
GOOD_MARGIN = 0.01  # the good region: points whose error is at most so much above the best point's

Reference = Literal["last best", "last significant best"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A rule.

    Args:
        level: of significance; None: a new best counts if it is below `threshold` of the last.
    """

    name: str
    threshold: float = 0.995
    level: float | None = None
    reference: Reference = "last significant best"

    def rule(self, patience: int) -> StoppingRule:
        limit, every = float(patience), NUM_MINIBATCHES
        if self.level is None:
            return GeometricPatience(
                patience=limit, increase=INCREASE, threshold=self.threshold, validations_every=every
            )
        return SignificancePatience(patience=limit, increase=INCREASE, level=self.level, validations_every=every)


BASELINE = Contender(name="0.995 of the last best (DLT)")
CONTENDERS = (
    BASELINE,
    Contender(name="any new best", threshold=1.0),
    *(Contender(name=f"{threshold} of the last best", threshold=threshold) for threshold in (0.99, 0.98, 0.97)),
    *(
        Contender(name=f"significance {level:g}, against the {reference}", level=level, reference=reference)
        for level in (0.05, 0.01)
        for reference in ("last best", "last significant best")
    ),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """One seed's recorded curves. Diverged points are those with a loss that is not finite."""

    errors: Floats  # [points, epochs]
    nlls: Floats
    bits: NDArray[np.uint8]  # [points, epochs, bytes]

    @classmethod
    def read(cls, path: Path) -> Self:
        with np.load(path) as file:
            return cls(errors=file["err"], nlls=file["nll"], bits=file["bits"])

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(self.nlls).all(axis=1))


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What became of all points under one rule, seed by seed: [seeds, points] each."""

    epochs: Floats
    errors: Floats  # of the best epoch; validation, as a fraction
    is_cut: Floats  # 1 where the record ended before the trial did


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    before = machine()
    tables = [Table.read(path) for path in options.tables or sorted(RECORDED.glob("table_*.npz"))]
    finite = np.all([table.is_finite for table in tables], axis=0)
    best_errors = np.mean([table.errors.min(axis=1) for table in tables], axis=0)
    good = finite & (best_errors <= best_errors[finite].min() + GOOD_MARGIN)
    say(f"{len(tables)} seeds, {len(finite)} points: {finite.sum()} stay finite, {good.sum()} are good")
    measurements: list[Measurement] = []
    for patience in PATIENCES:
        outcomes = {each.name: _replay_all(each, tables, patience) for each in CONTENDERS}
        for region, points in (("all finite points", finite), ("good points", good)):
            print(f"\n### Patience {patience}, {region} ({points.sum()} points, {len(tables)} seeds)\n")
            for line in _markdown(outcomes, points):
                print(line)
            measurements += _measurements(outcomes, points, f"patience {patience}, {region}")
    write_result(
        options.output,
        title="Patience that grows with significant improvements, against DLT's 0.995",
        machine=before,
        settings={
            "seeds": len(tables),
            "points": len(finite),
            "finite_points": int(finite.sum()),
            "good_points": int(good.sum()),
            "good_margin": GOOD_MARGIN,
            "epochs": tables[0].errors.shape[1],
            "minibatches_per_epoch": NUM_MINIBATCHES,
            "patience_increase": INCREASE,
            "resamples": NUM_RESAMPLES,
        },
        measurements=measurements,
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.patience_rules", description=__doc__)
    parser.add_argument(
        "tables", type=Path, nargs="*", metavar="TABLE.npz", help=f"one per seed (default: those of {RECORDED})"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "patience_rules.json")
    return parser.parse_args(arguments)


def _replay_all(contender: Contender, tables: Iterable[Table], patience: int) -> Outcomes:
    rows = [[replay(contender, table, point, patience) for point in range(len(table.errors))] for table in tables]
    columns = np.array(rows, dtype=np.float64)
    return Outcomes(epochs=columns[..., 0], errors=columns[..., 1], is_cut=columns[..., 2])


def replay(contender: Contender, table: Table, point: int, patience: int) -> tuple[int, float, bool]:
    """Epochs trained, the best error, and whether the record ended before the trial did."""
    rule = contender.rule(patience)
    num_epochs = table.errors.shape[1]
    reference = bytes(table.bits.shape[-1])
    for epoch in range(1, num_epochs + 1):
        bits = table.bits[point, epoch - 1].tobytes()
        gained, lost = discordant(bits, reference)
        zero_one = float(table.errors[point, epoch - 1])
        validation = Validation(
            iteration=epoch * NUM_MINIBATCHES,
            loss=zero_one,
            nll=float(table.nlls[point, epoch - 1]),
            gained=gained,
            lost=lost,
        )
        best = rule.best
        is_new_best = best is None or zero_one < best.loss
        report = EpochReport(epoch=epoch, validations=(validation,), train_nll=0.0, learning_rate=1.0, seconds=0.0)
        decision = decide(rule, report, num_epochs)
        is_moved = contender.level is not None and (
            contender.reference == "last best" or best is None or is_significant_gain(gained, lost, contender.level)
        )
        if is_new_best and is_moved:
            reference = bits
        if decision is not None:
            best_error = zero_one if rule.best is None else rule.best.loss
            return epoch, best_error, decision.reason is StopReason.MAX_EPOCHS
    raise AssertionError("the last epoch ends every trial")


def _markdown(outcomes: dict[str, Outcomes], points: NDArray[np.bool_]) -> Iterable[str]:
    """One row per rule: epochs, error, and both against the baseline, with 95 % intervals."""
    yield "| rule | epochs per trial | epochs saved | error | error lost | best of the study | cut by the record |"
    yield "|---|---|---|---|---|---|---|"
    base = outcomes[BASELINE.name]
    for name, one in outcomes.items():
        saved, lost = _saved(base, one, points), _lost(base, one, points)
        best = one.errors[:, points].min(axis=1).mean()
        cut = one.is_cut[:, points].mean()
        epochs, error = one.epochs[:, points].mean(), one.errors[:, points].mean()
        is_base = one is base
        yield (
            f"| {name} | {epochs:.1f} | {'' if is_base else _interval(saved, '%', 100)} | {error:.2%} "
            f"| {'' if is_base else _interval(lost, 'points', 100)} | {best:.2%} | {cut:.0%} |"
        )


def _interval(resampled: tuple[float, Floats], unit: str, scale: float) -> str:
    value, values = resampled
    low, high = np.quantile(values, [0.025, 0.975])
    return f"{value * scale:.2f} ({low * scale:.2f} to {high * scale:.2f}) {unit}"


def _saved(base: Outcomes, one: Outcomes, points: NDArray[np.bool_]) -> tuple[float, Floats]:
    """The fraction of the baseline's epochs that the rule saves."""

    def saved(seeds: NDArray[np.int64], some: NDArray[np.int64]) -> float:
        cells = np.ix_(seeds, some)
        return float(1 - one.epochs[cells].sum() / base.epochs[cells].sum())

    return _resampled(saved, base, points)


def _lost(base: Outcomes, one: Outcomes, points: NDArray[np.bool_]) -> tuple[float, Floats]:
    """How much higher the validation error of the same point and seed is, on average."""

    def lost(seeds: NDArray[np.int64], some: NDArray[np.int64]) -> float:
        cells = np.ix_(seeds, some)
        return float((one.errors[cells] - base.errors[cells]).mean())

    return _resampled(lost, base, points)


def _resampled(
    statistic: Callable[[NDArray[np.int64], NDArray[np.int64]], float], base: Outcomes, points: NDArray[np.bool_]
) -> tuple[float, Floats]:
    """The statistic, and what it is for seeds and points drawn with replacement: both might have been others."""
    generator = np.random.default_rng(0)
    seeds, some = np.arange(len(base.epochs)), np.flatnonzero(points)
    values = [
        statistic(generator.choice(seeds, len(seeds)), generator.choice(some, len(some))) for _ in range(NUM_RESAMPLES)
    ]
    return statistic(seeds, some), np.array(values)


def _measurements(outcomes: dict[str, Outcomes], points: NDArray[np.bool_], where: str) -> list[Measurement]:
    """Seed by seed, for the record."""
    base = outcomes[BASELINE.name]
    measurements = []
    for name, one in outcomes.items():
        columns = {
            ("epochs per trial", "epochs"): one.epochs[:, points].mean(axis=1),
            ("epochs saved", "fraction"): 1 - one.epochs[:, points].sum(axis=1) / base.epochs[:, points].sum(axis=1),
            ("error lost", "fraction"): (one.errors - base.errors)[:, points].mean(axis=1),
            ("error of the study's best", "fraction"): one.errors[:, points].min(axis=1),
            ("trials cut by the record", "fraction"): one.is_cut[:, points].mean(axis=1),
        }
        measurements += [
            Measurement(name=f"{where}: {name}: {what}", unit=unit, values=tuple(map(float, values)))
            for (what, unit), values in columns.items()
        ]
    return measurements


if __name__ == "__main__":
    run_script(main)
