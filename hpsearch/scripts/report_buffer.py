"""What an attempt has reported since somebody last looked: the first report of each step, in bounded memory."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from hpsearch.scripts.report_lines import Ask, Malformed, Report

_MAX_REPORTS: Final = 100_000
_MAX_BYTES_OF_MORE: Final = 1 << 20  # as JSON; parsed, up to 20 times as much
_MAX_RANGES: Final = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What has come from one attempt since the last batch.

    Args:
        reports: the first report of each step, in the order of arrival.
        ask: the last step whose verdict the script waits for; None if it does not wait.
        num_malformed: lines that are no report.
        malformed: one of them, shortened; None if there are none.
        num_dropped: reports that were dropped because too many came at once.
        is_too_slow: the pattern took too long; from then on the attempt's output is not searched.
        is_output_ended: all writers have closed the output. True in one batch only.
    """

    reports: tuple[Report, ...] = ()
    ask: int | None = None
    num_malformed: int = 0
    malformed: str | None = None
    num_dropped: int = 0
    is_too_slow: bool = False
    is_output_ended: bool = False


class SeenSteps:
    """A set of steps; consecutive ones take the memory of one.

    Args:
        max_ranges: of consecutive steps that are kept apart.
    """

    def __init__(self, max_ranges: int = _MAX_RANGES) -> None:
        self._max_ranges = max_ranges
        # Range i holds the steps from _firsts[i] to _ends[i] - 1; ranges neither overlap nor touch.
        self._firsts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, step: int) -> bool:
        index = bisect_right(self._firsts, step) - 1
        return index >= 0 and step < self._ends[index]

    def add(self, step: int) -> bool:
        """Add a step that is not in the set. Returns False if there is no room for it."""
        index = bisect_right(self._firsts, step)  # of the next range
        continues = index > 0 and self._ends[index - 1] == step
        precedes = index < len(self._firsts) and self._firsts[index] == step + 1
        if continues and precedes:  # closes the gap between two ranges
            self._ends[index - 1] = self._ends.pop(index)
            self._firsts.pop(index)
        elif continues:
            self._ends[index - 1] = step + 1
        elif precedes:
            self._firsts[index] = step
        elif len(self._firsts) >= self._max_ranges:
            return False
        else:
            self._firsts.insert(index, step)
            self._ends.insert(index, step + 1)
        return True


class ReportBuffer:
    """Collects what one attempt reports until it is taken. Safe for several threads.

    Args:
        max_reports: more that come before `take` are dropped and counted.
    """

    def __init__(self, *, max_reports: int = _MAX_REPORTS) -> None:
        self._max_reports = max_reports
        self._lock = threading.Lock()
        self._seen = SeenSteps()
        self._reports: list[Report] = []
        self._num_bytes = 0
        self._rest = Batch()  # of the next batch all but the reports

    def add(self, entries: Iterable[Report | Ask | Malformed], *, num_bytes: int = 0) -> None:
        """Add entries in the order of arrival.

        Args:
            num_bytes: the size of the lines that the entries come from. When it adds up to 1 MB, `more` is dropped.
        """
        with self._lock:
            self._num_bytes += num_bytes
            ask, num_malformed, malformed = self._rest.ask, self._rest.num_malformed, self._rest.malformed
            for entry in entries:
                if isinstance(entry, Report):
                    self._add_report(entry)
                elif isinstance(entry, Ask):
                    ask = max(ask or 0, entry.step)
                else:
                    num_malformed, malformed = num_malformed + 1, malformed or entry.text
            self._note(ask=ask, num_malformed=num_malformed, malformed=malformed)

    def note_slow_pattern(self) -> None:
        with self._lock:
            self._note(is_too_slow=True)

    def note_end_of_output(self) -> None:
        with self._lock:
            self._note(is_output_ended=True)

    def take(self) -> Batch:
        """Return what has come since the last call. An empty batch equals `Batch()`."""
        with self._lock:
            batch = replace(self._rest, reports=tuple(self._reports))
            self._reports, self._num_bytes, self._rest = [], 0, Batch()
        return batch

    def _note(self, **changes: Any) -> None:
        self._rest = replace(self._rest, **changes)

    def _add_report(self, report: Report) -> None:
        if report.step in self._seen:
            return
        if len(self._reports) >= self._max_reports or not self._seen.add(report.step):
            self._note(num_dropped=self._rest.num_dropped + 1)
        elif self._num_bytes > _MAX_BYTES_OF_MORE and report.more:
            self._reports.append(Report(step=report.step, value=report.value))
        else:
            self._reports.append(report)
