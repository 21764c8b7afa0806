"""Which points can train side by side, and what their cohort must be told of the study."""

from __future__ import annotations

import hashlib

from hpsearch.search.significance import critical_gains
from hpsearch.settings import StoppingSettings, TrialSettings
from hpsearch.training.correctness import ReferenceTest
from hpsearch.training.lanes import CohortShape


def cohort_name(settings: TrialSettings) -> str:
    """A short name for the cohort of a point, the same in every process; points of one name can share lanes."""
    return hashlib.sha256(repr(CohortShape.of(settings)).encode()).hexdigest()[:16]


def reference_test(stopping: StoppingSettings, num_images: int) -> ReferenceTest | None:
    """What a cohort needs to know of a rule that compares validations with each other; None for the others.

    Args:
        num_images: of the validation set.
    """
    if stopping.rule != "significance":
        return None
    level = stopping.significance_level
    return ReferenceTest(level=level, critical_gains=critical_gains(num_images, level))
