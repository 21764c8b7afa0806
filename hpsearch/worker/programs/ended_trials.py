"""The trials of one worker whose programs have ended, until that is written: counted, failed, or given back.

How a program has ended is decided by `failure` and `result` of `ProgramTrial` (program_trial.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hpsearch.artifacts.record import artifact_record
from hpsearch.errors import HpsearchError
from hpsearch.logs import get_logger
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.trial_state import LAST_LINES
from hpsearch.study.program import ProgramSettings
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.programs.attempts import Attempts, Ended
from hpsearch.worker.programs.program_trial import ProgramTrial

_log = get_logger("worker")

# When a worker gives up: its programs fail one after another, so the command is probably wrong.
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


@dataclass(kw_only=True)
class EndedTrials:
    """What has ended and is not written.

    Args:
        origin: attributes of each result: where it is from.
        forget: called with the id of each trial whose end is written.
        num_finished: number of trials that this worker has ended and that are counted.
    """

    attempts: Attempts
    program: ProgramSettings
    metrics: WorkerMetrics
    name: str
    origin: Mapping[str, str]
    forget: Callable[[int], object]
    num_finished: int = 0
    _ended: dict[int, tuple[ProgramTrial, Ended]] = field(default_factory=dict)
    _renewed: set[int] = field(default_factory=set)  # points that were tried with an empty folder again
    _orphaned: set[int] = field(default_factory=set)
    _ready: set[int] = field(default_factory=set)  # whose outputs `records` has named, or that have none
    _failures: Failures = field(default_factory=Failures)
    _best_loss: float | None = None  # of the study, as far as this worker knows
    _to_keep: list[tuple[Claim, Result]] = field(default_factory=list)  # counted; what becomes of their folders is open

    def note(self, trial: ProgramTrial, end: Ended, *, is_orphaned: bool) -> None:
        """Take in that a program has ended.

        Args:
            is_orphaned: with its keeper, which was killed.
        """
        trial_id = trial.claim.trial_id
        trial.ended_at = time.monotonic()
        self._ended[trial_id] = trial, end
        if is_orphaned and trial.is_undecided:
            trial.dismiss("its keeper was killed")
            self._orphaned.add(trial_id)
        if trial.counts:
            self.attempts.store_output(trial_id)

    def __contains__(self, trial_id: object) -> bool:
        """Whether the program of this trial has ended."""
        return trial_id in self._ended

    @property
    def can_be_written(self) -> bool:
        """Whether the end of some trial can be written: some must wait until their folder is uploaded."""
        return bool(self._to_keep) or any(self._is_ready(trial_id) for trial_id in self._ended)

    def _is_ready(self, trial_id: int) -> bool:
        """Whether the files of an ended trial are stored, as far as the trial must name them."""
        return not self.attempts.is_uploading(trial_id) and not self.attempts.is_storing(trial_id)

    def records(self) -> list[tuple[int, str, Any]]:
        """The system attributes that name the stored outputs of these trials, as the ledger takes them.

        `write` then counts these trials: Optuna's tables take no records of trials that have ended.
        """
        self._ready = {trial_id for trial_id in self._ended if not self.attempts.is_storing(trial_id)}
        outputs = self.attempts.stored_outputs({i for i in self._ready if self._ended[i][0].counts})
        return [(i, *artifact_record(artifact_id, "output.txt", "text/plain")) for i, artifact_id in outputs.items()]

    def write(self, ledger: Ledger) -> None:
        """Count the trials that have a result, and give the others back. All their reports are recorded.

        Raises:
            DatabaseAwayError: nothing is lost; the call can be repeated.
            ProgramsFailError: too many of them have failed.
        """
        self._count(ledger)
        self._give_back(ledger)

    def _count(self, ledger: Ledger) -> None:
        ended = [(t, end) for i, (t, end) in self._ended.items() if t.counts and i in self._ready]
        results = [t.result(self.origin) for t, end in ended if t.failure(end.exit_code, end.signal) is None]
        counted = ledger.finish(results)
        for result in results:
            trial, _ = self._ended[result.trial_id]
            if result.trial_id in counted:
                self._failures.note_result()
                self.num_finished += 1
                self.metrics.trials_ended[result.outcome].inc()
                self._to_keep.append((trial.claim, result))
            self._close(result.trial_id)
        while self._to_keep:
            claim, result = self._to_keep[0]
            self.attempts.keep_folder(claim, is_best=self._is_best(ledger, claim, result))
            del self._to_keep[0]

    def _is_best(self, ledger: Ledger, claim: Claim, result: Result) -> bool:
        """Whether this is now the study's best trial, the first of several. Raises DatabaseAwayError."""
        if result.outcome is not Outcome.COMPLETE or result.loss is None:
            return False
        if self._best_loss is not None and result.loss > self._best_loss:
            return False
        self._best_loss = result.loss
        return ledger.best_point() == claim.point

    def _give_back(self, ledger: Ledger) -> None:
        """Give back the trials that have ended without a result, for whatever reason."""
        mine = ledger.holdings.now()
        for trial_id, (trial, end) in list(self._ended.items()):
            if trial_id not in self._ready:
                continue
            why = trial.failure(end.exit_code, end.signal) if trial.counts else None
            if not trial.is_lost and not self.attempts.is_uploaded(trial_id):
                continue  # the next attempt, on another machine, begins with its files
            if why is not None and self._may_be_ahead(trial, end):
                ledger.give_back([trial.claim.hold], f"{why}, and had gone on from an earlier attempt's files")
                self._renewed.add(trial.claim.point)
                self.attempts.begin_anew(trial.claim)
                why = None
            elif why is not None:
                self._give_back_failed(ledger, trial, why)
            elif trial.claim.hold in mine:
                ledger.give_back([trial.claim.hold], trial.reason, is_crash=trial_id in self._orphaned)
            self._close(trial_id)
            if why is not None and self._failures.may_be_too_many:
                has_results = bool(self.num_finished) or ledger.counts().counted > 0
                self._failures.check(self.attempts.describe(trial.claim), has_results=has_results)

    def _may_be_ahead(self, trial: ProgramTrial, end: Ended) -> bool:
        """Whether the attempt may have gone on from files that are ahead of what is recorded, and had nothing to do.

        The reports of a worker's last second die with it, and the program's files do not. The point is then tried with
        an empty folder, once by each worker.
        """
        has_reported_nothing = trial.best is None and end.exit_code == 0 and trial.decision is None
        is_new = trial.claim.point not in self._renewed
        return has_reported_nothing and is_new and self.attempts.began_with_files(end.key)

    def _give_back_failed(self, ledger: Ledger, trial: ProgramTrial, why: str) -> None:
        tail = self.attempts.tail(trial.claim.trial_id)
        reason = f"{why}{LAST_LINES}{tail}" if tail else f"{why}; it printed nothing"
        ledger.give_back([trial.claim.hold], reason, max_attempts=self.program.max_attempts)
        number = trial.claim.number
        _log.warning("%s: trial %d %s", self.name, number, why, extra={"trial": number})
        self._failures.note(f"trial {number} {reason}")

    def _close(self, trial_id: int) -> None:
        self._ended.pop(trial_id)
        self._orphaned.discard(trial_id)
        self.attempts.forget(trial_id)
        self.forget(trial_id)
