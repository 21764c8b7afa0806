"""The replay of CMA-ES: its state as a deterministic function of the candidates so far."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

# Fraction of the unit cube's width: two thirds of the first generation lie in the middle half of an axis.
FIRST_STEP: Final = 0.25
_MAX_RESAMPLING: Final = 100  # draws outside the cube before a candidate is moved to its border


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial as a candidate of CMA-ES.

    Args:
        number: number of the trial for which it was drawn.
        generation: the generation for which it was drawn.
        parents: numbers of the trials that ended the previous generation.
        place: [num_dimensions] in the unit cube.
        loss: lower is better; None if the trial is not finished, or has no finite value.
    """

    number: int
    generation: int
    parents: tuple[int, ...]
    place: NDArray[np.float64]
    is_finished: bool
    loss: float | None


def default_population(num_dimensions: int) -> int:
    """The default population size. Source: Hansen's tutorial, equation 48."""
    return 4 + math.floor(3 * math.log(num_dimensions))


@final
class Evolution:
    """The state of CMA-ES after the generations that have ended.

    Args:
        seed: determines the places of restarts.
    """

    def __init__(self, *, num_dimensions: int, population_size: int, seed: int) -> None:
        self._num_dimensions = num_dimensions
        self._population_size = population_size
        self._seed = seed
        self._num_starts = 0
        self.generation = 0
        self.parents: list[int] = []  # numbers of the candidates that ended the last generation
        self._start(np.full(num_dimensions, 0.5))

    def replay(self, candidates: Sequence[Candidate]) -> None:
        """Update the distribution with all generations that have ended.

        Args:
            candidates: in the order of their numbers.
        """
        generations: defaultdict[int, list[Candidate]] = defaultdict(list)
        for candidate in candidates:
            generations[candidate.generation].append(candidate)
        while True:
            ended_by = self._ending(generations[self.generation], generations[self.generation + 1])
            if ended_by is None:
                return
            self._tell(ended_by)

    def ask(self, seed: int) -> NDArray[np.float64]:
        """Draw a candidate of the current generation, [num_dimensions] in [0, 1]; `seed` is in [0, 2**32)."""
        self._optimizer.reseed_rng(seed)
        place: NDArray[np.float64] = self._optimizer.ask()
        return place

    def _ending(self, members: Sequence[Candidate], successors: Sequence[Candidate]) -> Sequence[Candidate] | None:
        """The candidates whose losses end a generation; None if it has not ended."""
        finished = [member for member in members if member.is_finished]
        if successors:
            # The parents of the first successor are final, whatever finished later.
            parents = [member for member in finished if member.number in successors[0].parents]
            if len(parents) == self._population_size:
                return parents
        first = members[: self._population_size]
        if len(first) == self._population_size and all(member.is_finished for member in first):
            return first
        if len(finished) >= 2 * self._population_size:
            return finished[: self._population_size]
        return None

    def _tell(self, candidates: Sequence[Candidate]) -> None:
        known = [candidate.loss for candidate in candidates if candidate.loss is not None]
        worst = max(known, default=0.0) + 1.0
        with np.errstate(all="ignore"):  # a distribution that has shrunk to a point divides by zero
            self._optimizer.tell([(c.place, worst if c.loss is None else c.loss) for c in candidates])
            is_over = self._optimizer.should_stop() or not np.isfinite(self._optimizer.mean).all()
        self.generation += 1
        self.parents = [candidate.number for candidate in candidates]
        if is_over:
            self._num_starts += 1
            generator = np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=(self._num_starts,)))
            self._start(generator.uniform(size=self._num_dimensions))

    def _start(self, mean: NDArray[np.float64]) -> None:
        from cmaes import CMA  # loads scipy, which takes as long as half of torch

        self._optimizer = CMA(
            mean=mean,
            sigma=FIRST_STEP,
            bounds=np.tile([0.0, 1.0], (self._num_dimensions, 1)),
            n_max_resampling=_MAX_RESAMPLING,
            seed=0,  # each `ask` sets its own seed
            population_size=self._population_size,
        )
