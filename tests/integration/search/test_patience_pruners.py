"""Our pruners on a study in PostgreSQL: what they need outlives the process that reported it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from hpsearch.search.pruners import (
    GeometricPatiencePruner,
    NoImprovementPruner,
    SignificancePatiencePruner,
    report_correctness,
)
from hpsearch.store.connection.database import Database

# Better by 1 image of 10,000 each time: new bests by chance.
SLOW = [np.arange(10_000) < 9_000 + step for step in range(12)]


@pytest.mark.parametrize(
    ("build", "last"),
    [
        (lambda: GeometricPatiencePruner(patience=6, threshold=0.995), 7),
        (lambda: GeometricPatiencePruner(patience=6, threshold=1.0), None),
        (lambda: NoImprovementPruner(2), None),
        (lambda: SignificancePatiencePruner(patience=6, level=0.05), None),  # 5 of 5 images since the reference
        (lambda: SignificancePatiencePruner(patience=6, level=0.001), 7),
    ],
)
def test_a_trial_is_pruned_as_far_as_it_has_come_whoever_asks(
    database: Database, build: Callable[[], BasePruner], last: int | None
) -> None:
    study = optuna.create_study(storage=database.storage, study_name="plain", pruner=build())
    trial = study.ask()
    answers = []
    for step, correct in enumerate(SLOW, start=1):
        trial.report(float(1 - correct.mean()), step)
        report_correctness(trial, step, correct)
        answers.append(trial.should_prune())
    assert answers == [last is not None and step >= last for step in range(1, 13)]

    again = optuna.load_study(storage=database.storage, study_name="plain", pruner=build())
    other = optuna.Trial(again, trial._trial_id)
    assert other.should_prune() == answers[-1]
    study.tell(trial, state=TrialState.PRUNED if last else TrialState.COMPLETE, values=None if last else [0.1])
    assert again.trials[0].state is (TrialState.PRUNED if last else TrialState.COMPLETE)
