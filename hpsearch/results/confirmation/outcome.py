"""The outcome of a confirmation: the best points of a study over fresh seeds, compared, and one of them chosen.

The rule: of the points that are not told apart from the lowest mean error, the one with the fewest trainable
parameters; of equally many the lowest mean error; of equal ones the one that the search ranked first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hpsearch.results.confirmation.companion_study import can_seeds_matter
from hpsearch.results.confirmation.comparison import Comparison, Complexity, Difference, MeanError, simplest_of
from hpsearch.results.summary import StudySummary, counts_as_json, describe_counts
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.study.space import ParameterValue
from hpsearch.wording import value_label

V = TypeVar("V")
_MOST_NAMED = 2  # tied points in a line


@dataclass(frozen=True, kw_only=True)
class ConfirmedConfiguration:
    """One of the points that were trained again, with what its fresh seeds have given.

    Args:
        parameters: the searched keys with their values, the seed not among them.
        search_trial: the best trial of the search with these parameters; None if it has been deleted.
        trials: the companion's complete trials, one per seed, best first.
        num_seeds: that were asked for.
        num_parameters: trainable ones of its network.
        left_out: why it has no part in the comparison; None if it has.
    """

    parameters: Mapping[str, ParameterValue]
    search_trial: TrialSummary | None
    trials: tuple[TrialSummary, ...]
    num_seeds: int
    num_parameters: int
    left_out: str | None = None

    @property
    def search_error(self) -> float | None:
        """What the search selected it on: the lowest of many, so rather too low."""
        return None if self.search_trial is None else self.search_trial.value

    @property
    def num_epochs(self) -> float | None:
        """Trained on average over the seeds; None before one has ended."""
        return sum(trial.num_epochs for trial in self.trials) / len(self.trials) if self.trials else None

    @property
    def label(self) -> str:
        """`learning_rate 0.01, lambda_2 0`."""
        return ", ".join(f"{n} {value_label(v)}" for n, v in self.parameters.items()) or "the study's only point"


@dataclass(frozen=True, kw_only=True)
class ChosenConfiguration:
    """What the rule picks.

    Args:
        trial: of the companion: the one of its seeds with the lowest validation error, ties by NLL. Its stored
            parameters are the model that the vault evaluates.
        reason: why it is this one, in a few words.
    """

    configuration: ConfirmedConfiguration
    trial: TrialSummary
    reason: str


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A study's best points over fresh seeds, as of one moment.

    Args:
        study: the name of the study that is confirmed.
        companion: the study whose trials these are.
        configurations: in the order in which the search ranked them when they were asked for.
        compared: indices of those that have a part in the comparison, in its order.
        comparison: None as long as there are no seeds that have ended for all of them.
        seeds: that were compared: those that have ended for every compared configuration.
    """

    study: str
    companion: StudySummary
    configurations: tuple[ConfirmedConfiguration, ...]
    compared: tuple[int, ...]
    comparison: Comparison | None
    seeds: tuple[int, ...]

    @property
    def is_finished(self) -> bool:
        """Whether no trial of it is waiting or in training."""
        return self.companion.points.unfinished == 0

    @property
    def num_seeds(self) -> int:
        """Seeds that were asked for, per configuration."""
        return max(configuration.num_seeds for configuration in self.configurations)

    @property
    def can_seeds_matter(self) -> bool:
        """Whether another seed can change any of the trainings."""
        return can_seeds_matter(self.companion.study.definition, [each.parameters for each in self.configurations])

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The searched keys that any configuration has."""
        return tuple(dict.fromkeys(name for each in self.configurations for name in each.parameters))

    @property
    def winner(self) -> int | None:
        """Index of the configuration with the lowest mean error."""
        return None if self.comparison is None else self.compared[self.comparison.winner]

    @property
    def tied(self) -> tuple[int, ...]:
        """Indices of the configurations that are not told apart from the winner, itself included."""
        return () if self.comparison is None else tuple(self.compared[i] for i in self.comparison.tied)

    @property
    def chosen(self) -> ChosenConfiguration | None:
        """The simplest of the tied; None while nothing can be compared."""
        if self.comparison is None:
            return None
        pick = simplest_of(self.comparison, [self._complexity(index) for index in self.compared])
        configuration = self.configurations[self.compared[pick.index]]
        return ChosenConfiguration(configuration=configuration, trial=configuration.trials[0], reason=pick.reason)

    @property
    def notes(self) -> list[str]:
        """What one must know to read the numbers: each a sentence."""
        said = []
        if not self.is_finished:
            said.append(f"the confirmation is not finished: {describe_counts(self.companion.points)}")
        said += [f"left out: {c.label}: {c.left_out}" for c in self.configurations if c.left_out]
        if self.comparison is None:
            said.append("no comparison yet: there is no seed that has ended for all configurations")
        elif len(self.seeds) < self.num_seeds:
            said.append(f"compared on the {_seeds(len(self.seeds))} of {self.num_seeds} that all of them have")
        if not self.can_seeds_matter:
            said.append("no seed can make a difference: all weights begin at 0, and nothing is shuffled")
        elif len(self.seeds) == 1:
            said.append("one seed alone: how much seeds matter is unknown, the intervals tell of the images only")
        elif self.comparison is not None and not self.comparison.seeds_matter:
            said.append("seeds make no difference here: all of a configuration's models agree on every image")
        return said

    def order(self) -> list[int]:
        """All configurations, lowest mean error first; those that are not compared at the end."""
        means = {} if self.comparison is None else dict(zip(self.compared, self.comparison.means, strict=True))
        return sorted(range(len(self.configurations)), key=lambda i: (means[i].mean if i in means else math.inf, i))

    def mean_of(self, index: int) -> MeanError | None:
        """The error of a configuration; None if it is not compared."""
        return None if self.comparison is None else self._of_compared(index, self.comparison.means)

    def difference_of(self, index: int) -> Difference | None:
        """How much worse a configuration is than the winner; None if it is not compared."""
        return None if self.comparison is None else self._of_compared(index, self.comparison.from_winner)

    def conclusion(self) -> str | None:
        """One line: the winner and its corrected error, which points are tied, which one is picked and why."""
        comparison, chosen = self.comparison, self.chosen
        if comparison is None or chosen is None or self.winner is None:
            return None
        numbers = {index: place for place, index in enumerate(self.order(), start=1)}
        picked = numbers[self.configurations.index(chosen.configuration)]
        tied = sorted(numbers[index] for index in self.tied)
        with_it = (
            f"tied are {', '.join(map(str, tied))}"
            if len(tied) > 1
            else "it is told apart from all others"
            if len(self.compared) > 1
            else "it was compared with no other"
        )
        return (
            f"lowest mean error: {numbers[self.winner]}, {comparison.means[comparison.winner].mean:.2%}, "
            f"or {comparison.corrected_error:.2%} corrected for its having been picked as the lowest; {with_it}; "
            f"picked: {picked} ({chosen.configuration.label}): {chosen.reason}"
        )

    def brief(self) -> list[str]:
        """One or two lines for those who look at the study that is confirmed: how far it is, and what it says."""
        lines, companion = [], self.companion
        if not self.is_finished:
            lines.append(f"its confirmation {companion.name} is not finished: {describe_counts(companion.points)}")
        comparison, chosen = self.comparison, self.chosen
        if comparison is None or chosen is None:
            return lines or [f"its confirmation {companion.name} has nothing to compare: {'; '.join(self.notes)}"]
        picked = self.configurations.index(chosen.configuration)
        mean = comparison.means[self.compared.index(picked)]
        deviation = "" if mean.deviation is None else f" +- {100 * mean.deviation:.2f}"
        others = [self.configurations[index].label for index in self.tied if index != picked]
        named = others if len(others) <= _MOST_NAMED else [*others[: _MOST_NAMED - 1], f"{len(others) - 1} others"]
        tied = f"tied with {' and '.join(named)}" if others else chosen.reason
        left_out = len(self.configurations) - len(self.compared)
        said = f"confirmed over {_seeds(len(self.seeds))} in {companion.name}: {chosen.configuration.label}: "
        said += f"{mean.mean:.2%}{deviation}, {tied}" + (f"; left out: {left_out} more" if left_out else "")
        return [*lines, said]

    def as_json(self) -> dict[str, Any]:
        """What `hpsearch confirm --json` prints, and `status --json` has as `confirmation`.

        These keys stay; others may join them.

        study, companion (the name of the study with its trials), finished, notes
        points              of the companion: total, waiting, running, complete, pruned, failed (given up)
        num_seeds           asked for; seeds: those that were compared
        num_images          of the validation set; null while nothing is compared
        configurations      in the order of the search's ranking:
            params              the searched keys
            search_error, search_trial      of the search (null if the trial was deleted)
            seeds               that have ended
            mean, deviation     of the error over the compared seeds (deviation null for one seed), or null
            interval            95 %, of the mean: [low, high], or null
            difference          from the winner, and its simultaneous 95 % interval, or null
            difference_interval
            tied                with the winner (null if it is not compared)
            num_parameters, epochs (on average, or null)
            left_out            why it is not compared, or null
        winner              index of the lowest mean, corrected_error its error without the optimism of the pick; null
        tied                indices
        chosen              null, or configuration (index), trial (of the companion), reason
        """
        comparison, chosen = self.comparison, self.chosen
        return {
            "study": self.study,
            "companion": self.companion.name,
            "finished": self.is_finished,
            "notes": self.notes,
            "points": counts_as_json(self.companion.points),
            "num_seeds": self.num_seeds,
            "seeds": list(self.seeds),
            "num_images": comparison and comparison.num_images,
            "configurations": [self._configuration_json(index) for index in range(len(self.configurations))],
            "winner": self.winner,
            "corrected_error": comparison and comparison.corrected_error,
            "tied": list(self.tied),
            "chosen": chosen
            and {
                "configuration": self.configurations.index(chosen.configuration),
                "trial": chosen.trial.number,
                "reason": chosen.reason,
            },
        }

    def _configuration_json(self, index: int) -> dict[str, Any]:
        configuration = self.configurations[index]
        mean, difference = self.mean_of(index), self.difference_of(index)
        return {
            "params": dict(configuration.parameters),
            "search_error": configuration.search_error,
            "search_trial": configuration.search_trial and configuration.search_trial.number,
            "seeds": len(configuration.trials),
            "mean": mean and mean.mean,
            "deviation": mean and mean.deviation,
            "interval": mean and list(mean.interval),
            "difference": difference and difference.value,
            "difference_interval": difference and list(difference.interval),
            "tied": index in self.tied if mean else None,
            "num_parameters": configuration.num_parameters,
            "epochs": configuration.num_epochs,
            "left_out": configuration.left_out,
        }

    def _of_compared(self, index: int, values: Sequence[V]) -> V | None:
        return values[self.compared.index(index)] if index in self.compared else None

    def _complexity(self, index: int) -> Complexity:
        configuration = self.configurations[index]
        return Complexity(num_parameters=configuration.num_parameters)


def _seeds(number: int) -> str:
    return "1 seed" if number == 1 else f"{number} seeds"
