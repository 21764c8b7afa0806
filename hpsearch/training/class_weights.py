"""Weights of classes in the training loss, for data in which some classes are rare.

What training minimises is the mean over the minibatch of weight(class) * NLL, with L1 and L2. The weights are divided
by their mean over the training examples, so that only their ratios matter, and learning rates and penalties keep their
meaning. torch's `cross_entropy(weight=...)` divides by the sum of the minibatch's weights instead. There an example
counts less the more rare examples happen to be beside it, and no slice of a minibatch has a gradient before all labels
of the minibatch are known; here the weight is one more factor of an example's gradient. On the whole training set as
one minibatch both are the same.

Training losses that are reported stay unweighted: they are compared with validation losses and with ln(classes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpsearch.errors import InputError
from hpsearch.study.settings import ClassWeights


def check_class_weights(weights: ClassWeights, num_classes: int) -> None:
    """Check that class weights suit the data.

    Args:
        num_classes: 0 in regression.
    Raises:
        InputError: the target is a number, or the list has not one weight for each class.
    """
    if weights == "none":
        return
    if not num_classes:
        raise InputError(
            "training.class_weights weighs classes, but the target is a number",
            hint='leave out class_weights, or set data.task = "classification"',
        )
    if weights != "balanced" and len(weights) != num_classes:
        raise InputError(
            f"training.class_weights has {len(weights)} weights, but there are {num_classes} classes",
            hint='give one weight for each class, in the order that `hpsearch data describe` shows, or take "balanced"',
        )


def class_weights_of(weights: ClassWeights, counts: Sequence[int]) -> Tensor | None:
    """The weight of each class, [classes] float64, with mean 1 over the training examples; None: all are weighed alike.

    "balanced" gives every class that occurs the same sum of weights: N / (classes * count), as scikit-learn's
    `compute_class_weight`.

    Args:
        counts: training examples of each class; empty in regression.
    Raises:
        InputError: as `check_class_weights`.
    """
    check_class_weights(weights, len(counts))
    if weights == "none":
        return None
    number = torch.tensor(counts, dtype=torch.float64)
    given = torch.where(number > 0, 1.0 / number, 0.0) if weights == "balanced" else torch.tensor(weights).double()
    return given * (number.sum() / (given * number).sum())
