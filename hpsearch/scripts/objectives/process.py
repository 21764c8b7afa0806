"""The process of one trial of an objective: imports the function, calls it with a trial, and tells the worker its end.

    python -m hpsearch.scripts.objectives.process package.module:function
    python -m hpsearch.scripts.objectives.process package.module:function RESULT    only looks whether it can be called

It runs in the folder in which the worker was started, and imports from there first, as `python script.py` does.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import hpsearch
from hpsearch.scripts.objectives.connection import WorkerConnection

_LONGEST_TEXT: Final = 500  # characters of an exception's message


class CannotStartError(Exception):
    """The function is not there, or cannot be called with a trial."""


def find_function(path: str) -> Callable[[Any], Any]:
    """Return the function that "package.module:function" names.

    Raises:
        CannotStartError: there is no such module or function, or it does not take one argument.
        BaseException: what the module raises when it is imported.
    """
    module_name, _, name = path.partition(":")
    folder = Path.cwd()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if f"{module_name}.".startswith(f"{missing}."):
            raise CannotStartError(f"there is no module {missing!r} in {folder}, and none is installed") from error
        raise CannotStartError(f"importing {module_name} from {folder} failed: {describe(error)}") from error
    except ImportError as error:
        raise CannotStartError(f"importing {module_name} from {folder} failed: {describe(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        where = getattr(module, "__file__", None) or module_name
        raise CannotStartError(f"{where} has no function {name!r}")
    _check_takes_a_trial(function)
    return function  # type: ignore[no-any-return]  # whatever getattr finds


def _check_takes_a_trial(function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function in C: calling it will tell
        return
    try:
        signature.bind(None)
    except TypeError:
        raise CannotStartError(f"it must take the trial as its only argument, and takes {signature}") from None


def describe(error: BaseException) -> str:
    """An exception on one line: type, message, and the last place in the user's own code: `ValueError: no (a.py:3)`."""
    message = " ".join(str(error).split())[:_LONGEST_TEXT]
    name = type(error).__name__
    return (f"{name}: {message}" if message else name) + _place_of(error)


def _place_of(error: BaseException) -> str:
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    ours = ("<frozen", *(str(Path(file).parent) for file in (hpsearch.__file__, importlib.__file__)))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    own = [frame for frame in frames if not frame.filename.startswith(libraries)]
    last = next(iter([*own[-1:], *frames[-1:]]), None)
    return "" if last is None else f" ({Path(last.filename).name}:{last.lineno})"


def _returned(value: Any) -> tuple[str, dict[str, Any]]:
    """What the worker is told about a returned value."""
    if isinstance(value, tuple | list):
        return "failed", {"why": f"returned {len(value)} values: hpsearch searches for one value"}
    try:
        number = float(value)  # as Optuna does: a tensor or an array of one element is a number, too
    except Exception:
        return "failed", {"why": f"returned {_shown(value)}, which is not a number"}
    # JSON has no infinities and no NaN.
    return "returned", {"value": number if math.isfinite(number) else str(number)}


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except Exception:
        return f"an object of type {type(value).__name__}"


def _call(function: Callable[[Any], Any], connection: WorkerConnection) -> tuple[str, dict[str, Any]]:
    import optuna  # a third of a second, and only after the function was found

    from hpsearch.scripts.objectives.trial import begin_trial

    trial = begin_trial(connection)
    try:
        return _returned(function(trial))
    except optuna.TrialPruned:
        return "pruned", {}
    except BaseException as error:
        return _failed(error)


def _failed(error: BaseException) -> tuple[str, dict[str, Any]]:
    traceback.print_exc()
    return "failed", {"why": f"raised {describe(error)}"}


def run(path: str) -> int:
    """Run the trial, and return the process's exit code."""
    connection = WorkerConnection()
    sys.argv[1:] = []  # a module that reads the command line finds nothing of ours
    try:
        function = find_function(path)
    except CannotStartError as error:
        traceback.print_exc()
        connection.tell("cannot start", why=str(error))
        return 1
    except BaseException as error:
        how, values = _failed(error)
    else:
        how, values = _call(function, connection)
    connection.tell(how, **values)
    sys.stdout.flush()
    return 1 if how == "failed" else 0


def check(path: str, result: Path) -> int:
    """Look whether the function can be called, and write {"error": what is wrong, or null} to a file."""
    sys.argv[1:] = []
    wrong: str | None = None
    try:
        find_function(path)
    except CannotStartError as error:
        wrong = str(error)
    except BaseException as error:
        module = path.partition(":")[0]
        wrong = f"importing {module} from {Path.cwd()} failed: {describe(error)}"
    result.write_text(json.dumps({"error": wrong}))
    return 0


def main() -> int:
    path, *more = sys.argv[1:]
    return check(path, Path(more[0])) if more else run(path)


if __name__ == "__main__":
    sys.exit(main())
