"""Checks of tables: constant and extreme features, a drift between the parts, equal rows, and the target's numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.checks.duplicates import SHARE_TO_WARN, exact_copies
from hpsearch.checks.finding import DATA, Finding, Verdict, line_in
from hpsearch.data.splits import SelectionData
from hpsearch.data.tables.preparation import Preparation, input_names
from hpsearch.wording import percent

CERTAIN: Final = 8.0  # a z-score beyond this is no accident: p < 1e-15
LARGEST_SHIFT: Final = 0.25  # of a feature's mean between the parts, in standard deviations
LARGEST_DEVIATIONS: Final = 50.0  # of a value from its mean: 9999 among ages, or amounts that span decades
_NUM_SHOWN: Final = 5
_BLOCK: Final = 4096  # rows


def said_of_rows(finding: Finding) -> Finding:
    """A finding of a check that was written for images, in the words for a table."""
    return replace(
        finding,
        found=_reworded(finding.found),
        expected=_reworded(finding.expected),
        look_at=tuple(map(_reworded, finding.look_at)),
    )


def check_row_values(data: SelectionData) -> Iterator[Finding]:
    """Invalid, extreme and constant features, and features whose mean differs between training and validation."""
    names = input_names(data.record) or tuple(f"input {place}" for place in range(data.example_shape[0]))
    train, validation = _Moments(data.train.floats()), _Moments(data.validation.floats())
    yield _values(data, names, train, validation)
    yield _drift(names, train, validation)


def check_targets(data: SelectionData) -> Finding:
    """Whether the targets of both parts are spread alike, in regression. They are standardised by training rows."""
    train, validation = (part.labels.astype(np.float64) for part in (data.train, data.validation))
    shift = float(validation.mean() - train.mean())
    deviations = float(train.std()), float(validation.std())
    error = max(deviations) * float(np.sqrt(1 / len(train) + 1 / len(validation)))
    target = data.record.get("target", {})
    is_shifted = abs(shift) > LARGEST_SHIFT and abs(shift) > CERTAIN * error
    unit = float(target.get("deviation", 1.0))
    return Finding(
        check="target",
        subject=DATA,
        verdict=Verdict.WARNING if is_shifted else Verdict.PASSED,
        found=(
            f"{len(train):,} training and {len(validation):,} validation rows; mean {target.get('mean', 0.0):.6g}, "
            f"standard deviation {unit:.6g}; the validation mean is {shift * unit:+.3g} from it"
        ),
        expected=f"a validation mean within {LARGEST_SHIFT:g} standard deviations",
        look_at=("validation rows of another time or place, or a target in another unit: let hpsearch draw the parts",)
        if is_shifted
        else (),
        numbers={
            "training_rows": len(train),
            "validation_rows": len(validation),
            "shift": shift,
            "training_deviation": deviations[0],
            "validation_deviation": deviations[1],
        },
    )


def row_duplicates(data: SelectionData, group: str | None) -> Finding:
    """Count the validation rows whose features are all equal to those of a training row.

    Never a failure: rows of a few categories are alike without being the same thing.

    Args:
        group: data.group, by which the rows were split already.
    """
    pairs = exact_copies(data.train.images, data.validation.images)
    others = sum(int(data.train.labels[t] != data.validation.labels[v]) for t, v in pairs)
    share = len(pairs) / max(1, len(data.validation))
    differing = f", {others:,} of them with another target" if others else ""
    is_much = share > SHARE_TO_WARN
    return Finding(
        check="duplicates",
        subject=DATA,
        verdict=Verdict.WARNING if is_much else Verdict.PASSED,
        found=f"{len(pairs):,} of {len(data.validation):,} validation rows: features equal a training row's{differing}",
        expected=f"at most {percent(SHARE_TO_WARN)}, unless rows of different things may be equal",
        look_at=(_several_rows(group),) if is_much else (),
        numbers={"pairs": len(pairs), "looked_at": len(data.validation), "share": share},
    )


def _several_rows(group: str | None) -> str:
    if group is None:
        return (
            "things that have several rows: name a column that they share in data.group, which keeps them in one part"
        )
    return (
        f"things that have several rows with different values of {group!r}: name a column that they share in data.group"
    )


class _Moments:
    """Smallest, largest, mean and standard deviation of each input, [inputs] float64, read in blocks."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self.num_rows = len(inputs)
        self.smallest, self.largest = inputs[0].astype(np.float64), inputs[0].astype(np.float64)
        total, squares = np.zeros(inputs.shape[1]), np.zeros(inputs.shape[1])
        for start in range(0, len(inputs), _BLOCK):
            block = inputs[start : start + _BLOCK].astype(np.float64)
            np.minimum(self.smallest, block.min(axis=0), out=self.smallest)
            np.maximum(self.largest, block.max(axis=0), out=self.largest)
            total += block.sum(axis=0)
            squares += np.einsum("ij,ij->j", block, block)
        self.mean = total / len(inputs)
        self.deviation = np.sqrt(np.maximum(squares / len(inputs) - self.mean**2, 0))


def _values(data: SelectionData, names: tuple[str, ...], train: _Moments, validation: _Moments) -> Finding:
    extremes = np.maximum.reduce([np.abs(part.smallest) for part in (train, validation)])
    extremes = np.maximum.reduce([extremes, *(np.abs(part.largest) for part in (train, validation))])
    is_constant = train.smallest == train.largest
    largest = int(np.argmax(extremes))
    numbers = {
        "smallest": float(min(train.smallest.min(), validation.smallest.min())),
        "largest": float(max(train.largest.max(), validation.largest.max())),
        "constant_inputs": int(is_constant.sum()),
        "inputs": len(names),
    }

    def finding(verdict: Verdict, found: str, look_at: str = "", fix: str = "") -> Finding:
        return Finding(
            check="values",
            subject=DATA,
            verdict=verdict,
            found=found,
            expected="finite standardised features that vary",
            look_at=(look_at,) if look_at else (),
            fix=fix,
            numbers=numbers,
        )

    if not np.isfinite(extremes).all():
        return finding(
            Verdict.FAILED, "inputs that are NaN or infinite", "missing values, or a division by zero: correct the file"
        )
    if is_constant.all():
        return finding(
            Verdict.FAILED, "all training rows are the same", "columns that say nothing: name others in data.features"
        )
    told = f"{len(names):,} inputs; the largest value is {extremes[largest]:.3g} standard deviations"
    told += f", of {names[largest]!r}"
    if is_constant.any():
        constant = _constant_columns(data, names, is_constant)
        shown = ", ".join(map(repr, constant[:_NUM_SHOWN]))
        more = f" and {len(constant) - _NUM_SHOWN} more" if len(constant) > _NUM_SHOWN else ""
        found = f"{told}; always the same in training: {shown}{more}"
        return finding(
            Verdict.WARNING, found, "columns that say nothing: leave them out", line_in("data", "exclude", constant)
        )
    if extremes[largest] > LARGEST_DEVIATIONS:
        cause = "numbers that stand for missing values, such as 9999: name them in data.missing; or amounts that span "
        cause += "decades: take their logarithm"
        return finding(Verdict.WARNING, told, cause)
    return finding(Verdict.PASSED, told)


def _constant_columns(data: SelectionData, names: tuple[str, ...], is_constant: NDArray[np.bool_]) -> list[str]:
    """The columns whose inputs are all constant; otherwise the inputs."""
    document = data.record.get("preparation")
    if not document:
        return [name for name, constant in zip(names, is_constant.tolist(), strict=True) if constant]
    columns, start = [], 0
    for feature in Preparation.from_json(document).features:
        stop = start + len(feature.inputs)
        if is_constant[start:stop].all():
            columns.append(feature.name)
        start = stop
    return columns or [name for name, constant in zip(names, is_constant.tolist(), strict=True) if constant]


def _drift(names: tuple[str, ...], train: _Moments, validation: _Moments) -> Finding:
    scale = np.where(train.deviation > 0, train.deviation, 1.0)
    shifts = np.abs(validation.mean - train.mean) / scale
    spread = np.maximum(train.deviation, validation.deviation)
    errors = spread / scale * np.sqrt(1 / train.num_rows + 1 / validation.num_rows)
    is_shifted = (shifts > LARGEST_SHIFT) & (shifts > CERTAIN * errors)
    largest = int(np.argmax(np.where(is_shifted, shifts + shifts.max() + 1, shifts)))
    found = f"the means of {names[largest]!r} differ by {shifts[largest]:.2g} standard deviations, others by less"
    if is_shifted.any():
        found += f"; {int(is_shifted.sum()):,} of {len(names):,} inputs differ by more than chance"
    return Finding(
        check="likeness",
        subject=DATA,
        verdict=Verdict.WARNING if is_shifted.any() else Verdict.PASSED,
        found=found,
        expected=f"less than {LARGEST_SHIFT:g} standard deviations between training and validation",
        look_at=("validation rows of another time or place, or a column in another unit: let hpsearch draw the parts",)
        if is_shifted.any()
        else (),
        numbers={"largest_shift": float(shifts[largest]), "shifted_inputs": int(is_shifted.sum())},
    )


def _reworded(text: str) -> str:
    return text.replace("images", "rows").replace("image", "row")
