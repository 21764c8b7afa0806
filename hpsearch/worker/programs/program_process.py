"""The process of a worker whose trials are programs: sets up keeper, device, signals and life sign, and runs it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from hpsearch import environment
from hpsearch.artifacts.place import artifact_place
from hpsearch.artifacts.store import open_store
from hpsearch.device.devices import VisibleDevices, wanted_gpus
from hpsearch.errors import DeviceError
from hpsearch.home import attempts_folder
from hpsearch.logs import bind_log_context, get_logger
from hpsearch.scripts.keeper.client import Keeper
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.progress import is_finished as is_study_finished
from hpsearch.store.studies import StoredStudy
from hpsearch.study.program import ProgramSettings
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.name import worker_name
from hpsearch.worker.options import WorkerOptions, WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, attempt_folders
from hpsearch.worker.programs.gpus import PinnedGpus, pin_gpus
from hpsearch.worker.programs.preparation import check_can_start, check_files, require_consent
from hpsearch.worker.programs.program_worker import ProgramWorker
from hpsearch.worker.programs.slots import num_slots

_log = get_logger("worker")


def run_program_worker(
    database: Database,
    study: StoredStudy,
    options: WorkerOptions,
    *,
    life_sign: LifeSign,
    supervisor_pid: int | None,
    place: Path,
) -> None:
    """Run the program of a study at its points until none is left, or until the process is asked to stop.

    Everything that can be wrong on this machine is found before a point is claimed.

    Args:
        place: the folder in which the worker was started.
    Raises:
        HpsearchError: as the command line shows it.
    """
    definition, name = study.definition, worker_name()
    program = definition.program
    assert program is not None
    require_consent(definition, is_given=options.commands)
    check_files(study, place)
    check_can_start(program, place, os.environ)
    artifacts = open_store(artifact_place(options.artifacts))
    bind_log_context(study=study.name, worker=name)
    stop = StopSignal(parent_pid=supervisor_pid).install()
    metrics = WorkerMetrics(study=study.name, worker=name, life_sign=life_sign)
    with (
        metrics.serve(options.metrics),
        _pinned(replace(database, abandoned=stop.event), study, options, stop, life_sign) as pinned,
    ):
        if pinned is None:
            _log.info("worker %s leaves: nothing is left for it", name)
            return
        devices = _slots(program, options, pinned.uuids)
        metrics.lanes.set(len(devices))
        keeper = Keeper()  # it ends all programs before the GPUs are free
        attempts = Attempts(
            study,
            keeper,
            artifacts,
            attempt_folders(attempts_folder(), study, artifacts),
            devices=devices,
            base=os.environ,
            place=place,
            upload_seconds=options.checkpoint_seconds,
            secrets=[password] if (password := database.url.password) else [],
        )
        num_siblings = int(os.environ.get(environment.SUPERVISED_WORKERS, "1"))
        _log.info(
            "worker %s joins study %s on %s, %d programs at once", name, study.name, pinned.description, len(devices)
        )
        with keeper, attempts:
            worker = ProgramWorker(
                database=replace(database, abandoned=stop.event),
                study=study,
                attempts=attempts,
                num_slots=len(devices),
                device=pinned.description,
                stop=stop,
                settings=WorkerSettings(name=name, num_siblings=num_siblings, poll_seconds=0.5),
                watchdog=Watchdog(options.stall_seconds, on_progress=life_sign.renew_unchanged),
                metrics=metrics,
                keep=pinned.keep,
                is_device_lost=lambda: pinned.is_lost,
            )
            try:
                num_finished = worker.run()
            except DatabaseAwayError as error:
                if not stop.is_set():
                    raise
                _log.warning("worker %s was stopped while the database was away: %s", name, error)
                return
        _log.info("worker %s leaves: %d trials finished", name, num_finished)
        pinned.require()


class _Processors:
    """What programs without a GPU run on: nothing is pinned."""

    description = "cpu"
    uuids: Sequence[str] = ()
    is_lost = False

    def keep(self) -> bool:
        return True

    def require(self) -> None:
        return


def _pinned(
    database: Database, study: StoredStudy, options: WorkerOptions, stop: StopSignal, life_sign: LifeSign
) -> AbstractContextManager[PinnedGpus | _Processors | None]:
    """Pin the GPUs that the programs need; the CPU needs no lock.

    Raises:
        DeviceError: the study needs more GPUs than there are.
    """
    program = study.definition.program
    assert program is not None
    gpus = wanted_gpus(options.device, VisibleDevices.detect()) if program.gpus != 0 else ()
    if not gpus:
        if program.gpus:
            raise DeviceError(
                f"{program.section}.gpus = {program.gpus}, but this machine has no GPU that hpsearch sees",
                hint=f"on a machine without GPUs: --set {program.section}.gpus=0",
            )
        return nullcontext(_Processors())

    def is_finished() -> bool:
        life_sign.renew(WorkerState.WAITING_FOR_GPU)
        return is_study_finished(database, study)

    return pin_gpus(
        database,
        gpus,
        program.gpus or 1,
        worker=worker_name(),
        waits=options.waits_for_gpu,
        stop=stop,
        is_finished=is_finished,
    )


def _slots(program: ProgramSettings, options: WorkerOptions, uuids: Sequence[str]) -> list[Sequence[str]]:
    """For each program that may run at once its GPUs: `--lanes`, or `per_gpu` per GPU, or one per `cpus` cores."""
    num_workers = int(os.environ.get(environment.SUPERVISED_WORKERS, "1"))
    return [uuids] * num_slots(program, options.lanes, has_gpus=bool(uuids), num_workers=num_workers)
