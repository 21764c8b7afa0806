"""The options of a launch, checked against this machine. Imports nothing heavy, so that a worker starts at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hpsearch.artifacts.place import artifact_place
from hpsearch.device.devices import Gpu, VisibleDevices, num_local_workers, wanted_gpus
from hpsearch.device.processors import threads_per_worker
from hpsearch.home import log_folder
from hpsearch.launch.first_worker import FirstWorker
from hpsearch.launch.worker_command import WorkerCommand, stop_seconds
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import ProgramSettings
from hpsearch.worker.options import WorkerOptions
from hpsearch.worker.programs.slots import num_slots


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """How a study is to be trained, as requested by the user.

    Args:
        storage: the URL that `open_storage` was given; None: the embedded PostgreSQL.
        workers: number of workers; None: one per GPU, or one without GPUs; on a cluster, one per GPU, or one per node.
        on: address of a Ray cluster; None: this machine.
        worker: options of each worker.
        checks: look at the data before the study is created.
        study: what is to be trained; None: networks. If its trials are programs, a launch is the consent to run them.
    """

    storage: str | None = field(default=None, repr=False)  # it may hold a password
    workers: int | None = None
    on: str | None = None
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    checks: bool = True
    study: StudyDefinition | None = None

    @property
    def program(self) -> ProgramSettings | None:
        return None if self.study is None else self.study.program


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Options that this machine can fulfil; created by `check_launch`.

    Args:
        options: as given, except that the folder of artifacts is absolute.
        num_workers: on this machine; on a cluster, the cluster decides.
        gpus: GPUs of this machine that the workers will ask for.
    """

    options: LaunchOptions
    num_workers: int
    gpus: tuple[Gpu, ...]

    def first_worker(self, study_name: str) -> FirstWorker:
        """Start the worker that prepares the study; on a cluster, it only prepares the study.

        Raises:
            ArtifactError: its log cannot be written.
        """
        return FirstWorker(self.command(study_name), joins=self.options.on is None, checks=self.options.checks)

    @property
    def num_at_once(self) -> int | None:
        """How many trials each worker runs at once; None: it is not known before the workers have started."""
        program, lanes = self.options.program, self.options.worker.lanes
        if lanes is not None or program is None or self.options.on is not None:
            return lanes
        return num_slots(program, lanes, has_gpus=bool(self.gpus), num_workers=self.num_workers)

    def command(self, study_name: str) -> WorkerCommand:
        """How to start a worker on this machine. A password that was read from a file is read by each worker again."""
        return WorkerCommand(
            study_name=study_name,
            storage_url=self.options.storage,
            options=self.options.worker,
            num_workers=self.num_workers,
            threads=threads_per_worker(self.num_workers),
            log_folder=log_folder(),
            consent=None if self.options.study is None else self.options.study.consent,
            stop_seconds=stop_seconds(self.options.program),
        )


def check_launch(options: LaunchOptions) -> Launch:
    """Find errors in the options before a worker is started.

    Raises:
        InputError: no such device, more workers than GPUs, or not the address of a cluster.
        DeviceError: the requested GPU does not exist.
    """
    device, program = options.worker.device, options.program
    if program is not None and program.gpus == 0:
        device = "cpu"
    if options.on is not None:
        from hpsearch.launch.ray_launcher import check_placement

        check_placement(options.on, device)
    visible = VisibleDevices.detect()
    num_workers = options.workers or 1
    if options.on is None:
        num_workers = num_local_workers(options.workers, device, visible, is_shared=options.worker.shares_gpu)
        if program is not None and program.gpus and options.workers is None:
            num_workers = max(1, num_workers // program.gpus)
    gpus = wanted_gpus(device, visible) if options.on is None else ()
    artifacts = artifact_place(options.worker.artifacts)
    options = replace(options, worker=replace(options.worker, artifacts=artifacts))
    return Launch(options=options, num_workers=num_workers, gpus=gpus)
