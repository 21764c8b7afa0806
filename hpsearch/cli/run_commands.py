"""Commands that do the work: run, create, worker."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hpsearch.cli import options
from hpsearch.cli.loading import loading
from hpsearch.console.notice import show_line
from hpsearch.data.dataset_path import load_study_file
from hpsearch.signals import on_end
from hpsearch.study.definition import StudyDefinition
from hpsearch.worker.options import WorkerOptions


@options.with_worker_options
def run(
    study_file: options.StudyFile,
    overrides: options.Overrides = None,
    workers: options.Workers = None,
    storage: options.Storage = None,
    on: options.On = None,
    *,
    worker: WorkerOptions,
    check: options.Checks = True,
    as_json: options.AsJson = False,
) -> None:
    """Create or resume a study, train it with workers of this machine or of a Ray cluster, end with the best table.

    Ctrl-C leaves a study that the same command resumes.
    """
    definition = load_study_file(study_file, overrides or ())

    from hpsearch.launch.options import LaunchOptions, check_launch

    launch = check_launch(
        LaunchOptions(storage=storage, workers=workers, on=on, worker=worker, checks=check, study=definition)
    )
    with launch.first_worker(definition.name) as first:
        # The worker loads torch while this process loads the rest.
        with loading():
            from hpsearch.console.launch_view import TerminalListener
            from hpsearch.console.tables import print_json, print_status
            from hpsearch.launch.launcher import train_study
            from hpsearch.results.status import read_status

        with options.open_storage(storage) as database:
            train_study(database, definition, launch, first, TerminalListener())
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
    check: options.Checks = True,
    as_json: options.AsJson = False,
) -> None:
    """Register a study with all its points; workers join it with `hpsearch worker`."""
    definition = load_study_file(study_file, overrides or ())

    from hpsearch.console.launch_view import describe_registration
    from hpsearch.console.progress_view import download_progress
    from hpsearch.console.tables import print_json
    from hpsearch.data.files.lookup import DataLocations
    from hpsearch.data.registry import with_absolute_dataset
    from hpsearch.results.status import read_status
    from hpsearch.store.registration import find_study

    if definition.is_program:
        _create_program(definition, storage, as_json=as_json)
        return

    from hpsearch.worker.preparation import prepare_study

    with options.open_storage(storage) as database:
        find_study(database, with_absolute_dataset(definition))
        with download_progress() as progress:
            locations = DataLocations.from_environment(progress)
            prepared = prepare_study(database, definition, locations=locations, checks=check)
        if as_json:
            print_json(read_status(database, prepared.study.name).as_json())
        else:
            show_line(describe_registration(prepared.registration, "was there already, with the same definition"))


def _create_program(definition: StudyDefinition, storage: str | None, *, as_json: bool) -> None:
    from hpsearch.console.launch_view import describe_registration
    from hpsearch.console.tables import print_json
    from hpsearch.results.status import read_status
    from hpsearch.worker.programs.preparation import prepare_program

    with options.open_storage(storage) as database:
        registration = prepare_program(database, definition, Path.cwd())
        if as_json:
            print_json(read_status(database, registration.study.name).as_json())
        else:
            show_line(describe_registration(registration, "was there already, with the same definition"))


@options.with_worker_options
def worker(
    study: options.StudyName,
    storage: options.Storage = None,
    *,
    worker: WorkerOptions,
    commands: options.Commands = False,
) -> None:
    """Join a study from anywhere and train its points until none is left."""
    worker = replace(worker, commands=commands)
    on_end(_leave_at_once)  # nothing is claimed yet; the worker has its own handler

    with loading():
        from hpsearch.console.progress_view import download_progress
        from hpsearch.worker.entry import run_worker

    run_worker(study, worker, lambda: options.open_storage(storage), download_progress)
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
