"""Fault table, row 25: Optuna and its dashboard change a study beside the workers."""

from __future__ import annotations

import optuna
import pytest
from optuna.storages._rdb import models
from optuna.trial import TrialState

from tests.faults.arena import Arena
from tests.faults.driver import Faults

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)


def test_row_25_trials_told_and_deleted_by_optunas_tools(arena: Arena) -> None:
    """Of seven points, three in training: two of these are told and one deleted, and so are three that wait."""
    arena.create(7)
    workers = arena.workers(3, faults=FAST)
    storage = optuna.storages.RDBStorage(arena.server.url)
    ids = {state: [t._trial_id for t in arena.trials() if t.state is state] for state in TrialState}
    running, waiting = ids[TrialState.RUNNING], ids[TrialState.WAITING]
    assert (len(running), len(waiting)) == (3, 4)
    told = [running[0], running[1], waiting[0], waiting[1]]
    storage.set_trial_state_values(running[0], TrialState.COMPLETE, [-5.0])
    storage.set_trial_state_values(running[1], TrialState.FAIL)
    storage.set_trial_state_values(waiting[0], TrialState.COMPLETE, [float("-inf")])
    storage.set_trial_state_values(waiting[1], TrialState.PRUNED)
    with storage.scoped_session() as session:
        for trial_id in (running[2], waiting[2]):
            session.delete(session.get(models.TrialModel, trial_id))
        session.commit()
    arena.go()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    # An attempt whose row is gone is not among the attempts: the judge numbers those of its point anew.
    arena.judge()
    trials = {trial._trial_id: trial for trial in arena.trials()}
    assert len(trials) == 7 + 4
    assert {trials[trial_id].user_attrs["fail_reason"] for trial_id in told} == {"ended outside hpsearch"}
    assert [trials[trial_id].value for trial_id in told] == [None] * 4
    best = arena.study().best_value
    assert best == min(trial.value for trial in arena.counted() if trial.value is not None) >= 0


def test_row_25_study_renamed_by_optunas_tools(arena: Arena) -> None:
    """As optuna-dashboard renames: it copies the trials and deletes the original, beside a worker."""
    arena.create(3)
    (worker,) = arena.workers(1, faults=FAST)
    storage, name = arena.server.url, arena.study_name
    optuna.copy_study(from_study_name=name, from_storage=storage, to_storage=storage, to_study_name="renamed")
    while name in optuna.get_all_study_names(storage):  # Optuna gives up without a word while a worker writes
        optuna.delete_study(study_name=name, storage=storage)
    arena.go()
    assert worker.wait() == 0, "its study is gone: it leaves"
    for arguments in (("worker", "renamed"), ("status", "renamed"), ("report", "renamed"), ("export", "renamed")):
        process = arena.start(*arguments)
        assert process.wait() == 2
        assert "'renamed' has trials but no points" in process.where
    study_file = arena.folder / "study.toml"
    study_file.write_text(STUDY.format(name=name))
    process = arena.start("create", str(study_file))
    assert process.wait() == 2
    assert f"study '{name}' no longer exists, only 'renamed', a copy without points" in process.where


STUDY = """
name = "{name}"
[data]
dataset = "digits"
[search]
learning_rate = [0.1, 0.2]
"""
