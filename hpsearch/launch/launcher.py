"""Train a study with workers of this machine or of a Ray cluster: what `run`, `confirm` and the Python API share.

    launch = check_launch(LaunchOptions(storage=url, workers=2))
    with open_storage(url) as database:
        study = train_study(database, definition, launch, listener)

Nothing here parses or prints: who wants to tell people about it gives a `LaunchListener`. Nothing handles signals
either: the workers are subprocesses, so any thread will do, beside a running event loop as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.artifacts.store import is_bucket
from hpsearch.data.catalog import DataLocations, DownloadProgress
from hpsearch.device.devices import Gpu, VisibleDevices, num_local_workers, wanted_gpus
from hpsearch.device.pin import describe_taken
from hpsearch.home import artifact_folder, log_folder
from hpsearch.launch.processors import usable_processors
from hpsearch.launch.ray_launcher import check_placement, ray_workers
from hpsearch.launch.supervisor import Supervisor, WorkerCommand, WorkerLauncher
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.store.claims.ledger import Ledger, PointCounts
from hpsearch.store.connection.database import (
    Database,
    open_database,
    parse_url,
    with_password_of_file,
    without_password,
)
from hpsearch.store.progress import Progress
from hpsearch.store.studies import StoredStudy, find_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.worker.checkpointer import DEFAULT_CHECKPOINT_SECONDS
from hpsearch.worker.health.metrics import MetricsAddress
from hpsearch.worker.health.watchdog import DEFAULT_STALL_SECONDS
from hpsearch.worker.preparation import PreparedStudy, prepare_study, with_absolute_dataset
from hpsearch.worker.rounds import is_finished


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How a study is to be trained, as somebody asked for it.

    Args:
        storage: what `open_storage` was given; None: the embedded PostgreSQL.
        artifacts: a folder or bucket; None: the default folder.
        workers: None: one per GPU, or one; in a cluster as many as it has GPUs, or one per node.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        lanes: `auto` or a number.
        on: the address of a Ray cluster; None: this machine.
        waits_for_gpu: a worker that finds every GPU taken waits until one is free.
        shares_gpu: workers may share a GPU.
        metrics: where the first worker serves its metrics, if anywhere.
    """

    storage: str | None = field(default=None, repr=False)  # it may hold a password
    artifacts: str | None = None
    workers: int | None = None
    device: str = "auto"
    lanes: str = "auto"
    on: str | None = None
    waits_for_gpu: bool = True
    shares_gpu: bool = False
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS
    stall_seconds: float = DEFAULT_STALL_SECONDS
    metrics: MetricsAddress | None = None


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options that this machine can fulfil; made by `check_launch`.

    Args:
        num_workers: of this machine; on a cluster it is the cluster that knows.
        gpus: those of this machine that the workers will ask for.
        artifacts: the folder, absolute, or the bucket.
    """

    options: LaunchOptions
    num_workers: int
    gpus: tuple[Gpu, ...]
    artifacts: str


class LaunchListener:
    """Is told what happens while a study is trained. Every method may be overridden; these keep silent."""

    def found_finished(self, study: StoredStudy, counts: PointCounts) -> None:
        """The study is there and has nothing left to train."""

    def gpu_is_taken(self, description: str) -> None:
        """Another worker holds a GPU that these workers will ask for."""

    def download(self) -> AbstractContextManager[DownloadProgress | None]:
        """Open while data is looked for; what it yields is told of each file that is downloaded."""
        return contextlib.nullcontext()

    def prepared(self, prepared: PreparedStudy, num_workers: int, lanes: str) -> None:
        """The study is there with all its points, and workers are about to start."""

    def training(self, study: StoredStudy) -> AbstractContextManager[Callable[[Progress], None]]:
        """Open while workers train; what it yields is told how far the study is, about once a second."""
        return contextlib.nullcontext(_ignore)

    def interrupted(self, study: StoredStudy, num_left: int) -> None:
        """Ctrl-C: the workers have given their trials back."""


def check_launch(options: LaunchOptions) -> Launch:
    """Find what is wrong with the options before a database is opened.

    Raises:
        InputError: no such device, more workers than GPUs, or no cluster's address.
        DeviceError: the GPU that was asked for is not there.
        ArtifactError: nothing can be written to the folder or bucket.
    """
    if options.on is not None:
        check_placement(options.on, options.device)
    visible = VisibleDevices.detect()
    num_workers = options.workers or 1
    if options.on is None:
        num_workers = num_local_workers(options.workers, options.device, visible, is_shared=options.shares_gpu)
    return Launch(
        options=options,
        num_workers=num_workers,
        gpus=wanted_gpus(options.device, visible) if options.on is None else (),
        artifacts=open_artifacts(artifact_place(options.artifacts)).place,
    )


def train_study(
    database: Database,
    definition: StudyDefinition,
    launch: Launch,
    listener: LaunchListener | None = None,
) -> StoredStudy:
    """Create the study or take it up again, and train it until it is finished.

    A study that is finished already needs neither data nor workers. To be called again after an interruption, or
    twice at once: the workers of all callers share the points.

    Raises:
        KeyboardInterrupt: passed on after the workers have given their trials back.
        HpsearchError: the definition or the data does not suit, or workers cannot start or keep dying.
    """
    listener = listener or LaunchListener()
    definition = with_absolute_dataset(definition)
    study = find_study(database, definition)
    if study is not None and is_finished(database, study):
        listener.found_finished(study, _counts(database, study))
        return study
    command = _worker_command(database, definition, launch)
    if launch.options.on is None:
        for taken in describe_taken(database, launch.gpus):
            listener.gpu_is_taken(taken)
        return _train(database, definition, command, launch.num_workers, listener)
    asked = launch.options.workers
    with ray_workers(launch.options.on, command, num_workers=asked, url=database.url) as launcher:
        return _train(database, definition, launcher, launcher.num_workers, listener)


@contextlib.contextmanager
def open_storage(url: str | None) -> Iterator[Database]:
    """The database that was named, or the embedded one; the latter runs as long as somebody uses it."""
    with contextlib.ExitStack() as stack:
        named = with_password_of_file(url) if url else None
        database = open_database(named or stack.enter_context(EmbeddedPostgres.start()).url, is_embedded=named is None)
        stack.callback(database.close)
        yield database


def artifact_place(place: str | None) -> str:
    """The folder or bucket that was named, or the default folder; folders as absolute paths.

    Raises:
        InputError: neither a folder nor a bucket of S3.
    """
    if place is None:
        return str(artifact_folder())
    return place if is_bucket(place) else str(Path(place).expanduser().absolute())


def threads_per_worker(num_workers: int) -> int:
    """CPU threads for each of several local workers: OMP_NUM_THREADS if it is set, or the usable cores shared out."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and len(named) < 5 and int(named) > 0:
        return int(named)
    return max(1, usable_processors() // num_workers)


def _worker_command(database: Database, definition: StudyDefinition, launch: Launch) -> WorkerCommand:
    options = launch.options
    return WorkerCommand(
        study_name=definition.name,
        storage_url=_url_for_workers(database, launch),
        device=options.device,
        num_workers=launch.num_workers,
        lanes=options.lanes,
        artifacts=launch.artifacts,
        threads=threads_per_worker(launch.num_workers),
        log_folder=log_folder(),
        metrics=options.metrics,
        options=[
            *([] if options.waits_for_gpu else ["--no-wait-for-gpu"]),
            *(["--share-gpu"] if options.shares_gpu else []),
            f"--checkpoint-seconds={options.checkpoint_seconds:g}",
            f"--stall-seconds={options.stall_seconds:g}",
        ],
    )


def _url_for_workers(database: Database, launch: Launch) -> str | None:
    """The URL that workers connect to; None: the embedded PostgreSQL.

    Workers of this machine read the password from the file that this process has read it from.
    """
    named = launch.options.storage
    if named is None:
        return None
    is_from_file = launch.options.on is None and parse_url(named).password is None
    url = without_password(database.url) if is_from_file else database.url
    return url.render_as_string(hide_password=False)


def _train(
    database: Database,
    definition: StudyDefinition,
    launcher: WorkerLauncher,
    num_workers: int,
    listener: LaunchListener,
) -> StoredStudy:
    with listener.download() as progress:
        locations = DataLocations.from_environment()
        prepared = prepare_study(database, definition, locations=locations, progress=progress)
    study = prepared.study
    listener.prepared(prepared, num_workers, launcher.lanes)
    supervisor = Supervisor(database=database, study=study, command=launcher, num_workers=num_workers)
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


def _ignore(_progress: Progress) -> None:
    pass
