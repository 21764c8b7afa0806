"""A thread that searches the output of all attempts with patterns, in turn."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from hpsearch.scripts.pattern_process import PatternProcess, PatternTooSlow
from hpsearch.scripts.report_buffer import ReportBuffer
from hpsearch.scripts.report_lines import LONGEST_PATTERN_LINE, LineSplitter

# Per attempt. So much takes about 10 ms, which is what an attempt waits for each other one that floods its output.
_MAX_WAITING_BYTES: Final = 128 * 1024
_LOOK_SECONDS: Final = 0.1  # for a failure of the thread


class PatternFeed:
    """The output of one attempt on its way to the pattern process. Bytes are fed by one thread."""

    def __init__(self, pattern: str, buffer: ReportBuffer, *, on_room: Callable[[], None]) -> None:
        self.pattern = pattern
        self.buffer = buffer
        self.on_room = on_room
        self.num_matches = 0
        self.is_too_slow = False
        # Complete lines, with their ends; the reader's lock guards it and `is_full`.
        self.waiting = bytearray()
        self.is_full = False
        self.is_idle = threading.Event()  # nothing waits, and nothing is being searched
        self.is_idle.set()
        self.splitter = LineSplitter(LONGEST_PATTERN_LINE + 1)  # tells longer lines from the longest


class PatternReader:
    """Feeds the process that applies patterns. `on_news` is called after each block in which something was found.

    An attempt that writes faster than its pattern is applied has to wait: `feed` returns False, and `on_room` is called
    when it may write again.
    """

    def __init__(self, *, on_news: Callable[[], None], process: PatternProcess | None = None) -> None:
        self._on_news = on_news
        self._process = process or PatternProcess()
        self._lock = threading.Lock()
        self._turns: queue.SimpleQueue[PatternFeed | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None

    def feed(self, feed: PatternFeed, chunk: bytes) -> bool:
        """Take more of an attempt's output. Returns False if there is no room for more."""
        return self._take(feed, feed.splitter.feed(chunk))

    def finish(self, feed: PatternFeed) -> None:
        """Take a last line without an end."""
        self._take(feed, feed.splitter.finish())

    def wait_for(self, feed: PatternFeed, *, seconds: float) -> None:
        """Wait until all that was fed has been searched, or the thread has failed."""
        end = time.monotonic() + seconds
        while not feed.is_idle.wait(_LOOK_SECONDS) and self.failure is None and time.monotonic() < end:
            pass

    def close(self) -> None:
        """End the thread after the block that it works on, and the process."""
        if self._thread is not None:
            self._turns.put(None)
            self._thread.join()
            self._thread = None
        self._process.close()

    def _take(self, feed: PatternFeed, lines: list[bytes]) -> bool:
        if feed.is_too_slow:
            return True
        block = b"".join(line + b"\n" for line in lines if len(line) <= LONGEST_PATTERN_LINE)
        if not block:
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="patterns", daemon=True)
            self._thread.start()
        with self._lock:
            is_first = not feed.waiting
            feed.waiting += block
            feed.is_idle.clear()
            feed.is_full = len(feed.waiting) >= _MAX_WAITING_BYTES
            has_room = not feed.is_full
        if is_first:
            self._turns.put(feed)
        return has_room

    def _run(self) -> None:
        try:
            while (feed := self._turns.get()) is not None:
                self._search(feed)
        except BaseException as error:
            self.failure = error  # `Streams` raises it
            self._on_news()
            raise

    def _search(self, feed: PatternFeed) -> None:
        with self._lock:
            lines = bytes(feed.waiting)
            feed.waiting.clear()
            was_full, feed.is_full = feed.is_full, False
        if was_full:
            feed.on_room()
        if not feed.is_too_slow:
            self._search_lines(feed, lines)
        with self._lock:
            if not feed.waiting:
                feed.is_idle.set()

    def _search_lines(self, feed: PatternFeed, lines: bytes) -> None:
        try:
            result = self._process.search(feed.pattern, lines, num_matches=feed.num_matches)
        except PatternTooSlow:
            feed.is_too_slow = True
            feed.buffer.note_slow_pattern()
            self._on_news()
        else:
            feed.num_matches = result.num_matches
            feed.buffer.add(result.found)
            if result.found:
                self._on_news()
