"""What workers of this machine have learned about lanes, kept in hpsearch's home: one small JSON file per case.

A file has the measured speed of a device, or the readings of one kind of cohort. Each is replaced as a whole. Any
number of workers may write at once; the last write wins. A file that cannot be used is treated as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import psutil
import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from hpsearch import __version__
from hpsearch.atomic_file import replacement_of
from hpsearch.cgroups import num_oom_kills
from hpsearch.data.example_shape import shape_text
from hpsearch.data.resident import ResidentData
from hpsearch.home import make_folder
from hpsearch.logs import get_logger
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import DeviceSpeed, Positive, measure_speed

_log = get_logger("lanes")

SHORTAGE_LASTS = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class LaneCase:
    """What readings depend on, as text: of a cohort's trials what they share, not the optimizer and width of each."""

    words: str

    @classmethod
    def of_device(cls, device: torch.device, num_sharing: int) -> LaneCase:
        """The case of a device's speed.

        Args:
            num_sharing: number of workers on the machine.
        """
        words = _device_words(device, torch.get_num_threads())
        return cls(words=f"{words}; torch {torch.__version__}; {num_sharing} workers on the machine")

    @classmethod
    def of(
        cls, settings: TrialSettings, data: ResidentData, device: torch.device, num_sharing: int, mix: str = ""
    ) -> LaneCase:
        """The case of a trial's cohort.

        Args:
            mix: `mix_of` the study.
        """
        model, training = CohortShape.of(settings).model, settings.training
        parts = [
            cls.of_device(device, num_sharing).words,
            f"hpsearch {__version__}",
            f"{model.family} of up to {model.hidden_units} units",
            f"kernels {model.kernels}; options {model.options}",
            f"batch {training.batch_size}{' shuffled' if training.shuffle else ''}; {training.precision}",
            f"{data.num_train} images of {shape_text(data.example_shape)}{' in chunks' if data.is_chunked else ''}",
            f"{data.num_classes} classes",
            *([mix] if mix else []),
        ]
        return cls(words="; ".join(parts))


def mix_of(definition: StudyDefinition) -> str:
    """What lanes of a study may mix, and its metric, as far as they decide what an epoch costs.

    Lanes with lambda_1 take about twice as long: they update every weight after every minibatch.
    """
    searched = {dimension.name: dimension for dimension in definition.search.dimensions}
    optimizers = searched["optimizer"].values if "optimizer" in searched else (definition.training.optimizer,)
    has_l1 = "lambda_1" in searched or definition.training.lambda_1 > 0
    words = f"optimizers {', '.join(sorted(map(str, optimizers)))}; metric {definition.metric}"
    return f"{words}; lambda_1" if has_l1 else words


class _Document(BaseModel):
    """The content of a file. Format 1 had timings of temporary lanes.

    Args:
        case: the words of its `LaneCase`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    case: str


class KnownDevice(_Document):
    """The speed of a device."""

    speed: DeviceSpeed


class FirstEpoch(_Document):
    """A number of lanes that a worker trains for the first time. The file is removed after its first epoch.

    Args:
        pid, started_at: of the worker's process; another one may get its number.
        oom_kills: how many processes of its control group had been killed for memory when it began.
    """

    lanes: Annotated[int, Field(ge=1)]
    pid: int
    started_at: float
    oom_kills: int


class KnownLanes(_Document):
    """What is known of one case.

    Args:
        seconds: number of lanes -> seconds per trial and epoch.
        most: more lanes than this ran out of memory during training.
        most_until: when `most` expires: other processes may have used the memory.
    """

    seconds: dict[Annotated[int, Field(ge=1)], Positive] = {}
    most: Annotated[int, Field(ge=1)] | None = None
    most_until: AwareDatetime | None = None


D = TypeVar("D", bound=_Document)


class LaneMemory:
    """Remembers, per case, what was read and what did not fit.

    Args:
        folder: need not exist; if it cannot be written, nothing is remembered.
        now: returns the current time, timezone-aware.
        measure: measures the speed of a device that is not known.
    """

    def __init__(
        self,
        folder: Path,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        measure: Callable[[torch.device], DeviceSpeed] = measure_speed,
    ) -> None:
        self.folder = folder
        self._now = now
        self._measure = measure
        self._speeds: dict[LaneCase, DeviceSpeed] = {}  # also where the folder cannot be written

    def device_speed(self, device: torch.device, num_sharing: int) -> DeviceSpeed:
        """Return the speed of the device. It is measured once per machine, which takes a fraction of a second."""
        case = LaneCase.of_device(device, num_sharing)
        if case not in self._speeds:
            known = self._read(case, KnownDevice)
            if known is None:
                measured = KnownDevice(case=case.words, speed=self._measure(device))
                # Workers that start together all measure, and disturb each other: they agree on the first result.
                known = self._read(case, KnownDevice) or measured
                if known is measured:
                    self.remember(known)
            self._speeds[case] = known.speed
        return self._speeds[case]

    def begin_first_epoch(self, case: LaneCase, lanes: int) -> None:
        """Note that this process trains with so many lanes for the first time.

        On a CPU memory that runs out is no error: the kernel kills the process. `recall` finds out.
        """
        kills = num_oom_kills()
        if kills is not None:
            process, words = psutil.Process(), _first_epoch_of(case).words
            started_at = process.create_time()
            self.remember(FirstEpoch(case=words, lanes=lanes, pid=process.pid, started_at=started_at, oom_kills=kills))

    def end_first_epoch(self, case: LaneCase) -> None:
        """Note that an epoch was trained with them."""
        with contextlib.suppress(OSError):
            self.path(_first_epoch_of(case)).unlink(missing_ok=True)

    def recall(self, case: LaneCase) -> KnownLanes:
        """Return what is known of the case; nothing if its file is missing, damaged or not ours.

        Lanes that were being tried when a process of this control group was killed for memory count as a shortage.
        """
        tried = self._read(_first_epoch_of(case), FirstEpoch)
        if tried is not None and not _lives(tried):
            self.end_first_epoch(case)
            if (num_oom_kills() or 0) > tried.oom_kills:
                _log.warning("a worker with %d lanes was killed because memory ran out: half as many", tried.lanes)
                self.note_shortage(case, max(1, tried.lanes // 2))
        return self._recall(case)

    def _recall(self, case: LaneCase) -> KnownLanes:
        known = self._read(case, KnownLanes) or KnownLanes(case=case.words)
        if known.most_until is not None and known.most_until < self._now():
            return known.model_copy(update={"most": None, "most_until": None})
        return known

    def remember(self, known: KnownLanes | KnownDevice | FirstEpoch) -> None:
        """Replace what is stored for a case. A folder that cannot be written is logged."""
        path = self.path(LaneCase(words=known.case))
        try:
            make_folder(self.folder)
            with replacement_of(path) as file:
                file.write(known.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            _log.warning("cannot remember in %s how many lanes pay: %s", self.folder, error.strerror)

    def note_shortage(self, case: LaneCase, most: int) -> None:
        """Remember, for SHORTAGE_LASTS, that more than `most` lanes ran out of memory."""
        until = self._now() + SHORTAGE_LASTS
        self.remember(self._recall(case).model_copy(update={"most": most, "most_until": until}))

    def path(self, case: LaneCase) -> Path:
        """The file of a case."""
        return self.folder / f"{hashlib.sha256(case.words.encode()).hexdigest()[:24]}.json"

    def _read(self, case: LaneCase, kind: type[D]) -> D | None:
        path = self.path(case)
        try:
            document = kind.model_validate_json(path.read_bytes())
            if document.case == case.words:
                return document
            reason = "it is of another case"
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            first = error.errors()[0]
            if first["loc"] == ("format",) and first["input"] == 1:
                return None
            reason = str(first["msg"])
        _log.warning("lanes are learned again: %s cannot be used: %s", path, reason)
        return None


def _lives(first_epoch: FirstEpoch) -> bool:
    try:
        return psutil.Process(first_epoch.pid).create_time() == first_epoch.started_at
    except psutil.NoSuchProcess:
        return False


def _first_epoch_of(case: LaneCase) -> LaneCase:
    return LaneCase(words=f"tried: {case.words}")


@cache
def _device_words(device: torch.device, num_threads: int) -> str:
    """Return the model and size of the device, so that equal devices need not be measured separately."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory >> 20} MiB"
    return f"{_processor()}, {num_threads} threads"


def _processor() -> str:
    """Return the processor's model; on Linux, `platform` knows only its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
