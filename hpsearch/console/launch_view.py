"""Messages of `run` and `confirm` on stderr while a study is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from hpsearch.console.notice import say
from hpsearch.console.progress_view import download_progress, follow
from hpsearch.data.files.download import DownloadProgress
from hpsearch.launch.launcher import LaunchListener
from hpsearch.store.progress import Progress
from hpsearch.store.registration import Registration
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy
from hpsearch.wording import counted


class TerminalListener(LaunchListener):
    """Shows the events of a launch as lines, and as progress bars on a terminal.

    Args:
        found: the word for an existing, unchanged study.
    """

    def __init__(self, found: str = "resumed") -> None:
        self._found = found

    def found_finished(self, study: StoredStudy, counts: PointCounts) -> None:
        given_up = f", {counts.failed} were given up" if counts.failed else ""
        say(f"study {study.name!r} is finished: all {counts.total} points are done{given_up}, nothing to run")

    def gpu_is_taken(self, description: str) -> None:
        say(f"in use by another worker: {description}")

    def download(self) -> AbstractContextManager[DownloadProgress | None]:
        return download_progress()

    def prepared(self, registration: Registration, num_workers: int, num_at_once: int | None) -> None:
        workers = f"{counted(num_workers, 'worker')} with {_at_once(registration.study, num_at_once)}"
        say(describe_registration(registration, self._found, f", {workers}"))

    def training(self, study: StoredStudy) -> AbstractContextManager[Callable[[Progress], None]]:
        return follow(study)

    def lanes_changed(self, worker: int, message: str) -> None:
        say(f"worker {worker}: {message}")

    def interrupted(self, study: StoredStudy, num_left: int) -> None:
        say(f"interrupted: {num_left} points are left; the same command resumes the study")


def _at_once(study: StoredStudy, number: int | None) -> str:
    if study.definition.is_program:
        return "as many programs as fit" if number is None else f"{counted(number, 'program')} at once"
    return "the fastest number of lanes" if number is None else f"{counted(number, 'lane')} each"


def describe_registration(registration: Registration, found: str, more: str = "") -> str:
    """`study 'a' widened: 12 new points, 24 in all`, followed by the changes of its definition, one per line.

    Of a new study, the lines tell which task and which columns of a table were chosen.

    Args:
        found: the word for an existing, unchanged study.
        more: text to append to the first line.
    """
    points = counted(registration.num_points, "point")
    state = f"{'created' if registration.is_new else found}: {points}"
    if registration.num_added:
        state = f"widened: {counted(registration.num_added, 'new point')}, {registration.num_points} in all"
    elif registration.num_restored:
        restored = counted(registration.num_restored, "point")
        state += f", {restored} of them again: their trials were deleted by another program"
    elif registration.changes:
        state = f"changed: no new points, {registration.num_points} in all"
    if registration.num_continued:
        going_on = f"{counted(registration.num_continued, 'trial')} that max_epochs had ended"
        state += f"; {going_on} will go on to epoch {registration.study.definition.training.max_epochs}"
    told = registration.study.data_record.get("lines", ()) if registration.is_new else ()
    lines = "".join(f"\n  {line}" for line in (*told, *registration.changes))
    return f"study {registration.study.name!r} {state}{more}{lines}"
