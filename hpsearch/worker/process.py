"""What surrounds a worker in its process: data, device, signals, metrics and life sign, from start to exit."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch

from hpsearch import environment
from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.catalog import DataLocations, DownloadProgress
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.device.devices import VisibleDevices, make_current, use_full_float32
from hpsearch.device.pin import PinnedDevice, PinRules, pin_device
from hpsearch.errors import StorageError
from hpsearch.home import lane_folder
from hpsearch.logs import bind_log_context, get_logger
from hpsearch.signals import StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.training.host_memory import keep_freed_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.pulse import Pulse
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import MetricsAddress, WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lane_count import FixedLanes, LaneChoice, MeasuredLanes
from hpsearch.worker.measured_lane_counts import LaneMemory
from hpsearch.worker.preparation import check_networks, load_study_data
from hpsearch.worker.rounds import is_finished as is_study_finished
from hpsearch.worker.worker import Worker

_log = get_logger("worker")


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is told at its start.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`, of `visible`.
        num_lanes: None: as many as pay.
        threads: of the CPU.
        supervisor_pid: the process that started this one, whose end is this one's, too.
        metrics: where they are served, if anywhere.
    """

    study: str
    device: str
    visible: VisibleDevices
    pin_rules: PinRules
    num_lanes: int | None
    artifacts: Artifacts
    checkpoint_seconds: float
    stall_seconds: float
    threads: int
    supervisor_pid: int | None
    metrics: MetricsAddress | None


def worker_name() -> str:
    """`host:pid`: how a worker appears in trials and logs."""
    return f"{platform.node()}:{os.getpid()}"


def run_worker(
    options: WorkerOptions,
    database: Database,
    life_sign: LifeSign,
    show_download: Callable[[], AbstractContextManager[DownloadProgress | None]],
) -> None:
    """Train points of a study until none is left, or until somebody asks to stop.

    Everything that can be wrong on this machine is found before a point is claimed: its attempts are counted.

    Raises:
        HpsearchError: as the command line shows it.
    """
    torch.set_num_threads(options.threads)
    use_full_float32()
    keep_freed_memory()
    study = load_study(database, options.study)
    with show_download() as progress:
        selection = load_study_data(study, locations=DataLocations.from_environment(), progress=progress)
    check_networks(study.definition, selection)
    stop = StopSignal(parent_pid=options.supervisor_pid).install()
    database = replace(database, abandoned=stop.event)
    try:
        _train(options, database, study, selection, stop, life_sign)
    except DatabaseAwayError as error:
        if not stop.is_set():
            raise
        _log.warning("worker %s was stopped while the database was away: %s", worker_name(), error)


def _train(
    options: WorkerOptions,
    database: Database,
    study: StoredStudy,
    selection: SelectionData,
    stop: StopSignal,
    life_sign: LifeSign,
) -> None:
    name = worker_name()
    metrics = WorkerMetrics(study=study.name, worker=name, life_sign=life_sign)

    def is_finished() -> bool:
        life_sign.renew(WorkerState.WAITING_FOR_GPU)
        return is_study_finished(database, study)

    pin = pin_device(
        database,
        options.device,
        options.visible,
        worker=name,
        stop=stop,
        is_finished=is_finished,
        rules=options.pin_rules,
    )
    with metrics.serve(options.metrics), pin as pinned:
        if pinned is None:
            _log.info("worker %s leaves: nothing is left for it", name)
            return
        bind_log_context(device=pinned.description)
        metrics.set_device(pinned.description)
        make_current(pinned.device)
        _log.info("worker %s joins study %s on %s", name, study.name, pinned.description)
        worker = _build_worker(options, database, study, selection, pinned, stop, life_sign, metrics)
        num_finished = worker.run()
        _log.info("worker %s leaves: %d trials finished", name, num_finished)
        _tell_given_up(database, study)
        pinned.require()


def _tell_given_up(database: Database, study: StoredStudy) -> None:
    """A worker has done its work all the same, and exits with 0: one that failed would be started again, in vain."""
    try:
        counts = Ledger(database=database, study_id=study.study_id).counts()
    except StorageError:
        return  # it was asked to stop, and the database is away
    if counts.failed and not counts.unfinished:
        message = "%d of %d points of study %s were given up: their workers died or failed each time"
        _log.warning(message, counts.failed, counts.total, study.name)


def _build_worker(
    options: WorkerOptions,
    database: Database,
    study: StoredStudy,
    selection: SelectionData,
    pinned: PinnedDevice,
    stop: StopSignal,
    life_sign: LifeSign,
    metrics: WorkerMetrics,
) -> Worker:
    device = pinned.device
    data = ResidentData.place(selection, device, max_resident_bytes=study.definition.data.max_resident_bytes)
    num_siblings = int(os.environ.get(environment.SUPERVISED_WORKERS, "1"))
    pulse = Pulse(device)
    build_cohort = partial(Cohort, pulse=pulse)
    lanes: LaneChoice
    if options.num_lanes is None:
        memory = LaneMemory(lane_folder())
        lanes = MeasuredLanes(
            memory=memory,
            data=data,
            device=device,
            stop=stop,
            num_sharing=num_siblings,
            build_cohort=build_cohort,
        )
    else:
        lanes = FixedLanes(options.num_lanes)
    watchdog = Watchdog(options.stall_seconds, pulse=pulse.count, on_progress=life_sign.renew_unchanged)
    return Worker(
        database=database,
        study=study,
        data=data,
        device=device,
        device_name=pinned.description,
        lanes=lanes,
        artifacts=options.artifacts,
        stop=stop,
        name=worker_name(),
        num_siblings=num_siblings,
        checkpoint_seconds=options.checkpoint_seconds,
        keep=[pinned.keep],
        is_device_lost=lambda: pinned.is_lost,
        watchdog=watchdog,
        build_cohort=build_cohort,
        life_sign=life_sign,
        metrics=metrics,
    )
