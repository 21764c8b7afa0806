"""Which parameters a trial may have: those of every trial, and those that depend on what is drawn for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpsearch.study.space import ZERO_SUFFIX, Suggester


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The parameters by name.

    Args:
        always: those that every trial has.
        sometimes: conditional ones.
    """

    always: Mapping[str, BaseDistribution]
    sometimes: Mapping[str, BaseDistribution] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, BaseDistribution]:
        return {**self.always, **self.sometimes}


def explore(suggest_all: Callable[[Suggester], object]) -> SearchSpace:
    """The search space of a function that suggests parameters, found by calling it.

    It is called once for each choice of each categorical parameter, beside such choices of others as made that
    parameter appear. So a parameter may depend on categorical ones; one that appears only for certain numbers, or
    for a combination of choices of which none brings anything new, is not found.

    Args:
        suggest_all: asks for all parameters of one trial, as an Optuna objective would, and does nothing else.
    """
    seen: dict[str, BaseDistribution] = {}
    always: set[str] | None = None
    to_try: list[dict[str, Any]] = [{}]
    while to_try:
        chosen = to_try.pop(0)
        recorder = _Recorder(chosen=chosen)
        suggest_all(recorder)
        for name, distribution in recorder.seen.items():
            if name not in seen:
                to_try += [{**chosen, name: choice} for choice in _choices(name, distribution)]
            seen.setdefault(name, distribution)
        always = set(recorder.seen) if always is None else always & set(recorder.seen)
    return SearchSpace(
        always={name: distribution for name, distribution in seen.items() if name in (always or ())},
        sometimes={name: distribution for name, distribution in seen.items() if name not in (always or ())},
    )


def _choices(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    """The values that other parameters may depend on: all of a category, both ends of a number that is a switch."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, FloatDistribution) and name.endswith(ZERO_SUFFIX):
        return (distribution.low, distribution.high)
    return ()


@dataclass(frozen=True, kw_only=True)
class _Recorder:
    """Answers with what has been chosen beforehand, else with the lowest value or the first choice."""

    chosen: Mapping[str, Any]
    seen: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.seen[name] = FloatDistribution(low, high, log=log)
        chosen: float = self.chosen.get(name, low)
        return chosen

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.seen[name] = IntDistribution(low, high, log=log)
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.seen[name] = CategoricalDistribution(choices)
        return self.chosen.get(name, choices[0])
