"""Checkpoints: the state of a trial at the end of an epoch, from which its training can continue elsewhere.

`Cohort.checkpoint` copies lanes on the device, `PendingCheckpoint.fetch` copies them to the host while training
continues, and `Cohort.admit` resumes from a `TrialCheckpoint`: on any device, in a cohort of any width.

A checkpoint holds no state of a random generator, because training has none. Initial weights are drawn once, from a
seed. The order of an epoch's images is a function of the trial's seed and the epoch's number
(`training.minibatches`). No network draws random numbers (`networks.custom` refuses modules that do). Rounding is
to nearest, never stochastic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from hpsearch.epoch_report import Validation
from hpsearch.errors import ArtifactError
from hpsearch.metric import METRICS, ZERO_ONE
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.stack import TrialTensors
from hpsearch.training.networks.network import Network
from hpsearch.training.schedules import ScheduleState
from hpsearch.training.tensor_file import CHECKSUM, Array, checksum, load_arrays, save_arrays
from hpsearch.wording import first_line

CHECKPOINT_VERSION: Final = "2"  # 2: added the correctly classified validation images
CHANGEABLE_SETTINGS: Final = ("training.max_epochs",)  # a trial's last epoch does not affect the earlier ones

ToHost = Callable[[Tensor], Tensor]
_EXTRA = "extra/"  # first part of the names of the caller's own arrays


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class TrialProgress:
    """A trial's settings and progress, without its tensors. JSON represents all of its numbers exactly.

    Args:
        num_train: training images.
        validations_every, significance_level: as in the cohort. None as the level: no reference is kept.
        num_epochs: finished epochs.
        schedule: state of the learning-rate schedule.
        metric: by which validations are judged.
        best: the best validation so far, at which the best parameters were kept.
    Raises:
        ValueError: the numbers contradict each other.
    """

    settings: TrialSettings
    num_train: int
    validations_every: int
    num_epochs: int
    schedule: ScheduleState
    best: Validation | None
    significance_level: float | None = None
    metric: str = "zero-one"

    def __post_init__(self) -> None:
        if self.num_epochs < 0 or self.schedule.num_epochs != self.num_epochs:
            raise ValueError(f"{self.num_epochs} epochs, but {self.schedule.num_epochs} of the schedule")
        schedule = self.schedule
        if not (0 <= schedule.num_stale_epochs <= self.num_epochs and 0 <= schedule.num_falls <= self.num_epochs):
            raise ValueError(f"{schedule.num_stale_epochs} stale epochs and {schedule.num_falls} falls of the rate")
        if not self._is_loss(schedule.best_loss or 0.0):
            raise ValueError(f"a schedule's best validation of {schedule.best_loss}")
        if self.best is None:
            return
        num_minibatches = self.num_epochs * (self.num_train // self.settings.training.batch_size)
        if not 1 <= self.best.iteration <= num_minibatches:
            raise ValueError(f"a best validation at minibatch {self.best.iteration} of {num_minibatches}")
        if not (self._is_loss(self.best.loss) and math.isfinite(self.best.nll)):
            raise ValueError(f"a best validation of {self.best.loss} and {self.best.nll}")

    def _is_loss(self, loss: float) -> bool:
        return 0 <= loss < math.inf and (loss <= 1 or not METRICS[self.metric].is_share)

    def differences(self, other: TrialProgress) -> list[str]:
        """The settings and data sizes by which training differs between the two, as `name is X there and Y here`.

        "there" is this progress, "here" is `other`. `CHANGEABLE_SETTINGS` are not compared.
        """
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
    """One trial at the end of an epoch, in host memory. Training resumes from it as if it had not been interrupted.

    Args:
        arrays: "parameters/...", "optimizer/..." and "best/..." (the parameters at the best validation), in the
            widths of the trial's own network; "correct/...": what was kept of the validation examples at the
            best validation and at the reference (of zero-one: which of them were correct).
        extra: the caller's own data, as JSON: `dataclasses.replace(checkpoint, extra=...)`.
        extra_arrays: the caller's own arrays, which training does not use.
    """

    progress: TrialProgress
    arrays: Mapping[str, Array]
    extra: Mapping[str, Any] = field(default_factory=dict)
    extra_arrays: Mapping[str, Array] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in host memory. A file is larger by a header of about 2 KB."""
        return sum(array.nbytes for arrays in (self.arrays, self.extra_arrays) for array in arrays.values())

    def to_bytes(self) -> bytes:
        """Serialise as a safetensors file, with progress, `extra` and a checksum of everything in its metadata.

        Raises:
            TypeError, ValueError: `extra` is not JSON (which has no infinities and NaN).
        """
        progress = _as_stored(_PROGRESS.dump_python(self.progress, mode="json"))
        state = json.dumps({"progress": progress, "extra": dict(self.extra)}, allow_nan=False)
        arrays = {**self.arrays, **{_EXTRA + name: array for name, array in self.extra_arrays.items()}}
        metadata = {"checkpoint_version": CHECKPOINT_VERSION, "state": state, CHECKSUM: checksum(state, arrays)}
        return save_arrays(arrays, metadata)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Read the output of `to_bytes`. Reading executes no code from the file.

        Raises:
            ArtifactError: the content is not a checkpoint, is truncated or changed, or has another version.
        """
        try:
            arrays, metadata = load_arrays(content)
            version = metadata.get("checkpoint_version")
            if version != CHECKPOINT_VERSION:
                raise _damaged(f"its version is {version!r:.20}, expected {CHECKPOINT_VERSION!r}")
            if metadata[CHECKSUM] != checksum(metadata["state"], arrays):
                raise _damaged("its checksum is wrong")
            document = json.loads(metadata["state"], parse_constant=_finite, parse_float=_finite)
            state = _STATE.validate_json(json.dumps(_from_stored(document)), strict=True)
        except (SafetensorError, ValidationError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(_describe_error(error)) from error
        extra = {name.removeprefix(_EXTRA): arrays.pop(name) for name in [*arrays] if name.startswith(_EXTRA)}
        return cls(progress=state.progress, arrays=arrays, extra=state.extra, extra_arrays=extra)

    def check_is_of(self, trial: TrialProgress) -> None:
        """Check that the checkpoint belongs to a trial with these settings and data; progress is not compared.

        Raises:
            ArtifactError: it belongs to another trial. The message names the first three differences.
        """
        differences = self.progress.differences(trial)
        if differences:
            raise _misfit(self, "it belongs to another trial: " + "; ".join(differences[:3]))

    def tensors(self, like: TrialTensors) -> TrialTensors:
        """The arrays as tensors, with the devices and memory layouts of a fresh trial's tensors.

        Args:
            like: the tensors of a fresh trial.
        Raises:
            ArtifactError: names, shapes or types differ, a number is not finite, or the number of correctly classified
                images does not match the best validation.
        """
        expected = like.named()
        missing, unknown = expected.keys() - self.arrays.keys(), self.arrays.keys() - expected.keys()
        if missing or unknown:
            what = f"lacks {min(missing)}" if missing else f"has {min(unknown)}, which the trial does not have"
            raise _misfit(self, f"it {what}")
        tensors = like.replaced({name: self._tensor(name, tensor) for name, tensor in expected.items()})
        best, record = self.progress.best, tensors.records["best"]
        if best is None or record.dtype != torch.bool:
            return tensors
        if round(best.loss * len(record)) != len(record) - int(record.sum()):
            raise _misfit(self, "its best validation does not match its correct images")
        return tensors

    def _tensor(self, name: str, like: Tensor) -> Tensor:
        values = torch.tensor(self.arrays[name])
        if values.shape != like.shape or values.dtype != like.dtype:
            raise _misfit(self, f"{name} is {_describe(values)}, expected {_describe(like)}")
        # A trial with finite losses has infinities only in a saturated unit or, for one step, in Adam's mean square.
        # The cost of refusing such a checkpoint is that the trial starts again from its first epoch.
        if not values.isfinite().all():
            raise _misfit(self, f"{name} has numbers that are not finite: the trial had diverged")
        return torch.empty_like(like).copy_(values)


@final
@dataclass(frozen=True, kw_only=True)
class PendingCheckpoint:
    """Copies of some lanes, still on the device. The device memory is released with this object.

    Args:
        trials: by key: progress, own network, and the copied tensors in the cohort's widths.
        to_host: copies a tensor to host memory that nothing else uses; may wait for the device.
    """

    trials: Mapping[Hashable, tuple[TrialProgress, Network, TrialTensors]]
    to_host: ToHost

    def fetch(self) -> dict[Hashable, TrialCheckpoint]:
        """Copy all trials to the host, each cut to its own network's widths. May be called from another thread.

        Raises:
            RuntimeError: by torch, when the device or the host allocation fails.
        """
        return dict(self.fetch_each())

    def fetch_each(self) -> Iterator[tuple[Hashable, TrialCheckpoint]]:
        """As `fetch`, one trial at a time, so that the host does not hold all of them at once."""
        for key, (progress, network, copy) in self.trials.items():
            own = copy.map(self.to_host).fit(network)
            arrays = {name: value.contiguous().numpy() for name, value in own.named().items()}
            yield key, TrialCheckpoint(progress=progress, arrays=arrays)


def copy_to_host(tensor: Tensor) -> Tensor:
    """Copy a tensor to host memory synchronously."""
    return tensor.to("cpu", copy=True)


@final
class CudaToHost:
    """Copies tensors from a GPU to the host without waiting for work that is queued later.

    The copies run on their own stream, after an event that the constructor records. The constructor must therefore run
    on the training thread, after the last operation that writes the tensors; no later operation may write them.

    The stream has high priority. Captures take their streams from torch's pool of default priority, which reuses 32
    streams in turn, so a copy on such a stream could become part of a graph. The copies allocate nothing on the
    device, and a tensor's memory returns to the training stream only after it has been read. The allocator therefore
    does not need to know this stream (no `record_stream`).
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
        self._is_written = torch.cuda.current_stream(device).record_event()

    def __call__(self, tensor: Tensor) -> Tensor:
        with torch.cuda.stream(self._stream):  # for this thread only; also selects the device
            self._stream.wait_event(self._is_written)
            return tensor.to("cpu", copy=True)  # host sync with this stream only


@dataclass(frozen=True, kw_only=True)
class _State:
    """The JSON part of a checkpoint file's metadata."""

    progress: TrialProgress
    extra: dict[str, Any]


_PROGRESS = TypeAdapter(TrialProgress)
_STATE = TypeAdapter(_State)


def _facts(progress: TrialProgress) -> dict[str, object]:
    """Everything that a trial's numbers depend on, by name."""
    settings = progress.settings
    return {
        **{f"model.{name}": value for name, value in settings.model.model_dump().items()},
        **{f"training.{name}": value for name, value in settings.training.model_dump().items()},
        "seed": settings.seed,
        "number of training images": progress.num_train,
        "minibatches between validations": progress.validations_every,
        "significance level": progress.significance_level,
        "metric": progress.metric,
    }


# Losses have the name of the first metric in files: key of `TrialProgress` -> our name, name in files.
_STORED_NAMES: Final = {"schedule": ("best_loss", "best_zero_one"), "best": ("loss", "zero_one")}


def _as_stored(progress: dict[str, Any]) -> dict[str, Any]:
    """Progress with the names of a file, without the first metric, which older versions do not name."""
    stored = {key: value for key, value in progress.items() if (key, value) != ("metric", ZERO_ONE.name)}
    for key, (ours, in_files) in _STORED_NAMES.items():
        stored[key] = _renamed(stored[key], ours, in_files)
    return stored


def _from_stored(document: Any) -> Any:
    """A checkpoint's state with the names of `TrialProgress`; what it lacks is found by its validation."""
    if not isinstance(document, dict) or not isinstance(progress := document.get("progress"), dict):
        return document
    for key, (ours, in_files) in _STORED_NAMES.items():
        if key in progress:
            progress[key] = _renamed(progress[key], in_files, ours)
    return document


def _renamed(table: Any, name: str, new_name: str) -> Any:
    if not isinstance(table, dict):
        return table
    return {new_name if key == name else key: value for key, value in table.items()}


def _finite(text: str) -> float:
    """Parse a number of the state.

    Raises:
        ValueError: it is NaN or infinite, which `to_bytes` never writes.
    """
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
        hint="it is damaged or from another version of hpsearch; start the trial again",
    )


def _misfit(checkpoint: TrialCheckpoint, why: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoint after epoch {checkpoint.progress.num_epochs} does not fit the trial: {why}",
        hint="start the trial again, or use its own checkpoint",
    )
