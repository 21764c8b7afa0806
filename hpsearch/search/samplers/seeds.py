"""Seeds of samplers: the random numbers of a trial depend on the study's seed and the trial's number alone."""

from __future__ import annotations

import hashlib

import numpy as np


def trial_seed(study_seed: int, trial_number: int, *more: int) -> int:
    """A seed in [0, 2**32) for one trial, mixed so that neighbouring trials and studies have separate random streams.

    It is the same on every machine: NumPy's SeedSequence is a fixed hash (a test checks some of its values).

    Args:
        more: further numbers >= 0 that separate the random streams of one trial.
    """
    sequence = np.random.SeedSequence(study_seed, spawn_key=(trial_number, *more))
    return int(sequence.generate_state(1)[0])


def name_seed(name: str) -> int:
    """A seed in [0, 2**32) derived from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
