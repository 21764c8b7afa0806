"""A worker whose trials are programs: claims points, starts a program for each, records what they report, ends them.

One turn of the loop takes in what has happened, writes it, decides about trials, and starts programs in free slots:

    reports and ends -> record -> prune, stop -> count what has ended -> claim -> start -> wait for news

The programs run in processes of their own, so the loop has time: it writes by itself, all new reports in one statement
and at most once a second, unless a program waits for an answer or has ended. While the database is away, programs go
on for the length of a lease; then others may have their points, and they are ended. A slot is free as soon as nothing
is left of its program; the next point, if one was claimed ahead, is started before the result of the last is written.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from hpsearch.errors import StorageError, SurroundingsError
from hpsearch.logs import get_logger
from hpsearch.search.pruners import is_competitive
from hpsearch.search.stopping import stopping_rule
from hpsearch.signals import LAST_CHECKPOINT_SECONDS, RELEASE_SECONDS, StopSignal
from hpsearch.store.claims.earlier_attempt import take_over_reports
from hpsearch.store.claims.ledger import UNDONE, Claim, Ledger, new_claim_token
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.rows.trial_state import STOPPED_REASON
from hpsearch.store.studies import StoredStudy, stored_definition
from hpsearch.study.program import ProgramSettings
from hpsearch.wording import first_line
from hpsearch.worker.health.life_sign import WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lease_keeper import Presence
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, Ended, News, NotStarted
from hpsearch.worker.programs.pace import Pace
from hpsearch.worker.programs.preparation import CannotStartError, check_values
from hpsearch.worker.programs.program_trial import ProgramTrial
from hpsearch.worker.programs.trial_ends import TrialEnds
from hpsearch.worker.rounds import Advance, advance

if TYPE_CHECKING:
    from hpsearch.worker.programs.objective_trials import ObjectiveTrials  # loads Optuna

_log = get_logger("worker")
T = TypeVar("T")
D = TypeVar("D")

RECORD_SECONDS = 1.0  # between two statements that record reports, while nobody waits for them
COUNT_SECONDS = 0.1  # between two transactions that count trials, while the next points are claimed already
ASK_AGAIN_SECONDS = 2.0  # between two questions to a database that is away

# Errors of a start that pass: no process, memory or descriptor is free, or the program's file is being written.
_PASSING = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})
_MOST_REFUSALS = 30


@dataclass(kw_only=True)
class ProgramWorker:
    """One process, one study, a number of programs at once.

    Args:
        attempts: starts and ends programs, and collects what they report.
        num_slots: number of programs at once.
        device: description of what the programs run on.
        stop: ends the worker when it is set.
        is_device_lost: whether another worker has one of the GPUs, which ends this one like a stop.
    """

    database: Database
    study: StoredStudy
    attempts: Attempts
    num_slots: int
    device: str
    stop: StopSignal
    settings: WorkerSettings
    watchdog: Watchdog = field(default_factory=Watchdog)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    keep: Callable[[], object] = lambda: None
    is_device_lost: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        definition = self.study.definition
        assert definition.program is not None
        self.name = self.settings.name
        self._program: ProgramSettings = definition.program
        self._origin = {"worker": self.name, "device": self.device}
        self._trials: dict[int, ProgramTrial] = {}  # with a process, or whose end is not written, by trial id
        self._ends = TrialEnds(
            attempts=self.attempts,
            program=self._program,
            metrics=self.metrics,
            name=self.name,
            origin=self._origin,
            forget=self._forget,
        )
        self._undrawn: list[Claim] = []  # claimed and not started yet: an outage may interrupt it
        self._claim_token: int | None = None
        self._recorded_at = 0.0
        self._ask_again_at = 0.0
        self._claim_again_at = 0.0
        self._claimed_at = 0.0
        self._last_reap = 0.0
        self._num_restarts = 0
        self._objectives: ObjectiveTrials | None = None
        self._refused: NotStarted | None = None
        self._num_refused = 0  # in a row
        self._start_again_at = 0.0
        self._pace = Pace(self.num_slots)

    @property
    def num_finished(self) -> int:
        """Number of trials that this worker has ended and that are counted."""
        return self._ends.num_finished

    def run(self, ledger: Ledger | None = None) -> int:
        """Work until the study is finished or the worker is asked to stop. Return the number of its finished trials.

        Raises:
            StorageError: the database was away for too long.
            ProgramsFailError: the programs fail one after another.
            CannotStartError: a program cannot be started on this machine.
        """
        ledger = ledger or Ledger(database=self.database, study_id=self.study.study_id)
        database = replace(
            ledger.database,
            on_call=self.metrics.database_called,
            on_retry=self.metrics.database_retries.inc,
            abandoned=self.stop.event,
        )
        ledger = replace(ledger, database=database, max_crashes=max(MAX_CRASHES, self._program.max_attempts))
        with Presence(ledger, watchdog=self.watchdog, keep=self.keep) as presence:
            self._presence, self._ledger = presence, presence.ledger
            self._brief = replace(self._ledger, database=database.brief())
            self._prepare_search()
            self._work()
        return self.num_finished

    def _prepare_search(self) -> None:
        """Load samplers and pruners only for a study that has them: they load Optuna."""
        definition = self.study.definition
        self._drawing = self._competition = None
        if definition.objective is not None:
            from hpsearch.worker.programs.objective_trials import ObjectiveTrials

            self._objectives = self._objectives or ObjectiveTrials(self.study, self.attempts.answer)
        elif definition.is_drawn:
            from hpsearch.worker.drawing import Drawing

            self._drawing = Drawing(self.study)
        if is_competitive(definition.pruning):
            from hpsearch.worker.competition import Competition

            self._competition = Competition(self.study, self._brief)

    def _work(self) -> None:
        try:
            while not self.stop.is_set() and self._turn():
                pass
        except DatabaseAwayError:
            if not self.stop.is_set():
                self._end_all("the database is away")
                raise
        except BaseException as error:
            reason = f"its worker ended: {first_line(error)}"
            self._end_all(reason)
            self._release(reason)
            raise
        self._leave()

    def _leave(self) -> None:
        """End the programs, write what they have reported before, and give their trials back, within seconds."""
        self._take_in(self.attempts.news(0.0))
        self._end_all(STOPPED_REASON)
        self.attempts.wait_for_uploads(LAST_CHECKPOINT_SECONDS)
        try:
            if not self._is_away():
                self._write(self._brief)
        except StorageError as error:
            _log.warning("%s: the last reports were not recorded: %s", self.name, error)
        finally:
            self._release(STOPPED_REASON)

    def _end_all(self, reason: str) -> None:
        """End all programs, and wait until nothing of them is left. What they do from now on is no result."""
        running = self._running()
        for trial in running:
            if trial.is_undecided:
                trial.dismiss(reason)
            self.attempts.end(trial.claim.trial_id, self._program.grace_seconds)
        if running:
            _log.info("%s: ends %d programs: %s", self.name, len(running), reason)
        while self._running():
            news = self.attempts.news(0.2)
            if news.ended:  # a process that cannot be killed must not keep this worker alive for ever
                self.watchdog.note_progress()
            self._take_in(news)

    def _release(self, reason: str) -> None:
        database = replace(self._ledger.database.brief(), patience_seconds=RELEASE_SECONDS)
        try:
            num_released = replace(self._ledger, database=database).release(reason)
        except StorageError as error:
            _log.warning("%s: its trials could not be given back; their leases will expire: %s", self.name, error)
            return
        if num_released:
            _log.info("%s: %s; %d trials given back", self.name, reason, num_released)

    # One turn

    def _turn(self) -> bool:
        """Take in what has happened, write it, and start programs. Return False if the study is finished."""
        self.watchdog.note_progress()
        if self.is_device_lost():
            return False
        self._guard_lease()
        if self._ledger.holdings.num_restarts != self._num_restarts:
            self._note_restart()
        self._reap_now_and_then()
        for trial in self._running():
            trial.check_time()
        self._serve()
        if not self._is_renewal_due():
            self._start_claimed()
        if self._is_write_due() and not self._is_away():
            self._ask(self._write, None)
        self._end_decided()
        self._fill()
        if not self._trials and not self._undrawn:
            self.metrics.life_sign.renew(WorkerState.IDLE)
            return self._look_around()
        state = WorkerState.DATABASE_AWAY if self._is_away() else WorkerState.TRAINING
        self.metrics.life_sign.renew(state, f"{len(self._running())} programs")
        self.metrics.lanes_busy.set(len(self._running()))
        self._take_in(self.attempts.news(self._seconds_to_wait()))
        if self._refused is not None:
            raise CannotStartError(
                f"{self._program.section} cannot be started: {self._refused.message}",
                hint="no attempt was spent; mend the command or this machine, and start the worker again",
            )
        return True

    def _serve(self) -> None:
        """Answer the objectives: their parameters are drawn and stored one by one."""
        if self._objectives is not None:
            running = {trial.claim.trial_id: trial for trial in self._running()}
            objectives = self._objectives
            self._note_lost(self._ask(lambda ledger: objectives.serve(ledger, running), []))

    def _running(self) -> list[ProgramTrial]:
        return [trial for trial_id, trial in self._trials.items() if trial_id not in self._ends]

    def _seconds_to_wait(self) -> float:
        if self._is_away():
            return 0.5
        seconds = RECORD_SECONDS
        if self._ends.can_be_written:
            seconds = COUNT_SECONDS
        elif not any(trial.unrecorded for trial in self._trials.values()):
            return RECORD_SECONDS
        return min(seconds, max(0.0, self._recorded_at + seconds - time.monotonic()))

    def _guard_lease(self) -> None:
        """End the programs if the leases could not be renewed for their length: others may have their points."""
        now, lease = time.monotonic(), self._ledger.lease_seconds
        if min(self._presence.seconds_since_renewal, now - self._recorded_at) < lease:
            return
        # After an outage, trials may be claimed before the leases of all are renewed again: they have one of their own.
        cut_off = [trial for trial in self._running() if not trial.is_lost and trial.seconds >= lease]
        for trial in cut_off:
            trial.lose("its worker was cut off from the database for the length of a lease")
        for claim in list(self._undrawn) if now - self._claimed_at >= lease else ():
            self._lose(claim)
        if cut_off:
            _log.warning("%s: cut off from the database for the length of a lease: its programs are ended", self.name)

    def _note_restart(self) -> None:
        """Handle a restart of the server, which may have older data.

        Raises:
            StorageError: the study's id now belongs to another study.
        """
        num_restarts = self._ledger.holdings.num_restarts
        definition = self._ask(lambda ledger: stored_definition(ledger.database, ledger.study_id), None)
        if definition is None:
            return
        self._prepare_search()
        self._num_restarts = num_restarts
        if definition.value_sha256 != self.study.definition.value_sha256:
            raise StorageError(
                f"the database was restored to older data: study number {self.study.study_id} is another study now",
                hint=f"restart the workers of study {self.study.name}",
            )

    def _reap_now_and_then(self) -> None:
        if not self._trials or time.monotonic() - self._last_reap > self._ledger.absence_seconds:
            self._last_reap = time.monotonic()
            num_requeued = self._ask(Ledger.reap, 0) + self._ask(Ledger.give_back_ended_outside, 0)
            if num_requeued:
                _log.warning("%s: %d trials of dead workers, or ended outside, queued again", self.name, num_requeued)

    def _look_around(self) -> bool:
        """Open the next round if it is due, or wait. Return False if the study is finished."""
        found = advance(self._ledger.database, self.study.study_id)
        if found is Advance.UNFINISHED:
            self.stop.wait(self.settings.poll_seconds)
        elif found is Advance.ENDED:
            self.attempts.remove_folders(self._ledger.counted_points() - {self._ledger.best_point()})
        return found is not Advance.ENDED

    # News

    def _take_in(self, news: News) -> None:
        for trial_id, batch in news.batches.items():
            trial = self._trials.get(trial_id)
            if trial is None:
                continue
            trial.take_in(batch.reports)
            if batch.ask is not None:
                trial.asks, trial.asked = True, batch.ask
            if batch.is_too_slow:
                trial.fail("its pattern takes too long on its output: simplify [command] pattern")
        if self._objectives is not None:
            self._objectives.take_in(news.messages, self._trials)
        for end in news.ended:
            trial = self._trials.get(end.key)
            if trial is None:
                continue
            if trial.ending is not None and trial.ending.cannot_start:
                self._refuse(NotStarted(key=end.key, error_number=0, message=trial.ending.failure or ""))
            else:
                self._note_end(trial, end, is_orphaned=end.key in news.orphaned)
        for refused in news.refused:
            self._refuse(refused)

    def _refuse(self, refused: NotStarted) -> None:
        """Note that a program cannot be started: its trial is given back with all others when the worker ends.

        A machine without processes or descriptors to spare is asked again for a while.
        """
        trial = self._trials.pop(refused.key, None)
        self.attempts.forget(refused.key)
        self._num_refused += 1
        if trial is not None and refused.error_number in _PASSING and self._num_refused < _MOST_REFUSALS:
            _log.warning("%s: trial %d cannot be started now: %s", self.name, trial.claim.number, refused.message)
            self._undrawn.append(trial.claim)
            self._start_again_at = time.monotonic() + ASK_AGAIN_SECONDS
        else:
            self._refused = refused

    def _note_end(self, trial: ProgramTrial, end: Ended, *, is_orphaned: bool) -> None:
        if trial.is_undecided and self.stop.is_set():
            # Whoever stops this worker may have sent the signal to its programs, too.
            trial.dismiss(STOPPED_REASON)
        self._num_refused = 0
        self._ends.note(trial, end, is_orphaned=is_orphaned)
        if trial.is_open:
            self._pace.note(trial.seconds)

    # Writing

    def _is_write_due(self) -> bool:
        if any(trial.asked is not None for trial in self._trials.values()) or self._is_renewal_due():
            return True
        seconds = time.monotonic() - self._recorded_at
        if self._ends.can_be_written:
            return not self._undrawn or seconds >= COUNT_SECONDS
        return seconds >= RECORD_SECONDS and any(trial.unrecorded for trial in self._trials.values())

    def _is_renewal_due(self) -> bool:
        """Whether it is time to look if the trials are still this worker's, which may have been stopped meanwhile."""
        return bool(self._trials) and time.monotonic() - self._recorded_at > self._ledger.lease_seconds / 3

    def _write(self, ledger: Ledger) -> None:
        """Record all new reports, decide about the trials, and count those that have ended.

        Raises:
            DatabaseAwayError: nothing of it is lost; the call can be repeated.
        """
        reported = {i: list(t.unrecorded) for i, t in self._trials.items() if t.unrecorded and not t.is_lost}
        previous = {i: self._trials[i].recorded for i in reported}
        records, began = self._ends.records(), time.monotonic()
        held = ledger.record_steps(reported, previous, records)
        self._recorded_at = began  # it has renewed the leases, too
        for trial_id, reports in reported.items():
            if trial_id in held:
                trial = self._trials[trial_id]
                trial.recorded = reports[-1].step
                del trial.unrecorded[: len(reports)]
        self._note_lost([i for i, trial in self._trials.items() if i not in held and not trial.is_lost])
        for claim in [claim for claim in self._undrawn if claim.trial_id not in held]:
            self._lose(claim)
        self._prune()
        self._answer()
        self._ends.write(ledger)

    def _forget(self, trial_id: int) -> None:
        self._trials.pop(trial_id, None)
        self._claim_again_at = 0.0  # its point may wait again

    def _note_lost(self, trial_ids: Collection[int]) -> None:
        for trial_id in trial_ids:
            trial = self._trials[trial_id]
            trial.lose("another worker has it")
            number = trial.claim.number
            _log.warning("%s: lost trial %d to another worker", self.name, number, extra={"trial": number})
        self.metrics.fenced_writes.inc(len(trial_ids))

    def _prune(self) -> None:
        if self._competition is None:
            return
        undecided = {
            trial.claim.trial_id: trial
            for trial in self._running()
            if trial.is_undecided and trial.recorded and not trial.unrecorded
        }
        for trial_id in self._competition.losers(list(undecided), undecided):
            undecided[trial_id].prune(self.study.definition.pruning.pruner)

    def _answer(self) -> None:
        """Tell the programs that have asked whether they should stop: the pruner has seen their last report."""
        for trial in self._running():
            if trial.asked is not None and not trial.unrecorded:
                stop = not trial.is_open
                self.attempts.tell(trial.claim.trial_id, max(trial.asked, trial.last_step), stop=stop)
                trial.asked = None

    def _end_decided(self) -> None:
        """End the programs of trials that are decided. A program that has asked, and was told, ends by itself first."""
        now, grace = time.monotonic(), self._program.grace_seconds
        for trial in self._running():
            if trial.is_overdue(grace):
                self.attempts.end(trial.claim.trial_id, grace)
            if trial.counts and (trial.ending is not None or trial.decision is None):
                continue
            is_told = trial.asks and trial.counts
            if trial.told_to_end_at is None:
                trial.told_to_end_at = now
                self.attempts.tell(trial.claim.trial_id, trial.last_step, stop=True)
            if not is_told or now - trial.told_to_end_at > grace:
                self.attempts.end(trial.claim.trial_id, grace)

    # Starting

    def _start_claimed(self) -> bool:
        """Start points that are claimed already in free slots. Return False if that cannot be done now."""
        if time.monotonic() < self._start_again_at:
            return False
        while self._undrawn and self.attempts.num_free and not self.stop.is_set():
            if (self._trials and self._is_away()) or not self._ask(self._start, False):
                return False
        return True

    def _fill(self) -> None:
        """Start points in all free slots, and claim some ahead if the programs are short."""
        while self._start_claimed() and not self.stop.is_set() and not self._is_away():
            num_ahead = 0 if self._drawing is not None and self._drawing.learns else self._pace.num_ahead
            is_enough = len(self._undrawn) > num_ahead // 2 or not num_ahead
            if (is_enough and not self.attempts.num_free) or time.monotonic() < self._claim_again_at:
                return
            claims = self._ask(partial(self._claim, num_ahead=num_ahead), [])
            if not claims:
                # Each report wakes this loop up; not each of them is a reason to look for points again.
                self._claim_again_at = time.monotonic() + self.settings.poll_seconds if self._trials else 0.0
                return
            self._undrawn += claims

    def _claim(self, ledger: Ledger, num_ahead: int) -> list[Claim]:
        """Claim points for all free slots, and so many more."""
        self._claim_token = self._claim_token or new_claim_token()
        number = self._share(ledger, self.attempts.num_free + num_ahead - len(self._undrawn))
        began = time.monotonic()
        claims = ledger.claim(number, token=self._claim_token, attributes=self._origin)
        self._claimed_at = began
        self._claim_token = None
        again = [claim for claim in claims if claim.trial_id in self._trials]
        self._note_lost([claim.trial_id for claim in again])  # the database has lost the first claim
        if again:
            ledger.give_back([claim.hold for claim in again], UNDONE)
        return [claim for claim in claims if claim not in again]

    def _share(self, ledger: Ledger, number: int) -> int:
        """Sampling learns from ended trials, so a worker then claims one point at a time."""
        return 1 if self._drawing is not None and self._drawing.learns else number

    def _start(self, ledger: Ledger) -> bool:
        """Start the next claimed point. Return False if nothing more can be started now."""
        claim = self._undrawn[0]
        if self._drawing is not None and not claim.is_continued:
            parameters = self._drawing.draw(ledger, claim)
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
        self._undrawn.pop(0)
        trial = self._trials[claim.trial_id] = self._new_trial(claim)
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
        self._start_again_at = time.monotonic() + ASK_AGAIN_SECONDS

    def _new_trial(self, claim: Claim) -> ProgramTrial:
        rule = stopping_rule(self.study.definition.stopping, num_minibatches=1)
        return ProgramTrial(claim=claim, program=self._program, rule=rule, results=self.attempts.results_of(claim))

    def _lose(self, claim: Claim) -> None:
        self._undrawn = [other for other in self._undrawn if other.hold != claim.hold]
        self._ledger.holdings.drop([claim.hold])
        _log.warning("%s: lost trial %d before it started", self.name, claim.number, extra={"trial": claim.number})

    # The database

    def _ask(self, question: Callable[[Ledger], T], default: D) -> T | D:
        """Ask the ledger. While programs run, do not wait: return the default if the database is away."""
        if not self._running():
            return question(self._ledger)
        if self._is_away():
            return default
        try:
            return question(self._brief)
        except DatabaseAwayError:
            self._ask_again_at = time.monotonic() + ASK_AGAIN_SECONDS
            return default

    def _is_away(self) -> bool:
        return time.monotonic() < self._ask_again_at
