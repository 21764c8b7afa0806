"""Cohorts of a study: which points can be trained, which of them side by side, and which test a cohort applies."""

from __future__ import annotations

import hashlib
from typing import final

from hpsearch.data.resident import ResidentData
from hpsearch.errors import InputError
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import ModelSettings, StoppingSettings, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes.cohort import CohortShape
from hpsearch.training.networks.build import build_network


def cohort_name(settings: TrialSettings) -> str:
    """Return a short name for the cohort of a point; points with the same name can share lanes.

    The name is the same in every process.
    """
    return hashlib.sha256(repr(CohortShape.of(settings)).encode()).hexdigest()[:16]


def reference_test(stopping: StoppingSettings, num_images: int) -> ReferenceTest | None:
    """Return the test that a cohort applies for a rule that compares validations with each other; None for other rules.

    Args:
        num_images: size of the validation set.
    """
    if stopping.rule != "significance":
        return None
    level = stopping.significance_level
    return ReferenceTest(level=level, critical_gains=critical_gains(num_images, level))


@final
class Trainability:
    """Whether the data suits a trial's settings. Results are cached.

    A growing search may, for example, ask for a batch of more images than there are.
    """

    def __init__(self, data: ResidentData) -> None:
        self._data = data
        self._known: dict[tuple[int, ModelSettings], bool] = {}  # by batch size and model

    def __call__(self, settings: TrialSettings) -> bool:
        key = settings.training.batch_size, settings.model
        if key not in self._known:
            try:
                self._data.num_minibatches(settings.training.batch_size)
                build_network(settings.model, self._data.image_shape, self._data.num_classes)
                self._known[key] = True
            except InputError:
                self._known[key] = False
        return self._known[key]
