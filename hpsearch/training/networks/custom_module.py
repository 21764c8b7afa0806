"""A user's own torch.nn.Module: find its factory, call it with a seed, and check the module that it builds.

`custom` makes a network of the module and checks its scores. Every fault found here is in the user's code and is
raised as an InputError that names `model.family`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hpsearch.data.example_shape import ExampleShape, is_image, maps_shape
from hpsearch.errors import InputError
from hpsearch.foreign_code import failure, foreign_code, import_function
from hpsearch.study.settings import ModelSettings
from hpsearch.training.tensors import Tensors

_KEY = "model.family"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleFactory:
    """A user's function(image_shape=..., num_classes=..., **options) that returns a module with fresh parameters.

    For colour images it gets `channels=3`, too; for tables `num_features` in place of `image_shape`; in regression
    `num_outputs=1` in place of `num_classes`.

    Args:
        family: "package.module:name", for messages.
        function: the callable with this name.
        arguments: its keyword arguments: the sizes of the data, and the options of the study.
    """

    family: str
    function: Callable[..., Any]
    arguments: Mapping[str, object]

    @classmethod
    def find(cls, model: ModelSettings, example_shape: ExampleShape, num_outputs: int) -> ModuleFactory:
        """Import the factory that `model.family` names.

        Raises:
            InputError: it cannot be imported, or is not callable; or an option has the name of a size.
        """
        sizes, options = _sizes(example_shape, num_outputs), dict(model.options)
        if clash := sizes.keys() & options.keys():
            raise InputError(
                f"model.options: {min(clash)} is the name of a size of the data, which the factory gets with this data",
                hint="give the option another name",
            )
        return cls(family=model.family, function=import_function(_KEY, model.family), arguments={**sizes, **options})

    def build(self, seed: int) -> nn.Module:
        """Call the factory. Random numbers that torch draws on the CPU in it depend on the seed alone.

        Raises:
            InputError: the call fails, or does not return a module that lanes can train.
        """
        with torch.device("cpu"):
            try:
                with foreign_code(self.family):
                    # As torch.manual_seed, but for the CPU only; it uses the low 32 bits of the seed.
                    torch.default_generator.manual_seed(seed)
                    module = self.function(**self.arguments)
            except Exception as error:
                written = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
                raise self.failure(f"{self.family.partition(':')[2]}({written}) failed", error) from error
        if not isinstance(module, nn.Module):
            raise self.refusal(
                f"the factory returned {module!r:.60}, not a torch.nn.Module",
                "name the module's class, or a function that returns an instance of it",
            )
        self._check_tensors(module)
        self._check_layers(module)
        return module.train()

    def refusal(self, what: str, hint: str) -> InputError:
        return InputError(f"{_KEY} {self.family}: {what}", hint=hint)

    def failure(self, what: str, error: Exception) -> InputError:
        """An InputError with the user's exception and its place on one line; --verbose logs the traceback."""
        return failure(_KEY, self.family, what, error)

    def _check_tensors(self, module: nn.Module) -> None:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise self.refusal("the module has no trainable parameters", "there would be nothing to search for")
        for name, tensor in _all_tensors(module):
            if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
                raise self.refusal(f"{name} has no shape yet", "replace lazy layers by layers with sizes")
            if tensor.device.type != "cpu":
                raise self.refusal(f"{name} is on {tensor.device}", "build the module on the CPU; lanes move it")
            if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex()):
                raise self.refusal(
                    f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not float32",
                    "keep the module in float32: training.precision chooses how it is multiplied",
                )
        if not weight_names(trainable(module)):
            raise self.refusal(
                "no trainable parameter has two or more dimensions", "such a module has no weights to regularise"
            )
        for owner, layer in module.named_modules():
            for name, value in vars(layer).items():
                if isinstance(value, Tensor):
                    raise self.refusal(
                        f"{_dotted(owner, name)} is a tensor that is neither parameter nor buffer",
                        f'write self.register_buffer("{name}", ...): it then goes where the parameters go',
                    )

    def _check_layers(self, module: nn.Module) -> None:
        for name, layer in module.named_modules():
            kind = type(layer).__name__
            if isinstance(layer, _DROPOUTS) and layer.p > 0:
                raise self.refusal(
                    f"{name or 'the module'} is a {kind} with p = {layer.p:g}, which draws random numbers",
                    "leave dropout out (p = 0): a trial must not depend on its neighbours' random numbers",
                )
            if getattr(layer, "track_running_stats", False):
                raise self.refusal(
                    f"{name or 'the module'} is a {kind} that keeps running statistics of the images",
                    "use GroupNorm or LayerNorm, which treat each image by itself",
                )


def _sizes(example_shape: ExampleShape, num_outputs: int) -> dict[str, object]:
    """What a factory is told of the data."""
    sizes: dict[str, object] = {"num_features": example_shape[0]}
    if is_image(example_shape):
        channels, *size = maps_shape(example_shape)
        sizes = {"image_shape": tuple(size), **({"channels": channels} if channels > 1 else {})}
    return {**sizes, **({"num_outputs": 1} if num_outputs == 1 else {"num_classes": num_outputs})}


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def trainable(module: nn.Module) -> Tensors:
    """The trainable parameters by name. A parameter that is used in several places has its first name only."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def constants(module: nn.Module) -> Tensors:
    """The tensors that training does not change: buffers, and parameters that require no gradient."""
    frozen = {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}
    return {**dict(module.named_buffers()), **frozen}


def weight_names(parameters: Tensors) -> list[str]:
    """The parameters that lambda_1 and lambda_2 regularise: those of two or more dimensions, so no biases or scales."""
    return [name for name, value in parameters.items() if value.dim() >= 2]


def difference(ours: Tensors, theirs: Tensors) -> str | None:
    """The first name whose tensor differs or exists in only one of the two; None if there is none."""
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name]):
            return name
    return None


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _dotted(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name
