"""Which programs a worker starts: it claims points, a few of them ahead, and starts their programs in free slots."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, final

from hpsearch.errors import SurroundingsError
from hpsearch.logs import get_logger
from hpsearch.search.stopping import stopping_rule
from hpsearch.signals import StopSignal
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.earlier_attempt import take_over_reports
from hpsearch.store.claims.ledger import UNDONE, Ledger, new_claim_token
from hpsearch.store.studies import StoredStudy
from hpsearch.study.program import ProgramSettings
from hpsearch.worker.ledger_access import LedgerAccess
from hpsearch.worker.programs.attempts import Attempts, NotStarted
from hpsearch.worker.programs.preparation import CannotStartError, check_values
from hpsearch.worker.programs.program_trial import ProgramTrial
from hpsearch.worker.programs.slots import Pace

if TYPE_CHECKING:
    from hpsearch.worker.drawing import Drawing  # loads Optuna

_log = get_logger("worker")

START_AGAIN_SECONDS = 2.0  # between two attempts to start a program, if the machine has no room
# Errors of a start that pass: no process, memory or descriptor is free, or the program's file is being written.
_PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})
_MOST_REFUSALS = 30


@final
@dataclass(kw_only=True)
class ProgramStarts:
    """The points that one worker has claimed and not started yet. For use by one thread.

    Args:
        origin: attributes that a trial has from the start: where it runs.
        poll_seconds: between two looks for points, if there were none.
        num_slots: number of programs at once.
        trials: of the worker, by trial id; those that are started are added.
        note_lost: called with the ids of trials that no longer belong to the worker.
        claimed: claimed and not started yet: an outage may interrupt it.
    """

    study: StoredStudy
    attempts: Attempts
    access: LedgerAccess
    stop: StopSignal
    name: str
    origin: Mapping[str, str]
    poll_seconds: float
    num_slots: int
    trials: dict[int, ProgramTrial]
    note_lost: Callable[[Collection[int]], None]
    claimed: list[Claim] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        program = self.study.definition.program
        assert program is not None
        self._program: ProgramSettings = program
        self._pace = Pace(self.num_slots)
        self._drawing: Drawing | None = None
        self._claim_token: int | None = None  # of a claim whose answer was lost
        self._claimed_at = 0.0
        self._claim_again_at = 0.0
        self._start_again_at = 0.0
        self._refused: NotStarted | None = None
        self._num_refused = 0  # in a row
        self.forget_history()

    def forget_history(self) -> None:
        """Forget what the sampler knows of other trials; it reads them again. Only a study that draws loads Optuna."""
        definition = self.study.definition
        if definition.objective is None and definition.is_drawn:
            from hpsearch.worker.drawing import Drawing

            self._drawing = Drawing(self.study)

    def look_again(self) -> None:
        """Look for points at the next call of `fill`, whatever the last look has found."""
        self._claim_again_at = 0.0

    def note_end(self, trial: ProgramTrial) -> None:
        """Take in that a program has ended: this machine can start programs, and this one took so long."""
        self._num_refused = 0
        if trial.is_open:
            self._pace.note(trial.seconds)

    def refuse(self, refused: NotStarted, claim: Claim | None) -> None:
        """Note that a program cannot be started: its trial is given back with all others when the worker ends.

        A machine without processes or descriptors to spare is asked again for a while.

        Args:
            claim: of the trial; None: it no longer belongs to this worker.
        """
        self._num_refused += 1
        if claim is not None and refused.error_number in _PASSING and self._num_refused < _MOST_REFUSALS:
            _log.warning("%s: trial %d cannot be started now: %s", self.name, claim.number, refused.message)
            self.claimed.append(claim)
            self._start_again_at = time.monotonic() + START_AGAIN_SECONDS
        else:
            self._refused = refused

    def check_refused(self) -> None:
        """Raise CannotStartError if a program could not be started."""
        if self._refused is not None:
            raise CannotStartError(
                f"{self._program.section} cannot be started: {self._refused.message}",
                hint="no attempt was spent; mend the command or this machine, and start the worker again",
            )

    def drop_lost(self, held: Collection[int]) -> None:
        """Drop the claimed points whose trials are not among these, which the worker still holds."""
        for claim in [claim for claim in self.claimed if claim.trial_id not in held]:
            self._lose(claim)

    def drop_older(self, seconds: float) -> None:
        """Drop the claimed points if the last claim is as old as this."""
        if time.monotonic() - self._claimed_at >= seconds:
            for claim in list(self.claimed):
                self._lose(claim)

    def start_claimed(self) -> bool:
        """Start points that are claimed already in free slots. Return False if that cannot be done now."""
        if time.monotonic() < self._start_again_at:
            return False
        while self.claimed and self.attempts.num_free and not self.stop.is_set():
            if (self.trials and self.access.is_away) or not self.access.ask(self._start, False):
                return False
        return True

    def fill(self) -> None:
        """Start points in all free slots, and claim some ahead if the programs are short."""
        while self.start_claimed() and not self.stop.is_set() and not self.access.is_away:
            num_ahead = 0 if self._learns else self._pace.num_ahead
            is_enough = len(self.claimed) > num_ahead // 2 or not num_ahead
            if (is_enough and not self.attempts.num_free) or time.monotonic() < self._claim_again_at:
                return
            claims = self.access.ask(partial(self._claim, num_ahead=num_ahead), [])
            if not claims:
                # Each report wakes this loop up; not each of them is a reason to look for points again.
                self._claim_again_at = time.monotonic() + self.poll_seconds if self.trials else 0.0
                return
            self.claimed += claims

    def _claim(self, ledger: Ledger, num_ahead: int) -> list[Claim]:
        """Claim points for all free slots, and so many more."""
        self._claim_token = self._claim_token or new_claim_token()
        number = 1 if self._learns else self.attempts.num_free + num_ahead - len(self.claimed)
        began = time.monotonic()
        claims = ledger.claim(number, token=self._claim_token, attributes=self.origin)
        self._claimed_at = began
        self._claim_token = None
        again = [claim for claim in claims if claim.trial_id in self.trials]
        self.note_lost([claim.trial_id for claim in again])  # the database has lost the first claim
        if again:
            ledger.give_back([claim.hold for claim in again], UNDONE)
        return [claim for claim in claims if claim not in again]

    @property
    def _learns(self) -> bool:
        """Whether points are drawn from what has ended so far: then one point is claimed at a time."""
        return self._drawing is not None and self._drawing.learns

    def _start(self, ledger: Ledger) -> bool:
        """Start the next claimed point. Return False if nothing more can be started now."""
        claim = self.claimed[0]
        if self._drawing is not None and not claim.is_continued:
            parameters = self._drawing.draw(ledger, [claim]).get(claim.trial_id)
            if parameters is None:
                self._lose(claim)
                return True
            claim = replace(claim, parameters=parameters)
        # Counted matches begin at 1 in each attempt, whether its program goes on or begins again: their steps cannot be
        # compared with those of an earlier attempt.
        takes_over = claim.attempt > 1 and not self._program.counts_matches
        reports = take_over_reports(ledger, claim) if takes_over else []
        if reports is None:
            self._lose(claim)
            return True
        check_values(self.study.definition, claim.parameters)
        try:
            self.attempts.start(claim)
        except OSError as error:
            self._wait_for_room(error)
            return False
        self.claimed.pop(0)
        trial = self.trials[claim.trial_id] = self._new_trial(claim)
        trial.take_over(reports)
        values = self.name, claim.number, claim.attempt, dict(claim.parameters)
        _log.debug("%s: trial %d starts, attempt %d: %s", *values, extra={"trial": claim.number})
        return True

    def _wait_for_room(self, error: OSError) -> None:
        """Try again later to start a program, if the machine had no descriptors or memory to spare.

        Raises:
            SurroundingsError: it has not had any for a while, or for another reason.
        """
        self._num_refused += 1
        why = error.strerror or str(error)
        if error.errno not in _PASSING or self._num_refused >= _MOST_REFUSALS:
            raise SurroundingsError(
                f"a program cannot be started: {why}", hint="lower --lanes, or raise the limit (ulimit -n)"
            ) from error
        _log.warning("%s: a program cannot be started now: %s", self.name, why)
        self._start_again_at = time.monotonic() + START_AGAIN_SECONDS

    def _new_trial(self, claim: Claim) -> ProgramTrial:
        rule = stopping_rule(self.study.definition.stopping, num_minibatches=1)
        return ProgramTrial(claim=claim, program=self._program, rule=rule, results=self.attempts.results_of(claim))

    def _lose(self, claim: Claim) -> None:
        self.claimed = [other for other in self.claimed if other.hold != claim.hold]
        self.access.ledger.holdings.drop([claim.hold])
        _log.warning("%s: lost trial %d before it started", self.name, claim.number, extra={"trial": claim.number})
