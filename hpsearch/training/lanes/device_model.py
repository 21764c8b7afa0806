"""A model of the device: how long an epoch of one lane takes, from three numbers that are measured once per machine.

It gives the first number of lanes, before any epoch was trained (`lane_times.EpochCost`), and how much memory a lane
takes. It is good enough to choose among 1, 2, 4 ... lanes. docs/performance.md shows how far it is off.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hpsearch.data.resident import ResidentData
from hpsearch.training.device_memory import release_cached_memory
from hpsearch.training.evaluation import SLICE_FLOATS
from hpsearch.training.lanes.capture import CudaCapture
from hpsearch.training.lanes.lane_times import EpochCost
from hpsearch.training.networks.dense import DenseNetwork
from hpsearch.training.networks.network import Network

# Small calls that take as long as one minibatch's calls do: for each parameter tensor, and in addition. On a CPU from
# one-lane times of small networks (docs/performance.md), including Python's share. A captured graph has none: for a GPU
# these are the kernels of a minibatch, counted in the code and not measured.
_DENSE_CALLS = {"cpu": (35.0, 80.0), "cuda": (10.0, 20.0)}
_AUTOGRAD_CALLS = {"cpu": (150.0, 400.0), "cuda": (12.0, 30.0)}
_EPOCH_MINIBATCHES = 2  # the calls of a validation, and what else an epoch calls, are as many as in 2 minibatches
# A minibatch reads and writes the weights about this many times from memory; further passes find them in a cache.
_WEIGHT_PASSES = 2
# What elementwise operations cost per image, as bytes of memory traffic: for each float of the widest intermediate
# result, and for each class, because the losses take many operations.
_ACTIVATION_BYTES = 20
_CLASS_BYTES = 150
# A lane keeps its parameters, the best ones, up to two states of the optimizer, targets or gradients, and while a
# checkpoint is written, copies of the first four.
_COPIES = 10
# Validation keeps per lane one slice each of the scores, their logarithms and the layer before.
VALIDATION_BYTES = 3 * 4 * SLICE_FLOATS

_COUNTED_IMAGES = 2  # a module may treat a single image differently
_MEASURED_SECONDS = 0.1  # for each of the three numbers, in _TURNS parts
_TURNS = 4
# Lanes, images, inputs and outputs of the timed product.
_PRODUCTS = {"cpu": (8, 50, 256, 256), "cuda": (64, 100, 512, 512)}
_COPIED_BYTES = {"cpu": 2**26, "cuda": 2**28}  # more than the caches hold
_CALLS = {"cpu": 20, "cuda": 200}  # in one run; short runs find moments in which no other process disturbs them

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DeviceSpeed(BaseModel):
    """What a device does per second.

    Args:
        flops: floating-point operations of a batched float32 product, per second.
        bytes_per_second: read and written by a copy.
        call_seconds: duration of a small torch call; on a GPU, of one that is part of a captured graph.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    flops: Positive
    bytes_per_second: Positive
    call_seconds: Positive

    def epoch_cost(
        self, network: Network, data: ResidentData, batch_size: int, device: torch.device, num_validations: int = 1
    ) -> EpochCost:
        """Predict the seconds of one trial's epoch, with `num_validations` validations in it."""
        is_dense = isinstance(network, DenseNetwork)
        num_minibatches = data.num_minibatches(batch_size)
        num_trained, num_validated = batch_size * num_minibatches, num_validations * len(data.validation_labels)
        # Backwards are twice as many products as forwards, but the first layer, where a dense network has most of its
        # products, needs no derivative of its inputs.
        num_products = (2 if is_dense else 3) * num_trained + num_validated
        products = num_products * flops_per_image(network)
        weights = 4 * num_parameters(network) * _WEIGHT_PASSES * num_minibatches
        per_image = _ACTIVATION_BYTES * network.widest_activation + _CLASS_BYTES * network.num_outputs
        traffic = weights + per_image * (num_trained + num_validated)
        per_lane = products / self.flops + traffic / self.bytes_per_second
        per_tensor, others = (_DENSE_CALLS if is_dense else _AUTOGRAD_CALLS)[device.type]
        num_calls = per_tensor * len(network.parameter_shapes) + others  # of a minibatch
        fixed = num_calls * (num_minibatches + num_validations * _EPOCH_MINIBATCHES) * self.call_seconds
        if network.prefers_single_lanes(device):  # each lane has its own calls, and more lanes save none
            return EpochCost(fixed=0.0, per_lane=per_lane + fixed)
        return EpochCost(fixed=fixed, per_lane=per_lane)


def measure_speed(device: torch.device) -> DeviceSpeed:
    """Time a product, a copy and a small call on the device, in turns: about 0.3 seconds."""
    speed = _measured(device)
    release_cached_memory(device)  # of its tensors, which are gone only now
    return speed


def _measured(device: torch.device) -> DeviceSpeed:
    (product, flops), (copy, num_bytes), (calls, num_calls) = _product(device), _copy(device), _small_calls(device)
    seconds = _fastest([product, copy, calls], device)
    return DeviceSpeed(
        flops=flops / seconds[0], bytes_per_second=num_bytes / seconds[1], call_seconds=seconds[2] / num_calls
    )


def measuring_bytes(device: torch.device) -> int:
    """The memory that `measure_speed` takes: that of its copy, and less for the rest."""
    return 2 * _COPIED_BYTES[device.type]


Work = Callable[[], object]


def _product(device: torch.device) -> tuple[Work, int]:
    """A batched product, and its floating-point operations."""
    lanes, images, inputs, outputs = _PRODUCTS[device.type]
    left, right = torch.ones(lanes, images, inputs, device=device), torch.ones(lanes, inputs, outputs, device=device)
    product = torch.empty(lanes, images, outputs, device=device)
    return lambda: torch.bmm(left, right, out=product), 2 * lanes * images * inputs * outputs


def _copy(device: torch.device) -> tuple[Work, int]:
    """A copy, and the bytes that it reads and writes."""
    source = torch.ones(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * source.nbytes


def _small_calls(device: torch.device) -> tuple[Work, int]:
    """Calls that are a tiny product or a tiny sum, in turn, and their number."""
    left, right = torch.ones(1, 8, 8, device=device), torch.ones(1, 8, 8, device=device)
    product, num_calls = torch.zeros(1, 8, 8, device=device), _CALLS[device.type]

    def calls() -> torch.Tensor:
        for _ in range(num_calls // 2):
            torch.bmm(left, right, out=product)
            product.add_(1.0)
        return product

    calls()  # cuBLAS is initialised here, not while a graph is captured
    capture = CudaCapture(device)(calls) if device.type == "cuda" else calls
    return capture, num_calls


def _fastest(works: Sequence[Work], device: torch.device) -> list[float]:
    """Seconds of the fastest run of each: other processes only make a run longer.

    They are run in turns, so that one disturbance does not change their ratio. The first run of each warms up.
    """
    for work in works:
        work()
    fastest = [math.inf] * len(works)
    for _ in range(_TURNS):
        for place, work in enumerate(works):
            ends_at = time.perf_counter() + _MEASURED_SECONDS / _TURNS
            while True:
                _wait_for(device)
                started = time.perf_counter()
                work()
                _wait_for(device)
                fastest[place] = min(fastest[place], time.perf_counter() - started)
                if time.perf_counter() >= ends_at:
                    break
    return [max(seconds, 1e-9) for seconds in fastest]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def num_parameters(network: Network) -> int:
    """The number of floats of one lane's parameters."""
    return sum(torch.Size(parameter.shape).numel() for parameter in network.parameter_shapes.values())


def flops_per_image(network: Network) -> float:
    """Floating-point operations of the products of a forward pass, at least two for each weight of a matrix.

    In networks of linear layers, convolutions and products they are those that torch's FlopCounterMode counts. That one
    imports torch._dynamo and sympy, which takes a second or two. Of recurrent layers, attention and einsum no product
    is seen.
    """
    counter = _ProductCounter()
    try:
        parameters = network.initial_parameters(seed=0)
        with torch.no_grad(), counter:
            network.logits(parameters, torch.zeros(_COUNTED_IMAGES, network.num_inputs))
    except Exception:  # of a user's code, which has passed its check without the counter
        counter.flops = 0
    matrices = (torch.Size(each.shape) for each in network.parameter_shapes.values() if len(each.shape) > 1)
    return max(counter.flops / _COUNTED_IMAGES, 2.0 * sum(shape.numel() for shape in matrices))


# Functions that make products, and how many products each number of their result is the sum of, from arguments with
# torch's names.
_SUMMANDS: dict[object, Callable[..., int]] = {
    **dict.fromkeys(
        (functional.conv1d, functional.conv2d, functional.conv3d),
        lambda input, weight, *_, **__: weight[0].numel(),
    ),
    **dict.fromkeys(
        (functional.linear, torch.matmul, torch.mm, torch.bmm),
        lambda input, *_, **__: input.shape[-1],
    ),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm), lambda left, *_, **__: left.shape[-1]),
    torch.addmm: lambda input, mat1, *_, **__: mat1.shape[-1],
    torch.baddbmm: lambda input, batch1, *_, **__: batch1.shape[-1],
}


class _ProductCounter(TorchFunctionMode):
    """Counts the floating-point operations of products, convolutions among them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (summands := _SUMMANDS.get(func)) is not None:
            self.flops += 2 * result.numel() * summands(*args, **(kwargs or {}))
        return result


def bytes_per_lane(network: Network, batch_size: int) -> int:
    """Estimate the memory that one more lane takes, training, validation and a checkpoint included."""
    if isinstance(network, DenseNetwork):  # its gradient is written out
        per_image = 4.0 * (network.num_inputs + 4 * network.widest_activation)
    else:
        per_image = 2 * _saved_bytes_per_image(network)  # with the gradients
    activations = round(batch_size * per_image)
    return 4 * _COPIES * num_parameters(network) + activations + VALIDATION_BYTES


def _saved_bytes_per_image(network: Network) -> float:
    """Bytes that autograd keeps for each image from a forward pass to the backward pass."""
    parameters = {name: value.requires_grad_() for name, value in network.initial_parameters(seed=0).items()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(_COUNTED_IMAGES, network.num_inputs)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network.logits(parameters, images)
    others = [value.untyped_storage().data_ptr() for value in parameters.values()]
    return (logits.nbytes + sum(size for place, size in kept.items() if place not in others)) / _COUNTED_IMAGES
