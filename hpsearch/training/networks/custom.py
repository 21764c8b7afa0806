"""A user's own torch.nn.Module as a network: one trial by functional_call, lanes by torch.func.vmap.

The module is checked when the network is built: its scores must depend on its parameters and on the image alone.
Otherwise a trial would depend on the trials in other lanes. Source: torch.func, "Model ensembling".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from hpsearch.data.example_shape import ExampleShape, is_image, maps_shape
from hpsearch.foreign_code import foreign_code, no_exit
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.custom_module import ModuleFactory, constants, difference, trainable, weight_names
from hpsearch.training.networks.initialization import ParameterShape
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

NUM_TRIED_IMAGES = 11  # images in the check; a size that layers hardly ever have
DISTURBANCE = 0.1  # standard deviation of the noise added to initial parameters: scores that are all 0 show nothing


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CustomNetwork(Network):
    """A user's module as a network. It takes images [B, channels, height, width] or rows [B, features].

    It returns scores [B, classes], or [B, 1] in regression.

    Args:
        factory: builds the module, and draws the initial parameters of each trial.
        module: the template: its constants are used, its own parameters are neither used nor changed.
        floats_per_image: size of its widest intermediate result.
    """

    factory: ModuleFactory
    module: nn.Module
    floats_per_image: int
    _constants: dict[tuple[torch.device, torch.dtype], Tensors] = field(default_factory=dict, init=False)

    @cached_property
    def parameter_shapes(self) -> dict[str, ParameterShape]:
        """Every parameter by name. The bounds are 0 and unused, since the factory draws the initial values."""
        parameters = trainable(self.module)
        weights = weight_names(parameters)
        return {
            name: ParameterShape(shape=tuple(value.shape), bound=0.0, is_weight=name in weights)
            for name, value in parameters.items()
        }

    @property
    def widest_activation(self) -> int:
        return self.floats_per_image

    def initial_parameters(
        self, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """The parameters that the factory draws with this seed, on the CPU.

        Raises:
            InputError: with this seed the factory fails, or builds another architecture or other constants.
        """
        module = self.factory.build(seed)
        check_alike(self.factory, self.module, module)
        # Copied, because a factory may return the same module object at every call.
        return {name: value.to(device=device, dtype=dtype, copy=True) for name, value in trainable(module).items()}

    def logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        return self._scores(self._constants_beside(parameters), parameters, images)

    def lane_logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        in_dims = (None, 0, 0 if images.dim() == 3 else None)
        stacked = vmap(self._scores, in_dims=in_dims)
        scores: Tensor = stacked(self._constants_beside(parameters), dict(parameters), images)
        return scores

    def _scores(self, constants: Tensors, parameters: Tensors, images: Tensor) -> Tensor:
        examples = images.reshape(-1, *_input_shape(self.example_shape))
        with no_exit():
            scores: Tensor = functional_call(self.module, {**constants, **parameters}, (examples,))
        return scores

    def _constants_beside(self, parameters: Tensors) -> Tensors:
        """Constants on the parameters' device; floating-point constants also have the parameters' type."""
        like = next(iter(parameters.values()))
        place = (like.device, like.dtype)
        if place not in self._constants:
            self._constants[place] = {
                name: value.to(device=like.device, dtype=like.dtype if value.is_floating_point() else None)
                for name, value in constants(self.module).items()
            }
        return self._constants[place]


def build_custom_network(model: ModelSettings, example_shape: ExampleShape, num_outputs: int) -> CustomNetwork:
    """Import the module's factory, build the module, and check that lanes can train it.

    Raises:
        InputError: the module cannot be imported, built or trained in lanes; names model.family and the rule.
    """
    factory = ModuleFactory.find(model, example_shape, num_outputs)
    module = factory.build(0)
    again = factory.build(0)
    changed = difference(trainable(module), trainable(again)) or difference(constants(module), constants(again))
    if changed:
        raise factory.refusal(
            f"{changed} is not the same when the factory is called again after the same torch.manual_seed",
            "draw initial values with torch's default generator only",
        )
    check_alike(factory, module, factory.build(1))
    images = torch.rand(NUM_TRIED_IMAGES, *_input_shape(example_shape), generator=torch.Generator().manual_seed(0))
    with foreign_code(model.family):
        network = CustomNetwork(
            model=model,
            example_shape=example_shape,
            num_outputs=num_outputs,
            factory=factory,
            module=module,
            floats_per_image=_try_module(factory, module, images, num_outputs),
        )
        _try_network(network, images.flatten(start_dim=1))
    return network


def _input_shape(example_shape: ExampleShape) -> tuple[int, ...]:
    """The shape of one example as the module gets it: (channels, height, width), or (features,)."""
    return maps_shape(example_shape) if is_image(example_shape) else example_shape


def check_alike(factory: ModuleFactory, module: nn.Module, other: nn.Module) -> None:
    """Check that two modules built with different seeds differ only in the values of their trainable parameters.

    Raises:
        InputError: they differ in something that lanes share.
    """
    shapes, other_shapes = ({n: p.shape for n, p in trainable(m).items()} for m in (module, other))
    if shapes != other_shapes:
        raise factory.refusal(
            "the parameters' names and shapes change with the seed", "build the same architecture at every call"
        )
    changed = difference(constants(module), constants(other))
    if changed:
        raise factory.refusal(
            f"{changed} is not trained, but changes with the seed",
            "lanes share what is not trained: make it a constant or a parameter",
        )


def _try_module(factory: ModuleFactory, module: nn.Module, images: Tensor, num_outputs: int) -> int:
    """Run the module itself on a batch; returns the floats per image of its widest intermediate result.

    Raises:
        InputError: forward fails, returns no scores, draws random numbers, or changes a constant.
    """
    before = {name: value.clone() for name, value in constants(module).items()}
    widest = _WidestResult(len(images))
    with torch.random.fork_rng(devices=[]), widest:
        random_state = torch.get_rng_state()
        _checked_scores(factory, partial(module, images), list(images.shape), num_outputs)
        has_drawn = not torch.equal(random_state, torch.get_rng_state())
    if has_drawn:
        raise factory.refusal(
            "forward draws random numbers in training",
            "leave dropout and noise out: lanes have no random numbers of their own",
        )
    changed = difference(before, constants(module))
    if changed:
        raise factory.refusal(
            f"forward changes {changed}, which is not trained",
            "use GroupNorm or LayerNorm in place of running statistics: lanes share what is not trained",
        )
    return max(widest.floats, images[0].numel())


def _try_network(network: CustomNetwork, images: Tensor) -> None:
    """Check the scores of images [B, pixels]: whole batch, parts of it, evaluation mode, and lanes.

    Raises:
        InputError: a parameter has no influence, scores depend on the batch or the mode, or vmap fails.
    """
    factory, module = network.factory, network.module
    parameters = _disturbed(trainable(module))
    score = partial(_scores_of, network, parameters)
    scores = score(images)
    _check_influence(factory, parameters, scores)
    # 2 first, since a single image cannot be normalised by its batch; then 1, since some layers drop that dimension.
    for num_first in (2, 1):
        if not _are_close(scores[:num_first], score(images[:num_first])):
            raise factory.refusal(
                "an image's scores depend on the other images of its batch, or differ from call to call",
                "use GroupNorm or LayerNorm in place of batch normalisation",
            )
    module.eval()
    evaluated = score(images)
    module.train()
    if not _are_close(scores, evaluated):
        raise factory.refusal(
            "the module computes something else in evaluation mode", "the same network must be trained and validated"
        )
    stacked = {name: torch.stack([value, value]) for name, value in parameters.items()}
    for lane_images in (images, torch.stack([images, images])):
        lanes = partial(network.lane_logits, stacked, lane_images)
        _attempt(factory, "torch.func.vmap cannot stack it", lanes)


def _disturbed(parameters: Tensors) -> Tensors:
    """Leaf tensors near the given parameters: a network whose initial scores are all 0 would pass every check."""
    generator = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(value.shape, generator=generator) for name, value in parameters.items()}
    return {name: (value + DISTURBANCE * noise[name]).requires_grad_() for name, value in parameters.items()}


def _check_influence(factory: ModuleFactory, parameters: Tensors, scores: Tensor) -> None:
    gradients: Iterable[Tensor | None] = [None] * len(parameters)
    if scores.requires_grad:
        gradients = torch.autograd.grad(scores.sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None:
            raise factory.refusal(
                f"parameter {name} has no influence on the scores",
                "remove it, or let it ask for no gradient: requires_grad_(False)",
            )


def _scores_of(network: CustomNetwork, parameters: Tensors, images: Tensor) -> Tensor:
    shape = [len(images), *_input_shape(network.example_shape)]
    return _checked_scores(network.factory, partial(network.logits, parameters, images), shape, network.num_outputs)


def _checked_scores(factory: ModuleFactory, run: Callable[[], Any], shape: list[int], num_outputs: int) -> Tensor:
    """The scores that `run` returns for images of this shape.

    Raises:
        InputError: `run` fails, or its result is not a tensor [B, classes].
    """
    scores = _attempt(factory, f"forward({shape}) failed", run)
    expected = [shape[0], num_outputs]
    if not isinstance(scores, Tensor) or list(scores.shape) != expected:
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise factory.refusal(
            f"forward({shape}) returned {found}, expected {expected}", "return one score per class, before any softmax"
        )
    return scores


def _attempt(factory: ModuleFactory, what: str, run: Callable[[], Any]) -> Any:
    try:
        with no_exit():
            return run()
    except Exception as error:  # the user's code runs in there
        raise factory.failure(what, error) from error


def _are_close(scores: Tensor, others: Tensor) -> bool:
    """Whether scores are equal up to rounding, which depends on the number of images."""
    scale = float(scores.detach().abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(scores, others, rtol=1e-3, atol=1e-4 * scale + 1e-12, equal_nan=True)


@final
class _WidestResult(TorchFunctionMode):
    """Records the largest number of floats per image that a torch function returns while this mode is active."""

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.floats = 1
        self._num_images = num_images

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            # Layers may move the batch to any dimension, or merge it with another dimension.
            if isinstance(value, Tensor) and any(size % self._num_images == 0 for size in value.shape):
                self.floats = max(self.floats, value.numel() // self._num_images)
        return result
