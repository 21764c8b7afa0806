"""Which points can train side by side: a name for their cohort, the same in every process."""

from __future__ import annotations

import hashlib

from hpsearch.settings import TrialSettings
from hpsearch.training.lanes import CohortShape


def cohort_name(settings: TrialSettings) -> str:
    """A short name for the cohort of a point, the same in every process; points of one name can share lanes."""
    return hashlib.sha256(repr(CohortShape.of(settings)).encode()).hexdigest()[:16]
