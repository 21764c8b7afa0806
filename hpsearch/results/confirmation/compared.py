"""Configurations that were compared (comparison.py): their errors, their differences, and the simplest of the tied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MeanError:
    """A configuration's validation error: the loss of the study's metric.

    Args:
        mean: mean over seeds and examples.
        deviation: standard deviation over seeds; None with a single seed.
        interval: 95 % confidence interval of this mean alone, with respect to other seeds and other images; None: there
            is nothing to estimate it from.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much worse one configuration is than another: the difference of their errors.

    Args:
        value: the difference.
        interval: simultaneous confidence interval: the intervals of all pairs hold together in at least 95 % of cases;
            None: there is nothing to estimate it from.
    """

    value: float
    interval: tuple[float, float] | None

    @property
    def is_significant(self) -> bool:
        """True if the interval does not contain 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of k configurations, in the order in which they were given.

    Args:
        means: the error of each configuration, k of them.
        winner: index of the lowest mean; the first one if several are equal.
        differences: [k][k]: `differences[i][j]` is how much worse i is than j.
        corrected_error: the winner's error, corrected for the optimism of picking the lowest of k on the same seeds
            and images; never below its mean.
        num_images: None: only the values of whole trials were compared (`compare_values`).
        seeds_matter: whether the classification of any image, or any value, depends on the seed.
    """

    means: tuple[MeanError, ...]
    winner: int
    differences: tuple[tuple[Difference, ...], ...]
    corrected_error: float
    num_seeds: int
    num_images: int | None
    seeds_matter: bool

    @property
    def from_winner(self) -> tuple[Difference, ...]:
        """How much worse each configuration is than the winner."""
        return tuple(row[self.winner] for row in self.differences)

    @property
    def tied(self) -> tuple[int, ...]:
        """Indices of the configurations that do not differ significantly from the winner, the winner included."""
        return tuple(i for i, difference in enumerate(self.from_winner) if not difference.is_significant)


def simplest_of(comparison: Comparison, num_parameters: Sequence[int | None]) -> tuple[int, str]:
    """Pick the simplest of the tied configurations.

    The one with the fewest parameters; if several have equally few, the one with the lowest mean error; if these are
    equal too, the first one.

    Args:
        num_parameters: trainable parameters of all configurations, in the order of the comparison; None: not known,
            which counts as equally many.
    Returns:
        The index of the picked configuration, and the reason in a few words.
    """
    ranks = {i: (num_parameters[i] or 0, comparison.means[i].mean) for i in comparison.tied}
    picked = min(ranks, key=lambda i: (ranks[i], i))
    fewest = f"the fewest trainable parameters ({num_parameters[picked] or 0:,})"
    if len(ranks) > 1 and num_parameters[picked] is None:
        is_alone = list(ranks.values()).count(ranks[picked]) == 1
        reason = "of the tied points it has the best mean" if is_alone else "it is the first of equal points"
    elif len(ranks) == 1:
        reason = "no other point is tied with it"
    elif [number for number, _ in ranks.values()].count(ranks[picked][0]) == 1:
        reason = f"of the tied points it has {fewest}"
    elif list(ranks.values()).count(ranks[picked]) == 1:
        reason = f"of the tied points with {fewest} it has the lowest mean error"
    else:
        reason = f"of the tied points with {fewest} and the lowest mean error it is the first"
    return picked, reason
