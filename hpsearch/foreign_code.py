"""Run a user's code in this process, and restore the process-wide state that it may change.

The code is a network's factory or a loader of data. An import may parse the command line, replace signal handlers, turn
warnings into errors or change torch's defaults. The user's code does not see our command-line arguments, and its
changes do not affect our code afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

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
