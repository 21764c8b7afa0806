"""Numbers of errors by class: the confusion matrix and macro-F1, as they are shown and never compared."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """[classes, classes]: the number of examples of the row's class that are taken for the column's class.

    Args:
        labels, predicted: [N], the true classes and those that a model takes the examples for.
    """
    return np.bincount(labels * num_classes + predicted, minlength=num_classes**2).reshape(num_classes, num_classes)


def macro_f1(confusion: NDArray[np.int64]) -> float:
    """The mean over the classes of F1, the harmonic mean of precision and recall, as in scikit-learn.

    A class that has no example and is never predicted does not count.
    """
    sizes = confusion.sum(axis=0) + confusion.sum(axis=1)
    counts = sizes > 0
    return float((2 * np.diag(confusion)[counts] / sizes[counts]).mean())
