"""An in-memory snapshot of one study at one moment, for Optuna's pruners and samplers.

Optuna reads the whole study from its storage at every `should_prune`: 8 to 24 SQL statements per trial and epoch. The
worker instead reads the study once per epoch for all its lanes, puts the trials into a snapshot, calls the pruner on
it, and writes the pruner's attributes together with its own rows. The decisions are made by Optuna's code.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable
from typing import Any, Never, final

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, NopPruner
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy  # BaseStorage's own signature needs it; it is not exported
from optuna.trial import FrozenTrial, TrialState

SystemAttr = tuple[int, str, Any]  # trial id, key, JSON value


def _refused(method: str) -> Any:
    """A method of `StudySnapshot` that refuses to write."""

    def refuse(self: StudySnapshot, *args: object, **kwargs: object) -> Never:
        raise RuntimeError(f"{method} on a snapshot of {self._study_name!r}: call it on the study's own storage")

    return refuse


@final
class StudySnapshot(BaseStorage):
    """An in-memory Optuna storage of one study, and a pruner's decisions on it. For use by one thread.

    Only trials' parameters and system attributes can be written. Trials are never changed in place: a write replaces a
    trial by a changed copy, as Optuna's contract requires. (Successive halving relies on it: it lists the competitors,
    then writes its own value at the rung, then adds itself to the list. In-place changes would count it twice.)

    Usage per epoch: call `replace_trials` with the trials that the epoch's transaction read (including the reports of
    this epoch); then `should_prune` for each lane whose trial `is_running`, in a fixed order; then store the result of
    `drain_system_attrs` in the next transaction.

    Args:
        study_name, study_id: as in the database. Hyperband's brackets depend on the name.
        pruner: from `pruners.build_pruner`; the same object for all epochs. None: it prunes nothing.
    """

    def __init__(self, *, study_name: str, study_id: int = 0, pruner: BasePruner | None = None) -> None:
        self._study_name = study_name
        self._study_id = study_id
        self._pruner = pruner or NopPruner()
        self._trials: dict[int, FrozenTrial] = {}  # by trial id, in the order of numbers, as samplers expect
        self._pending_attrs: list[SystemAttr] = []

    @property
    def study(self) -> optuna.Study:
        """An Optuna study of these trials. A new object at each call, because studies cache their trials."""
        return optuna.Study(study_name=self._study_name, storage=self, pruner=self._pruner)

    def is_running(self, trial_id: int) -> bool:
        """Whether the trial exists and is RUNNING. If not, a worker that trains it has lost its lease."""
        return trial_id in self._trials and self._trials[trial_id].state is TrialState.RUNNING

    def should_prune(self, trial_id: int) -> bool:
        """The decision of `optuna.Trial.should_prune` for this RUNNING trial.

        Attributes that the pruner writes are kept for `drain_system_attrs`.

        Raises:
            KeyError: the trial is not in the snapshot.
            optuna.exceptions.UpdateFinishedTrialError: the trial has finished, so the calling worker has lost its
                lease.
        """
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        return bool(self._pruner.prune(self.study, trial))  # some of Optuna's pruners return numpy.bool

    def replace_trials(self, trials: Iterable[FrozenTrial]) -> None:
        """Replace all trials. They are not copied, and the caller must not change them.

        System attributes that were not drained yet are also set on the new trials: these were read before the caller
        could have stored the attributes.

        Raises:
            ValueError: two trials have one id.
        """
        in_order = sorted(trials, key=lambda trial: trial.number)
        by_id = {trial._trial_id: trial for trial in in_order}
        if len(by_id) < len(in_order):
            raise ValueError(f"{len(in_order)} trials have only {len(by_id)} different ids")
        self._trials = by_id
        for trial_id, key, value in self._pending_attrs:
            if trial_id in self._trials:
                self._put_system_attr(trial_id, key, value)

    def drain_system_attrs(self) -> list[SystemAttr]:
        """Return the system attributes that pruners and samplers wrote since the last call, for the caller to store."""
        drained, self._pending_attrs = self._pending_attrs, []
        return drained

    # Allowed writes: a trial's system attributes and its parameters. The caller stores both.

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.check_trial_is_updatable(trial_id, self.get_trial(trial_id).state)
        self._put_system_attr(trial_id, key, value)
        self._pending_attrs.append((trial_id, key, value))

    def _put_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        changed = copy.copy(self._trials[trial_id])
        changed.system_attrs = {**changed.system_attrs, key: value}
        self._trials[trial_id] = changed

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self.get_trial(trial_id)
        self.check_trial_is_updatable(trial_id, trial.state)
        changed = copy.copy(trial)
        changed.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        changed.distributions = {**trial.distributions, param_name: distribution}
        self._trials[trial_id] = changed

    # Reads

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._study_name:
            raise KeyError(f"this snapshot holds the study {self._study_name!r}, not {study_name!r}")
        return self._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        self._check_study_id(study_id)
        return self._study_name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        self._check_study_id(study_id)
        return [StudyDirection.MINIMIZE]  # the trials have the losses of the study's metric

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Always empty: no pruner or sampler reads them."""
        self._check_study_id(study_id)
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Always empty: no pruner or sampler uses what Optuna stores there (names of objectives)."""
        self._check_study_id(study_id)
        return {}

    def get_all_studies(self) -> list[FrozenStudy]:
        return [FrozenStudy(self._study_name, StudyDirection.MINIMIZE, {}, {}, self._study_id)]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id not in self._trials:
            raise KeyError(f"no trial with the id {trial_id} in this snapshot of {self._study_name!r}")
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        self._check_study_id(study_id)
        trials = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        # BaseStorage uses the number as an index, which is right only if the snapshot has all trials of the study.
        for trial in self.get_all_trials(study_id, deepcopy=False):
            if trial.number == trial_number:
                return trial._trial_id
        raise KeyError(f"no trial with the number {trial_number} in this snapshot of {self._study_name!r}")

    def _check_study_id(self, study_id: int) -> None:
        if study_id != self._study_id:
            raise KeyError(f"this snapshot holds the study with the id {self._study_id}, not {study_id}")

    create_new_study = _refused("create_new_study")
    delete_study = _refused("delete_study")
    set_study_user_attr = _refused("set_study_user_attr")
    set_study_system_attr = _refused("set_study_system_attr")
    create_new_trial = _refused("create_new_trial")
    set_trial_state_values = _refused("set_trial_state_values")
    set_trial_intermediate_value = _refused("set_trial_intermediate_value")
    set_trial_user_attr = _refused("set_trial_user_attr")
