"""Parameters of an objective's trials: drawn one by one as the objective asks for them, and stored before it has them.

The space is not known beforehand. When a trial begins, the sampler draws jointly the parameters that the ended trials
share; any other is drawn by itself when the trial asks for it. Values that an earlier attempt has asked for stay.

With strategy `listed` nothing is drawn: the trial is given the values of its point.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import text

from hpsearch.logs import get_logger
from hpsearch.search.samplers import build_sampler
from hpsearch.search.snapshot import StudySnapshot, SystemAttr
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.distributions import parse_stored_distribution
from hpsearch.store.rows.history import History
from hpsearch.store.studies import StoredStudy
from hpsearch.study.space import ParameterValue
from hpsearch.worker.drawing import store_parameters

_log = get_logger("worker")
_BEGINS_ANEW = ("qmc", "cmaes")  # strategies that cannot use what was drawn in another space

_FIRST_DISTRIBUTION = text("""
    SELECT q.distribution_json FROM trials t JOIN trial_params q USING (trial_id)
    WHERE t.study_id = :study AND q.param_name = :name ORDER BY t.number LIMIT 1
""")


class LostTrialError(Exception):
    """Another worker has the trial."""


@dataclass(kw_only=True)
class AskedTrial:
    """A trial for which parameters are drawn: Optuna's own `Trial` on a copy of the study in memory."""

    claim: Claim
    storage: StudySnapshot
    trial: optuna.Trial
    notes: list[SystemAttr] = field(default_factory=list)  # of the sampler, not stored yet
    listed: set[str] = field(default_factory=set)  # names that were looked up in a listed point

    @property
    def stored(self) -> FrozenTrial:
        """What is drawn so far."""
        return self.storage.get_trial(self.claim.trial_id)

    @property
    def relative_space(self) -> dict[str, BaseDistribution]:
        return self.trial.relative_search_space or {}


class AskedParameters:
    """One worker's access to the sampler of a study whose trials are objectives. Not thread-safe."""

    def __init__(self, study: StoredStudy) -> None:
        self._study = study
        self._is_listed = study.definition.search.strategy == "listed"
        self._history = History(study.study_id)
        self._distributions: dict[str, BaseDistribution] = {}  # the first one of each parameter in the study
        self._shared: frozenset[str] | None = None  # names that the last trial drew jointly

    def begin(self, ledger: Ledger, claim: Claim) -> AskedTrial:
        """Draw the parameters that the ended trials share. Nothing is written.

        Args:
            ledger: in the name of the worker that has claimed the point.
        Raises:
            LostTrialError: another worker has taken the trial over.
            StorageError: the database is away. Repeating the call is safe.
        """
        search = self._study.definition.search
        only = [claim.trial_id] if search.strategy in ("random", "listed") else None
        trials = self._history.read(ledger.database, only=only)
        if not any(trial._trial_id == claim.trial_id for trial in trials):
            raise LostTrialError
        storage = StudySnapshot(study_name=self._study.name, study_id=self._study.study_id)
        if self._is_listed:  # the objective has its own distributions, which are not those of the list
            trials = [_without_parameters(trial) for trial in trials]
        storage.replace_trials(trials)
        sampler = build_sampler(
            "random" if self._is_listed else search.strategy,
            study_seed=self._study.definition.seed,
            trial_number=claim.number,
            point=claim.point,
            is_open=True,
        )
        study = optuna.Study(study_name=self._study.name, storage=storage, sampler=sampler)
        asked = AskedTrial(claim=claim, storage=storage, trial=optuna.Trial(study, claim.trial_id))
        _ = asked.trial.relative_params  # Optuna draws them at the first look
        self._note_space(frozenset(asked.relative_space))
        return asked

    def suggest(self, ledger: Ledger, asked: AskedTrial, name: str, distribution: BaseDistribution) -> float:
        """Return the value of a parameter as Optuna stores it. It is in the database when this returns.

        Raises:
            ValueError: the distribution does not fit that of the same parameter in this trial or another one, or the
                value of a listed point.
            LostTrialError, StorageError: as `begin`.
        """
        if self._is_listed:
            asked.listed.add(name)
            return _listed_value(asked.claim, name, distribution)
        self._check(ledger, name, distribution)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the objective's own process shows Optuna's warnings
            value = _suggest(asked.trial, name, distribution)
        asked.notes += asked.storage.drain_system_attrs()
        if not store_parameters(ledger, [asked.stored], asked.notes):
            raise LostTrialError
        asked.notes.clear()
        self._distributions.setdefault(name, distribution)
        return float(distribution.to_internal_repr(value))

    def best(self, ledger: Ledger) -> FrozenTrial | None:
        """Return the best complete trial, with a loss as its value; the earliest one of several. None: there is none.

        Raises:
            StorageError: the database is away.
        """
        trials = self._history.read(ledger.database)
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
        return min(complete, key=lambda trial: trial.value or 0.0, default=None)

    def _check(self, ledger: Ledger, name: str, distribution: BaseDistribution) -> None:
        """Raises ValueError, as Optuna's storages do, if a trial of the study has another kind of this parameter."""
        known = self._distributions.get(name)
        if known is None:
            rows = ledger.rows(_FIRST_DISTRIBUTION, name=name)
            if not rows:
                return
            known = parse_stored_distribution(rows[0].distribution_json, f"parameter {name}")
            self._distributions[name] = known
        try:
            check_distribution_compatibility(known, distribution)
        except ValueError as error:
            raise ValueError(f"parameter {name!r}: {error}") from None

    def _note_space(self, shared: frozenset[str]) -> None:
        strategy, before = self._study.definition.search.strategy, self._shared
        self._shared = shared
        if before is None or before == shared or strategy not in _BEGINS_ANEW:
            return
        names = ", ".join(sorted(shared)) or "none"
        _log.info("%s begins anew: the parameters that all ended trials share are now %s", strategy, names)


def _without_parameters(trial: FrozenTrial) -> FrozenTrial:
    bare = copy.copy(trial)
    bare.params, bare.distributions = {}, {}
    return bare


def _listed_value(claim: Claim, name: str, distribution: BaseDistribution) -> float:
    """The value of a listed point as Optuna stores it. Raises ValueError: it has none, or one that may not be."""
    if name not in claim.parameters:
        known = ", ".join(sorted(claim.parameters))
        raise ValueError(f"the objective asks for {name!r}, which its listed point does not have; it has {known}")
    value = claim.parameters[name]
    wrong = f"the listed point has {name} = {value!r}, and the objective allows {_described(distribution)}"
    try:
        internal = float(distribution.to_internal_repr(value))
    except ValueError:
        raise ValueError(wrong) from None
    if not distribution._contains(internal):
        raise ValueError(wrong)
    return internal


def _described(distribution: BaseDistribution) -> str:
    match distribution:
        case FloatDistribution(low=low, high=high) | IntDistribution(low=low, high=high):
            return f"{low:g} to {high:g}"
        case CategoricalDistribution(choices=choices):
            return ", ".join(map(repr, choices))
    return str(distribution)


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> ParameterValue:
    match distribution:
        case FloatDistribution(low=low, high=high, step=step, log=is_log):
            return trial.suggest_float(name, low, high, step=step, log=is_log)
        case IntDistribution(low=low, high=high, step=step, log=is_log):
            return trial.suggest_int(name, low, high, step=step, log=is_log)
        case CategoricalDistribution(choices=choices):
            value: Any = trial.suggest_categorical(name, choices)
            return value  # type: ignore[no-any-return]  # choices may also be None
    raise ValueError(f"parameter {name!r}: hpsearch does not know {type(distribution).__name__}")


def packed(values: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> list[list[Any]]:
    """Parameters as a message has them (scripts/objectives/messages.py)."""
    texts = {name: optuna.distributions.distribution_to_json(distributions[name]) for name in values}
    return [[name, float(distributions[name].to_internal_repr(v)), texts[name]] for name, v in values.items()]
