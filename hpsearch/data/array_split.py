"""From a user's checked arrays (`arrays`) to the parts of a study: rows, task, target, record and checksums.

Files of arrays and loader functions differ only in where the arrays come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.arrays import Examples
from hpsearch.data.classes import check_label_range, count_classes
from hpsearch.data.example_shape import shape_text
from hpsearch.data.prepared import checksum_of
from hpsearch.data.split_rows import SplitRows, draw_split
from hpsearch.data.splits import SelectionData, Split, limit_train_samples
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

_TARGET: Final = "target"  # in the record


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArraySplit:
    """What is known without the test part of its own.

    Args:
        source: name of the data in messages.
        own_validation: the validation part, if it is not drawn.
        rows: of `train` in each part.
        validation_rows: of `own_validation`, or of `train`, in the order of use.
        target: `SelectionData.record["target"]` of a regression; None: classification.
    """

    source: str
    train: Examples = field(repr=False)
    own_validation: Examples | None = field(repr=False)
    rows: SplitRows
    validation_rows: NDArray[np.int64] = field(repr=False)
    target: Mapping[str, Any] | None

    @classmethod
    def draw(
        cls, train: Examples, validation: Examples | None, settings: DataSettings, *, has_test: bool, source: str
    ) -> Self:
        """Draw the parts that the data does not have.

        Args:
            validation: a part of its own.
            has_test: whether there is a test part of its own.
        Raises:
            InputError: a key does not fit these arrays.
            DataError: the parts have examples or targets of different kinds, or labels that cannot be used.
        """
        num_validation = _size("validation", settings.validation, is_own=validation is not None, source=source)
        num_test = _size("test", settings.test, is_own=has_test, source=source)
        seed, is_regression = settings.split_seed, _is_regression(train, settings)
        rows = draw_split(
            len(train),
            validation=num_validation,
            test=num_test,
            seed=seed,
            source=source,
            classes=None if is_regression else _classes(train, source),
        )
        validation_rows = rows.validation
        if validation is not None:
            _check_alike(train, validation, settings, source)
            validation_rows = draw_split(len(validation), validation=0, test=0, seed=seed, source=source).train
        return cls(
            source=source,
            train=train,
            own_validation=validation,
            rows=rows,
            validation_rows=validation_rows,
            target=_target_of(train.labels[rows.train], source) if is_regression else None,
        )

    def parts(self) -> dict[str, Split]:
        """Training and validation examples, in the order of use."""
        validation = self.train if self.own_validation is None else self.own_validation
        return {
            "train": self._split(self.train, self.rows.train),
            "validation": self._split(validation, self.validation_rows),
        }

    def drawn_test_part(self) -> Split:
        return self._split(self.train, self.rows.test)

    def _split(self, part: Examples, rows: NDArray[np.int64]) -> Split:
        return Split(images=part.images[rows], labels=_labels(part, self.target, self.source)[rows])

    def record(self, settings: DataSettings, *, form: str, has_test: bool) -> dict[str, Any]:
        """The document that is stored with the study. A test part of its own is not counted.

        Args:
            form: its name for people.
            has_test: as for `draw`.
        """
        drawn = "none" if settings.test == 0 else "drawn"
        return {
            "form": form,
            "shape": list(self.train.example_shape),
            "type": str(self.train.images.dtype),
            "split": {
                **self.rows.as_json(),
                "validation": len(self.validation_rows),
                "test": None if has_test else len(self.rows.test),
                "validation_from": "drawn" if self.own_validation is None else "x_validation",
                "test_from": "x_test" if has_test and settings.test != 0 else drawn,
                "is_stratified": self.target is None,
                "seed": settings.split_seed,
            },
            **({} if self.target is None else {_TARGET: dict(self.target)}),
        }


def selection_of(
    parts: Mapping[str, Split],
    record: Mapping[str, Any],
    settings: DataSettings,
    *,
    name: str,
    source: str,
    checksums: dict[str, str],
) -> SelectionData:
    """The data of a study, from its parts.

    Args:
        parts: as `ArraySplit.parts`.
        record: as `ArraySplit.record`.
        source: name of the data in messages.
    Raises:
        InputError: `train_samples` exceeds the number of training examples.
        DataError: as `count_classes`.
    """
    train, validation = parts["train"], parts["validation"]
    num_classes = 0 if _TARGET in record else count_classes(train.labels, validation.labels, source)
    num_train = limit_train_samples(len(train), settings.train_samples)
    return SelectionData(
        name=name,
        train=Split(images=train.images[:num_train], labels=train.labels[:num_train]),
        validation=validation,
        example_shape=tuple(record["shape"]),
        num_classes=num_classes,
        checksums=checksums,
        record=record,
    )


def own_test_part(part: Examples, record: Mapping[str, Any], source: str) -> Split:
    """A test part of its own, its targets standardised as those of training.

    Args:
        record: of the study.
        source: name of the data in messages.
    Raises:
        InputError, DataError: its examples or targets are of another kind than those of training.
    """
    shape = tuple(record["shape"])
    if part.example_shape != shape:
        raise DataError(
            f"{source}: x_test has {shape_text(part.example_shape)}, x_train {shape_text(shape)}",
            hint="give all parts one shape",
        )
    return Split(images=part.images, labels=_labels(part, record.get(_TARGET), source))


def checksums_of(part: Examples | Split, name: str) -> dict[str, str]:
    """SHA-256 of the arrays of a part."""
    return {f"{name} images": checksum_of(part.images), f"{name} labels": checksum_of(part.labels)}


def _size(key: str, wanted: float | int | str | None, *, is_own: bool, source: str) -> float | int | None:
    """What to draw for a part: nothing if the data has it."""
    if is_own and wanted not in (None, 0):
        raise InputError(
            f"data.{key} has no effect: {source} has a {key} part of its own",
            hint=f"leave it out, or give the data no {key} part",
        )
    if isinstance(wanted, str):
        raise InputError(
            f"data.{key} must be a fraction or a number of examples here, got {wanted!r}",
            hint=f"give those examples as the data's {key} part",
        )
    return 0 if is_own else wanted


def _is_regression(train: Examples, settings: DataSettings) -> bool:
    """Whether the targets are numbers: floats, unless `data.task` says otherwise."""
    return not train.has_whole_labels if settings.task is None else settings.task == "regression"


def _check_alike(train: Examples, validation: Examples, settings: DataSettings, source: str) -> None:
    """Raise DataError if the parts have examples or targets of different kinds."""
    if train.example_shape != validation.example_shape or train.images.dtype != validation.images.dtype:
        kinds = [f"{shape_text(part.example_shape)} of {part.images.dtype}" for part in (train, validation)]
        raise DataError(
            f"{source}: x_train has {kinds[0]}, x_validation {kinds[1]}", hint="both parts need examples of one kind"
        )
    if settings.task is None and train.has_whole_labels != validation.has_whole_labels:
        raise DataError(
            f"{source}: y_validation is {validation.labels.dtype}, y_train {train.labels.dtype}",
            hint="both parts need whole numbers (classes), or both floats (a regression); data.task says which",
        )


def _labels(part: Examples, target: Mapping[str, Any] | None, source: str) -> NDArray[Any]:
    """[N] int64 classes, or float32 targets standardised as `target` says."""
    if target is None:
        return _classes(part, source)
    standardised: NDArray[np.float64] = (part.labels.astype(np.float64) - target["mean"]) / target["deviation"]
    return standardised.astype(np.float32)


def _classes(part: Examples, source: str) -> NDArray[np.int64]:
    """[N] numbers of classes. Raises InputError if there are fractions, DataError as `check_label_range`."""
    if not part.has_whole_labels and (part.labels % 1).any():
        raise InputError(
            f"{source}: classes are whole numbers, but there are targets with fractions",
            hint='give whole numbers from 0, or set data.task = "regression"',
        )
    classes = part.labels.astype(np.int64)
    check_label_range(classes, source)
    return classes


def _target_of(targets: NDArray[Any], source: str) -> dict[str, Any]:
    """`record["target"]` as for tables: mean and standard deviation of the training targets.

    Raises:
        DataError: all targets are equal.
    """
    values = targets.astype(np.float64)
    deviation = float(values.std())
    if deviation == 0:
        raise DataError(f"{source}: all targets of training are {values[0]:g}", hint="there is nothing to learn")
    about = {"name": "y", "task": "regression", "kind": "number"}
    return {**about, "mean": float(values.mean()), "deviation": deviation}
