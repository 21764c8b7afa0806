"""Studies whose trials keep what pictures are made of, trained by workers in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.pin import PinnedDevice
from hpsearch.results.pictures.kept_filters import KeptFilters, read_filters
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database
from hpsearch.study.study_file import parse_definition
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.lanes.lane_count import FixedLanes
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.preparation import PreparedStudy, prepare_study

CPU = torch.device("cpu")


class PictureBench:
    """Studies on digits that keep filters, and workers in this process."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.folder = folder
        self.artifacts = open_artifacts(folder / "artifacts")
        self.name = "a"  # of the study, unless it is prepared with another name

    def prepare(self, name: str = "a", *, keep_every: int | None = 2, **sections: Any) -> PreparedStudy:
        document: dict[str, Any] = {
            "name": name,
            "data": {"dataset": "digits"},
            "model": {"hidden_units": 8},
            "training": {"batch_size": 257, "max_epochs": 5},
            "stopping": {"rule": "none"},
            "search": {"learning_rate": [0.1, 0.05]},
            **sections,
        }
        if keep_every is not None:
            document["keep_every"] = keep_every
        locations = DataLocations(local=None, cache=self.folder / "cache", allow_download=False)
        return prepare_study(self.database, parse_definition(document, source="test"), locations=locations)

    def train(self, prepared: PreparedStudy, *, lanes: int = 2, stop: StopSignal | None = None, **more: Any) -> None:
        seconds = more.pop("checkpoint_seconds", 60.0)
        settings = WorkerSettings(name="tester", poll_seconds=0.01, checkpoint_seconds=seconds)
        data = ResidentData.place(prepared.data, CPU)
        Worker(
            database=self.database,
            study=prepared.study,
            cohorts=Cohorts(prepared.study.definition.stopping, data, CPU, more.pop("build_cohort", Cohort)),
            pinned=PinnedDevice(None),
            lanes=FixedLanes(lanes),
            artifacts=more.pop("artifacts", self.artifacts),
            stop=stop or StopSignal(),
            settings=settings,
        ).run()

    def summary(self, name: str = "a") -> StudySummary:
        return read_summary(self.database, name, with_curves=True)

    def filters(self, trial: TrialSummary, name: str = "a") -> KeptFilters:
        return read_filters(self.summary(name).study, trial, self.artifacts)

    def ended(self, name: str = "a") -> list[TrialSummary]:
        """The counted trials, by point."""
        return sorted((t for t in self.summary(name).trials if t.is_current), key=lambda trial: trial.point or 0)
