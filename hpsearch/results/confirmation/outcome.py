"""The outcome of a confirmation: the errors of a study's best points over fresh seeds, and which point is chosen.

The chosen point is, among the points that do not differ significantly from the lowest mean error, the one with the
fewest trainable parameters. Ties are broken by the lowest mean error, then by the ranking of the search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.metric import Metric
from hpsearch.results.confirmation.companion_study import can_seeds_matter
from hpsearch.results.confirmation.compared import Comparison, Difference, MeanError, simplest_of
from hpsearch.results.summary import StudySummary, counts_as_json, describe_counts
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.study.space import ParameterValue
from hpsearch.wording import counted, parameters_label

_MOST_NAMED = 2  # tied points that one line names


@dataclass(frozen=True, kw_only=True)
class ConfirmedConfiguration:
    """One of the points that were trained again, with the trials of its fresh seeds.

    Args:
        parameters: the searched keys with their values, without the seed.
        search_trial: the best trial of the search with these parameters; None if it was deleted.
        trials: complete trials in the companion study, one per seed, best first.
        num_seeds: number of seeds requested.
        num_parameters: trainable parameters of its network; None: not known.
        left_out: why it is excluded from the comparison; None if it is included.
        mean: the error over the compared seeds; None if it is not compared.
        difference: how much worse it is than the configuration with the lowest mean; None if it is not compared.
    """

    parameters: Mapping[str, ParameterValue]
    search_trial: TrialSummary | None
    trials: tuple[TrialSummary, ...]
    num_seeds: int
    num_parameters: int | None
    left_out: str | None = None
    mean: MeanError | None = None
    difference: Difference | None = None

    @property
    def is_tied(self) -> bool | None:
        """Whether it does not differ significantly from the lowest mean (or is it); None if it is not compared."""
        return None if self.difference is None else not self.difference.is_significant

    @property
    def is_constant(self) -> bool:
        """Whether it differs from the lowest by the same amount with every seed."""
        return self.difference is not None and self.difference.interval is None

    @property
    def search_error(self) -> float | None:
        """The validation value in the search. As the best of many it tends to be too good."""
        return None if self.search_trial is None else self.search_trial.value

    @property
    def num_epochs(self) -> float | None:
        """Mean number of epochs over the seeds' complete trials; None if there is none."""
        return sum(trial.num_epochs for trial in self.trials) / len(self.trials) if self.trials else None

    @property
    def label(self) -> str:
        """The parameters as text: `learning_rate 0.01, lambda_2 0`."""
        return parameters_label(self.parameters)


@dataclass(frozen=True, kw_only=True)
class ChosenConfiguration:
    """The configuration that the rule picks.

    Args:
        trial: the trial of this configuration in the companion study with the lowest validation error, ties broken by
            NLL. Its stored parameters are the model that the vault evaluates.
        reason: why this configuration was picked, in a few words.
    """

    configuration: ConfirmedConfiguration
    trial: TrialSummary
    reason: str


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The state of a confirmation at one moment: a study's best points over fresh seeds.

    Args:
        study: name of the confirmed study.
        companion: summary of the companion study, which has the trials.
        configurations: in the order in which the search ranked them when they were requested.
        comparison: of those that are not left out; None while no seed has ended for all of them.
        seeds: the compared seeds: those that have ended for every compared configuration.
        search_epochs: the confirmed study's number of epochs, which may have been raised since.
    """

    study: str
    companion: StudySummary
    configurations: tuple[ConfirmedConfiguration, ...]
    comparison: Comparison | None
    seeds: tuple[int, ...]
    search_epochs: int | None

    @property
    def metric(self) -> Metric:
        return self.companion.metric

    @property
    def max_epochs(self) -> int | None:
        """The number of epochs that its trials may have, or of a program its max_steps."""
        return self.companion.study.definition.step_limit

    @property
    def is_finished(self) -> bool:
        """Whether no point of the companion study is waiting or running."""
        return self.companion.points.unfinished == 0

    @property
    def num_seeds(self) -> int:
        """Number of seeds requested per configuration."""
        return max(configuration.num_seeds for configuration in self.configurations)

    @property
    def can_seeds_matter(self) -> bool:
        """Whether another seed can change the training of any configuration."""
        return can_seeds_matter(self.companion.study.definition, [each.parameters for each in self.configurations])

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """All searched keys of the configurations, in order of first appearance."""
        return tuple(dict.fromkeys(name for each in self.configurations for name in each.parameters))

    @property
    def winner(self) -> int | None:
        """Index of the configuration with the lowest mean error; None without a comparison."""
        return None if self.comparison is None else self.order()[0]

    @property
    def tied(self) -> tuple[int, ...]:
        """Indices of the configurations that do not differ significantly from the winner, the winner included."""
        return tuple(index for index, configuration in enumerate(self.configurations) if configuration.is_tied)

    @property
    def chosen(self) -> ChosenConfiguration | None:
        """The simplest of the tied configurations; None without a comparison."""
        if self.comparison is None:
            return None
        compared = [configuration for configuration in self.configurations if configuration.mean is not None]
        picked, reason = simplest_of(self.comparison, [each.num_parameters for each in compared])
        return ChosenConfiguration(configuration=compared[picked], trial=compared[picked].trials[0], reason=reason)

    @property
    def notes(self) -> list[str]:
        """Remarks that qualify the numbers, one sentence each."""
        said = []
        if not self.is_finished:
            said.append(f"the confirmation is not finished: {describe_counts(self.companion.points)}")
        if self.max_epochs != self.search_epochs:
            said.append(
                f"trained with max_epochs {self.max_epochs}, and the search has {self.search_epochs} now: "
                f"hpsearch confirm {self.study} lets the trials go on"
            )
        said += [f"left out: {c.label}: {c.left_out}" for c in self.configurations if c.left_out]
        if self.comparison is None:
            said.append("no comparison yet: no seed has ended for all points")
        elif len(self.seeds) < self.num_seeds:
            said.append(f"compared on {len(self.seeds)} of {self.num_seeds} seeds, which have ended for all points")
        if not self.can_seeds_matter:
            said.append("the seed has no effect: all initial weights are 0, and nothing is shuffled")
        elif len(self.seeds) == 1:
            said.append(f"only one seed: the effect of seeds is unknown, and {self._alone}")
        elif self.comparison is not None and not self.comparison.seeds_matter:
            said.append(f"the seed had no effect here: {self._no_effect}")
        elif self.metric.is_reported and any(each.is_constant for each in self.configurations):
            said.append(
                "a point that differs from the lowest by the same amount with every seed counts as tied, because "
                "nothing shows how the difference varies: take more seeds"
            )
        return said

    @property
    def _alone(self) -> str:
        if self.metric.is_reported:
            return "no difference can be told from chance"
        return f"the intervals are about the {self.companion.study.examples} alone"

    @property
    def _no_effect(self) -> str:
        if self.metric.is_reported:
            same = "all values of a point are the same, so no difference can be told from chance"
            return f"{same}; let the program take its seed from {{seed}} or hpsearch.trial.seed()"
        return "all models of a point agree on every image"

    def order(self) -> list[int]:
        """Indices of all configurations, lowest mean error first; configurations without a comparison come last."""
        means = [math.inf if each.mean is None else each.mean.mean for each in self.configurations]
        return sorted(range(len(means)), key=lambda index: (means[index], index))

    def conclusion(self) -> str | None:
        """One line: the winner and its corrected error, which points are tied, which one is picked and why.

        None without a comparison.
        """
        comparison, chosen = self.comparison, self.chosen
        if comparison is None or chosen is None or self.winner is None:
            return None
        numbers = {index: place for place, index in enumerate(self.order(), start=1)}
        picked = numbers[self.configurations.index(chosen.configuration)]
        tied = sorted(numbers[index] for index in self.tied if index != self.winner)
        if tied:
            others = f"tied with it: {', '.join(map(str, tied))}"
        else:
            others = "all others are significantly worse" if len(comparison.means) > 1 else "compared with no other"
        metric = self.metric
        lowest = f"point {numbers[self.winner]}, {metric.loss_text(comparison.means[comparison.winner].mean)}"
        corrected = metric.loss_text(comparison.corrected_error)
        corrected = f"corrected for its selection as the {metric.best_word} {corrected}"
        picked_point = f"point {picked} ({chosen.configuration.label}): {chosen.reason}"
        return f"{metric.best_word} mean {metric.label}: {lowest}, {corrected}; {others}; chosen: {picked_point}"

    def brief(self) -> list[str]:
        """One or two lines for views of the confirmed study: the confirmation's progress and its result."""
        lines, companion = [], self.companion
        if not self.is_finished:
            lines.append(f"its confirmation {companion.name} is not finished: {describe_counts(companion.points)}")
        chosen = self.chosen
        if chosen is None or (mean := chosen.configuration.mean) is None:
            return lines or [f"its confirmation {companion.name} has nothing to compare: {'; '.join(self.notes)}"]
        others = [each.label for each in self.configurations if each.is_tied and each is not chosen.configuration]
        named = others if len(others) <= _MOST_NAMED else [*others[: _MOST_NAMED - 1], f"{len(others) - 1} others"]
        tied = f"tied with {' and '.join(named)}" if others else chosen.reason
        num_left_out = sum(each.left_out is not None for each in self.configurations)
        left_out = f"; left out: {num_left_out} more" if num_left_out else ""
        confirmed = (
            f"confirmed over {counted(len(self.seeds), 'seed')} in {companion.name}: {chosen.configuration.label}"
        )
        return [*lines, f"{confirmed}: {self.metric.loss_text(mean.mean, mean.deviation)}, {tied}{left_out}"]

    def as_json(self) -> dict[str, Any]:
        """The confirmation as `hpsearch confirm --json` prints it; also the key `confirmation` of `status --json`.

        These keys are stable; new keys may be added.

        study, companion (name of the companion study), finished, notes
        points              points of the companion study: total, waiting, running, complete, pruned, failed (given up)
        max_epochs          number of epochs that its trials may have; the search may have been given more since; of a
                            program its max_steps, or null
        num_seeds           number of seeds requested; seeds: the seeds that were compared
        num_images          examples that were compared: the validation set, or 10,000 of it; or null, always for
                            programs, whose seeds are compared
        units               what num_images counts: images, rows, or groups of rows (data.group)
        metric              name of the study's metric; errors, means and intervals are its values
        configurations      in the order of the search's ranking:
            params              the searched keys with their values
            search_error, search_trial      error and trial number in the search (null if the trial was deleted)
            seeds               number of seeds that have ended
            mean, deviation     of the error over the compared seeds (deviation null for one seed), or null
            interval            95 % interval of the mean: [low, high], or null
            difference          how much worse than the winner it is, in losses (lower is better), or null
            difference_interval its simultaneous 95 % interval, or null
            tied                whether it is tied with the winner (null if it is not compared)
            num_parameters (null for programs), epochs (mean, or null)
            left_out            why it is not compared, or null
        winner              index of the lowest mean; corrected_error: its error corrected for the optimism of the pick;
                            both null while nothing is compared
        tied                indices of the configurations tied with the winner
        chosen              null, or configuration (index), trial (number in the companion study), reason
        """
        comparison, chosen = self.comparison, self.chosen
        return {
            "study": self.study,
            "companion": self.companion.name,
            "finished": self.is_finished,
            "notes": self.notes,
            "points": counts_as_json(self.companion.points),
            "max_epochs": self.max_epochs,
            "num_seeds": self.num_seeds,
            "seeds": list(self.seeds),
            "num_images": comparison and comparison.num_images,
            "units": None if self.metric.is_reported else self.companion.study.units,
            "metric": self.metric.name,
            "configurations": [_as_json(configuration, self.metric) for configuration in self.configurations],
            "winner": self.winner,
            "corrected_error": comparison and self.metric.value_of(comparison.corrected_error),
            "tied": list(self.tied),
            "chosen": chosen
            and {
                "configuration": self.configurations.index(chosen.configuration),
                "trial": chosen.trial.number,
                "reason": chosen.reason,
            },
        }


def _as_json(configuration: ConfirmedConfiguration, metric: Metric) -> dict[str, Any]:
    mean, difference = configuration.mean, configuration.difference
    return {
        "params": dict(configuration.parameters),
        "search_error": configuration.search_error,
        "search_trial": configuration.search_trial and configuration.search_trial.number,
        "seeds": len(configuration.trials),
        "mean": mean and metric.value_of(mean.mean),
        "deviation": mean and mean.deviation,
        "interval": mean and mean.interval and list(metric.interval_of(mean.interval)),
        "difference": difference and difference.value,
        "difference_interval": difference and difference.interval and list(difference.interval),
        "tied": configuration.is_tied,
        "num_parameters": configuration.num_parameters,
        "epochs": configuration.num_epochs,
        "left_out": configuration.left_out,
    }
