"""The output streams of a command: stderr, whose content may be lost, and stdout, which carries data.

A failure to show progress is not an error: a write to stderr never raises, whatever happens to the terminal, pipe or
disk. A failure to write data is an error: stdout raises `OutputError`, or `ReaderGoneError` if its reader has closed
the pipe. On both streams, characters that the encoding lacks are replaced.

While a command runs, `sys.stdout` is redirected to stderr: a print by a user's network or by a library must not become
part of a JSON document. hpsearch writes its own data through this module.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import functools
import io
import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from hpsearch.errors import OutputError, ReaderGoneError
from hpsearch.safe_text import for_terminal

NOT_A_TERMINAL_WIDTH = 160
_SPELLED = {"\N{MIDDLE DOT}": "-", "\N{HORIZONTAL ELLIPSIS}": "..."}
_ERRORS = "hpsearch-spelled"  # name of a codecs error handler, registered by `_guarded`
_data: ContextVar[TextIO | None] = ContextVar("hpsearch_data", default=None)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Replace sys.stdout and sys.stderr by guarded streams while the context is open."""
    before = sys.stdout, sys.stderr
    _open_closed_descriptors()
    sys.stdout = _guarded(sys.stdout, _Data) or _nowhere(_Unread(io.BytesIO()))
    sys.stderr = _guarded(sys.stderr, _Lossy) or _nowhere(_Lossy(io.BytesIO()))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def keeps_stdout_for_data(command: Callable[..., None]) -> Callable[..., None]:
    """Wrap a command so that prints to sys.stdout go to stderr; only this module writes to the real stdout."""

    @functools.wraps(command)
    def kept(*arguments: Any, **options: Any) -> None:
        token = _data.set(sys.stdout)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                command(*arguments, **options)
        finally:
            _data.reset(token)

    return kept


def write_line(text: str) -> None:
    """Write a line of data to stdout.

    Raises:
        OutputError: it cannot be written.
        ReaderGoneError: the reader has closed the pipe, or stdout is closed.
    """
    print(text, file=_stdout(), flush=True)


def write_document(text: str) -> None:
    """Write a whole document to stdout. Except on a terminal it is in UTF-8, as its format requires.

    Raises:
        OutputError: it cannot be written, or stdout is closed.
        ReaderGoneError: the reader has closed the pipe.
    """
    stream = _stdout()
    if stream.isatty() or not isinstance(stream, io.TextIOWrapper):
        stream.write(for_terminal(text) if stream.isatty() else text)
        stream.flush()
        return
    if isinstance(_raw(stream), _Unread):
        raise OutputError("cannot write to standard output: it is closed", hint="write to a file with -o FILE")
    stream.flush()
    stream.buffer.write(text.encode())
    stream.buffer.flush()


def data_console() -> Console:
    """A console for tables on stdout, as plain text. In a pipe or a file lines are not folded at 80 columns."""
    console = Console(file=_stdout(), highlight=False)
    if not console.is_terminal:
        console.width = NOT_A_TERMINAL_WIDTH
    return console


def stderr() -> TextIO:
    """A stream to stderr that never raises, also if hpsearch is used as a library and sys.stderr is not guarded."""
    return _guarded(sys.stderr, _Lossy) or _nowhere(_Lossy(io.BytesIO()))


def stderr_console(**options: Any) -> Console:
    return Console(file=stderr(), stderr=True, **options)


class _Guard(io.RawIOBase):
    """The raw layer of a guarded text stream; it forwards bytes to the original stream."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.target.fileno())

    def isatty(self) -> bool:
        return bool(self.target.isatty())


class _Lossy(_Guard):
    """A guard that drops what cannot be written."""

    def write(self, data: Any, /) -> int:
        written: int | None = None
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
            written = self.target.write(data)
        return len(data) if written is None else written


class _Data(_Guard):
    """A guard that raises once if data cannot be written. Later writes are dropped: Python retries them at exit."""

    _is_over = False

    def write(self, data: Any, /) -> int:
        while not self._is_over:
            try:
                written: int | None = self.target.write(data)
            except OSError as error:
                self._is_over = True
                if self._is_reader_gone(error):
                    raise ReaderGoneError("the reader of standard output has closed it") from error
                raise OutputError(f"cannot write to standard output: {error.strerror}") from error
            if written is not None:
                return written
            select.select([], [self.target], [])  # the descriptor is non-blocking: wait
        return len(data)

    def _is_reader_gone(self, error: OSError) -> bool:
        """Whether the pipe was closed by its reader, or the terminal is gone. EIO of a regular file is a disk error."""
        return error.errno == errno.EPIPE or (
            error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.target.fileno()).st_mode)
        )


class _Unread(_Data):
    """The guard for a stdout that was closed before the program started."""

    def write(self, data: Any, /) -> int:
        if not self._is_over:
            self._is_over = True
            raise ReaderGoneError("standard output is closed")
        return len(data)


def _stdout() -> TextIO:
    return _data.get() or sys.stdout


def _guarded(stream: TextIO | None, guard: type[_Guard]) -> TextIO | None:
    """The stream with a guard. A guarded stream, or one that is not a file (notebook, test), is returned unchanged."""
    if not isinstance(stream, io.TextIOWrapper) or isinstance(_raw(stream), _Guard):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    codecs.register_error(_ERRORS, _spell)
    return io.TextIOWrapper(
        io.BufferedWriter(guard(_raw(stream))),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _nowhere(raw: _Guard) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace", line_buffering=True)


def _raw(stream: io.TextIOWrapper) -> Any:
    """The raw stream below the buffer: a buffer would keep data that it cannot write, and retry when Python exits."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """A codecs error handler: spells a character in ASCII; undecodable bytes of file names are written unchanged."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    escaped = character.encode("ascii", "backslashreplace").decode()
    return _SPELLED.get(character, escaped), error.start + 1


def _open_closed_descriptors() -> None:
    """Open closed standard descriptors on /dev/null. Otherwise the next connection gets the number, and the prints."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # returns the lowest free number, normally this one
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def text_of(line: str) -> Text:
    """A line for a terminal: markup is not interpreted, control characters and passwords are replaced."""
    return Text(for_terminal(line))
