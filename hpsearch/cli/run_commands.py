"""Commands that do the work: run, create, worker."""

from __future__ import annotations

import contextlib
import os
import platform

import torch
import typer

from hpsearch.cli import options
from hpsearch.cli.progress_view import download_progress, follow
from hpsearch.cli.tables import print_json, print_summary
from hpsearch.data.catalog import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.errors import UncountedPointsError
from hpsearch.logs import get_logger
from hpsearch.results.summary import read_summary
from hpsearch.service.artifacts import ArtifactFolder
from hpsearch.service.database import Database
from hpsearch.service.devices import describe_device, resolve_device
from hpsearch.service.home import log_folder
from hpsearch.service.ledger import Ledger
from hpsearch.service.prepare import PreparedStudy, load_study_data, prepare_study
from hpsearch.service.registry import StoredStudy, load_study
from hpsearch.service.signals import StopSignal
from hpsearch.service.supervisor import SUPERVISOR_VARIABLE, Supervisor, WorkerCommand
from hpsearch.service.worker import Worker
from hpsearch.study import StudyDefinition, load_definition

_log = get_logger("run")


def run(
    study_file: options.StudyFile,
    overrides: options.Overrides = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    lanes: options.Lanes = "auto",
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
    as_json: options.AsJson = False,
) -> None:
    """Create or resume a study, train it with local workers, end with the best table.

    Ctrl-C leaves a study that the same command resumes.
    """
    definition = load_definition(study_file, overrides or ())
    num_lanes = options.parse_lanes(lanes)
    resolve_device(device)
    folder = ArtifactFolder(options.artifacts_in(artifacts)).folder
    with options.open_storage(storage) as database:
        prepared = _prepare(database, definition)
        study = prepared.study
        counts = Ledger(database=database, study_id=study.study_id).counts()
        if counts.unfinished == 0:
            _say(f"study {study.name!r} is finished: all {counts.total} points are done, nothing to run")
        else:
            num_workers = workers or options.default_num_workers(device)
            command = WorkerCommand(
                study_name=study.name,
                storage_url=database.url.render_as_string(hide_password=False),
                device=device,
                lanes=str(num_lanes or _fair_share(counts.unfinished, num_workers)),
                artifacts=folder,
                threads=options.threads_per_worker(num_workers),
                log_folder=log_folder(),
            )
            _train(database, study, command, num_workers, is_new=prepared.is_new)
        _finish(database, study.name, as_json)


def create(
    study_file: options.StudyFile,
    overrides: options.Overrides = None,
    storage: options.Storage = None,
    as_json: options.AsJson = False,
) -> None:
    """Register a study with all its points; workers join it with `hpsearch worker`."""
    definition = load_definition(study_file, overrides or ())
    with options.open_storage(storage) as database:
        prepared = _prepare(database, definition)
        if as_json:
            print_json(read_summary(database, prepared.study.name).as_json())
        else:
            state = "created" if prepared.is_new else "was there already, with the same definition"
            typer.echo(f"study {definition.name!r} {state}: {definition.num_points} points")


def worker(
    study: options.StudyName,
    device: options.Device = "auto",
    lanes: options.Lanes = "auto",
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
) -> None:
    """Join a study from anywhere and train its points until none is left."""
    num_lanes = options.parse_lanes(lanes)
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    stop = StopSignal(parent_pid=int(supervisor) if supervisor else None).install()
    target = resolve_device(device)
    folder = ArtifactFolder(options.artifacts_in(artifacts))
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    with options.open_storage(storage) as database:
        stored = load_study(database, study)
        with download_progress() as progress:
            selection = load_study_data(stored, locations=DataLocations.from_environment(), progress=progress)
        data = ResidentData.place(
            selection, target, max_resident_bytes=stored.definition.data.max_resident_bytes
        )
        name = f"{platform.node()}:{os.getpid()}"
        _log.info("worker %s joins study %s on %s", name, study, describe_device(target))
        num_finished = Worker(
            database=database,
            study=stored,
            data=data,
            device=target,
            num_lanes=num_lanes or options.AUTO_LANES,
            artifacts=folder,
            stop=stop,
            name=name,
        ).run()
        _log.info("worker %s leaves: %d trials finished", name, num_finished)


def _prepare(database: Database, definition: StudyDefinition) -> PreparedStudy:
    with download_progress() as progress:
        return prepare_study(
            database, definition, locations=DataLocations.from_environment(), progress=progress
        )


def _fair_share(num_points: int, num_workers: int) -> int:
    """Lanes per worker such that no worker takes points that another could train in its own lanes."""
    return max(1, min(options.AUTO_LANES, -(-num_points // num_workers)))


def _train(
    database: Database, study: StoredStudy, command: WorkerCommand, num_workers: int, *, is_new: bool
) -> None:
    _say(
        f"study {study.name!r} {'created' if is_new else 'resumed'}: {study.definition.num_points} points, "
        f"{num_workers} {'worker' if num_workers == 1 else 'workers'} with {command.lanes} lanes each"
    )
    supervisor = Supervisor(database=database, study=study, command=command, num_workers=num_workers)
    try:
        with follow(study) as on_progress:
            supervisor.run(on_progress)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            left = Ledger(database=database, study_id=study.study_id).counts().unfinished
            _say(f"interrupted: {left} points are left; the same command resumes the study")
        raise


def _finish(database: Database, name: str, as_json: bool) -> None:
    summary = read_summary(database, name)
    if as_json:
        print_json(summary.as_json())
    else:
        print_summary(summary)
    if summary.points.failed:
        raise UncountedPointsError(
            f"{summary.points.failed} of {summary.points.total} points could not be trained: "
            "their workers died or failed each time",
            hint=f"the logs of the workers are in {log_folder()}",
        )


def _say(message: str) -> None:
    typer.echo(message, err=True)
