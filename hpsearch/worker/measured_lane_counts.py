"""Measured lane counts of this machine, kept in hpsearch's home: one small JSON file per case.

Each case has its own file, which is replaced as a whole. Any number of workers may measure at once; the last write
wins. A file that cannot be used is treated as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from hpsearch import __version__
from hpsearch.atomic_file import replacement_of
from hpsearch.data.resident import ResidentData
from hpsearch.home import make_folder
from hpsearch.logs import get_logger
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.probe import LaneTimings, Obstacle
from hpsearch.worker.cohorts import cohort_name

_log = get_logger("lanes")

SHORTAGE_LASTS = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class LaneCase:
    """Everything that a measurement depends on, as text."""

    words: str

    @classmethod
    def of(cls, settings: TrialSettings, data: ResidentData, device: torch.device) -> LaneCase:
        height, width = data.image_shape
        parts = [
            _device_words(device),
            f"torch {torch.__version__}",
            f"hpsearch {__version__}",
            f"{settings.model.family} of up to {_power_of_two(settings.model.hidden_units)} units",
            f"batch {settings.training.batch_size}",
            f"cohort {cohort_name(settings)}",
            f"{data.num_train} images of {height}x{width}{' in chunks' if data.is_chunked else ''}",
            f"{data.num_classes} classes",
        ]
        return cls(words="; ".join(parts))


class KnownLanes(BaseModel):
    """What is known of one case.

    Args:
        case: the words of its `LaneCase`.
        seconds, obstacle: as in `LaneTimings`.
        bytes_per_lane: memory per lane, measured with the largest number of lanes that were timed.
        most: more lanes than this ran out of memory during training.
        most_until: when `most` expires: other processes may have used the memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    case: str
    seconds: dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0, allow_inf_nan=False)]] = {}
    obstacle: Obstacle | None = None
    bytes_per_lane: Annotated[int, Field(ge=0)] = 0
    most: Annotated[int, Field(ge=1)] | None = None
    most_until: AwareDatetime | None = None

    @property
    def timings(self) -> LaneTimings:
        return LaneTimings(seconds=self.seconds, obstacle=self.obstacle)


class LaneMemory:
    """Remembers, per case, what was measured and what did not fit.

    Args:
        folder: need not exist; if it cannot be written, nothing is remembered.
        now: returns the current time, timezone-aware.
    """

    def __init__(self, folder: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.folder = folder
        self._now = now

    def recall(self, case: LaneCase) -> KnownLanes:
        """Return what is known of the case; nothing if its file is missing, damaged or not ours."""
        path = self.path(case)
        try:
            known = KnownLanes.model_validate_json(path.read_bytes())
            if known.case == case.words:
                if known.most_until is not None and known.most_until < self._now():
                    return known.model_copy(update={"most": None, "most_until": None})
                return known
            reason = "it is of another case"
        except FileNotFoundError:
            return KnownLanes(case=case.words)
        except OSError as error:
            reason = str(error.strerror)
        except ValidationError as error:
            reason = str(error.errors()[0]["msg"])
        _log.warning("lanes are measured again: %s cannot be used: %s", path, reason)
        return KnownLanes(case=case.words)

    def remember(self, known: KnownLanes) -> None:
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
        self.remember(self.recall(case).model_copy(update={"most": most, "most_until": until}))

    def path(self, case: LaneCase) -> Path:
        """The file of a case."""
        return self.folder / f"{hashlib.sha256(case.words.encode()).hexdigest()[:24]}.json"


def _power_of_two(number: int) -> int:
    """Return the next power of two, so that a search over widths need not measure each width."""
    return int(1 << (number - 1).bit_length())


def _device_words(device: torch.device) -> str:
    """Return the model and size of the device, so that equal devices need not be measured separately."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory >> 20} MiB"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Return the processor's model; on Linux, `platform` knows only its architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
