"""What workers of this machine have learned about lanes, kept in hpsearch's home: one small JSON file per case.

A file has the measured speed of a device, or the readings of one kind of cohort, or how many of its lanes ran out of
memory. Each is replaced as a whole. Any number of workers may write at once; the last write wins. A file that cannot be
used is treated as missing.
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

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from hpsearch import __version__
from hpsearch.atomic_file import replacement_of
from hpsearch.data.example_shape import shape_text
from hpsearch.data.resident import ResidentData
from hpsearch.home import make_folder
from hpsearch.logs import get_logger
from hpsearch.search.stopping import validations_per_epoch
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import ModelSettings, StoppingSettings, TrialSettings
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import DeviceSpeed, Positive, measure_speed
from hpsearch.worker.lanes.lanes_in_use import WorkersLanes

_log = get_logger("lanes")

SHORTAGE_LASTS = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class StudyMix:
    """What the lanes of a study may mix, and what else of it decides how long an epoch takes.

    Args:
        words: the optimizers, whether there is a lambda_1, and the metric.
        most_units: the largest number of hidden units; None: that of the trial that opens a cohort.
        stopping: decides how often an epoch validates; None: once.
    """

    words: str = ""
    most_units: int | None = None
    stopping: StoppingSettings | None = None

    @classmethod
    def of(cls, definition: StudyDefinition) -> StudyMix:
        """The mix of a study. Lanes with lambda_1 take about twice as long: they update every weight every time."""
        searched = {dimension.name: dimension.values for dimension in definition.search.dimensions}
        optimizers = searched.get("optimizer", (definition.training.optimizer,))
        has_l1 = "lambda_1" in searched or definition.training.lambda_1 > 0
        words = f"optimizers {', '.join(sorted(map(str, optimizers)))}; metric {definition.metric}"
        units = searched.get("hidden_units", ())
        if not units or definition.search.strategy == "listed":  # where single points may leave it out
            units = (*units, definition.model.hidden_units)
        return cls(
            words=f"{words}; lambda_1" if has_l1 else words,
            most_units=max(int(number) for number in units),
            stopping=definition.stopping,
        )

    def widest_model(self, settings: TrialSettings) -> ModelSettings:
        """The largest network that the cohort of a trial is expected to train.

        Coarse-to-fine may go beyond the study's values, up to the largest width of the cohort.
        """
        model = CohortShape.of(settings).model
        most = max(self.most_units or 0, settings.model.hidden_units)
        return model.model_copy(update={"hidden_units": min(model.hidden_units, most)})

    def validations_per_epoch(self, num_minibatches: int) -> int:
        """How often an epoch validates, the one at its end included."""
        return 1 if self.stopping is None else validations_per_epoch(self.stopping, num_minibatches)


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
        cls, settings: TrialSettings, data: ResidentData, device: torch.device, num_sharing: int, mix: StudyMix
    ) -> LaneCase:
        """The case of a trial's cohort."""
        model, training = mix.widest_model(settings), settings.training
        validations = mix.validations_per_epoch(data.num_minibatches(training.batch_size))
        parts = [
            cls.of_device(device, num_sharing).words,
            f"hpsearch {__version__}",
            f"{model.family} of up to {model.hidden_units} units",
            f"kernels {model.kernels}; options {model.options}",
            f"batch {training.batch_size}{' shuffled' if training.shuffle else ''}; {training.precision}",
            f"{data.num_train} images of {shape_text(data.example_shape)}{' in chunks' if data.is_chunked else ''}",
            f"{len(data.validation_labels)} validated {validations} times per epoch",
            f"{data.num_classes} classes",
            *([mix.words] if mix.words else []),
        ]
        return cls(words="; ".join(parts))


class _Document(BaseModel):
    """The content of a file. Format 1 had timings of temporary lanes, format 2 shortages beside readings.

    Args:
        case: the words of its `LaneCase`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[3] = 3
    case: str


class KnownDevice(_Document):
    """The speed of a device."""

    speed: DeviceSpeed


class KnownLanes(_Document):
    """The readings of one case: number of lanes -> seconds per trial and epoch."""

    seconds: dict[Annotated[int, Field(ge=1)], Positive] = {}


class KnownShortage(_Document):
    """More lanes than this ran out of memory in training.

    Args:
        until: when it is forgotten: other processes may have used the memory.
    """

    most: Annotated[int, Field(ge=1)]
    until: AwareDatetime


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
        self._warned: set[Path] = set()
        self._workers = WorkersLanes(folder / "in-use")

    def device_speed(self, device: torch.device, num_sharing: int) -> DeviceSpeed:
        """Return the speed of the device. It is measured once per machine, which takes a fraction of a second."""
        case = LaneCase.of_device(device, num_sharing)
        if not self.knows_speed(device, num_sharing):
            measured = KnownDevice(case=case.words, speed=self._measure(device))
            # Workers that start together all measure, and disturb each other: they agree on the first result.
            known = self._read(case, KnownDevice) or measured
            if known is measured:
                self.remember(known)
            self._speeds[case] = known.speed
        return self._speeds[case]

    def knows_speed(self, device: torch.device, num_sharing: int) -> bool:
        """Whether `device_speed` need not measure."""
        case = LaneCase.of_device(device, num_sharing)
        if case not in self._speeds and (known := self._read(case, KnownDevice)) is not None:
            self._speeds[case] = known.speed
        return case in self._speeds

    def use_lanes(self, case: LaneCase, lanes: int) -> None:
        """Note with how many lanes this process trains from now on. If memory kills it, the next one finds the note."""
        self._workers.note(case.words, lanes)

    def end_use(self) -> None:
        """Note that this process trains nothing now."""
        self._workers.end()

    def recall(self, case: LaneCase) -> KnownLanes:
        """Return what is known of the case; nothing if its file is missing, damaged or not ours."""
        return self._read(case, KnownLanes) or KnownLanes(case=case.words)

    def most_lanes(self, case: LaneCase) -> int | None:
        """Return the number of lanes beyond which memory ran out lately; None if it did not.

        Half of the lanes of a worker that was killed for memory counts, too.
        """
        for victim in self._workers.remove_dead():
            words = "a worker with %d lanes was killed, perhaps because memory ran out: the next ones train at most %d"
            _log.warning(words, victim.lanes, victim.lanes // 2)
            self.note_shortage(LaneCase(words=victim.case), victim.lanes // 2)
        known = self._shortage(case)
        return None if known is None else known.most

    def note_shortage(self, case: LaneCase, most: int) -> None:
        """Remember, for SHORTAGE_LASTS, that more than `most` lanes ran out of memory. A smaller number is kept."""
        known = self._shortage(case)
        most = most if known is None else min(most, known.most)
        words = _shortage_of(case).words
        self.remember(KnownShortage(case=words, most=most, until=self._now() + SHORTAGE_LASTS))

    def _shortage(self, case: LaneCase) -> KnownShortage | None:
        known = self._read(_shortage_of(case), KnownShortage)
        # One that lasts much longer was noted while a clock was wrong.
        return known if known is not None and self._now() < known.until < self._now() + 2 * SHORTAGE_LASTS else None

    def remember(self, known: KnownLanes | KnownDevice | KnownShortage) -> None:
        """Replace what is stored for a case. A folder that cannot be written is logged."""
        path = self.path(LaneCase(words=known.case))
        try:
            make_folder(self.folder)
            with replacement_of(path) as file:
                file.write(known.model_dump_json(indent=2).encode() + b"\n")
        except OSError as error:
            _log.warning("cannot remember in %s how many lanes pay: %s", self.folder, error.strerror)

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
            if first["loc"] == ("format",) and first["input"] in (1, 2):
                return None
            reason = str(first["msg"])
        if path not in self._warned:
            self._warned.add(path)
            _log.warning("lanes are learned again: %s cannot be used: %s", path, reason)
        return None


def _shortage_of(case: LaneCase) -> LaneCase:
    return LaneCase(words=f"out of memory: {case.words}")


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
