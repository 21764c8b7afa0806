"""What a user's training script imports to take part in a search: it reports values and asks whether to stop.

    import hpsearch.trial

    for epoch in range(1, 101):
        train_one_epoch()
        hpsearch.trial.report(epoch, validation_error())
        if hpsearch.trial.should_stop():
            break

Outside hpsearch nothing of this has an effect, so the script also runs by itself. No function waits for ever, and
`report` and `should_stop` never raise: a trial must not fail because its report cannot be sent.

Standard library only, and nothing else of hpsearch: a script pays a few milliseconds for the import. The worker's side
is `hpsearch.scripts.streams`. The protocol, for scripts in other languages, is in environment variables:

    HPSEARCH_REPORTS     path of a FIFO that takes one JSON object per line: {"step": 3, "value": 0.25, ...}, or
                         {"ask": 3}, which requests a verdict on all reports up to step 3; "correct", if given, is the
                         path of a file of 0 and 1, one per validation example, which is not written again
    HPSEARCH_VERDICT     path of a file that holds the last verdict: {"step": 3, "stop": false}
    HPSEARCH_FOLDER      the folder of this attempt
    HPSEARCH_SEED        a whole number
    HPSEARCH_PARAMETERS  path of a JSON file with the parameters' values

A process that imports this module may report, so all ranks of a distributed script may: the first report of a step
counts. Processes that were forked after the import (such as a DataLoader's workers) do not report.
"""

from __future__ import annotations

import itertools
import json
import operator
import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, SupportsFloat, SupportsIndex

__all__ = ["folder", "parameters", "report", "seed", "should_stop"]

_REPORTS: Final = "HPSEARCH_REPORTS"
_VERDICT: Final = "HPSEARCH_VERDICT"
_FOLDER: Final = "HPSEARCH_FOLDER"
_SEED: Final = "HPSEARCH_SEED"
_PARAMETERS: Final = "HPSEARCH_PARAMETERS"

_LARGEST_STEP: Final = 2**31 - 1  # what the study database stores
_MOST_RESULTS: Final = 1_000_000
_LARGEST_RESULTS: Final = 8_004_096  # bytes: 1,000,000 whole numbers in a .npy file
_LONGEST_LINE: Final = 64 * 1024  # bytes, with the line end; the worker reads no more of a line
_SEND_SECONDS: Final = 5.0
_VERDICT_SECONDS: Final = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05  # seconds between two attempts


def report(step: SupportsIndex, value: SupportsFloat | SupportsIndex, *, correct: Any = None, **more: Any) -> None:
    """Report the value of the study's metric after a step of training.

        hpsearch.trial.report(epoch, error, train_loss=loss, correct=predicted == labels)

    Never raises, and blocks for 5 seconds at most. What cannot be sent is said once on standard error.

    Args:
        step: a whole number >= 1, such as the epoch. Steps may be left out. Of several reports of a step the first
            counts, also when an attempt continues the work of an earlier one.
        value: a number; also of numpy, or a tensor of one element. A NaN or an infinity ends the trial as diverged.
        correct: which validation examples are right: one truth value (or 0, 1) for each, in an order that is the same
            in all trials, as a list, an array, a tensor, or the path of a .npy file or of a text of 0 and 1. The file
            is copied. Trials are then compared example by example, and coarse-to-fine takes a difference that may be
            chance for none. At most 1,000,000 examples.
        more: further values to store with the step. Those that JSON cannot hold are stored as text. They are dropped
            if the line is longer than 64 KB. Lines of over 4 KB of several processes at once may get mixed up.
    """
    _OWN_CHANNEL.report(step, value, correct, more)


def should_stop() -> bool:
    """Say whether this trial has been pruned and may end: save what is wanted and exit with 0.

        if hpsearch.trial.should_stop():
            break

    Waits until the last report has been judged, for 60 seconds at most. Outside hpsearch, in forked processes and when
    no verdict comes it is False. In a distributed script, call it in the rank that reports, and broadcast the answer.
    """
    return _OWN_CHANNEL.should_stop()


def folder() -> Path:
    """Return the folder of this attempt, for checkpoints and results; outside hpsearch, the current folder.

        checkpoint = hpsearch.trial.folder() / "last.pt"

    It begins as a copy of the last attempt's folder, so a script that finds its checkpoint there can continue.
    """
    return Path(os.environ.get(_FOLDER) or Path.cwd())


def seed(default: int = 0) -> int:
    """Return the seed of this trial, or outside hpsearch `default`.

    torch.manual_seed(hpsearch.trial.seed())
    """
    given = os.environ.get(_SEED)
    return int(given) if given else default


def parameters() -> dict[str, Any]:
    """Return the values that the search has chosen, by the names of the parameters; outside hpsearch, {}.

        options = {"learning_rate": 0.1, "width": 64} | hpsearch.trial.parameters()

    Raises:
        OSError or ValueError: the file with the values was changed; training with others would spoil the search.
    """
    path = os.environ.get(_PARAMETERS)
    values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return values


class _Channel:
    """This process's way to the worker. Safe for any number of threads; a forked process is not connected."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        # One line at a time, since a long one takes several writes. Re-entrant: a signal handler may report, too.
        self._lock = threading.RLock()
        self._last_step = 0
        self._told: set[str] = set()
        self._is_stuck = False  # the last line was given up: no patience until one can be sent again
        self._is_cut = False  # the last line was sent in part

    def report(self, step: object, value: object, correct: Any, more: dict[str, Any]) -> None:
        path = self._path_of(_REPORTS)
        if path is None:
            return
        whole_step, number = _step_of(step), _number_of(value)
        if whole_step is None:
            self._tell("step", f"the step {_shown(step)} is not a whole number >= 1; the report is ignored")
        elif number is None:
            self._tell("value", f"the value {_shown(value)} is not a number; the report is ignored")
        else:
            document: dict[str, Any] = {"step": whole_step, "value": number}
            with self._lock:
                if correct is not None and whole_step > self._last_step:
                    document |= self._results(path, whole_step, correct)
                line = self._line_of(document, more)
                self._last_step = max(self._last_step, whole_step)
                self._send(path, line)

    def should_stop(self) -> bool:
        reports, verdict = self._path_of(_REPORTS), self._path_of(_VERDICT)
        if reports is None or verdict is None:
            return False
        with self._lock:
            step = self._last_step
            is_sent = step > 0 and self._send(reports, _as_line({"ask": step}))
        judged, is_stopped = _read_verdict(verdict)
        if not is_sent:
            return is_stopped

        def is_judged() -> bool:
            nonlocal judged, is_stopped
            judged, is_stopped = _read_verdict(verdict)
            return is_stopped or judged >= step

        if not _repeat(is_judged, seconds=_VERDICT_SECONDS):
            self._tell("verdict", f"no verdict has come for {_VERDICT_SECONDS:g} seconds; the script goes on")
        return is_stopped

    def _path_of(self, name: str) -> str | None:
        """Return None outside hpsearch and in a forked process, where a lock may be held for ever."""
        return (os.environ.get(name) or None) if os.getpid() == self._pid else None

    def _results(self, reports: str, step: int, correct: Any) -> dict[str, Any]:
        """Write which examples are right to a file of this report's own, beside the FIFO."""
        copy = Path(reports).absolute().with_name(f"correct-{step}-{self._pid}")
        try:
            copy.write_bytes(_content_of(correct))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:300]
            self._tell("correct", f"the results of single examples of step {step} are left out: {why}")
            return {"correct": {"error": why}}  # the worker tells whoever watches the search
        return {"correct": str(copy)}

    def _line_of(self, document: dict[str, Any], more: dict[str, Any]) -> bytes:
        try:
            line = _as_line(document | more | document)
        except Exception:  # circular, too deep, or an object whose conversion fails
            self._tell("more", f"the further values of step {document['step']} cannot be written as JSON; dropped")
            return _as_line(document)
        if len(line) > _LONGEST_LINE:
            self._tell("long", f"the report of step {document['step']} is over 64 KB; only its value is sent")
            return _as_line(document)
        return line

    def _send(self, path: str, line: bytes) -> bool:
        """Write one line to the FIFO. Returns False if that was not possible in time."""
        rest = b"\n" + line if self._is_cut else line
        num_bytes = len(rest)

        def is_written() -> bool:
            nonlocal rest
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]  # up to 4096 bytes: all or nothing (PIPE_BUF)
            except BlockingIOError:
                return False
            return True

        try:
            # Opened for each line: a script may close all descriptors, and a number that was used again would be
            # another file. Without a reader this fails at once.
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_APPEND)
            try:
                is_sent = _repeat(is_written, seconds=0.0 if self._is_stuck else _SEND_SECONDS)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._tell("send", f"cannot report to {path}: {error.strerror}; the script goes on")
            return False
        self._is_stuck = not is_sent
        if is_sent:
            self._is_cut = False
        else:
            self._is_cut = self._is_cut or len(rest) < num_bytes
            self._tell("full", f"nobody has read reports for {_SEND_SECONDS:g} seconds; the script goes on without")
        return is_sent

    def _tell(self, kind: str, message: str) -> None:
        """Say something on standard error, once per kind."""
        if kind in self._told:
            return
        self._told.add(kind)
        try:
            print(f"hpsearch.trial: {message}", file=sys.stderr, flush=True)
        except Exception:  # closed, or replaced by an object that fails
            return


def _repeat(is_done: Callable[[], bool], *, seconds: float) -> bool:
    """Call `is_done` until it is true or the time is over, with growing pauses. Returns the last answer."""
    end = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while not is_done():
        left = end - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


def _step_of(step: Any) -> int | None:
    try:
        whole = None if _is_truth_value(step) else operator.index(step)
    except Exception:
        return None
    return whole if whole is not None and 1 <= whole <= _LARGEST_STEP else None


def _number_of(value: Any) -> float | None:
    try:
        # Arrays and tensors of one element: numpy deprecates float() for those with a dimension.
        scalar = value.item() if hasattr(value, "item") else value
        is_number = hasattr(type(scalar), "__float__") or hasattr(type(scalar), "__index__")
        return float(scalar) if is_number and not _is_truth_value(scalar) else None
    except Exception:  # several elements, or an integer that is too large
        return None


def _content_of(correct: Any) -> bytes:
    """The content of a file of 0 and 1: that of the file that is named, or what these values make.

    Raises:
        OSError, TypeError or ValueError: there is no such file, these are no such values, or they are too many.
    """
    if isinstance(correct, str | os.PathLike):
        # Without waiting for a writer, if it is a FIFO.
        with os.fdopen(os.open(correct, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError(f"{os.fspath(correct)} is no regular file")
            content = file.read(_LARGEST_RESULTS + 1)
        if len(content) > _LARGEST_RESULTS:
            raise ValueError(f"{os.fspath(correct)} is larger than {_LARGEST_RESULTS:,} bytes")
        return content
    if len(getattr(correct, "shape", (0,))) != 1:
        raise ValueError("it has more than one dimension")
    if hasattr(correct, "__len__") and len(correct) > _MOST_RESULTS:
        raise ValueError(f"they are more than {_MOST_RESULTS:,}")
    values = correct.tolist() if hasattr(correct, "tolist") else list(itertools.islice(correct, _MOST_RESULTS + 1))
    if len(values) > _MOST_RESULTS:
        raise ValueError(f"they are more than {_MOST_RESULTS:,}")
    if wrong := [value for value in values if value not in (0, 1)]:
        raise ValueError(f"{wrong[0]!r:.40} is neither 0 nor 1")
    return bytes(49 if value else 48 for value in values)  # "1" and "0"


def _is_truth_value(value: object) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # the latter of numpy


def _as_line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, default=_plain, skipkeys=True).encode() + b"\n"


def _plain(value: Any) -> int | float | str:
    """Return what JSON can hold of an object that it does not know."""
    for convert in (operator.index, float):
        try:
            number: int | float = convert(value)
        except Exception:
            continue
        return number
    return str(value)


def _read_verdict(path: str) -> tuple[int, bool]:
    """Return the step up to which the reports were judged, and whether to stop; (0, False) without a verdict."""
    try:
        verdict = json.loads(Path(path).read_text(encoding="utf-8"))
        return int(verdict["step"]), bool(verdict["stop"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0, False


def _shown(value: object) -> str:
    try:
        return repr(value)[:100]
    except Exception:
        return f"of type {type(value).__name__}"


_OWN_CHANNEL: Final = _Channel()
