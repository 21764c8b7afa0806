"""Commands that do the work: run, create, worker."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from hpsearch.cli import options
from hpsearch.cli.notice import say
from hpsearch.cli.progress_view import download_progress, follow
from hpsearch.cli.tables import print_json, print_summary
from hpsearch.data.catalog import DataLocations
from hpsearch.errors import UncountedPointsError
from hpsearch.logs import bind_log_context, get_logger
from hpsearch.results.summary import read_summary
from hpsearch.service.artifacts import open_artifacts
from hpsearch.service.checkpointer import DEFAULT_CHECKPOINT_SECONDS
from hpsearch.service.database import Database
from hpsearch.service.device_pin import PinRules, describe_taken
from hpsearch.service.devices import VisibleDevices, num_local_workers, wanted_gpus
from hpsearch.service.home import log_folder
from hpsearch.service.ledger import Ledger, PointCounts
from hpsearch.service.life_sign import LifeSign
from hpsearch.service.parent_death import end_with_parent
from hpsearch.service.prepare import PreparedStudy, prepare_study
from hpsearch.service.ray_launcher import check_placement, ray_workers
from hpsearch.service.registry import StoredStudy, find_study
from hpsearch.service.supervisor import (
    SUPERVISOR_VARIABLE,
    Supervisor,
    WorkerCommand,
    WorkerLauncher,
)
from hpsearch.service.watchdog import DEFAULT_STALL_SECONDS
from hpsearch.service.worker_process import WorkerOptions, run_worker, worker_name
from hpsearch.study import StudyDefinition, load_definition

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
    on: options.On = None,
    wait_for_gpu: options.WaitForGpu = True,
    share_gpu: options.ShareGpu = False,
    checkpoint_seconds: options.CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS,
    stall_seconds: options.StallSeconds = DEFAULT_STALL_SECONDS,
    metrics: options.Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Create or resume a study, train it with workers of this machine or of a Ray cluster, end with the best table.

    Ctrl-C leaves a study that the same command resumes.
    """
    _end_like_ctrl_c(signal.SIGTERM, signal.SIGHUP)
    definition = load_definition(study_file, overrides or ())
    options.parse_lanes(lanes)
    address = options.parse_metrics(metrics)
    if on is not None:
        check_placement(on, device)
    visible = VisibleDevices.detect()
    num_workers = workers or 1  # in a cluster, which knows better
    if on is None:
        num_workers = num_local_workers(workers, device, visible, is_shared=share_gpu)
    kept_in = open_artifacts(options.artifacts_in(artifacts)).place
    with options.open_storage(storage) as database:
        finished = _find_finished(database, definition)
        if finished is not None:
            say(f"study {finished.name!r} is finished: {_describe_ended(database, finished)}, nothing to run")
        else:
            command = WorkerCommand(
                study_name=definition.name,
                storage_url=storage and database.url.render_as_string(hide_password=False),
                device=device,
                num_workers=num_workers,
                lanes=lanes,
                artifacts=kept_in,
                threads=options.threads_per_worker(num_workers),
                log_folder=log_folder(),
                metrics=address,
                options=[
                    *([] if wait_for_gpu else ["--no-wait-for-gpu"]),
                    *(["--share-gpu"] if share_gpu else []),
                    f"--checkpoint-seconds={checkpoint_seconds:g}",
                    f"--stall-seconds={stall_seconds:g}",
                ],
            )
            if on is None:
                for taken in describe_taken(database, wanted_gpus(device, visible)):
                    say(f"held by another worker: {taken}")
                _train(database, _prepare(database, definition), command, num_workers)
            else:
                with ray_workers(on, command, num_workers=workers, url=database.url) as launcher:
                    _train(database, _prepare(database, definition), launcher, launcher.num_workers)
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
    wait_for_gpu: options.WaitForGpu = True,
    share_gpu: options.ShareGpu = False,
    checkpoint_seconds: options.CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS,
    stall_seconds: options.StallSeconds = DEFAULT_STALL_SECONDS,
    metrics: options.Metrics = None,
) -> None:
    """Join a study from anywhere and train its points until none is left."""
    signal.signal(signal.SIGTERM, _leave_at_once)  # nothing is claimed yet; the worker has its own handler
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor:
        end_with_parent(int(supervisor))
    visible = VisibleDevices.detect()
    wanted_gpus(device, visible)  # a device that is not there is an error at once
    worker_options = WorkerOptions(
        study=study,
        device=device,
        visible=visible,
        pin_rules=PinRules(waits=wait_for_gpu, is_shared=share_gpu),
        num_lanes=options.parse_lanes(lanes),
        artifacts=open_artifacts(options.artifacts_in(artifacts)),
        checkpoint_seconds=checkpoint_seconds,
        stall_seconds=stall_seconds,
        threads=options.threads_per_worker(1),
        supervisor_pid=int(supervisor) if supervisor else None,
        metrics=options.parse_metrics(metrics),
    )
    bind_log_context(study=study, worker=worker_name())
    with LifeSign.from_environment() as life_sign, options.open_storage(storage) as database:
        run_worker(worker_options, database, life_sign, download_progress)
    _leave_without_teardown()


def _prepare(database: Database, definition: StudyDefinition) -> PreparedStudy:
    with download_progress() as progress:
        return prepare_study(database, definition, locations=DataLocations.from_environment(), progress=progress)


def _train(database: Database, prepared: PreparedStudy, launcher: WorkerLauncher, num_workers: int) -> None:
    study = prepared.study
    say(
        f"study {study.name!r} {'created' if prepared.is_new else 'resumed'}: "
        f"{study.definition.num_points} points, "
        f"{num_workers} {'worker' if num_workers == 1 else 'workers'} with {_describe_lanes(launcher.lanes)}"
    )
    supervisor = Supervisor(database=database, study=study, command=launcher, num_workers=num_workers)
    try:
        with follow(study) as on_progress:
            supervisor.run(on_progress)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            left = _counts(database, study).unfinished
            say(f"interrupted: {left} points are left; the same command resumes the study")
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


def _leave_without_teardown() -> NoReturn:
    """End the process now that all is written and closed.

    Taking torch and its threads down took Python up to eight seconds on a busy machine, and Docker kills after ten.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
