"""Where a worker's process begins: finds out what its study trains, and loads only what that needs.

A worker that trains networks loads torch, which takes seconds; one that runs programs does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path

from hpsearch import environment
from hpsearch.data.files.download import DownloadProgress
from hpsearch.device.devices import VisibleDevices, wanted_gpus
from hpsearch.signals import end_with_parent
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import load_study
from hpsearch.worker.health.life_sign import LifeSign
from hpsearch.worker.options import WorkerOptions
from hpsearch.worker.preparation_request import PreparationRequest, inherited_pipe, passing_errors, receive, send


def run_worker(
    name: str,
    options: WorkerOptions,
    open_storage: Callable[[], AbstractContextManager[Database]],
    show_download: Callable[[], AbstractContextManager[DownloadProgress | None]],
) -> None:
    """Train points of a study until none is left, or until the process is asked to stop.

    Args:
        name: name of the study.
        open_storage: opens the study database.
        show_download: shows the progress of a download of the data.
    Raises:
        HpsearchError: as the command line shows it.
    """
    is_launched = environment.PREPARATION_PIPE in os.environ
    if is_launched and os.environ.get(environment.COMMANDS, "1") == "1":
        _train(name, options, open_storage, show_download)  # loads torch while the launcher opens the database
        return
    wanted_gpus(options.device, VisibleDevices.detect())  # a device that does not exist is an error at once
    supervisor = os.environ.get(environment.SUPERVISOR_PID)
    supervisor_pid = int(supervisor) if supervisor else None
    if supervisor_pid is not None:
        end_with_parent(supervisor_pid)
    pipe = inherited_pipe()
    request: PreparationRequest | None = None if pipe is None else receive(pipe)
    if pipe is not None and request is None:
        return
    with open_storage() as database:
        if pipe is not None and request is not None:
            _prepare(database, request, pipe)
            if not request.joins:
                return
        study = load_study(database, name)
        if not study.definition.is_program:
            _train(name, options, lambda: nullcontext(database), show_download)
            return

        from hpsearch.worker.programs.program_process import run_program_worker

        with LifeSign.from_environment() as life_sign:
            run_program_worker(
                database, study, options, life_sign=life_sign, supervisor_pid=supervisor_pid, place=Path.cwd()
            )


def _train(
    name: str,
    options: WorkerOptions,
    open_storage: Callable[[], AbstractContextManager[Database]],
    show_download: Callable[[], AbstractContextManager[DownloadProgress | None]],
) -> None:
    from hpsearch.worker.lanes.process import run_worker as run_lane_worker

    run_lane_worker(name, options, open_storage, show_download)


def _prepare(database: Database, request: PreparationRequest, launcher: Connection) -> None:
    from hpsearch.worker.programs.preparation import check_can_start, prepare_program

    with launcher, passing_errors(launcher):
        if request.joins:  # before the study is created, which could not be run with another command
            assert request.definition.program is not None
            check_can_start(request.definition.program, Path.cwd(), os.environ)
        send(launcher, prepare_program(database, request.definition, Path.cwd()))
