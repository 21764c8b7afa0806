"""What a command writes to: stderr, which may get lost, and stdout, which carries data.

Progress that cannot be shown is no error: a write to stderr never raises, whatever has happened to the terminal, the
pipe or the disk behind it. Data that cannot be written is an error: stdout raises `OutputError`, or `ReaderGoneError`
where its reader has closed the pipe. On both, characters that the encoding lacks are replaced.

While a command runs, `sys.stdout` is stderr: a print of a user's network or of a library must not end up in a JSON
document. Our own data takes the way through this module.
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
_ERRORS = "hpsearch-spelled"  # an error handler of the codecs, made by `guarded_streams`
_data: ContextVar[TextIO | None] = ContextVar("hpsearch_data", default=None)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Inside, sys.stdout and sys.stderr are ours; what they were they are again afterwards."""
    before = sys.stdout, sys.stderr
    _open_closed_descriptors()
    sys.stdout = _guarded(sys.stdout, _Data) or _nowhere(_Unread(io.BytesIO()))
    sys.stderr = _guarded(sys.stderr, _Lossy) or _nowhere(_Lossy(io.BytesIO()))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def keeps_stdout_for_data(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which whatever others print goes to stderr."""

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
        ReaderGoneError: nobody reads it any more.
    """
    print(text, file=_stdout(), flush=True)


def write_document(text: str) -> None:
    """Write a whole document to stdout, in UTF-8 whatever the terminal's encoding: its format asks for it.

    Raises:
        OutputError: it cannot be written, or stdout is closed.
        ReaderGoneError: nobody reads it any more.
    """
    stream = _stdout()
    if stream.isatty() or not isinstance(stream, io.TextIOWrapper):
        stream.write(for_terminal(text) if stream.isatty() else text)
        stream.flush()
        return
    if isinstance(_raw(stream), _Unread):
        raise OutputError("cannot write to standard output: it is closed", hint="-o FILE writes into a file")
    stream.flush()
    stream.buffer.write(text.encode())
    stream.buffer.flush()


def data_console() -> Console:
    """Tables on stdout: plain text; into a pipe or a file no line is folded at 80 columns."""
    console = Console(file=_stdout(), highlight=False)
    if console.is_terminal:
        return console
    return Console(file=_stdout(), highlight=False, width=NOT_A_TERMINAL_WIDTH)


def stderr() -> TextIO:
    """The stream for what may get lost, also where hpsearch is a library and sys.stderr is not ours."""
    return _guarded(sys.stderr, _Lossy) or _nowhere(_Lossy(io.BytesIO()))


def stderr_console(**options: Any) -> Console:
    return Console(file=stderr(), stderr=True, **options)


class _Guard(io.RawIOBase):
    """The bytes of a text stream on their way to the stream that was there before."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.target.fileno())

    def isatty(self) -> bool:
        return bool(self.target.isatty())


class _Lossy(_Guard):
    """What cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        written: int | None = None
        with contextlib.suppress(OSError, ValueError):  # ValueError: somebody has closed it
            written = self.target.write(data)
        return len(data) if written is None else written


class _Data(_Guard):
    """What cannot be written is an error, once. Later writes are dropped: Python would try again when it exits."""

    _is_over = False

    def write(self, data: Any, /) -> int:
        while not self._is_over:
            try:
                written: int | None = self.target.write(data)
            except OSError as error:
                self._is_over = True
                if self._is_reader_gone(error):
                    raise ReaderGoneError("nobody reads standard output any more") from error
                raise OutputError(f"cannot write to standard output: {error.strerror}") from error
            if written is not None:
                return written
            select.select([], [self.target], [])  # a descriptor that somebody has made non-blocking
        return len(data)

    def _is_reader_gone(self, error: OSError) -> bool:
        """The other end of a pipe is closed, or the terminal is gone; EIO of a file is the disk's."""
        return error.errno == errno.EPIPE or (
            error.errno == errno.EIO and stat.S_ISCHR(os.fstat(self.target.fileno()).st_mode)
        )


class _Unread(_Data):
    """In place of a stdout that was closed before we started."""

    def write(self, data: Any, /) -> int:
        if not self._is_over:
            self._is_over = True
            raise ReaderGoneError("standard output is closed")
        return len(data)


def _stdout() -> TextIO:
    return _data.get() or sys.stdout


def _guarded(stream: TextIO | None, guard: type[_Guard]) -> TextIO | None:
    """The stream behind a guard. As it is: one that has a guard, and what is no file at all (a notebook, a test)."""
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
    """Below its buffer: what a buffer cannot get rid of it keeps, and tries again when Python ends."""
    return getattr(stream.buffer, "raw", stream.buffer)


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    """The next character in others; a byte of a file's name that is no text stays what it is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return bytes([ord(character) - 0xDC00]), error.start + 1
    escaped = character.encode("ascii", "backslashreplace").decode()
    return _SPELLED.get(character, escaped), error.start + 1


def _open_closed_descriptors() -> None:
    """Point closed standard descriptors at /dev/null: else the next connection gets the number, and with it prints."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest one that is free: this one
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


def text_of(line: str) -> Text:
    """A line for a terminal, taken as it is: no markup, no control characters, no password."""
    return Text(for_terminal(line))
