"""Named tensors: parameters, gradients and optimizer states of one trial, or stacked, of all lanes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import TypeVar

from torch import Tensor

Tensors = Mapping[str, Tensor]
T = TypeVar("T")


def runs(values: Iterable[T]) -> Iterator[tuple[slice, T]]:
    """Yield each run of equal neighbours: where it is, and the value."""
    start = 0
    for value, equal in groupby(values):
        stop = start + sum(1 for _ in equal)
        yield slice(start, stop), value
        start = stop
