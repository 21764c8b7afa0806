"""Train a study with workers on this machine or on a Ray cluster, for `run`, `confirm` and the Python API.

    launch = check_launch(LaunchOptions(storage=url, workers=2))
    with launch.first_worker(definition.name) as first, open_storage(url) as database:
        study = train_study(database, definition, launch, first, listener)

Nothing here parses or prints: a caller that reports progress passes a `LaunchListener`. Nothing here handles signals:
the workers are subprocesses, so `train_study` can run in any thread, also beside a running event loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.files.download import DownloadProgress
from hpsearch.data.registry import with_absolute_dataset
from hpsearch.device.pin import describe_taken
from hpsearch.launch.first_worker import FirstWorker
from hpsearch.launch.options import Launch
from hpsearch.launch.ray_launcher import ray_workers
from hpsearch.launch.supervisor import Supervisor, WorkerLauncher
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import Progress, is_finished
from hpsearch.store.registration import Registration, find_study
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition


class LaunchListener:
    """Receives events while a study is trained. Every method may be overridden; these do nothing."""

    def found_finished(self, study: StoredStudy, counts: PointCounts) -> None:
        """The study exists and has nothing left to train."""

    def gpu_is_taken(self, description: str) -> None:
        """Another worker holds a GPU that these workers will ask for."""

    def download(self) -> AbstractContextManager[DownloadProgress | None]:
        """Open while the data is located; the yielded object is notified of each file that is downloaded."""
        return contextlib.nullcontext()

    def prepared(self, registration: Registration, num_workers: int, num_at_once: int | None) -> None:
        """The study exists with all its points, and the workers are about to start.

        Args:
            num_at_once: lanes or programs of each worker; None: the worker finds that out.
        """

    def training(self, study: StoredStudy) -> AbstractContextManager[Callable[[Progress], None]]:
        """Open while workers train; the yielded function is called with the study's progress about once a second."""
        return contextlib.nullcontext(lambda progress: None)

    def lanes_changed(self, worker: int, message: str) -> None:
        """A worker of this machine has changed its number of lanes; the message says the number and why."""

    def interrupted(self, study: StoredStudy, num_left: int) -> None:
        """Ctrl-C was pressed and the workers have given their trials back. `num_left` points are unfinished."""


def train_study(
    database: Database,
    definition: StudyDefinition,
    launch: Launch,
    first: FirstWorker,
    listener: LaunchListener | None = None,
) -> StoredStudy:
    """Create or resume the study and train it until it is finished.

    A study that is already finished needs neither data nor workers. The call may be repeated after an interruption, and
    may run several times at once: the workers of all callers share the points.

    Args:
        first: of this launch and study; its context is the caller's.
    Raises:
        KeyboardInterrupt: re-raised after the workers have given their trials back.
        ArtifactError: the folder or bucket for artifacts is not writable.
        HpsearchError: the definition or the data is not suitable, or workers cannot start or keep dying.
    """
    listener = listener or LaunchListener()
    assert launch.options.worker.artifacts is not None, "set by check_launch"
    open_artifacts(launch.options.worker.artifacts)
    definition = with_absolute_dataset(definition)
    study = find_study(database, definition)
    if study is not None and is_finished(database, study):
        listener.found_finished(study, _counts(database, study))
        return study
    command = launch.command(definition.name)
    if launch.options.on is None:
        for taken in describe_taken(database, launch.gpus):
            listener.gpu_is_taken(taken)
        return _train(database, definition, launch, command, launch.num_workers, first, listener)
    url = database.url.render_as_string(hide_password=False)
    command = replace(command, storage_url=url if launch.options.storage else None)
    with ray_workers(
        launch.options.on,
        command,
        num_workers=launch.options.workers,
        url=database.url,
        program=launch.options.program,
    ) as launcher:
        return _train(database, definition, launch, launcher, launcher.command.num_workers, first, listener)


def _train(
    database: Database,
    definition: StudyDefinition,
    launch: Launch,
    launcher: WorkerLauncher,
    num_workers: int,
    first: FirstWorker,
    listener: LaunchListener,
) -> StoredStudy:
    with listener.download() as progress:
        registration = first.prepare(definition, progress)
    study = registration.study
    listener.prepared(registration, num_workers, launch.num_at_once)
    supervisor = Supervisor(
        database=database, study=study, command=launcher, num_workers=num_workers, on_lanes=listener.lanes_changed
    )
    if first.joins:
        supervisor.processes[0] = first.process
    try:
        with listener.training(study) as on_progress:
            supervisor.run(on_progress)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            listener.interrupted(study, _counts(database, study).unfinished)
        raise
    return study


def _counts(database: Database, study: StoredStudy) -> PointCounts:
    return Ledger(database=database, study_id=study.study_id).counts()
