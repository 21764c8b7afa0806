"""A search through the whole service, on surfaces whose best point is known: a sampler that learns must find more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.measurement import mean_and_interval
from benchmarks.planted_worker import Curve, PlantedStudies
from hpsearch.store.connection.database import Database
from hpsearch.study.settings import TrialSettings
from hpsearch.worker.lanes import epoch_writer as epoch_writer_module

NUM_PLACEMENTS = 15
NUM_DRAWS = 60
LANES = 4
SEARCH = {
    "learning_rate": {"log10": [0, -4]},
    "lambda_1": {"log10": [-2, -6]},
    "lambda_2": {"log10": [-2, -6]},
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A busy machine is no slow database, and this study is no place for Optuna's log."""
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 60.0)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def bowl(placement: int) -> Curve:
    """One epoch; the error is 0.01 at a place that is drawn for each placement, and grows with the squared decades."""
    best = np.random.default_rng(placement).uniform([-3.5, -5.5, -5.5], [-0.5, -2.5, -2.5])

    def curve(settings: TrialSettings) -> tuple[float]:
        training = settings.training
        place = np.log10([training.learning_rate, training.lambda_1, training.lambda_2])
        return (min(0.9, 0.01 * math.exp(float(np.sum((place - best) ** 2)))),)

    return curve


def best_error(studies: PlantedStudies, strategy: str, placement: int) -> float:
    study = studies.create(strategy, SEARCH, num_points=NUM_DRAWS, seed=placement)
    studies.worker(study, bowl(placement), lanes=LANES).run()
    values = [trial.value for trial in studies.trials(study) if trial.value is not None]
    assert len(values) == NUM_DRAWS
    return min(values)


@pytest.mark.slow  # that its draws are Optuna's is tested in test_sampler_history.py
def test_tpe_beats_random_search(database: Database, tmp_path: Path) -> None:
    """The best of sixty draws over fifteen placements: the difference is below 0 with its whole 95 % interval."""
    studies = PlantedStudies(database, tmp_path)
    differences = [
        best_error(studies, "tpe", placement) - best_error(studies, "random", placement)
        for placement in range(NUM_PLACEMENTS)
    ]
    mean, half = mean_and_interval(differences)
    assert mean + half < 0, f"{mean:.5f} +- {half:.5f}"
