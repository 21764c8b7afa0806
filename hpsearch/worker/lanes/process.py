"""A worker's process: sets up data, device, signals, metrics and life sign, and runs the worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection

import torch

from hpsearch import environment
from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.artifacts.place import artifact_place
from hpsearch.data.files.download import DownloadProgress
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.device.devices import VisibleDevices, make_current, num_on_device, use_full_float32, wanted_gpus
from hpsearch.device.pin import PinnedDevice, PinRules, pin_device
from hpsearch.device.processors import threads_per_worker
from hpsearch.errors import StorageError
from hpsearch.home import lane_folder
from hpsearch.logs import bind_log_context, get_logger
from hpsearch.signals import StopSignal, end_with_parent
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.progress import is_finished as is_study_finished
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.training.host_memory import keep_freed_memory
from hpsearch.training.judge import judging_bytes
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.pulse import Pulse
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lanes.lane_count import FixedLanes, LaneChoice, LearnedLanes
from hpsearch.worker.lanes.measured_lane_counts import LaneMemory, StudyMix
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.name import worker_name
from hpsearch.worker.options import WorkerOptions, WorkerSettings
from hpsearch.worker.preparation import check_networks, load_study_data, prepare_study
from hpsearch.worker.preparation_request import PreparationRequest, inherited_pipe, passing_errors, receive, send

_log = get_logger("worker")


def run_worker(
    name: str,
    options: WorkerOptions,
    open_storage: Callable[[], AbstractContextManager[Database]],
    show_download: Callable[[], AbstractContextManager[DownloadProgress | None]],
) -> None:
    """Train points of a study until none is left, or until the process is asked to stop.

    Everything that can be wrong on this machine is found before a point is claimed, because a point's attempts are
    counted.

    Args:
        name: name of the study.
        open_storage: opens the study database.
        show_download: shows the progress of a download of the data.
    Raises:
        HpsearchError: as the command line shows it.
    """
    supervisor = os.environ.get(environment.SUPERVISOR_PID)
    supervisor_pid = int(supervisor) if supervisor else None
    if supervisor_pid is not None:
        end_with_parent(supervisor_pid)
    visible = VisibleDevices.detect()
    wanted_gpus(options.device, visible)  # a device that does not exist is an error at once
    artifacts = open_artifacts(artifact_place(options.artifacts))
    bind_log_context(study=name, worker=worker_name())
    torch.set_num_threads(threads_per_worker(1))
    use_full_float32()
    keep_freed_memory()
    pipe = inherited_pipe()
    request: PreparationRequest | None = None if pipe is None else receive(pipe)
    if pipe is not None and request is None:
        return
    with LifeSign.from_environment() as life_sign, open_storage() as database:
        if pipe is not None and request is not None:
            study, selection = _prepare(database, request, pipe)
            if not request.joins:
                return
        else:
            study = load_study(database, name)
            with show_download() as progress:
                selection = load_study_data(study, locations=DataLocations.from_environment(progress))
            check_networks(study.definition, selection)
        stop = StopSignal(parent_pid=supervisor_pid).install()
        surroundings = Surroundings(
            options=options,
            visible=visible,
            artifacts=artifacts,
            database=replace(database, abandoned=stop.event),
            study=study,
            selection=selection,
            stop=stop,
            life_sign=life_sign,
        )
        try:
            _train(surroundings)
        except DatabaseAwayError as error:
            if not stop.is_set():
                raise
            _log.warning("worker %s was stopped while the database was away: %s", worker_name(), error)


def _prepare(
    database: Database, request: PreparationRequest, launcher: Connection
) -> tuple[StoredStudy, SelectionData]:
    def show_download(file_name: str, bytes_done: int, bytes_total: int | None) -> None:
        send(launcher, (file_name, bytes_done, bytes_total))

    with launcher, passing_errors(launcher):
        locations = DataLocations.from_environment(show_download)
        prepared = prepare_study(database, request.definition, locations=locations, checks=request.checks)
        send(launcher, prepared.registration)
    return prepared.study, prepared.data


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a worker's process has set up before it asks for a device."""

    options: WorkerOptions
    visible: VisibleDevices
    artifacts: Artifacts
    database: Database
    study: StoredStudy
    selection: SelectionData
    stop: StopSignal
    life_sign: LifeSign


def _train(found: Surroundings) -> None:
    options, database, study = found.options, found.database, found.study
    name = worker_name()
    metrics = WorkerMetrics(study=study.name, worker=name, life_sign=found.life_sign)

    def is_finished() -> bool:
        found.life_sign.renew(WorkerState.WAITING_FOR_GPU)
        return is_study_finished(database, study)

    pin = pin_device(
        database,
        options.device,
        found.visible,
        worker=name,
        stop=found.stop,
        is_finished=is_finished,
        rules=PinRules(waits=options.waits_for_gpu, is_shared=options.shares_gpu),
    )
    with metrics.serve(options.metrics), pin as pinned:
        if pinned is None:
            _log.info("worker %s leaves: nothing is left for it", name)
            return
        bind_log_context(device=pinned.description)
        metrics.set_device(pinned.description)
        make_current(pinned.device)
        _log.info("worker %s joins study %s on %s", name, study.name, pinned.description)
        num_finished = _build_worker(found, pinned, metrics).run()
        _log.info("worker %s leaves: %d trials finished", name, num_finished)
        _tell_given_up(database, study)
        pinned.require()


def _tell_given_up(database: Database, study: StoredStudy) -> None:
    """Warn about points that were given up. The exit code stays 0: a worker that fails would be restarted, in vain."""
    try:
        counts = Ledger(database=database, study_id=study.study_id).counts()
    except StorageError:
        return  # it was asked to stop, and the database is away
    if counts.failed and not counts.unfinished:
        message = "%d of %d points of study %s were given up: their workers died or failed each time"
        _log.warning(message, counts.failed, counts.total, study.name)


def _build_worker(found: Surroundings, pinned: PinnedDevice, metrics: WorkerMetrics) -> Worker:
    options, study = found.options, found.study
    device = pinned.device
    data = ResidentData.place(found.selection, device, max_resident_bytes=study.definition.data.max_resident_bytes)
    num_siblings = int(os.environ.get(environment.SUPERVISED_WORKERS, "1"))
    pulse = Pulse(device)
    build_cohort = partial(Cohort, is_diagnosed=True, pulse=pulse)
    lanes: LaneChoice
    if options.lanes is None:
        lanes = LearnedLanes(
            memory=LaneMemory(lane_folder()),
            data=data,
            device=device,
            stop=found.stop,
            num_sharing=num_siblings,
            num_on_device=num_on_device(
                num_siblings, device, options.device, found.visible, is_shared=options.shares_gpu
            ),
            mix=StudyMix.of(study.definition),
            judging_bytes=judging_bytes(
                study.definition.metric,
                len(data.validation_labels),
                is_grouped=data.validation_groups is not None,
            ),
        )
    else:
        lanes = FixedLanes(options.lanes)
    watchdog = Watchdog(options.stall_seconds, pulse=pulse.count, on_progress=found.life_sign.renew_unchanged)
    return Worker(
        database=found.database,
        study=study,
        cohorts=Cohorts(study.definition.stopping, data, device, build_cohort, study.definition.judged_by),
        pinned=pinned,
        lanes=lanes,
        artifacts=found.artifacts,
        stop=found.stop,
        settings=WorkerSettings(
            name=worker_name(), num_siblings=num_siblings, checkpoint_seconds=options.checkpoint_seconds
        ),
        watchdog=watchdog,
        metrics=metrics,
    )
