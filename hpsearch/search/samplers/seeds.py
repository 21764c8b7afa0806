"""Seeds of samplers: what is random about a trial follows from its study's seed and its own number alone."""

from __future__ import annotations

import hashlib

import numpy as np


def trial_seed(study_seed: int, trial_number: int, *more: int) -> int:
    """A seed in [0, 2**32) for one trial, well mixed: neighbouring trials and studies share no random stream.

    The same on every machine: NumPy's SeedSequence is a fixed hash (a test holds some of its values).

    Args:
        more: further numbers >= 0 that tell apart what one trial draws.
    """
    sequence = np.random.SeedSequence(study_seed, spawn_key=(trial_number, *more))
    return int(sequence.generate_state(1)[0])


def name_seed(name: str) -> int:
    """A seed in [0, 2**32) that follows from a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
