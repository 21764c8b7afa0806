"""A worker whose trials are programs: claims points, starts a program for each, records what they report, ends them.

One turn of the loop takes in what has happened, writes it, decides about trials, and starts programs in free slots:

    reports and ends -> record -> prune, stop -> count what has ended -> claim -> start -> wait for news

The programs run in processes of their own, so the loop has time: it writes by itself, all new reports in one statement
and at most once a second, unless a program waits for an answer or has ended. While the database is away, programs go
on for the length of a lease; then others may have their points, and they are ended. A slot is free as soon as nothing
is left of its program; the next point, if one was claimed ahead, is started before the result of the last is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.search.pruners import is_competitive
from hpsearch.signals import LAST_CHECKPOINT_SECONDS, StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.rows.trial_state import STOPPED_REASON
from hpsearch.store.studies import StoredStudy, stored_definition
from hpsearch.study.program import ProgramSettings
from hpsearch.wording import counted, first_line
from hpsearch.worker.health.life_sign import WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lease_keeper import Presence
from hpsearch.worker.ledger_access import LedgerAccess
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, Ended, News, NotStarted
from hpsearch.worker.programs.ended_trials import EndedTrials
from hpsearch.worker.programs.program_starts import ProgramStarts
from hpsearch.worker.programs.program_trial import ProgramTrial
from hpsearch.worker.rounds import Advance, advance
from hpsearch.worker.upkeep import Reaper, check_same_study, give_back_all

if TYPE_CHECKING:
    from hpsearch.worker.programs.objective_trials import ObjectiveTrials  # loads Optuna

_log = get_logger("worker")

RECORD_SECONDS = 1.0  # between two statements that record reports, while nobody waits for them
COUNT_SECONDS = 0.1  # between two transactions that count trials, while the next points are claimed already


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
        self._ends = EndedTrials(
            attempts=self.attempts,
            program=self._program,
            metrics=self.metrics,
            name=self.name,
            origin=self._origin,
            forget=self._forget,
        )
        self._recorded_at = 0.0
        self._reaper = Reaper(name=self.name)
        self._num_restarts = 0
        self._objectives: ObjectiveTrials | None = None

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
            self._access = LedgerAccess(ledger=self._ledger, is_busy=lambda: bool(self._running()))
            self._starts = ProgramStarts(
                study=self.study,
                attempts=self.attempts,
                access=self._access,
                stop=self.stop,
                name=self.name,
                origin=self._origin,
                poll_seconds=self.settings.poll_seconds,
                num_slots=self.num_slots,
                trials=self._trials,
                note_lost=self._note_lost,
            )
            self._prepare_search()
            self._work()
        return self.num_finished

    def _prepare_search(self) -> None:
        """Load samplers and pruners only for a study that has them: they load Optuna."""
        definition = self.study.definition
        self._competition = None
        if definition.objective is not None:
            from hpsearch.worker.programs.objective_trials import ObjectiveTrials

            self._objectives = self._objectives or ObjectiveTrials(self.study, self.attempts.answer)
        if is_competitive(definition.pruning):
            from hpsearch.worker.competition import Competition

            self._competition = Competition(self.study, self._access.brief)

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
            give_back_all(self._ledger, self.name, reason)
            raise
        self._leave()

    def _leave(self) -> None:
        """End the programs, write what they have reported before, and give their trials back, within seconds."""
        self._take_in(self.attempts.news(0.0))
        self._end_all(STOPPED_REASON)
        self.attempts.wait_for_uploads(LAST_CHECKPOINT_SECONDS)
        try:
            if not self._access.is_away:
                self._write(self._access.brief)
        except StorageError as error:
            _log.warning("%s: the last reports were not recorded: %s", self.name, error)
        finally:
            give_back_all(self._ledger, self.name, STOPPED_REASON)

    def _end_all(self, reason: str) -> None:
        """End all programs, and wait until nothing of them is left. What they do from now on is no result."""
        running = self._running()
        for trial in running:
            if trial.is_undecided:
                trial.dismiss(reason)
            self.attempts.end(trial.claim.trial_id, self._program.grace_seconds)
        if running:
            _log.info("%s: ends %s: %s", self.name, counted(len(running), "program"), reason)
        while self._running():
            news = self.attempts.news(0.2)
            if news.ended:  # a process that cannot be killed must not keep this worker alive for ever
                self.watchdog.note_progress()
            self._take_in(news)

    # One turn

    def _turn(self) -> bool:
        """Take in what has happened, write it, and start programs. Return False if the study is finished."""
        self.watchdog.note_progress()
        if self.is_device_lost():
            return False
        self._guard_lease()
        if self._ledger.holdings.num_restarts != self._num_restarts:
            self._note_restart()
        self._reaper.reap(self._access, is_idle=not self._trials)
        for trial in self._running():
            trial.check_time()
        self._serve()
        if not self._is_renewal_due():
            self._starts.start_claimed()
        if self._is_write_due() and not self._access.is_away:
            self._access.ask(self._write, None)
        self._end_decided()
        self._starts.fill()
        if not self._trials and not self._starts.claimed:
            self.metrics.life_sign.renew(WorkerState.IDLE)
            return self._look_around()
        state = WorkerState.DATABASE_AWAY if self._access.is_away else WorkerState.TRAINING
        self.metrics.life_sign.renew(state, f"{len(self._running())} programs")
        self.metrics.lanes_busy.set(len(self._running()))
        self._take_in(self.attempts.news(self._seconds_to_wait()))
        self._starts.check_refused()
        return True

    def _serve(self) -> None:
        """Answer the objectives: their parameters are drawn and stored one by one."""
        if self._objectives is not None:
            running = {trial.claim.trial_id: trial for trial in self._running()}
            objectives = self._objectives
            self._note_lost(self._access.ask(lambda ledger: objectives.serve(ledger, running), []))

    def _running(self) -> list[ProgramTrial]:
        return [trial for trial_id, trial in self._trials.items() if trial_id not in self._ends]

    def _seconds_to_wait(self) -> float:
        if self._access.is_away:
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
        self._starts.drop_older(lease)
        if cut_off:
            _log.warning("%s: cut off from the database for the length of a lease: its programs are ended", self.name)

    def _note_restart(self) -> None:
        """Handle a restart of the server, which may have older data.

        Raises:
            StorageError: the study's id now belongs to another study.
        """
        num_restarts = self._ledger.holdings.num_restarts
        definition = self._access.ask(lambda ledger: stored_definition(ledger.database, ledger.study_id), None)
        if definition is None:
            return
        self._prepare_search()
        self._starts.forget_history()
        self._num_restarts = num_restarts
        check_same_study(definition, self.study)

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
        """Take in that a program cannot be started."""
        trial = self._trials.pop(refused.key, None)
        self.attempts.forget(refused.key)
        self._starts.refuse(refused, None if trial is None else trial.claim)

    def _note_end(self, trial: ProgramTrial, end: Ended, *, is_orphaned: bool) -> None:
        if trial.is_undecided and self.stop.is_set():
            # Whoever stops this worker may have sent the signal to its programs, too.
            trial.dismiss(STOPPED_REASON)
        self._ends.note(trial, end, is_orphaned=is_orphaned)
        self._starts.note_end(trial)

    # Writing

    def _is_write_due(self) -> bool:
        if any(trial.asked is not None for trial in self._trials.values()) or self._is_renewal_due():
            return True
        seconds = time.monotonic() - self._recorded_at
        if self._ends.can_be_written:
            return not self._starts.claimed or seconds >= COUNT_SECONDS
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
        self._starts.drop_lost(held)
        self._prune()
        self._answer()
        self._ends.write(ledger)

    def _forget(self, trial_id: int) -> None:
        self._trials.pop(trial_id, None)
        self._starts.look_again()  # its point may wait again

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
