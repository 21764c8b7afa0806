"""Commands that do the work: run, create, worker."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
from types import FrameType
from typing import NoReturn

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
from hpsearch.service.devices import describe_device, resolve_device, use_full_float32, worker_devices
from hpsearch.service.home import lane_folder, log_folder
from hpsearch.service.lane_choice import FixedLanes, MeasuredLanes
from hpsearch.service.lane_memory import LaneMemory
from hpsearch.service.ledger import Ledger, PointCounts
from hpsearch.service.prepare import PreparedStudy, check_networks, load_study_data, prepare_study
from hpsearch.service.registry import StoredStudy, find_study, load_study
from hpsearch.service.signals import StopSignal
from hpsearch.service.supervisor import NUM_WORKERS_VARIABLE, SUPERVISOR_VARIABLE, Supervisor, WorkerCommand
from hpsearch.service.worker import Worker
from hpsearch.study import StudyDefinition, load_definition
from hpsearch.training.host_memory import keep_freed_memory

_log = get_logger("run")
_MOST_NAMED = 3  # points in an error message


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
    _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    definition = load_definition(study_file, overrides or ())
    options.parse_lanes(lanes)
    num_workers = workers or options.default_num_workers(device)
    devices = worker_devices(device, num_workers)
    folder = ArtifactFolder(options.artifacts_in(artifacts)).folder
    with options.open_storage(storage) as database:
        finished = _find_finished(database, definition)
        if finished is not None:
            _say(f"study {finished.name!r} is finished: {_describe_ended(database, finished)}, nothing to run")
        else:
            prepared = _prepare(database, definition)
            command = WorkerCommand(
                study_name=definition.name,
                storage_url=storage and database.url.render_as_string(hide_password=False),
                devices=devices,
                lanes=lanes,
                artifacts=folder,
                threads=options.threads_per_worker(num_workers),
                log_folder=log_folder(),
            )
            _train(database, prepared, command, num_workers)
        _finish(database, definition.name, as_json)


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
    signal.signal(signal.SIGTERM, _leave_at_once)  # nothing is claimed yet; the worker has its own handler
    num_lanes = options.parse_lanes(lanes)
    target = resolve_device(device)
    folder = ArtifactFolder(options.artifacts_in(artifacts))
    torch.set_num_threads(options.threads_per_worker(1))
    use_full_float32()
    keep_freed_memory()
    with options.open_storage(storage) as database:
        stored = load_study(database, study)
        with download_progress() as progress:
            selection = load_study_data(stored, locations=DataLocations.from_environment(), progress=progress)
        check_networks(stored.definition, selection)  # before a point is claimed: its attempts are counted
        data = ResidentData.place(selection, target, max_resident_bytes=stored.definition.data.max_resident_bytes)
        supervisor = os.environ.get(SUPERVISOR_VARIABLE)
        stop = StopSignal(parent_pid=int(supervisor) if supervisor else None).install()
        num_siblings = int(os.environ.get(NUM_WORKERS_VARIABLE, "1"))
        measured = MeasuredLanes(
            memory=LaneMemory(lane_folder()), data=data, device=target, stop=stop, num_sharing=num_siblings
        )
        name = f"{platform.node()}:{os.getpid()}"
        _log.info("worker %s joins study %s on %s", name, study, describe_device(target))
        num_finished = Worker(
            database=database,
            study=stored,
            data=data,
            device=target,
            lanes=FixedLanes(num_lanes) if num_lanes else measured,
            artifacts=folder,
            stop=stop,
            name=name,
            num_siblings=num_siblings,
        ).run()
        _log.info("worker %s leaves: %d trials finished", name, num_finished)


def _prepare(database: Database, definition: StudyDefinition) -> PreparedStudy:
    with download_progress() as progress:
        return prepare_study(database, definition, locations=DataLocations.from_environment(), progress=progress)


def _train(database: Database, prepared: PreparedStudy, command: WorkerCommand, num_workers: int) -> None:
    study = prepared.study
    _say(
        f"study {study.name!r} {'created' if prepared.is_new else 'resumed'}: "
        f"{study.definition.num_points} points, "
        f"{num_workers} {'worker' if num_workers == 1 else 'workers'} with {_describe_lanes(command.lanes)}"
    )
    supervisor = Supervisor(database=database, study=study, command=command, num_workers=num_workers)
    try:
        with follow(study) as on_progress:
            supervisor.run(on_progress)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            left = _counts(database, study).unfinished
            _say(f"interrupted: {left} points are left; the same command resumes the study")
        raise


def _finish(database: Database, name: str, as_json: bool) -> None:
    summary = read_summary(database, name)
    if as_json:
        print_json(summary.as_json())
    else:
        print_summary(summary)
    given_up = [t for t in summary.failed_attempts if t.is_current]
    if given_up:
        named = "; ".join(
            f"point {trial.point} ({', '.join(f'{k}={v}' for k, v in trial.point_parameters.items())})"
            for trial in given_up[:_MOST_NAMED]
        )
        more = f" and {len(given_up) - _MOST_NAMED} more" if len(given_up) > _MOST_NAMED else ""
        raise UncountedPointsError(
            f"{len(given_up)} of {summary.points.total} points could not be trained, their workers died or "
            f"failed each time: {named}{more}",
            hint=f"the logs of the workers are in {log_folder()}",
        )


def _counts(database: Database, study: StoredStudy) -> PointCounts:
    return Ledger(database=database, study_id=study.study_id).counts()


def _find_finished(database: Database, definition: StudyDefinition) -> StoredStudy | None:
    """The study, if it is there, is the same, and has no unfinished point; its data need not be here."""
    study = find_study(database, definition)
    return study if study and _counts(database, study).unfinished == 0 else None


def _describe_ended(database: Database, study: StoredStudy) -> str:
    counts = _counts(database, study)
    given_up = f", {counts.failed} were given up" if counts.failed else ""
    return f"all {counts.total} points are done{given_up}"


def _describe_lanes(lanes: str) -> str:
    return "as many lanes as pay" if lanes == "auto" else f"{lanes} {'lane' if lanes == '1' else 'lanes'} each"


def _end_like_ctrl_c(*numbers: signal.Signals) -> None:
    """Workers first, then the database, whatever asks for the end; what nohup ignores stays ignored."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)


def _say(message: str) -> None:
    typer.echo(message, err=True)
