"""Find a function of the user by its name, "package.module:name", and report its exceptions on one line."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hpsearch.errors import InputError
from hpsearch.foreign_code import ForeignExit, foreign_code
from hpsearch.wording import did_you_mean

# A child of the package's logger: hpsearch.logs imports Optuna, which lower floors must not import.
_log = logging.getLogger(__name__)


def import_function(key: str, path: str) -> Callable[..., Any]:
    """The object that "package.module:name" names, found on sys.path or in the current folder.

    Args:
        key: of the study file, for messages.
    Raises:
        InputError: it cannot be imported, or is not callable.
    """
    module_name, _, name = path.partition(":")
    _see_current_folder()
    try:
        with foreign_code(module_name):
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise failure(key, path, f"importing {module_name} failed", error) from error
        top = module_name.partition(".")[0]
        raise InputError(
            f"{key} {path}: there is no module {error.name!r}",
            hint=f"run hpsearch in the folder that holds {top}, or name that folder in PYTHONPATH; "
            f"the current folder is {Path.cwd()}",
        ) from error
    except Exception as error:  # the import runs the user's code
        raise failure(key, path, f"importing {module_name} failed", error) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(
            f"{key} {path}: {module_name} has no function or class {name!r}",
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


def failure(key: str, path: str, what: str, error: Exception) -> InputError:
    """An InputError with the user's exception and its place on one line; --verbose logs the traceback."""
    _log.debug("%s %s: %s", key, path, what, exc_info=error)
    message = (str(error).strip().splitlines() or ["no message"])[0]
    return InputError(
        f"{key} {path}: {what}: {type(error).__name__}: {message}{place_of(error)}",
        hint="hpsearch --verbose shows the whole traceback",
    )


def place_of(error: BaseException) -> str:
    """` (networks.py:12)`: the innermost line outside torch, hpsearch and the import system; "" if there is none."""
    if isinstance(error, ForeignExit) and error.__cause__ is not None:
        error = error.__cause__
    files = (getattr(sys.modules.get("torch"), "__file__", None), __file__, importlib.__file__)
    ours = ("<frozen", *(f"{Path(file).parent}{os.sep}" for file in files if file))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
