"""Studies that are judged by other metrics: values in their own unit and direction, decisions by losses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from sqlalchemy import text

import hpsearch
from hpsearch.errors import InputError
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.rows.example_losses import read_example_losses

DEFINITION: dict[str, Any] = {
    "model": {"family": "logistic"},
    "training": {"batch_size": 20, "max_epochs": 3},
    "search": {"learning_rate": [0.001, 0.1, 0.5]},
    "stopping": {"rule": "none"},
}


@pytest.fixture
def two_classes(tmp_path: Path) -> dict[str, Any]:
    """The digits 3 and 8, as arrays in a file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.isin(digits.target, (3, 8))
    images, labels = digits.images[rows].astype(np.uint8) * 15, (digits.target[rows] == 8).astype(np.int64)
    path = tmp_path / "two.npz"
    np.savez(path, x_train=images[:250], y_train=labels[:250], x_test=images[250:], y_test=labels[250:])
    return {"dataset": str(path)}


@pytest.fixture
def run(tables_url: str, tmp_path: Path) -> Callable[..., hpsearch.Study]:
    def start(**sections: Any) -> hpsearch.Study:
        return hpsearch.run(
            {**DEFINITION, **sections},
            storage=tables_url,
            artifacts=str(tmp_path / "artifacts"),
            lanes=2,
            progress=False,
        )

    return start


def test_an_area_under_the_curve_is_maximised(
    run: Callable[..., hpsearch.Study], two_classes: dict[str, Any], tables_url: str
) -> None:
    study = run(name="by-auc", metric="auc", data=two_classes, pruning={"pruner": "median", "startup_trials": 1})
    plain = optuna.load_study(study_name="by-auc", storage=tables_url)
    assert plain.direction is optuna.study.StudyDirection.MAXIMIZE
    values = {t.params["learning_rate"]: t.value for t in plain.trials if t.state is optuna.trial.TrialState.COMPLETE}
    assert plain.best_value == max(values.values())
    assert study.best.value == plain.best_value > 0.9
    for trial in plain.trials:
        if trial.state is optuna.trial.TrialState.COMPLETE:
            assert trial.value == max(trial.intermediate_values.values())
            assert trial.user_attrs["best_validation_auc"] == trial.value
    curves = study.curves_dataframe()
    assert curves["auc"].max() == plain.best_value


def test_losses_of_each_example_are_stored_and_their_mean_is_the_loss(
    run: Callable[..., hpsearch.Study], two_classes: dict[str, Any], tables_url: str
) -> None:
    run(name="by-nll", metric="nll", data=two_classes)
    plain = optuna.load_study(study_name="by-nll", storage=tables_url)
    database = open_database(tables_url)
    stored = read_example_losses(database, [trial._trial_id for trial in plain.trials])
    assert len(stored) == 3
    for trial in plain.trials:
        assert stored[trial._trial_id].mean(dtype=np.float64) == pytest.approx(trial.value, rel=1e-5)
    _damage(database, plain.trials[0]._trial_id)
    assert plain.trials[0]._trial_id not in read_example_losses(database, [trial._trial_id for trial in plain.trials])
    database.close()


def _damage(database: Database, trial_id: int) -> None:
    damaged = np.full(3, np.nan, dtype="<f4").tobytes()
    statement = text("UPDATE hpsearch_example_losses SET losses = :losses, num_examples = 3 WHERE trial_id = :trial")
    database.transaction(lambda connection: connection.execute(statement, {"losses": damaged, "trial": trial_id}))


def test_a_metric_is_part_of_the_study(run: Callable[..., hpsearch.Study], two_classes: dict[str, Any]) -> None:
    run(name="fixed", metric="nll", data=two_classes)
    with pytest.raises(hpsearch.errors.DefinitionMismatchError, match="metric"):
        run(name="fixed", metric="zero-one", data=two_classes)


def test_an_objective_refuses_a_study_of_the_other_direction(two_classes: dict[str, Any]) -> None:
    objective = hpsearch.objective({**DEFINITION, "name": "o", "metric": "auc", "data": two_classes}, device="cpu")
    with pytest.raises(InputError, match="metric auc is to be maximized, but the Optuna study"):
        optuna.create_study().optimize(objective, n_trials=1)
    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=1)
    assert study.best_value == max(study.trials[0].intermediate_values.values())
