"""Count the classes of a data set, and check that training and validation examples have the same classes.

A network has one output for each class from 0 to the highest label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError

MAX_CLASSES = 1000
_LEAST_SHARE_USED = 0.5  # of the classes from 0 to the highest label; with fewer, labels are damaged or no numbers
# If the probability that a class is missing by chance is below this, it is considered missing for another reason.
_LEAST_CHANCE = 1e-6

Labels = NDArray[np.integer]


def class_name(label: int, names: Sequence[str]) -> str:
    """The name of a class; its number if the classes have no names."""
    return names[label] if names else str(label)


def check_label_range(labels: Labels, source: str, num_classes: int = MAX_CLASSES) -> None:
    """Check that all labels, [N], are in 0..num_classes - 1.

    Raises:
        DataError: a label is outside this range.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"{source}: expected labels in 0..{num_classes - 1}, found {labels.min()} .. {labels.max()} "
            f"({len(np.unique(labels))} classes): label {wrong[0]} is {labels[wrong[0]]}, {wrong.size} are wrong",
            hint="classes are counted from 0: renumber the labels, or leave the other classes out",
        )


def count_classes(train: Labels, validation: Labels, source: str) -> int:
    """The number of classes: one more than the highest label of all training and validation images.

    Args:
        train: labels of all training images, before `data.train_samples` limits them.
        source: name of the data in error messages.
    Raises:
        DataError: there is only one class, or training and validation images have different classes for a reason
            other than chance.
    """
    in_train, in_validation = set(np.unique(train).tolist()), set(np.unique(validation).tolist())
    both = np.concatenate([train, validation])

    def is_by_chance(label: int, num_images: int) -> bool:
        """Whether `num_images` random images plausibly have none of this class: (1 - share)^num_images."""
        return bool(num_images * math.log1p(-float(np.mean(both == label))) >= math.log(_LEAST_CHANCE))

    unknown = {label for label in in_validation - in_train if not is_by_chance(label, len(train))}
    missing = {label for label in in_train - in_validation if not is_by_chance(label, len(validation))}
    if unknown or missing:
        what = (
            f"no training image has {_names(unknown)}, which validation images have"
            if unknown
            else f"no validation image has {_names(missing)}, which training images have"
        )
        raise DataError(
            f"{source}: {what}",
            hint="validation uses the last images: if they are sorted by class, shuffle images and labels together",
        )
    if len(in_train | in_validation) < 2:
        raise DataError(f"{source}: all images have {_names(in_train)}", hint="there is nothing to classify")
    num_classes = int(both.max()) + 1
    if len(in_train | in_validation) < _LEAST_SHARE_USED * num_classes:
        first = int(np.flatnonzero(np.concatenate([train, validation]) == both.max())[0])
        raise DataError(
            f"{source}: the labels go up to {both.max()} (label {first}), but only {len(in_train | in_validation)} of "
            f"these {num_classes:,} classes occur",
            hint="classes are counted from 0 without gaps: correct the labels, or renumber them",
        )
    return num_classes


def _names(labels: set[int]) -> str:
    return f"class{'es' if len(labels) > 1 else ''} {', '.join(map(str, sorted(labels)))}"
