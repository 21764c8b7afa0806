"""A user's own torch.nn.Module: find its factory, call it with a seed, and check the module that it builds.

`custom` makes a network of the module and checks its scores. Every fault found here is in the user's code and is
raised as an InputError that names `model.family`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hpsearch.errors import InputError
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.foreign_code import ForeignExit, foreign_code
from hpsearch.training.tensors import Tensors
from hpsearch.wording import did_you_mean

# A child of the package's logger: hpsearch.logs imports Optuna, which this package must not import.
_log = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleFactory:
    """A user's function(image_shape=..., num_classes=..., **options) that returns a module with fresh parameters.

    Args:
        family: "package.module:name", for messages.
        function: the callable with this name.
        arguments: its keyword arguments: image_shape, num_classes and the options of the study.
    """

    family: str
    function: Callable[..., Any]
    arguments: Mapping[str, object]

    @classmethod
    def find(cls, model: ModelSettings, image_shape: tuple[int, int], num_classes: int) -> ModuleFactory:
        """Import the factory that `model.family` names.

        Raises:
            InputError: it cannot be imported, or is not callable.
        """
        arguments = {"image_shape": image_shape, "num_classes": num_classes, **dict(model.options)}
        return cls(family=model.family, function=_imported(model.family), arguments=arguments)

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
        return InputError(f"model.family {self.family}: {what}", hint=hint)

    def failure(self, what: str, error: Exception) -> InputError:
        """An InputError with the user's exception and its place on one line; --verbose logs the traceback."""
        return _failure(self.family, what, error)

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


def _imported(family: str) -> Callable[..., Any]:
    """The object that "package.module:name" names, found on sys.path or in the current folder."""
    module_name, _, name = family.partition(":")
    _see_current_folder()
    try:
        with foreign_code(module_name):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failure(family, f"importing {module_name} failed", error) from error
        top = module_name.partition(".")[0]
        raise InputError(
            f"model.family {family}: there is no module {error.name!r}",
            hint=f"run hpsearch in the folder that holds {top}, or name that folder in PYTHONPATH; "
            f"the current folder is {Path.cwd()}",
        ) from error
    except Exception as error:  # the import runs the user's code
        raise _failure(family, f"importing {module_name} failed", error) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            f"model.family {family}: {module_name} has no function or class {name!r}",
            hint=_suggest_callables(module, name),
        )
    return function  # type: ignore[no-any-return]  # whatever getattr finds


def _see_current_folder() -> None:
    """Add the current folder to the end of sys.path: its files cannot shadow other modules."""
    folder = str(Path.cwd())
    if not {"", folder} & set(sys.path):
        sys.path.append(folder)


def _suggest_callables(module: ModuleType, name: str) -> str:
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    if hint := did_you_mean(name, own):
        return hint
    file, top = getattr(module, "__file__", None) or "Python itself", module.__name__.partition(".")[0]
    if (Path.cwd() / f"{top}.py").exists() and Path.cwd() not in Path(file).parents:
        return f"it is read from {file}, which comes before the {top}.py of this folder: give yours another name"
    return f"it is read from {file}"


def _failure(family: str, what: str, error: Exception) -> InputError:
    _log.debug("model.family %s: %s", family, what, exc_info=error)
    message = (str(error).strip().splitlines() or ["no message"])[0]
    return InputError(
        f"model.family {family}: {what}: {type(error).__name__}: {message}{place_of(error)}",
        hint="hpsearch --verbose shows the whole traceback",
    )


def place_of(error: BaseException) -> str:
    """` (networks.py:12)`: the innermost line outside torch, hpsearch and the import system; "" if there is none."""
    if isinstance(error, ForeignExit) and error.__cause__ is not None:
        error = error.__cause__
    folders = (Path(torch.__file__).parent, Path(__file__).parents[2], Path(importlib.__file__).parent)
    foreign = ("<frozen", *(f"{folder}{os.sep}" for folder in folders))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(foreign)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
