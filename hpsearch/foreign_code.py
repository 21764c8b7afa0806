"""Run a user's code in this process: find a function by name, and restore the process-wide state that the code changes.

The code is a network's factory or a loader of data. An import may parse the command line, replace signal handlers, turn
warnings into errors or change torch's defaults. The user's code does not see our command-line arguments, and its
changes do not affect our code afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.wording import did_you_mean

_log = get_logger("foreign_code")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
_CUDNN = ("benchmark", "deterministic", "allow_tf32")


class ForeignExit(Exception):  # noqa: N818  # not an error of hpsearch
    """The user's code, or argparse on its behalf, has called sys.exit."""

    def __init__(self, error: SystemExit) -> None:
        super().__init__(f"it called sys.exit({'' if error.code is None else repr(error.code)})")


@contextlib.contextmanager
def no_exit() -> Iterator[None]:
    """Prevent a user's code from ending the process: an exit with code 0 would look like success.

    Raises:
        ForeignExit: in place of SystemExit.
    """
    try:
        yield
    except SystemExit as error:
        raise ForeignExit(error) from error


@contextlib.contextmanager
def foreign_code(name: str) -> Iterator[None]:
    """Restore process-wide state after the user's code that runs in this context.

    Restored are warning filters, numpy's error state, torch's CPU random state and defaults, logging, signal handlers,
    sys.argv, the standard streams and the current folder.

    Args:
        name: the program name that the code sees in sys.argv, in place of our arguments.
    Raises:
        ForeignExit: in place of SystemExit.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(np.errstate())
        # Not imported here: code that runs before torch is loaded cannot change what a later worker uses.
        if (torch := sys.modules.get("torch")) is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.callback(_torch_defaults(torch))
        for put_back in (_logging(), _signal_handlers(), _process()):
            stack.callback(put_back)
        sys.argv = [name]
        with no_exit():
            yield


def _process() -> Callable[[], None]:
    argv, streams, folder = sys.argv, (sys.stdout, sys.stderr), os.getcwd()  # noqa: PTH109  # a str, for chdir

    def put_back() -> None:
        sys.argv = argv
        sys.stdout, sys.stderr = streams
        os.chdir(folder)

    return put_back


def _signal_handlers() -> Callable[[], None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def put_back() -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread can change handlers, so they are unchanged
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return put_back


def _logging() -> Callable[[], None]:
    root = logging.getLogger()
    handlers, level, disabled_level = list(root.handlers), root.level, root.manager.disable

    def put_back() -> None:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.disable(disabled_level)
        for name, logger in root.manager.loggerDict.items():  # logging.config.dictConfig disables existing loggers
            if isinstance(logger, logging.Logger) and name.partition(".")[0] == "hpsearch":
                logger.disabled = False

    return put_back


def _torch_defaults(torch: Any) -> Callable[[], None]:
    defaults = (
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_default_device, torch.set_default_device),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    )
    saved = [(put, get, get()) for get, put in defaults]
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = {name: getattr(torch.backends.cudnn, name) for name in _CUDNN}

    def put_back() -> None:
        for put, get, value in saved:
            if get() != value:
                put(value)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=only_warns)
        for name, value in cudnn.items():
            if getattr(torch.backends.cudnn, name) != value:
                setattr(torch.backends.cudnn, name, value)

    return put_back


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
