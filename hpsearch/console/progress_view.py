"""Live progress on stderr: bars on a terminal, otherwise a line every ten seconds at most."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from hpsearch.console.notice import say
from hpsearch.console.screen import stderr_console, text_of
from hpsearch.data.files.download import DownloadProgress
from hpsearch.logs import get_logger, is_json_logging
from hpsearch.wording import format_seconds

if TYPE_CHECKING:
    from hpsearch.store.progress import Progress
    from hpsearch.store.studies import StoredStudy

_log = get_logger("progress")
_RATE_WINDOW_SECONDS = 60.0
_LINE_EVERY_SECONDS = 10.0


class EpochRate:
    """Trial-epochs per second over the last minute."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, now: float, epochs: int) -> float:
        """Add the number of epochs at a time (seconds of any clock); returns the rate, 0 while it is not known."""
        if not self._samples or epochs != self._samples[-1][1]:
            self._samples.append((now, epochs))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        first_time, first_epochs = self._samples[0]
        return (epochs - first_epochs) / (now - first_time) if now > first_time else 0.0


@contextlib.contextmanager
def follow(study: StoredStudy) -> Iterator[Callable[[Progress], None]]:
    """Show a study's progress while the context is open.

    Yields:
        A function to call with each new reading of the progress.
    """
    console = stderr_console()
    rate = EpochRate()
    if is_json_logging():
        yield _line_printer(_log.info, rate)
        return
    if not console.is_terminal:
        yield _line_printer(say, rate)
        return
    bar = RichProgress(
        TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn(), expand=True
    )
    task = bar.add_task(study.name, total=study.definition.num_points)
    with Live(bar, console=console, refresh_per_second=4) as live:

        def update(progress: Progress) -> None:
            counts = progress.counts  # the total grows with each round
            bar.update(task, completed=counts.counted + counts.failed, total=counts.total)
            speed = rate.update(time.monotonic(), progress.epochs)
            live.update(Group(bar, text_of(describe(progress, speed)), _running_lines(progress)))

        yield update


def describe(progress: Progress, epochs_per_second: float) -> str:
    """One line: points by state, best so far, speed, time left."""
    counts = progress.counts
    parts = [f"{counts.complete} complete, {counts.pruned} pruned, {counts.running} running, {counts.waiting} waiting"]
    if last := next((row for row in reversed(progress.rounds) if not row.is_end), None):
        parts.insert(0, f"round {last.number}")
    if counts.failed:
        parts.append(f"{counts.failed} FAILED")
    if progress.best_value is not None:
        parts.append(f"best {progress.metric.text(progress.best_value)} (trial {progress.best_trial})")
    if epochs_per_second > 0:
        parts.append(f"{epochs_per_second:.2f} {progress.metric.step}s/s")
    remaining = progress.remaining_seconds(epochs_per_second)
    if remaining is not None and counts.unfinished:
        parts.append(f"about {format_seconds(remaining)} left")
    return " · ".join(parts)


def _running_lines(progress: Progress, most: int = 8) -> Text:
    lines = [
        f"  trial {trial.number:<4} {progress.metric.step} {trial.epoch:<4} {progress.metric.text(trial.value):>8}"
        for trial in progress.running[:most]
    ]
    if len(progress.running) > most:
        lines.append(f"  and {len(progress.running) - most} more")
    return Text("\n".join(lines), style="dim")


def _line_printer(tell: Callable[[str], object], rate: EpochRate) -> Callable[[Progress], None]:
    last_time = -_LINE_EVERY_SECONDS
    last_line = ""

    def update(progress: Progress) -> None:
        nonlocal last_time, last_line
        now = time.monotonic()
        line = describe(progress, rate.update(now, progress.epochs))
        is_due = now - last_time >= _LINE_EVERY_SECONDS or progress.is_finished
        if is_due and line != last_line:
            tell(line)
            last_time, last_line = now, line

    return update


@contextlib.contextmanager
def download_progress() -> Iterator[DownloadProgress]:
    """Show a bar per file that is downloaded, and per set that is decoded. Nothing is shown if the log is JSON."""
    console = stderr_console(quiet=is_json_logging())
    bars = RichProgress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console
    )
    tasks: dict[str, TaskID] = {}

    def update(file_name: str, bytes_done: int, bytes_total: int | None) -> None:
        if not tasks:
            bars.start()
        if file_name not in tasks:
            tasks[file_name] = bars.add_task(file_name, total=bytes_total)
        bars.update(tasks[file_name], completed=bytes_done, total=bytes_total)

    try:
        yield update
    finally:
        if tasks:
            bars.stop()
