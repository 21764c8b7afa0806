"""Drains what all scripts of a worker report and print, in a thread, whatever the worker's main loop does.

The worker opens a key per attempt, hands the output pipe to the script, sleeps in `wait`, takes reports with `collect`,
and closes the key when the attempt has ended. Memory is bounded per attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from hpsearch.scripts.output import OutputRecord
from hpsearch.scripts.pattern_process import PatternProcess
from hpsearch.scripts.pattern_reader import PatternFeed, PatternReader
from hpsearch.scripts.report_buffer import Batch, ReportBuffer
from hpsearch.scripts.report_lines import LineSplitter, check_pattern, parse_report_line

_READ_BYTES: Final = 1 << 20
_READ_REPORT_BYTES: Final = 16 * 1024  # takes a few milliseconds to parse, during which the other attempts wait
# A larger pipe means fewer turns between a script that floods its output and this thread. The kernel grants 64 MB of
# them to a user; beyond that the pipe keeps its size. With a pattern there is no hurry, and `close` has less to search.
_PIPE_BYTES: Final = 1 << 20
_LAST_PATTERN_SECONDS: Final = 10.0
_Answer = TypeVar("_Answer")


@dataclass(kw_only=True, eq=False)
class _Stream:
    """One attempt. Only the thread reads from it; a descriptor is None once it is closed."""

    key: int
    fifo: Path
    fifo_end: int | None
    output_end: int | None
    record: OutputRecord
    buffer: ReportBuffer
    splitter: LineSplitter
    feed: PatternFeed | None = None
    is_paused: bool = False


class Streams:
    """All attempts of a worker. Its methods are for one thread, the worker's main loop.

        with Streams() as streams:
            output = streams.open(key, folder / "reports", pattern=None)
            start_script(stdout=output)
            os.close(output)
            while streams.wait(timeout=1.0):
                for key, batch in streams.collect().items():
                    ...

    Args:
        news: set when a report, a request for a verdict, or the end of an output has come. The main loop may share it
            with other sources of news; it clears the event before it looks at the sources, as `wait` does.
        patterns: the process that applies patterns, for tests.
    """

    def __init__(self, *, news: threading.Event | None = None, patterns: PatternProcess | None = None) -> None:
        self.news = news or threading.Event()
        self._patterns = PatternReader(on_news=self.news.set, process=patterns)
        self._streams: dict[int, _Stream] = {}
        self._closed: list[_Stream] = []  # their last reports have not been collected
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ, partial(os.eventfd_read, self._wake))
        self._requests: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._scratch = memoryview(bytearray(_READ_BYTES))
        self._is_stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="streams", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._patterns.close()
        for stream in self._streams.values():
            self._release(stream)
        self._streams.clear()
        self._selector.close()
        os.close(self._wake)

    def open(
        self,
        key: int,
        fifo: Path,
        *,
        pattern: str | None = None,
        secrets: Collection[str] = (),
        max_reports: int = 100_000,
    ) -> int:
        """Begin to read an attempt's reports and output.

        Args:
            key: a number that no other attempt of this worker has had.
            fifo: where the FIFO for reports is created, readable and writable for this user only.
            pattern: for reports in the output (`PatternMatcher`); None: the output is only recorded.
            secrets: values that the record of the output must not show.
            max_reports: that are kept until `collect`; more are dropped and counted.
        Returns:
            the write end of the output pipe. The caller gives it to the script and closes it.
        Raises:
            InputError: the pattern cannot be used.
            OSError: no FIFO or pipe can be created; nothing is left behind.
        """
        assert key not in self._streams, f"attempt {key} is open"
        if pattern is not None:
            check_pattern(pattern)
        fifo_end, output_end, write_end = _create_pipes(fifo, is_large=pattern is None)
        stream = _Stream(
            key=key,
            fifo=fifo,
            fifo_end=fifo_end,
            output_end=output_end,
            record=OutputRecord(secrets=secrets),
            buffer=ReportBuffer(max_reports=max_reports),
            splitter=LineSplitter(),
        )
        if pattern is not None:
            stream.feed = PatternFeed(pattern, stream.buffer, on_room=partial(self._request_output, stream))
        try:
            self._request(partial(self._register, stream)).result()
        except BaseException:
            self._release(stream)
            os.close(write_end)
            raise
        self._streams[key] = stream
        return write_end

    def wait(self, timeout: float | None) -> bool:
        """Sleep until there is news, which is then forgotten. Returns False after `timeout` seconds."""
        has_news = self.news.wait(timeout)
        self.news.clear()
        return has_news

    def collect(self) -> dict[int, Batch]:
        """Return what has come since the last call, by key; also the last reports of keys closed in between.

        Raises:
            RuntimeError: the thread has failed; reports are lost from then on.
        """
        self._check()
        batches = {stream.key: stream.buffer.take() for stream in (*self._closed, *self._streams.values())}
        self._closed.clear()
        return {key: batch for key, batch in batches.items() if batch != Batch()}

    def close(self, key: int) -> OutputRecord:
        """Read what is left of an attempt, and remove its FIFO. The next `collect` returns its last reports.

        Does not wait for processes that still have the output open: of theirs, what is in the pipe by now counts.
        Waits until the pattern has been applied, for 10 seconds at most.

        Raises:
            RuntimeError: see `collect`.
        """
        stream = self._streams[key]
        self._request(partial(self._finish, stream)).result()
        del self._streams[key]
        self._closed.append(stream)
        if stream.feed is not None:
            self._patterns.wait_for(stream.feed, seconds=_LAST_PATTERN_SECONDS)
        self._check()
        self.news.set()
        return stream.record

    def _check(self) -> None:
        failure = self._failure or self._patterns.failure
        if failure is not None:
            raise RuntimeError("the thread that reads reports has failed") from failure

    def _request(self, action: Callable[[], _Answer]) -> Future[_Answer]:
        """Let the thread do something between two reads. Safe for any thread."""
        future: Future[_Answer] = Future()
        self._requests.append((future, action))
        os.eventfd_write(self._wake, 1)
        if self._failure is not None or self._is_stopping:
            self._refuse_requests()
        return future

    def _request_output(self, stream: _Stream) -> None:
        """Read an attempt's output again, which was paused. Called by the thread that applies patterns."""
        self._request(partial(self._resume, stream))

    # What follows runs in the thread.

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                for ready, _ in self._selector.select():
                    ready.data()
                # After all reads of this round: a request may close what was found ready.
                self._answer_requests()
        except BaseException as error:
            self._failure = error  # before the requests are refused: none that comes later is left without an answer
            self.news.set()
            raise
        finally:
            self._refuse_requests()

    def _refuse_requests(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                future, _ = self._requests.popleft()
                future.set_exception(RuntimeError("the thread that reads reports has ended"))

    def _answer_requests(self) -> None:
        while self._requests:
            future, action = self._requests.popleft()
            try:
                future.set_result(action())
            except OSError as error:
                future.set_exception(error)
            except BaseException:
                future.set_exception(RuntimeError("the thread that reads reports has ended"))
                raise

    def _register(self, stream: _Stream) -> None:
        assert stream.fifo_end is not None
        assert stream.output_end is not None
        self._selector.register(stream.fifo_end, selectors.EVENT_READ, partial(self._read_reports, stream))
        self._selector.register(stream.output_end, selectors.EVENT_READ, partial(self._read_output, stream))

    def _read(self, descriptor: int, max_bytes: int) -> memoryview | None:
        """Return some bytes, valid until the next call; none at the end of the stream, None if there are none now."""
        try:
            return self._scratch[: os.readv(descriptor, [self._scratch[:max_bytes]])]
        except BlockingIOError:
            return None

    def _read_reports(self, stream: _Stream) -> int:
        """Read once from the FIFO. Returns the number of bytes."""
        assert stream.fifo_end is not None
        chunk = self._read(stream.fifo_end, _READ_REPORT_BYTES)
        if not chunk:
            return 0
        self._take_report_lines(stream, stream.splitter.feed(bytes(chunk)))
        return len(chunk)

    def _take_report_lines(self, stream: _Stream, lines: list[bytes]) -> None:
        if lines:
            stream.buffer.add(map(parse_report_line, lines), num_bytes=sum(map(len, lines)))
            self.news.set()

    def _read_output(self, stream: _Stream) -> int:
        """Read once from the output pipe. Returns the number of bytes."""
        assert stream.output_end is not None
        chunk = self._read(stream.output_end, _READ_BYTES)
        if chunk is None:
            return 0
        if not chunk:
            self._close_output(stream)
            stream.buffer.note_end_of_output()
            self.news.set()
            return 0
        stream.record.append(chunk)
        if stream.feed is not None and not self._patterns.feed(stream.feed, bytes(chunk)):
            self._selector.unregister(stream.output_end)
            stream.is_paused = True
        return len(chunk)

    def _resume(self, stream: _Stream) -> None:
        if stream.is_paused and stream.output_end is not None:
            stream.is_paused = False
            self._selector.register(stream.output_end, selectors.EVENT_READ, partial(self._read_output, stream))

    def _finish(self, stream: _Stream) -> None:
        """Read what is in the pipes at this moment, and close them."""
        self._drain(stream.fifo_end, partial(self._read_reports, stream))
        self._take_report_lines(stream, stream.splitter.finish())
        self._resume(stream)
        if stream.output_end is not None:
            self._drain(stream.output_end, partial(self._read_last_output, stream))
        if stream.feed is not None:
            self._patterns.finish(stream.feed)
        self._close_output(stream)
        if stream.fifo_end is not None:
            self._selector.unregister(stream.fifo_end)
        self._release(stream)

    def _drain(self, descriptor: int | None, read: Callable[[], int]) -> None:
        """Read as much as the pipe can hold: what was written before this call, whoever still writes."""
        left = 0 if descriptor is None else fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
        while left > 0 and (num_bytes := read()):
            left -= num_bytes

    def _read_last_output(self, stream: _Stream) -> int:
        """As `_read_output`, but without a pause: it is at most one pipe more."""
        num_bytes = self._read_output(stream)
        self._resume(stream)
        return num_bytes

    def _close_output(self, stream: _Stream) -> None:
        if stream.output_end is None:
            return
        if not stream.is_paused:
            self._selector.unregister(stream.output_end)
        os.close(stream.output_end)
        stream.output_end = None

    def _release(self, stream: _Stream) -> None:
        """Close what is open, and remove the FIFO. Safe to call twice."""
        for descriptor in (stream.fifo_end, stream.output_end):
            if descriptor is not None:
                os.close(descriptor)
        stream.fifo_end = stream.output_end = None
        with contextlib.suppress(OSError):  # the script may have removed it, or its folder
            stream.fifo.unlink()


def _create_pipes(fifo: Path, *, is_large: bool) -> tuple[int, int, int]:
    """Return an end of a new FIFO, the read end of a new pipe (neither of them blocks), and its write end."""
    os.mkfifo(fifo, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(fifo.unlink)
        # Open for writing, too: a FIFO without writers would be at its end all the time.
        fifo_end = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        undo.callback(os.close, fifo_end)
        output_end, write_end = os.pipe()
        undo.callback(os.close, output_end)
        undo.callback(os.close, write_end)
        os.set_blocking(output_end, False)
        if is_large:
            with contextlib.suppress(OSError):
                fcntl.fcntl(output_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        undo.pop_all()
    return fifo_end, output_end, write_end
