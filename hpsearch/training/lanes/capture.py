"""The lanes' step as captured CUDA graphs: the launches of many minibatches become one.

In eager mode a minibatch of 20 images is some twenty kernels of a few microseconds, and launching them takes
longer than running them. A graph of a run of minibatches is captured once and replayed for every further run:
images and labels are copied into its own tensors, the learning rates stand in tensors that keep their place
(`LaneStack.set_rates`), and weights are updated where they are. Whenever lanes move to other memory
(`LaneStack.version`), graphs are captured anew; an admission into a lane that fell free moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final

import torch
from torch import Tensor

from hpsearch.training.lanes.stack import LaneStack

# Minibatches per graph: long enough that a replay's own cost (about 10 us) and the copies of its images are
# nothing, short enough that capturing takes a fraction of a second.
GRAPH_MINIBATCHES = 50

Work = Callable[[], Tensor]


class InnerStep(Protocol):
    """A `LaneStep` whose operations are the same as long as the stack's version and the shapes are."""

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        """See `LaneStep.train`."""


Capture = Callable[[Work], Work]


@final
class CudaCapture:
    """Captures work as a CUDA graph; all graphs of one step share their memory, since they never overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph | None = None  # the first one, whose memory the others use as well

    def __call__(self, work: Work) -> Work:
        """Record the work, without running it. What is returned runs it, and returns the same tensor each time."""
        graph = torch.cuda.CUDAGraph()
        pool = None if self._graph is None else self._graph.pool()
        # On a stream of this very device: torch would otherwise record on the current device, and work for
        # another one would run there and then, on the tensors of the first call.
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                # thread_local: another thread may fetch a checkpoint meanwhile, whose calls would break the capture.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    result = work()
            finally:
                torch.cuda.set_stream(before)  # torch leaves its own one behind if ending the capture fails
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
    """Another step, replayed.

    Args:
        step: what is captured.
        capture: records work for replays.
        beat: called after each run of minibatches.
    """

    step: InnerStep
    capture: Capture
    beat: Callable[[], None] = lambda: None
    _version: int = -1
    _runs: dict[tuple[torch.Size, int], _Run] = field(default_factory=dict)
    _is_warm: set[tuple[torch.Size, int]] = field(default_factory=set)

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        if stack.version != self._version:
            self._runs.clear()
            self._is_warm.clear()  # other shapes may mean other algorithms
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
            # Libraries choose their algorithms and take their workspaces at the first call of a kind: that
            # must not happen inside a capture.
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
        own_labels.zero_()  # no garbage for a class, whoever looks at it before the first copy

        def work() -> Tensor:
            return self.step.train(stack, own_images, own_labels, batch_size)

        return _Run(images=own_images, labels=own_labels, replay=self.capture(work))


@final
@dataclass(kw_only=True)
class CapturedValidation:
    """The lanes' validation, replayed, with all that it changes in the stack.

    Args:
        capture: records work for replays.
    """

    capture: Capture
    _version: int = -1
    _replay: Work | None = None

    def __call__(self, stack: LaneStack, validate: Work) -> Tensor:
        """Do and return what `validate` does and returns for the stack as it is now."""
        if stack.version != self._version:
            self._version, self._replay = stack.version, None
            return validate()  # and warms up
        if self._replay is None:
            self._replay = self.capture(validate)
        return self._replay().clone()  # the next replay writes into the same tensor
