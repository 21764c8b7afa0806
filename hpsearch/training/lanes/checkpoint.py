"""A trial as it stands at the end of an epoch: copied from its lane, written to a file, trained on elsewhere.

`Cohort.checkpoint` copies lanes on the device, `PendingCheckpoint.fetch` brings the copies to the host while
training goes on, and `Cohort.admit` goes on from a `TrialCheckpoint`: on any device, in a cohort of any width.

No state of a random generator is kept, because there is none: initial weights are drawn once, from a seed;
the order of an epoch's images is a function of the trial's seed and the epoch's number
(`resident.minibatch_order`); no network draws random numbers (`custom_network` refuses modules that do); and
what is rounded is rounded to the nearest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self, final

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from hpsearch.epoch_report import Validation
from hpsearch.errors import ArtifactError
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.stack import TrialTensors
from hpsearch.training.networks.network import Network
from hpsearch.training.schedules import ScheduleState
from hpsearch.training.tensor_file import CHECKSUM, Array, checksum, load_arrays, save_arrays
from hpsearch.wording import first_line

CHECKPOINT_VERSION: Final = "2"  # 2: which validation images are right
CHANGEABLE_SETTINGS: Final = ("training.max_epochs",)  # where a trial ends does not change how it gets there

ToHost = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """Which trial it is, and what it has behind it besides its tensors. Plain numbers, exact as JSON.

    Args:
        num_train: training images.
        validations_every, significance_level: as the cohort has them; no level: no reference is kept.
        schedule: what the learning-rate schedule remembers.
        best: the best validation so far, when the best parameters were kept.
    """

    settings: TrialSettings
    num_train: int
    validations_every: int
    num_epochs: int
    schedule: ScheduleState
    best: Validation | None
    significance_level: float | None = None

    def __post_init__(self) -> None:
        if self.num_epochs < 0 or self.schedule.num_epochs != self.num_epochs:
            raise ValueError(f"{self.num_epochs} epochs, but {self.schedule.num_epochs} of the schedule")
        schedule = self.schedule
        if not (0 <= schedule.num_stale_epochs <= self.num_epochs and 0 <= schedule.num_falls <= self.num_epochs):
            raise ValueError(f"{schedule.num_stale_epochs} stale epochs and {schedule.num_falls} falls of the rate")
        if not 0 <= (schedule.best_zero_one or 0.0) <= 1:
            raise ValueError(f"a schedule's best validation of {schedule.best_zero_one}")
        if self.best is None:
            return
        num_minibatches = self.num_epochs * (self.num_train // self.settings.training.batch_size)
        if not 1 <= self.best.iteration <= num_minibatches:
            raise ValueError(f"a best validation at minibatch {self.best.iteration} of {num_minibatches}")
        if not (0 <= self.best.zero_one <= 1 and math.isfinite(self.best.nll)):
            raise ValueError(f"a best validation of {self.best.zero_one} and {self.best.nll}")

    def differences(self, other: TrialProgress) -> list[str]:
        """What makes the two trials train otherwise, as `name: mine here, its there`."""
        mine, its = _facts(self), _facts(other)
        names = [*mine, *(name for name in its if name not in mine)]
        return [
            f"{name} is {mine.get(name)!r} there and {its.get(name)!r} here"
            for name in names
            if name not in CHANGEABLE_SETTINGS and mine.get(name) != its.get(name)
        ]


@final
@dataclass(frozen=True, kw_only=True)
class TrialCheckpoint:
    """One trial at the end of an epoch, in host memory: its training goes on from here as if it had not stopped.

    Args:
        arrays: "parameters/...", "optimizer/..." and "best/..." (the parameters at the best validation), in the
            widths of the trial's own network; "correct/...": which validation images are right at the best and at
            the reference.
        extra: whatever the caller wants to travel along, as JSON: `dataclasses.replace(checkpoint, extra=...)`.
    """

    progress: TrialProgress
    arrays: Mapping[str, Array]
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Of the arrays, in host memory and, but for a header of about 2 KB, in a file."""
        return sum(array.nbytes for array in self.arrays.values())

    def to_bytes(self) -> bytes:
        """A safetensors file, with all that is no array in its metadata, and a checksum of everything.

        Raises:
            TypeError, ValueError: `extra` is not JSON (which has no infinities and NaN).
        """
        progress = _PROGRESS.dump_python(self.progress, mode="json")
        state = json.dumps({"progress": progress, "extra": dict(self.extra)}, allow_nan=False)
        metadata = {"checkpoint_version": CHECKPOINT_VERSION, "state": state, CHECKSUM: checksum(state, self.arrays)}
        return save_arrays(self.arrays, metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read what `to_bytes` wrote; nothing in it is run.

        Raises:
            ArtifactError: it is no checkpoint, not all of one, a changed one, or of another version.
        """
        try:
            arrays, metadata = load_arrays(content)
            version = metadata.get("checkpoint_version")
            if version != CHECKPOINT_VERSION:
                raise _damaged(f"it is of version {version!r:.20}, and we read {CHECKPOINT_VERSION!r}")
            if metadata[CHECKSUM] != checksum(metadata["state"], arrays):
                raise _damaged("its checksum is wrong")
            json.loads(metadata["state"], parse_constant=_finite, parse_float=_finite)
            state = _STATE.validate_json(metadata["state"], strict=True)
        except (SafetensorError, ValidationError, KeyError, ValueError, RecursionError) as error:
            raise _damaged(_describe_error(error)) from error
        return cls(progress=state.progress, arrays=arrays, extra=state.extra)

    def check_is_of(self, trial: TrialProgress) -> None:
        """Make sure that it was taken of a trial with these settings and data, however far either has come.

        Raises:
            ArtifactError: it was taken of another one; names what differs.
        """
        differences = self.progress.differences(trial)
        if differences:
            raise _misfit(self, "it is of another trial: " + "; ".join(differences[:3]))

    def tensors(self, like: TrialTensors) -> TrialTensors:
        """The arrays in the place of a fresh trial's tensors: with their types, devices and memory layouts.

        Raises:
            ArtifactError: names or shapes or types are others, or the numbers are none that a trial goes on with.
        """
        expected = like.named()
        missing, unknown = expected.keys() - self.arrays.keys(), self.arrays.keys() - expected.keys()
        if missing or unknown:
            what = f"lacks {min(missing)}" if missing else f"has {min(unknown)}, which the trial has not"
            raise _misfit(self, f"it {what}")
        tensors = like.replaced({name: self._tensor(name, tensor) for name, tensor in expected.items()})
        best, correct = self.progress.best, tensors.correct["best"]
        if best is not None and round(best.zero_one * len(correct)) != len(correct) - int(correct.sum()):
            raise _misfit(self, "its best validation is another than that whose correct images it has")
        return tensors

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        values = torch.tensor(self.arrays[name])
        if values.shape != like.shape or values.dtype != like.dtype:
            raise _misfit(self, f"{name} is {_describe(values)}, expected {_describe(like)}")
        # A trial of finite losses has infinities only in a saturated unit or, for one step, in Adam's mean square: what
        # such a trial loses is the way up to here, for it begins anew.
        if not values.isfinite().all():
            raise _misfit(self, f"{name} has numbers in it that are not finite: the trial had diverged")
        return torch.empty_like(like).copy_(values)


@final
@dataclass(frozen=True, kw_only=True)
class PendingCheckpoint:
    """Copies of some lanes, still on the device. Its memory there is free again once this object is.

    Args:
        trials: by key: how far it has come, and its own network.
        tensors: stacked in the order of the trials, in the cohort's widths.
        to_host: brings a tensor to host memory that is shared with nothing; may wait.
    """

    trials: Mapping[Hashable, tuple[TrialProgress, Network]]
    tensors: TrialTensors
    to_host: ToHost

    def fetch(self) -> dict[Hashable, TrialCheckpoint]:
        """Bring the copies to the host, each trial's cut to its own widths. May be called on another thread.

        Raises:
            RuntimeError: as torch does when the device, or host memory, fails.
        """
        return dict(self.fetch_each())

    def fetch_each(self) -> Iterator[tuple[Hashable, TrialCheckpoint]]:
        """The same, trial by trial, so that the host need not hold all of them at once."""
        for index, (key, (progress, network)) in enumerate(self.trials.items()):
            own = self.tensors.map(partial(self._lane_on_host, index)).fit(network)
            arrays = {name: value.contiguous().numpy() for name, value in own.named().items()}
            yield key, TrialCheckpoint(progress=progress, arrays=arrays)

    def _lane_on_host(self, index: int, stacked: Tensor) -> Tensor:
        return self.to_host(stacked[index])


def copy_to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, at once."""
    return tensor.to("cpu", copy=True)


@final
class CudaToHost:
    """Brings to the host what the device has computed up to now, without waiting for what it will be given next.

    The copies run on a stream of their own, behind an event that is recorded here: on the thread that trains, after
    the last operation that writes the tensors. No operation may write them later. The stream is one of high priority:
    captures take theirs from torch's pool of those with default priority, where it goes round 32 of them, so that
    a copy could end up inside of a graph. Nothing is allocated on the device, and the memory of a tensor goes back to
    the training stream only when it has been read, so the allocator needs to know nothing of this stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._is_written = torch.cuda.current_stream(device).record_event()

    def __call__(self, tensor: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):  # of this thread only; it selects the device, too
            self._stream.wait_event(self._is_written)
            return tensor.to("cpu", copy=True)  # host sync: with this stream, and nothing else


@dataclass(frozen=True, kw_only=True)
class _State:
    """What the metadata hold as JSON."""

    progress: TrialProgress
    extra: dict[str, Any]


_PROGRESS = TypeAdapter(TrialProgress)
_STATE = TypeAdapter(_State)


def _facts(progress: TrialProgress) -> dict[str, object]:
    """What the numbers of a trial depend on, by name."""
    settings = progress.settings
    return {
        **{f"model.{name}": value for name, value in settings.model.model_dump().items()},
        **{f"training.{name}": value for name, value in settings.training.model_dump().items()},
        "seed": settings.seed,
        "number of training images": progress.num_train,
        "minibatches between validations": progress.validations_every,
        "significance level": progress.significance_level,
    }


def _finite(text: str) -> float:
    """A number of the state. Raises ValueError for what `to_bytes` writes none of: NaN and infinities."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"its state has {text:.20} in it")
    return value


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _describe_error(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the state'}: {first['msg']}"
    return f"{type(error).__name__}: {first_line(error)}"[:200]


def _damaged(why: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoint of a trial cannot be read: {why}",
        hint="it is damaged or from another version of hpsearch; let the trial start again",
    )


def _misfit(checkpoint: TrialCheckpoint, why: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoint after epoch {checkpoint.progress.num_epochs} does not fit the trial: {why}",
        hint="let the trial start again, or give it the checkpoint that was taken of it",
    )
