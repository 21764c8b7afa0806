"""First-layer filters of one trial at several epochs, in 8 bits per weight: what is kept of them, and how it is stored.

After which epochs: `FilterKeeper` in worker/lanes/filter_keeper.py. While a trial trains, its series is in its worker's
memory and in its checkpoints, so that a later attempt continues the series at the epoch from which it resumes. When the
trial ends, the series becomes one file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.training.tensor_file import Array

LARGEST_CODE = 127
MOST_MOMENTS = 64  # of a trial; of a longer trial the interval is doubled, so that the size of a series is bounded


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FilterCopy:
    """The filters of one trial at one moment.

    Args:
        units: [filters] int32: their rows in the layer's weights.
        codes: [filters, height, width] int8.
        scales: [filters] float32: a weight is its code times its filter's scale, up to half a scale.
    """

    units: NDArray[np.int32]
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FilterSeries:
    """The filters of one trial at several epochs, in order. Immutable: `added` returns a longer series.

    Args:
        epochs: at whose ends the copies were taken.
        copies: one per epoch; all have the same units and shapes.
    """

    epochs: tuple[int, ...] = ()
    copies: tuple[FilterCopy, ...] = ()

    def __len__(self) -> int:
        return len(self.epochs)

    @property
    def units(self) -> NDArray[np.int32]:
        """[filters]: their rows in the layer's weights. Only of a series that is not empty."""
        return self.copies[0].units

    @property
    def codes(self) -> NDArray[np.int8]:
        """[moments, filters, height, width]: each filter relative to its own largest weight, which is 127."""
        return np.stack([copy.codes for copy in self.copies])

    @property
    def weights(self) -> NDArray[np.float32]:
        """[moments, filters, height, width]: the weights, each up to 0.4 % of its filter's largest one."""
        scales = np.stack([copy.scales for copy in self.copies])
        weights: NDArray[np.float32] = self.codes * scales[:, :, np.newaxis, np.newaxis]
        return weights

    def added(self, epoch: int, copy: FilterCopy, every: int) -> FilterSeries:
        """The series with a further moment; without earlier ones that are no multiples of the present interval.

        A copy of other units or of another shape begins a new series.
        """
        interval = _interval(epoch, every)
        is_alike = not self.copies or (
            np.array_equal(self.units, copy.units) and self.copies[0].codes.shape == copy.codes.shape
        )
        multiples = [at for at, number in enumerate(self.epochs) if is_alike and number % interval == 0]
        is_short = interval == every and len(self.epochs) < MOST_MOMENTS
        kept = list(range(len(self.epochs))) if is_alike and is_short else multiples
        return FilterSeries(
            epochs=(*(self.epochs[at] for at in kept), epoch), copies=(*(self.copies[at] for at in kept), copy)
        )

    def arrays(self) -> dict[str, Array]:
        """The series as arrays for a file; none if it is empty."""
        if not self.epochs:
            return {}
        scales = np.stack([copy.scales for copy in self.copies])
        epochs = np.array(self.epochs, dtype=np.int64)
        return {"epochs": epochs, "units": self.units, "filters": self.codes, "scales": scales}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """Read the output of `arrays`.

        Raises:
            ValueError: the arrays are not those of a series.
        """
        if not arrays:
            return cls()
        try:
            epochs, units, codes, scales = (arrays[name] for name in ("epochs", "units", "filters", "scales"))
        except KeyError as error:
            raise ValueError(f"no array {error}") from None
        if codes.ndim != 4 or scales.shape != codes.shape[:2] or (*epochs.shape, *units.shape) != scales.shape:
            raise ValueError(f"shapes {epochs.shape}, {units.shape}, {codes.shape} and {scales.shape}")
        if [array.dtype for array in (epochs, units, codes, scales)] != [np.int64, np.int32, np.int8, np.float32]:
            raise ValueError("arrays of other types")
        rows = units.astype(np.int32)
        copies = (FilterCopy(units=rows, codes=c, scales=s) for c, s in zip(codes, scales, strict=True))
        return cls(epochs=tuple(int(epoch) for epoch in epochs), copies=tuple(copies))


def is_due(epoch: int, every: int) -> bool:
    """Whether the filters after this epoch (1-based) belong to a series with this interval in epochs."""
    return epoch % _interval(epoch, every) == 0


def evenly_chosen(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` indexes into a sequence: evenly spaced, with the last one and (from two on) the first."""
    if most == 1:
        return [len(numbers) - 1]
    if len(numbers) <= most:
        return list(range(len(numbers)))
    return [round(i * (len(numbers) - 1) / (most - 1)) for i in range(most)]


def _interval(epoch: int, every: int) -> int:
    """Epochs between two moments of a series that is this long: `every`, doubled until `MOST_MOMENTS` are enough."""
    interval = every
    while epoch > interval * MOST_MOMENTS:
        interval *= 2
    return interval
