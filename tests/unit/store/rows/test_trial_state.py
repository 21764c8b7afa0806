"""The names of states that are read without Optuna are Optuna's."""

from __future__ import annotations

from optuna.trial import TrialState

from hpsearch.store.rows.trial_state import StoredState


def test_the_states_are_optunas() -> None:
    assert {state.name for state in StoredState} == {state.value for state in StoredState}
    assert [state.name for state in StoredState] == [state.name for state in TrialState]
