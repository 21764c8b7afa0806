"""The trial that an objective is called with: Optuna's own `Trial`, on a storage and a sampler that ask the worker.

So names, checks, warnings and errors are Optuna's, whatever version is installed. What an objective cannot have here,
such as the trials of the study, raises an error that says so.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime
from typing import Any, Final, Never, final

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy  # BaseStorage's own signature needs it; it is not exported
from optuna.trial import FrozenTrial, TrialState

import hpsearch.trial
from hpsearch.scripts.objectives.connection import WorkerConnection

FIRST_STEP: Final = 1  # of hpsearch. Optuna's first step is 0: its step n is hpsearch's n + 1
_READABLE: Final = ("study_name", "direction", "directions", "best_value", "best_params", "user_attrs")


def begin_trial(connection: WorkerConnection) -> optuna.Trial:
    """Return the trial of this process. The worker draws what its sampler draws jointly."""
    storage = _WorkerStorage(connection)
    study = ObjectiveStudy(storage.study_name, storage, _WorkerSampler(storage), _WorkerPruner())
    return optuna.Trial(study, storage.trial_id)


def _unpacked(parameters: list[Any]) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Values and distributions by name."""
    distributions = {name: json_to_distribution(text) for name, _, text in parameters}
    return {name: distributions[name].to_external_repr(number) for name, number, _ in parameters}, distributions


def _no_access(what: str) -> str:
    return f"hpsearch: an objective has no access to {what}; of its study it can read {', '.join(_READABLE)}"


def _refused(method: str) -> Any:
    def refuse(self: _WorkerStorage, *args: object, **kwargs: object) -> Never:
        raise RuntimeError(_no_access(method))

    return refuse


@final
class _WorkerStorage(BaseStorage):
    """Optuna's view of one trial in the worker's hands."""

    def __init__(self, connection: WorkerConnection) -> None:
        begun = connection.ask("begin")
        self.connection = connection
        self.study_name: str = begun["study"]
        self.trial_id: int = begun["number"]  # the number serves as id: there is no other trial here
        self._direction = StudyDirection[begun["direction"].upper()]
        self._drawn: set[str] = set()
        self.relative_params, self.relative_space = _unpacked(begun["relative"])
        params, distributions = _unpacked(begun["parameters"])
        self._trial = FrozenTrial(
            number=begun["number"],
            trial_id=self.trial_id,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.fromisoformat(begun["started"]),
            datetime_complete=None,
            params=params,
            distributions=distributions,
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    def draw(self, name: str, distribution: BaseDistribution) -> Any:
        """Let the worker choose and store the value of a parameter."""
        number = self.connection.ask("suggest", name=name, distribution=distribution_to_json(distribution))
        self._drawn.add(name)
        return distribution.to_external_repr(number)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if param_name not in self._drawn:  # drawn jointly with others, or there is only one value
            self.draw(param_name, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        hpsearch.trial.report(step + FIRST_STEP, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.connection.tell("attribute", key=key, value=value)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._trial

    def get_study_id_from_name(self, study_name: str) -> int:
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        return self.study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return [self._direction]

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        attributes: dict[str, Any] = self.connection.ask("attributes")
        return attributes

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def get_all_studies(self) -> list[FrozenStudy]:
        raise RuntimeError(_no_access("other studies"))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        raise RuntimeError(_no_access("other trials"))

    create_new_study = _refused("create_new_study")
    delete_study = _refused("delete_study")
    set_study_user_attr = _refused("set_study_user_attr")
    set_study_system_attr = _refused("set_study_system_attr")
    create_new_trial = _refused("create_new_trial")
    set_trial_state_values = _refused("set_trial_state_values")
    set_trial_system_attr = _refused("system attributes, such as constraints")


class _WorkerSampler(BaseSampler):
    def __init__(self, storage: _WorkerStorage) -> None:
        self._worker = storage

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._worker.relative_space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._worker.relative_params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._worker.draw(param_name, param_distribution)


class _WorkerPruner(BasePruner):
    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return hpsearch.trial.should_stop()


class ObjectiveStudy(optuna.Study):
    """The study of an objective's trial, to read: everything that is not named here raises AttributeError."""

    _storage: _WorkerStorage

    @property
    def best_value(self) -> float:
        value: float = self._best()["value"]
        return value

    @property
    def best_params(self) -> dict[str, Any]:
        return _unpacked(self._best()["parameters"])[0]

    def _best(self) -> dict[str, Any]:
        best: dict[str, Any] | None = self._storage.connection.ask("best")
        if best is None:
            raise ValueError("No trials are completed yet.")  # Optuna's words
        return best


def _close(name: str) -> None:
    def refuse(self: ObjectiveStudy) -> Never:
        raise AttributeError(_no_access(f"study.{name}"))

    setattr(ObjectiveStudy, name, property(refuse))


for _name in dir(optuna.Study):
    if not _name.startswith("_") and _name not in _READABLE:
        _close(_name)
