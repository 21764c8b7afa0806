"""The lanes' step as captured CUDA graphs: one launch for many minibatches.

In eager mode a minibatch of 20 images takes some twenty kernels of a few microseconds each, and launching them takes
longer than running them. A graph of a run of minibatches is captured once and replayed for every further run. Images
and labels are copied into the graph's own tensors, learning rates are in tensors that keep their address
(`LaneStack.set_rates`), and weights are updated in place. Graphs are captured again whenever the lanes' tensors move
to other memory (`LaneStack.version`). Admitting a trial into a free lane moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor

from hpsearch.training.lanes.stack import LaneStack

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


@final
class CudaCapture:
    """Captures work as a CUDA graph. All graphs of one step share one memory pool, since they never run at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None  # the first graph, whose memory pool the later ones share

    def __call__(self, work: Work) -> Work:
        """Record the work without running it.

        Returns:
            A function that runs the recorded work. It returns the same tensor each time.
        """
        graph = torch.cuda.CUDAGraph()
        pool = None if self._graph is None else self._graph.pool()
        # Capture on a stream of this device. Otherwise torch would record on the current device, and work for another
        # device would run immediately instead of being recorded.
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                # thread_local: another thread may fetch a checkpoint at the same time, whose calls would otherwise
                # invalidate the capture.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    result = work()
            finally:
                torch.cuda.set_stream(before)  # torch does not restore the stream if ending the capture fails
        self._graph = self._graph or graph

        def replay() -> Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return result

        return replay


@dataclass(kw_only=True)
class _Run:
    """A captured run of minibatches and the tensors that it reads."""

    images: Tensor
    labels: Tensor
    replay: Work


@final
@dataclass(kw_only=True)
class CapturedStep:
    """A step that captures another step once per shape and replays it afterwards.

    Args:
        step: the step to capture; its operations depend only on the stack's version and the shapes of its inputs.
        capture: records work and returns its replay.
        beat: called after each run of minibatches.
    """

    step: LaneStep
    capture: Capture
    beat: Callable[[], None] = lambda: None
    _version: int = -1
    _runs: dict[tuple[torch.Size, int], _Run] = field(default_factory=dict)
    _is_warm: set[tuple[torch.Size, int]] = field(default_factory=set)

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        if stack.version != self._version:
            self._runs.clear()
            self._is_warm.clear()  # libraries may choose other algorithms for other shapes
            self._version = stack.version
        losses = torch.zeros(stack.num_lanes, dtype=torch.float64, device=images.device)
        rows = GRAPH_MINIBATCHES * batch_size
        for start in range(0, labels.shape[-1], rows):
            size = min(rows, labels.shape[-1] - start)
            run = images.narrow(-2, start, size), labels.narrow(-1, start, size)
            losses += self._train_run(stack, *run, batch_size)
            self.beat()
        return losses

    def _train_run(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        key = images.shape, batch_size
        if key not in self._is_warm:
            # Libraries choose algorithms and allocate workspaces at the first call with given shapes. That must not
            # happen during a capture.
            self._is_warm.add(key)
            return self.step.train(stack, images, labels, batch_size)
        if key not in self._runs:
            self._runs[key] = self._captured(stack, images, labels, batch_size)
        run = self._runs[key]
        run.images.copy_(images)
        run.labels.copy_(labels)
        return run.replay()

    def _captured(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> _Run:
        own_images, own_labels = torch.empty_like(images), torch.empty_like(labels)
        own_labels.zero_()  # uninitialised memory would not be valid class numbers

        def work() -> Tensor:
            return self.step.train(stack, own_images, own_labels, batch_size)

        return _Run(images=own_images, labels=own_labels, replay=self.capture(work))


@final
@dataclass(kw_only=True)
class CapturedValidation:
    """The lanes' validation, captured once per stack version and then replayed, with its changes to the stack.

    Args:
        capture: records work and returns its replay.
    """

    capture: Capture
    _version: int = -1
    _replay: Work | None = None

    def __call__(self, stack: LaneStack, validate: Work) -> Tensor:
        """Run `validate` for the stack as it is now, directly or by a replay, and return its result."""
        if stack.version != self._version:
            self._version, self._replay = stack.version, None
            return validate()  # also the warm-up for the capture
        if self._replay is None:
            self._replay = self.capture(validate)
        return self._replay().clone()  # the next replay writes into the same tensor
