"""The lanes' step as captured CUDA graphs: one launch for many minibatches.

In eager mode a minibatch of 20 images takes some twenty kernels of a few microseconds each, and launching them takes
longer than running them. A graph of a run of minibatches is captured once and replayed for every further run. Images
and labels are copied into the graph's own tensors, learning rates are in tensors that keep their address
(`LaneStack.set_rates`), and weights are updated in place. Graphs are captured again whenever the lanes' tensors move
to other memory (`LaneStack.version`). Admitting a trial into a free lane moves nothing.

Not all work can be captured: a user's module may copy numbers from the host, for example. A capture executes nothing,
so such work then runs in eager mode, until the step is built anew.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor

from hpsearch.logs import get_logger
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.wording import first_line

_log = get_logger("capture")

# Minibatches per graph: enough to make the cost of a replay (about 10 us) and of copying its images negligible, few
# enough to capture in a fraction of a second.
GRAPH_MINIBATCHES = 50

Work = Callable[[], Tensor]


class LaneStep(Protocol):
    """Trains every lane on consecutive minibatches."""

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        """Train on consecutive minibatches: updates the stack's parameters and optimizer state in place.

        There is no host sync.

        Args:
            images: [N, pixels] shared by the lanes, or [L, N, pixels]; N is a multiple of the batch size.
            labels: [N] or [L, N] int64.
        Returns:
            Sum over the minibatches of the mean NLL before the update, in nats, [L] float64.
        """


Capture = Callable[[Work], Work]

# Streams of captures that are gone. Torch reuses freed memory on its stream only, and has 32 streams.
_idle_streams: dict[torch.device, list[torch.cuda.Stream]] = {}


@final
class CudaCapture:
    """Captures work as a CUDA graph. All graphs of one step share one memory pool, since they never run at once.

    The pool is freed with the last of them, so drop all of them before you capture anew. No two captures have a stream
    in common, because with a graph torch may free the cuBLAS workspace of its stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        idle = _idle_streams.setdefault(device, [])
        self._stream = idle.pop() if idle else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        weakref.finalize(self, idle.append, self._stream)
        # The first graph, whose memory pool the later ones share.
        self._graph: Callable[[], torch.cuda.CUDAGraph | None] = lambda: None

    def __call__(self, work: Work) -> Work:
        """Record the work without running it.

        Returns:
            A function that runs the recorded work. It returns the same tensor each time.
        Raises:
            RuntimeError: the work cannot be captured, or memory ran out (`is_out_of_memory`); nothing was run. Torch
                may then keep the memory of the pool for good (https://github.com/pytorch/pytorch/pull/190348).
        """
        graph, first = torch.cuda.CUDAGraph(), self._graph()
        pool = torch.cuda.graph_pool_handle() if first is None else first.pool()
        # Capture on a stream of this device. Otherwise torch would record on the current device, and work for another
        # device would run immediately instead of being recorded.
        with torch.cuda.device(self._device), _no_garbage_collection():
            before = torch.cuda.current_stream()
            cause: BaseException | None = None
            try:
                # thread_local: another thread may fetch a checkpoint at the same time, whose calls would otherwise
                # invalidate the capture.
                with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                    try:
                        result = work()
                    except BaseException as error:
                        cause = error
                        raise
            except BaseException as error:
                _end_allocation(pool)
                if cause is None or cause is error:
                    raise
                raise cause from error  # ending the capture has failed, too
            finally:
                cause = None  # its traceback holds this frame
                torch.cuda.set_stream(before)  # torch does not restore the stream if ending the capture fails
        if first is None:
            self._graph = weakref.ref(graph)

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return result

        return replay


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A graph that is collected meanwhile would abort a capture (https://github.com/pytorch/pytorch/issues/161037)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _end_allocation(pool: tuple[int, int]) -> None:
    """Tell torch's allocator that a capture on the current device has failed.

    If ending the capture has also failed, torch may believe that it goes on, and then refuses to free memory and to
    capture anew. Needed until the oldest torch that we admit has https://github.com/pytorch/pytorch/pull/180395.
    """
    for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):  # the latter in older versions
        if end := getattr(torch._C, name, None):
            with contextlib.suppress(RuntimeError):  # torch has told it
                end(torch.cuda.current_device(), pool)
            return


def _try_capture(capture: Capture, work: Work, name: str) -> Work | None:
    """The replay of this work, or None if it cannot be captured, which is logged.

    Raises:
        RuntimeError: memory ran out.
    """
    try:
        return capture(work)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        _log.warning("%s takes longer, because it cannot be captured as a CUDA graph: %s", name, first_line(error))
        return None


@dataclass(kw_only=True)
class _Run:
    """A captured run of minibatches and the tensors that it reads."""

    images: Tensor
    labels: Tensor
    replay: Work


@final
@dataclass(kw_only=True)
class CapturedStep:
    """A step that captures another step once per shape and replays it afterwards, unless it cannot be captured.

    Args:
        step: the step to capture; its operations depend only on the stack's version and the shapes of its inputs.
        capture: records work and returns its replay.
        beat: called after each run of minibatches.
        num_cold: runs so far that were not replayed, but warmed up or were captured, which takes longer.
    """

    step: LaneStep
    capture: Capture
    beat: Callable[[], None] = lambda: None
    num_cold: int = field(default=0, init=False)
    _is_eager: bool = field(default=False, init=False)  # the step cannot be captured
    _version: int = -1
    _runs: dict[tuple[torch.Size, int], _Run] = field(default_factory=dict)
    _warm: set[tuple[torch.Size, int]] = field(default_factory=set)

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        if stack.version != self._version:
            self.drop()
            self._version = stack.version
        losses = torch.zeros(stack.num_lanes, dtype=torch.float64, device=images.device)
        rows = GRAPH_MINIBATCHES * batch_size
        for start in range(0, labels.shape[-1], rows):
            size = min(rows, labels.shape[-1] - start)
            run = images.narrow(-2, start, size), labels.narrow(-1, start, size)
            losses += self._train_run(stack, *run, batch_size)
            self.beat()
        return losses

    def drop(self) -> None:
        """Drop all graphs."""
        self._runs.clear()
        self._warm.clear()  # libraries may choose other algorithms for other shapes

    def _train_run(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        if self._is_eager:
            return self.step.train(stack, images, labels, batch_size)
        key = images.shape, batch_size
        if key not in self._warm:
            # Libraries choose algorithms and allocate workspaces at the first call with given shapes. That must not
            # happen during a capture.
            self._warm.add(key)
            self.num_cold += 1
            return self.step.train(stack, images, labels, batch_size)
        if key not in self._runs:
            self.num_cold += 1
            captured = self._captured(stack, images, labels, batch_size)
            if captured is None:
                self._is_eager = True
                self.drop()
                return self.step.train(stack, images, labels, batch_size)
            self._runs[key] = captured
        run = self._runs[key]
        run.images.copy_(images)
        run.labels.copy_(labels)
        return run.replay()

    def _captured(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> _Run | None:
        own_images, own_labels = torch.empty_like(images), torch.empty_like(labels)
        own_labels.zero_()  # uninitialised memory would not be valid class numbers

        def work() -> Tensor:
            return self.step.train(stack, own_images, own_labels, batch_size)

        replay = _try_capture(self.capture, work, "training")
        return None if replay is None else _Run(images=own_images, labels=own_labels, replay=replay)


@final
@dataclass(kw_only=True)
class CapturedValidation:
    """The lanes' validation, captured once per stack version and then replayed, with its changes to the stack.

    Args:
        capture: records work and returns its replay.
        num_cold: validations so far that were not replayed, but warmed up or were captured.
    """

    capture: Capture
    num_cold: int = field(default=0, init=False)
    _is_eager: bool = field(default=False, init=False)  # the validation cannot be captured
    _version: int = -1
    _replay: Work | None = None

    def __call__(self, stack: LaneStack, validate: Work) -> Tensor:
        """Run `validate` for the stack as it is now, directly or by a replay, and return its result."""
        if self._is_eager:
            return validate()
        if stack.version != self._version:
            self._version, self._replay = stack.version, None
            self.num_cold += 1
            return validate()  # also the warm-up for the capture
        if self._replay is None:
            self.num_cold += 1
            self._replay = _try_capture(self.capture, validate, "validation")
            if self._replay is None:
                self._is_eager = True
                return validate()
        return self._replay().clone()  # the next replay writes into the same tensor

    def drop(self) -> None:
        """Drop the graph."""
        self._version, self._replay = -1, None


def captured_validation(device: torch.device) -> CapturedValidation | None:
    """The validation as a graph, on a device that has graphs."""
    return CapturedValidation(capture=CudaCapture(device)) if device.type == "cuda" else None


def drop_graphs(step: LaneStep, validation: CapturedValidation | None) -> None:
    """Drop the graphs of both, and with them their memory, before the lanes' tensors move."""
    for each in (step, validation):
        if isinstance(each, CapturedStep | CapturedValidation):
            each.drop()


def num_cold_runs(step: LaneStep, validation: CapturedValidation | None) -> int:
    """How many runs of both were not replayed so far; 0 on a device without graphs."""
    return sum(each.num_cold for each in (step, validation) if isinstance(each, CapturedStep | CapturedValidation))
