"""What `hpsearch data describe` tells about a data set: examples, classes, parts, memory, and what would be trained.

Of the test part nothing is told but its size, where that is known without reading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.example_shape import ExampleShape, is_image, num_inputs, shape_text
from hpsearch.data.splits import SelectionData
from hpsearch.search.proportions import wilson_interval

TYPICAL_ERROR: Final = 0.05
NUM_ROWS: Final = 5  # first rows of a table
MOST_INPUTS: Final = 12  # of a row that is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCount:
    """How often one class occurs."""

    name: str
    train: int
    validation: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorInterval:
    """The 95 % interval (Wilson) of an error rate that is measured on the validation examples.

    Args:
        what: which error rate it is.
        error, low, high: fractions.
        num_groups: the units of the interval, if rows of one group are not independent; None: examples are.
    """

    what: str
    error: float
    low: float
    high: float
    num_groups: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DataDescription:
    """A data set as a study would use it.

    Args:
        num_test: None: not known without reading the test part.
        has_test: None: not known without looking for it.
        classes: empty in regression.
        target: mean and standard deviation of the training targets, in their own unit; None for classes.
        intervals: how exactly the validation part measures an error rate; empty in regression.
        train_bytes, validation_bytes: on the device.
        filled: columns whose missing values are filled.
        left_out: column -> why it is no input.
        first_rows: inputs of the first training examples of a table, as networks get them; empty for images.
    """

    name: str
    task: str
    example_shape: ExampleShape
    input_type: str
    lowest: float
    highest: float
    num_outputs: int
    num_train: int
    num_validation: int
    num_test: int | None
    has_test: bool | None
    classes: tuple[ClassCount, ...]
    target: Mapping[str, float] | None
    intervals: tuple[ErrorInterval, ...]
    train_bytes: int
    validation_bytes: int
    filled: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    first_rows: tuple[tuple[float, ...], ...] = ()

    @property
    def num_inputs(self) -> int:
        return num_inputs(self.example_shape)

    @property
    def examples_text(self) -> str:
        """`28x28 images`, or `13 features`."""
        return shape_text(self.example_shape) + (" images" if is_image(self.example_shape) else "")

    @property
    def test_text(self) -> str:
        """What is known of the test part."""
        if self.num_test:
            return f"{self.num_test:,}"
        return "none" if self.has_test is False else "not opened"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "num_inputs": self.num_inputs}


def describe_data(data: SelectionData) -> DataDescription:
    """Describe the training and validation parts."""
    split = data.record.get("split") or {}
    num_test = split.get("test")
    has_test = data.record.get("has_test")
    if has_test is None and num_test is not None:
        has_test = num_test > 0
    preparation = data.record.get("preparation") or {}
    features = preparation.get("features") or ()
    target = data.record.get("target") or {}
    return DataDescription(
        name=data.name,
        task="classification" if data.num_classes else "regression",
        example_shape=data.example_shape,
        input_type=str(data.train.images.dtype),
        lowest=float(data.train.images.min()),
        highest=float(data.train.images.max()),
        num_outputs=data.num_outputs,
        num_train=len(data.train),
        num_validation=len(data.validation),
        num_test=num_test or None,
        has_test=has_test,
        classes=_classes(data),
        target=None if data.num_classes else {key: target[key] for key in ("mean", "deviation") if key in target},
        intervals=_intervals(data),
        train_bytes=data.train.images.nbytes + data.train.labels.nbytes,
        validation_bytes=data.validation.images.nbytes + data.validation.labels.nbytes,
        filled=tuple(feature["name"] for feature in features if feature.get("has_indicator")),
        left_out=dict(data.record.get("left_out") or {}),
        first_rows=() if is_image(data.example_shape) else _first_rows(data.train.images),
    )


def _classes(data: SelectionData) -> tuple[ClassCount, ...]:
    if not data.num_classes:
        return ()
    train, validation = (_counts(part.labels, data.num_classes) for part in (data.train, data.validation))
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    counted = zip(names, train.tolist(), validation.tolist(), strict=True)
    return tuple(ClassCount(name=name, train=first, validation=second) for name, first, second in counted)


def _counts(labels: NDArray[Any], num_classes: int) -> NDArray[np.int64]:
    return np.bincount(labels.astype(np.int64), minlength=num_classes)


def _intervals(data: SelectionData) -> tuple[ErrorInterval, ...]:
    """At the error of a network that names the most frequent class of training, and at a typical error."""
    if not data.num_classes:
        return ()
    num_examples = len(data.validation)
    most_frequent = int(np.argmax(_counts(data.train.labels, data.num_classes)))
    num_wrong = int((data.validation.labels != most_frequent).sum())
    cases = {"guessing the most frequent class": num_wrong, "a typical error": round(TYPICAL_ERROR * num_examples)}
    groups = data.validation.groups
    num_units = num_examples if groups is None else len(np.unique(groups))
    intervals = []
    for what, num_errors in cases.items():
        error = num_errors / num_examples
        low, high = wilson_interval(error * num_units, num_units)
        num_groups = None if groups is None else num_units
        intervals.append(ErrorInterval(what=what, error=error, low=low, high=high, num_groups=num_groups))
    return tuple(intervals)


def _first_rows(inputs: NDArray[Any]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in inputs[:NUM_ROWS, :MOST_INPUTS])
