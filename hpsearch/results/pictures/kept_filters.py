"""The first-layer filters that a worker kept of a trial: read them, and say whether they are smooth or noisy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hpsearch.artifacts.best_parameters import FILTERS_FILE, Artifacts
from hpsearch.artifacts.record import recorded_id
from hpsearch.errors import ArtifactError, InputError
from hpsearch.results.stored_parameters import checksum_is_wrong, read_file
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy
from hpsearch.training.filter_series import FilterSeries


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptFilters:
    """The filters of one trial at the ends of some epochs.

    Args:
        trial: its number.
        epochs: one per moment, in order.
        units: [filters]: which units or kernels of the first layer these are; all, or 64 evenly spaced ones.
        weights: [moments, filters, height, width] float32, each exact up to 0.4 % of its filter's largest weight.
        relative: the same, int8: each filter relative to its own largest weight, which is 127.
    """

    trial: int
    epochs: tuple[int, ...]
    units: NDArray[np.int32]
    weights: NDArray[np.float32]
    relative: NDArray[np.int8]

    @cached_property
    def roughness(self) -> NDArray[np.float64]:
        """[moments]: mean of `roughness_of` over the filters; near 0 smooth, near 1 noise. NaN: all are constant."""
        each = roughness_of(self.weights)
        known = np.isfinite(each)
        totals = np.where(known, each, 0.0).sum(axis=1)
        mean: NDArray[np.float64] = np.full(len(each), np.nan)
        np.divide(totals, known.sum(axis=1), out=mean, where=known.any(axis=1))
        return mean

    def caption(self, at: int) -> tuple[str, str]:
        """Of one moment, two lines: `epoch 5` and `roughness 0.12`."""
        roughness = float(self.roughness[at])
        return f"epoch {self.epochs[at]}", f"roughness {roughness:.2f}" if np.isfinite(roughness) else "roughness -"


def roughness_of(filters: NDArray[np.floating]) -> NDArray[np.float64]:
    """How much neighbouring pixels of a filter differ, compared with any two of its pixels.

    The mean squared difference of horizontal and vertical neighbours, divided by twice the variance over the filter's
    pixels. It depends neither on the filter's scale nor on its mean. Independent pixels (noise, such as initial
    weights) give 1, slow gradients nearly 0, a chessboard 2.

    Args:
        filters: [..., height, width].
    Returns:
        [...]; NaN for a filter whose pixels are all equal.
    Source: R. C. Geary, "The contiguity ratio and statistical mapping", 1954.
    """
    values = filters.astype(np.float64)
    pairs = [np.diff(values, axis=-1), np.diff(values, axis=-2)]
    num_pairs = sum(pair.shape[-1] * pair.shape[-2] for pair in pairs)
    difference = sum((pair**2).sum(axis=(-1, -2)) for pair in pairs) / num_pairs
    num_pixels = values.shape[-1] * values.shape[-2]
    variance = values.var(axis=(-1, -2)) * num_pixels / max(1, num_pixels - 1)
    roughness: NDArray[np.float64] = np.full(variance.shape, np.nan)
    np.divide(difference, 2 * variance, out=roughness, where=variance > 0)
    return roughness


def has_filters(trial: TrialSummary) -> bool:
    """Whether a worker has stored filters of this trial."""
    return recorded_id(trial.artifact_records, FILTERS_FILE, trial.number) is not None


def read_filters(study: StoredStudy, trial: TrialSummary, artifacts: Artifacts) -> KeptFilters:
    """The filters of a trial that has ended.

    Raises:
        InputError: none were kept; says why.
        ArtifactError: the file is missing, damaged, or belongs to another trial.
    """
    artifact_id = recorded_id(trial.artifact_records, FILTERS_FILE, trial.number)
    if artifact_id is None:
        raise _no_filters(study, trial)
    _, arrays, metadata = read_file(study, trial, artifacts, FILTERS_FILE, artifact_id)
    try:
        if checksum_is_wrong(arrays, metadata):
            raise ValueError("its checksum is wrong")
        series = FilterSeries.from_arrays(arrays)
        if not series:
            raise ValueError("it is empty")
    except ValueError as error:
        raise ArtifactError(
            f"artifact {artifact_id} ({FILTERS_FILE} of trial {trial.number}) in {artifacts.place} is damaged: {error}",
            hint="restore it from a copy; the filters of other trials are not affected",
        ) from error
    return KeptFilters(
        trial=trial.number,
        epochs=series.epochs,
        units=series.units,
        weights=series.weights,
        relative=series.codes,
    )


def _no_filters(study: StoredStudy, trial: TrialSummary) -> InputError:
    definition = study.definition
    what = f"no filters of trial {trial.number} of study {study.name!r} are kept"
    if definition.keep_every is None:
        return InputError(
            f"{what}: the study has no keep_every",
            hint="hpsearch run STUDY.toml --set keep_every=5 keeps those of trials that are trained from then on",
        )
    if trial.ended_at is None:
        return InputError(f"{what}: it has not ended", hint="they are stored when a trial ends")
    return InputError(
        f"{what}, although keep_every is {definition.keep_every}",
        hint="the trial ended before keep_every was set, or it diverged before its first epoch was due; the artifact "
        "store refused the file or was too slow; or no first weight is [units, pixels] or [kernels, 1, height, width] "
        "(your own networks)",
    )
