"""Commands that do the work: run, create, worker."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import NoReturn

from hpsearch import environment
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.cli import options
from hpsearch.console.launch_view import TerminalListener, describe_registration
from hpsearch.console.notice import show_line
from hpsearch.console.progress_view import download_progress
from hpsearch.console.tables import print_json, print_status
from hpsearch.data.catalog import DataLocations
from hpsearch.device.devices import VisibleDevices, wanted_gpus
from hpsearch.device.pin import PinRules
from hpsearch.launch.launcher import LaunchOptions, check_launch, threads_per_worker, train_study
from hpsearch.launch.parent_death import end_with_parent
from hpsearch.logs import bind_log_context
from hpsearch.results.status import read_status
from hpsearch.signals import on_end
from hpsearch.study.definition import load_definition
from hpsearch.worker.checkpointer import DEFAULT_CHECKPOINT_SECONDS
from hpsearch.worker.health.life_sign import LifeSign
from hpsearch.worker.health.watchdog import DEFAULT_STALL_SECONDS
from hpsearch.worker.preparation import prepare_study
from hpsearch.worker.process import WorkerOptions, run_worker, worker_name


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
    definition = load_definition(study_file, overrides or ())
    options.parse_lanes(lanes)
    launch = check_launch(
        LaunchOptions(
            storage=storage,
            artifacts=artifacts,
            workers=workers,
            device=device,
            lanes=lanes,
            on=on,
            waits_for_gpu=wait_for_gpu,
            shares_gpu=share_gpu,
            checkpoint_seconds=checkpoint_seconds,
            stall_seconds=stall_seconds,
            metrics=options.parse_metrics(metrics),
        )
    )
    with options.open_storage(storage) as database:
        train_study(database, definition, launch, TerminalListener())
        status = read_status(database, definition.name)
    try:
        if as_json:
            print_json(status.as_json())
        else:
            print_status(status)
    finally:  # the exit code is that of the work, also where nobody reads the table
        status.summary.require_all_counted()


def create(
    study_file: options.StudyFile,
    overrides: options.Overrides = None,
    storage: options.Storage = None,
    as_json: options.AsJson = False,
) -> None:
    """Register a study with all its points; workers join it with `hpsearch worker`."""
    definition = load_definition(study_file, overrides or ())
    with options.open_storage(storage) as database:
        with download_progress() as progress:
            locations = DataLocations.from_environment()
            prepared = prepare_study(database, definition, locations=locations, progress=progress)
        if as_json:
            print_json(read_status(database, prepared.study.name).as_json())
        else:
            show_line(describe_registration(prepared.registration, "was there already, with the same definition"))


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
    on_end(_leave_at_once)  # nothing is claimed yet; the worker has its own handler
    supervisor = os.environ.get(environment.SUPERVISOR_PID)
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
        threads=threads_per_worker(1),
        supervisor_pid=int(supervisor) if supervisor else None,
        metrics=options.parse_metrics(metrics),
    )
    bind_log_context(study=study, worker=worker_name())
    with LifeSign.from_environment() as life_sign, options.open_storage(storage) as database:
        run_worker(worker_options, database, life_sign, download_progress)
    _leave_without_teardown()


def _leave_without_teardown() -> NoReturn:
    """End the process now that all is written and closed.

    Taking torch and its threads down took Python up to eight seconds on a busy machine, and Docker kills after ten.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
