"""When a worker gives up: its programs fail one after another, so the command is probably wrong."""

from __future__ import annotations

from hpsearch.errors import HpsearchError

FIRST_FAILURES = 5  # attempts of a study that has no result yet
FAILURES_IN_A_ROW = 20


class ProgramsFailError(HpsearchError):
    """The programs of a study fail one after another."""


class Failures:
    """Counts attempts that failed since one last had a result."""

    def __init__(self) -> None:
        self._number = 0
        self._last = ""

    def note_result(self) -> None:
        self._number = 0

    def note(self, failure: str) -> None:
        """Count one.

        Args:
            failure: which trial, why, and its last lines.
        """
        self._number += 1
        self._last = failure

    @property
    def may_be_too_many(self) -> bool:
        """Whether it is too many for a study that has no result yet."""
        return self._number >= FIRST_FAILURES

    def check(self, command: str, *, has_results: bool) -> None:
        """Raises ProgramsFailError: there were too many.

        Args:
            command: of the last one.
            has_results: some trial of the study was counted.
        """
        if self._number >= (FAILURES_IN_A_ROW if has_results else FIRST_FAILURES):
            raise ProgramsFailError(
                f"{self._number} attempts in a row failed; {command}\n{self._last}",
                hint="points that were not tried are still waiting; mend the program, and run the same command again",
            )
