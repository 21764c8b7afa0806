"""Workers that train nothing: a trial's curve is a function of its settings, all else is the service's own.

Claims, draws, epochs, endings and leases go through a real worker and a real database. So what a strategy finds here
is what it finds in the service, and not what its sampler would have said if somebody else had asked it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.pin import PinnedDevice
from hpsearch.epoch_report import Diagnosis, EpochReport, Validation
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.registration import register_study
from hpsearch.store.rows.trial_state import POINT_ATTRIBUTE
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import DataSettings, TrialSettings
from hpsearch.study.study_file import parse_definition
from hpsearch.training.lanes.checkpoint import PendingCheckpoint, TrialCheckpoint, copy_to_host
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.worker.cohorts import BuildCohort, Cohorts, cohort_name
from hpsearch.worker.lanes.lane_count import FixedLanes
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.options import WorkerSettings

_SECTIONS: Mapping[str, Any] = {
    "data": {"dataset": "digits", "train_samples": 200},  # of which nothing but sizes is looked at
    "model": {"family": "mlp"},
    "training": {"batch_size": 50, "max_epochs": 1000},
    "stopping": {"rule": "none"},
}
CPU = torch.device("cpu")
Curve = Callable[[TrialSettings], Sequence[float]]  # the validation error after each epoch; NaN: it has diverged


class PlantedCohort(Cohort):
    """Trials whose curves are planted; a trial ends with the last value of its curve."""

    def __init__(self, curve: Curve, shape: CohortShape) -> None:
        self.shape = shape
        self._curve = curve
        self._curves: dict[Hashable, Sequence[float]] = {}
        self._num_epochs: dict[Hashable, int] = {}

    @property
    def keys(self) -> tuple[Hashable, ...]:
        return tuple(self._curves)

    def admit(self, key: Hashable, settings: TrialSettings, checkpoint: TrialCheckpoint | None = None) -> None:
        self._curves[key] = self._curve(settings)
        self._num_epochs[key] = 0

    def admit_all(self, trials: Mapping[Hashable, TrialSettings]) -> None:
        for key, settings in trials.items():
            self.admit(key, settings)

    def release(self, key: Hashable) -> None:
        del self._curves[key], self._num_epochs[key]

    def diagnose(self, keys: Iterable[Hashable]) -> dict[Hashable, Diagnosis]:
        return {}

    def train_epoch(self) -> dict[Hashable, EpochReport]:
        return {key: self._next_report(key) for key in self._curves}

    def _next_report(self, key: Hashable) -> EpochReport:
        self._num_epochs[key] += 1
        epoch, curve = self._num_epochs[key], self._curves[key]
        error = curve[epoch - 1]
        return EpochReport(
            epoch=epoch,
            validations=(Validation(iteration=epoch, loss=error, nll=error),),
            train_nll=error,
            learning_rate=1.0,
            seconds=0.0,
            is_schedule_exhausted=epoch == len(curve),
        )

    def best_parameters(self, key: Hashable) -> dict[str, NDArray[Any]]:
        return {"none": np.zeros(1, np.float32)}

    def best_record(self, key: Hashable) -> NDArray[np.bool_]:
        return np.ones(1, np.bool_)

    def checkpoint(self, keys: Iterable[Hashable]) -> PendingCheckpoint:
        # Of no trial, so that no tensor is looked at: a trial that is taken up again begins anew.
        return PendingCheckpoint(trials={}, to_host=copy_to_host)


def planting(curve: Curve) -> BuildCohort:
    """What builds a worker's cohorts."""
    return lambda shape, *_, **__: PlantedCohort(curve, shape)


class PlantedStudies:
    """Studies in one database, and workers on them in this process.

    Args:
        folder: for the best parameters, which workers keep as ever.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self._artifacts = open_artifacts(folder / "artifacts")
        locations = DataLocations(local=None, cache=folder / "cache", allow_download=False)
        images = load_selection_data(DataSettings(**_SECTIONS["data"]), locations=locations)
        self._data = ResidentData.place(images, CPU)
        self._names = (f"planted-{number}" for number in itertools.count())

    def create(self, strategy: str, search: Mapping[str, Any], *, num_points: int, seed: int = 0) -> StoredStudy:
        """A new study.

        Args:
            search: the dimensions, as in a study file.
        """
        drawn = {"strategy": strategy, "num_points": num_points, **search}
        return self._register({**_SECTIONS, "name": next(self._names), "seed": seed, "search": drawn})

    def widen(self, study: StoredStudy, num_points: int) -> StoredStudy:
        """The same study with more points to draw."""
        document = study.definition.document()
        document["search"]["num_points"] = num_points
        return self._register(document)

    def worker(self, study: StoredStudy, curve: Curve, *, lanes: int = 1, stop: StopSignal | None = None) -> Worker:
        return Worker(
            database=self.database,
            study=study,
            cohorts=Cohorts(study.definition.stopping, self._data, CPU, planting(curve)),
            pinned=PinnedDevice(None),
            lanes=FixedLanes(lanes),
            artifacts=self._artifacts,
            stop=stop or StopSignal(),
            settings=WorkerSettings(name="planted", poll_seconds=0.01, checkpoint_seconds=0),
        )

    def trials(self, study: StoredStudy) -> list[FrozenTrial]:
        """The trials that count, by point."""
        trials = self.database.load_study(study.name).get_trials(
            deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)
        )
        return sorted(trials, key=lambda trial: trial.user_attrs[POINT_ATTRIBUTE])

    def _register(self, document: dict[str, Any]) -> StoredStudy:
        return register_study(
            self.database,
            parse_definition(document, source=__name__),
            dataset_checksums={"planted": "0" * 64},
            cohort_of=cohort_name,
        ).study


def curve_of_value(value: float | None) -> tuple[float]:
    """One epoch with this error; None: it diverges."""
    return (math.nan if value is None else value,)


@contextmanager
def planted_studies() -> Iterator[PlantedStudies]:
    """In a database of their own, that is gone afterwards. It need not survive a power cut, and so is faster."""
    settings = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    with scratch_folder() as folder, scratch_postgres(folder, settings) as postgres:
        database = open_database(postgres.url)
        try:
            yield PlantedStudies(database, folder)
        finally:
            database.close()
