"""The parameters that a trial can have: unconditional ones, and those that depend on the values of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpsearch.search.samplers.seeds import trial_seed
from hpsearch.study.space import ZERO_SUFFIX, Suggester


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The parameters by name.

    Args:
        always: parameters that every trial has.
        sometimes: conditional parameters.
    """

    always: Mapping[str, BaseDistribution]
    sometimes: Mapping[str, BaseDistribution] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, BaseDistribution]:
        return {**self.always, **self.sometimes}


@dataclass(frozen=True, kw_only=True)
class DrawRequest:
    """The trial for which a sampler is built.

    Args:
        point: number of the trial's point; None: points are not numbered separately from trials.
        space: None: the sampler infers it from finished trials.
        is_open: parameters become known only as trials ask for them, so any of them may be conditional.
    """

    study_seed: int
    trial_number: int
    point: int | None
    space: SearchSpace | None
    is_open: bool = False

    @property
    def trial_seed(self) -> int:
        return trial_seed(self.study_seed, self.trial_number)


def explore(suggest_all: Callable[[Suggester], object]) -> SearchSpace:
    """The search space of a function that suggests parameters, found by calling it.

    The function is called once for each choice of each categorical parameter, together with the choices that made that
    parameter appear. Parameters that depend on categorical ones are therefore found. A parameter is not found if it
    appears only for certain numbers, or for a combination of choices none of which adds a parameter by itself.

    Args:
        suggest_all: suggests all parameters of one trial, as an Optuna objective would, and does nothing else.
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
    """The values on which other parameters may depend: all choices of a category, both ends of a numeric switch."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, FloatDistribution) and name.endswith(ZERO_SUFFIX):
        return (distribution.low, distribution.high)
    return ()


@dataclass(frozen=True, kw_only=True)
class _Recorder:
    """Records suggestions. Returns the values chosen beforehand, otherwise the lowest value or the first choice."""

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
