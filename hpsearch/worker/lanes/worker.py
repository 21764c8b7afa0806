"""The worker: claims points into lanes, trains them, reports every epoch, ends trials, and refills the lanes.

Here `training` and `search` meet the database. One turn of the loop is one epoch of all lanes:

    fill free lanes -> train an epoch -> apply the trials' stopping rules -> hand the epoch over for writing -> ...

Epochs are written in the background while the next epoch trains (epoch_writer.py). Only a pruner must know the epoch
before the next one starts: with a pruner, the epoch is recorded and the pruner is asked between two epochs.

intake.py explains how points get into lanes. A worker that has something to train continues while the database is away:
free lanes then stay empty, and nothing is pruned.

A worker ends when no point of the study is waiting or running and no round will follow (rounds.py). While other workers
still train, it stays, to take over points that they may drop.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.device.pin import PinnedDevice
from hpsearch.epoch_report import EpochReport
from hpsearch.logs import get_logger
from hpsearch.search.pruners import is_competitive
from hpsearch.search.stopping import StopDecision
from hpsearch.signals import StopSignal, WorkerStopped
from hpsearch.store.checkpoints import Checkpoints
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.rows.trial_state import STOPPED_REASON
from hpsearch.store.studies import StoredStudy, stored_definition
from hpsearch.training.device_memory import describe_shortage, is_out_of_memory, release_cached_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.competition import Competition
from hpsearch.worker.health.failures import describe_failure
from hpsearch.worker.health.life_sign import WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.out_of_memory import OutOfMemory
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lanes.checkpointer import Checkpointer, EndStates
from hpsearch.worker.lanes.epoch_writer import BestParameters, EpochEntry, EpochWriter, FilterFile, Written
from hpsearch.worker.lanes.filter_keeper import FilterKeeper
from hpsearch.worker.lanes.intake import Intake
from hpsearch.worker.lanes.lane_count import LaneChoice
from hpsearch.worker.lanes.trial import TrialInTraining, diagnose_ended, record_of
from hpsearch.worker.lease_keeper import Presence
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.rounds import Advance, advance
from hpsearch.worker.upkeep import Reaper, check_same_study, give_back_all

_log = get_logger("worker")

# Epochs in a row that capture graphs, and so say nothing of the number of lanes; where all do, it is part of training.
_MOST_COLD = 4
_LONGEST_EPOCHS = 10.0  # a life sign allows an epoch to take this many times as long as the last one


@dataclass(kw_only=True)
class Worker:
    """One process, one device, many lanes, one study.

    Args:
        cohorts: opens cohorts on the device.
        pinned: the device. Another worker that takes it ends this one like a stop.
        lanes: decides how many trials are trained at once at most.
        stop: ends the worker when it is set.
        watchdog: ends the process if the device hangs.
        num_finished: number of trials that this worker has ended and that are counted.
    """

    database: Database
    study: StoredStudy
    cohorts: Cohorts
    pinned: PinnedDevice
    lanes: LaneChoice
    artifacts: Artifacts
    stop: StopSignal
    settings: WorkerSettings
    watchdog: Watchdog = field(default_factory=Watchdog)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)

    def __post_init__(self) -> None:
        self.name = self.settings.name
        self.num_finished = 0
        # Attributes that say where a trial was trained.
        self._origin = {"worker": self.name, "device": self.pinned.description}
        self._out_of_memory = OutOfMemory(self.name, self.pinned.description)
        self._ended: dict[int, tuple[TrialInTraining, Result]] = {}  # trials whose ends are being written
        self._worst_kept: float | None = None  # value of the worst of the study's best trials, as far as known
        self._num_restarts = 0  # restarts of the server that this worker has handled
        self._reaper = Reaper(name=self.name)
        self._is_idle = True  # the last turn found nothing to train
        self._filter_keeper = FilterKeeper()
        self._num_cold = 0  # the last epochs that captured graphs, in a row
        self._is_mid_epoch = False  # an epoch was begun and not finished: the lanes' tensors match no epoch

    def run(self, ledger: Ledger | None = None) -> int:
        """Work until the study is finished or the worker is asked to stop. Return the number of its finished trials.

        Args:
            ledger: to use instead of one on the worker's database; benchmarks pass their own.
        Raises:
            StorageError: the database was away for too long.
            DeviceError: the device has not enough memory for a single trial, whichever it is.
        """
        ledger = ledger or Ledger(database=self.database, study_id=self.study.study_id)
        database = replace(
            ledger.database,
            on_call=self.metrics.database_called,
            on_retry=self.metrics.database_retries.inc,
            abandoned=self.stop.event,  # a worker that was asked to stop waits only for the answers to its last writes
        )
        ledger = replace(ledger, database=database)
        with Presence(ledger, watchdog=self.watchdog, keep=self.pinned.keep) as presence:
            self._ledger = presence.ledger
            checkpoints, interval = Checkpoints(self._ledger, self.artifacts), self.settings.checkpoint_seconds
            definition = self.study.definition
            all_kept, num_kept = definition.keeps_all_parameters, definition.num_best_kept
            with (
                Checkpointer(checkpoints, interval, self.name, self.metrics) as self._checkpointer,
                EpochWriter(
                    self._ledger, self.artifacts, self.stop, self.name, keeps_all=all_kept, num_kept=num_kept
                ) as self._writer,
            ):
                self._intake = Intake(
                    study=self.study,
                    cohorts=self.cohorts,
                    ledger=self._ledger,
                    writer=self._writer,
                    checkpointer=self._checkpointer,
                    choice=self.lanes,
                    worker=self.settings,
                    origin=self._origin,
                    watchdog=self.watchdog,
                    note=self._note,
                )
                self._competition = Competition(self.study, self._intake.access.brief)
                self._end_states = EndStates(self.study.definition, self._checkpointer)
                try:
                    self._work()
                finally:
                    self.lanes.note_idle()
        return self.num_finished

    @property
    def _lanes(self) -> dict[int, TrialInTraining]:
        return self._intake.lanes

    def _work(self) -> None:
        try:
            while not self.stop.is_set() and self._turn():
                pass
        except WorkerStopped:
            pass
        except DatabaseAwayError:
            if not self.stop.is_set():
                raise  # points cannot be given back while the database is away: the leases expire
        except BaseException as error:
            self._give_up(describe_failure(error))
            raise
        self._leave()

    def _leave(self) -> None:
        """Write outstanding epochs, checkpoint the lanes, and give their trials back, within seconds."""
        try:
            self._note(self._writer.flush())
            trained = {trial_id: lane for trial_id, lane in self._lanes.items() if lane.num_epochs}
            is_whole = not self._is_mid_epoch and not self._writer.is_outstanding
            if trained and self._intake.cohort is not None and is_whole:
                self._checkpointer.take_last(self._intake.cohort, trained)
        finally:
            give_back_all(self._ledger, self.name, STOPPED_REASON)

    def _give_up(self, what: str) -> None:
        """Give the trials back after an error. Their progress is recorded first, so that it counts in their favour."""
        try:
            self._note(self._writer.flush())
        except Exception as error:
            _log.warning("%s: its last epoch was not recorded: %s", self.name, error)
        give_back_all(self._ledger, self.name, f"its worker failed: {what}", is_crash=True)

    def _turn(self) -> bool:
        """Train one epoch, or look around if there is nothing to train. Return False if the study is finished."""
        self.watchdog.note_progress()
        if self.pinned.is_lost:
            return False
        if self._ledger.holdings.num_restarts != self._num_restarts:
            self._note_restart()
        self._reaper.reap(self._intake.access, is_idle=self._is_idle)
        try:
            self._intake.fill()
            self._is_idle = not self._lanes
            if self._lanes:
                self._train_epoch()
                return True
        except Exception as error:
            if not is_out_of_memory(error) or not self._lanes:
                raise
            shortage = describe_shortage(error)
        else:
            self.metrics.life_sign.renew(WorkerState.IDLE)
            self.lanes.note_idle()
            return self._look_around()
        self._make_room(shortage)  # not in the handler: the error's traceback keeps tensors alive
        return True

    def _note_restart(self) -> None:
        """Handle a restart of the server, which may have older data: discard what was read of other trials before.

        Raises:
            StorageError: the study's id now belongs to another study.
        """
        num_restarts = self._ledger.holdings.num_restarts
        self._worst_kept = None
        self._competition = Competition(self.study, self._intake.access.brief)
        self._intake.forget_history()
        definition = self._intake.access.ask(lambda ledger: stored_definition(ledger.database, ledger.study_id), None)
        if definition is None:  # the database is away: the next turn asks again
            return
        self._num_restarts = num_restarts
        check_same_study(definition, self.study)

    def _look_around(self) -> bool:
        """Open the next round if it is due, or wait. Return False if the study is finished."""
        found = advance(self._ledger.database, self.study.study_id, is_trainable=self.cohorts.is_trainable)
        if found is Advance.ENDED:
            self._checkpointer.discard_left_over()
        elif found is Advance.UNFINISHED:
            self.stop.wait(self.settings.poll_seconds)
        return found is not Advance.ENDED

    def _make_room(self, request: str) -> None:
        """Handle a shortage of memory.

        An epoch that fails leaves the lanes in an unknown state; an admission that fails leaves them as they were.
        """
        assert self._intake.opened_by is not None
        limit_lanes = partial(self.lanes.note_shortage, self._intake.opened_by)
        if not self._is_mid_epoch and (number := self._intake.give_back_left_out(self._out_of_memory.refusal)):
            release_cached_memory(self.cohorts.device)
            limit_lanes(self._intake.num_lanes)
            self._out_of_memory.tell_refusal(number, request, self._intake.num_lanes)
            return
        trained = [lane.claim.hold for lane in self._lanes.values()]
        self._intake.clear()
        self._is_mid_epoch = False
        self._note(self._writer.drain())  # epochs that were completed before still count
        release_cached_memory(self.cohorts.device)
        self._out_of_memory.give_back(self._ledger, trained, request, limit_lanes)

    # One epoch

    def _train_epoch(self) -> None:
        cohort = self._intake.cohort
        assert cohort is not None
        num_lanes, started, per_lane = len(self._lanes), time.monotonic(), self._intake.seconds_per_lane
        with self.stop.interruptible(None if per_lane is None else per_lane * num_lanes):
            self._is_mid_epoch = True
            by_trial = cast("dict[int, EpochReport]", cohort.train_epoch())  # the keys are our trial ids
        seconds = time.monotonic() - started
        self._note_epoch(num_lanes, seconds)
        self._out_of_memory.num_alone = 0
        decisions = {
            trial_id: self._lanes[trial_id].take_in(report, num_lanes) for trial_id, report in by_trial.items()
        }
        self._is_mid_epoch = False  # from here on, the lanes' history and tensors are of the same epoch
        self._num_cold = 0 if cohort.is_warm else self._num_cold + 1
        if not 0 < self._num_cold <= _MOST_COLD:
            self._intake.review_lanes(num_lanes, seconds)
        self._note(self._writer.collect())  # of the previous epoch
        reports = {i: r for i, r in by_trial.items() if i in self._lanes and not r.has_diverged}
        is_recorded = self._prune(reports, decisions)
        diagnose_ended(cohort, self._lanes, decisions)
        self._filter_keeper.keep(cohort, self._lanes, decisions, self.study.definition.keep_every)
        self._hand_over(None if is_recorded else reports, decisions, cohort)
        if self._lanes:
            self._checkpointer.take_if_due(cohort, self._lanes, self._writer.last_write)

    def _note_epoch(self, num_lanes: int, seconds: float) -> None:
        self._intake.seconds_per_lane = seconds / num_lanes
        self.watchdog.note_progress()
        metrics = self.metrics
        state = WorkerState.DATABASE_AWAY if self._writer.is_behind else WorkerState.TRAINING
        metrics.life_sign.renew(state, f"{num_lanes} lanes", allowed_seconds=_LONGEST_EPOCHS * seconds)
        metrics.trial_epochs.inc(num_lanes)
        metrics.epoch_seconds.observe(seconds)
        metrics.lanes_busy.set(num_lanes)
        metrics.lanes.set(max(self._intake.num_lanes, num_lanes))
        metrics.reports_buffered.set(self._writer.num_buffered)

    def _prune(self, reports: Mapping[int, EpochReport], decisions: dict[int, StopDecision | None]) -> bool:
        """Ask a competitive pruner, and add its decisions. Return whether the epoch was recorded for that."""
        if not is_competitive(self.study.definition.pruning) or self._intake.access.is_away:
            return False
        held = self._intake.held()
        try:
            recorded = self._intake.access.brief.record(reports)  # before any trial is judged by it
        except DatabaseAwayError:
            self._intake.access.note_absence()
            return False
        self._note(Written(lost=frozenset(hold for hold in held if hold[0] not in recorded)))
        try:
            undecided = [i for i in decisions if i in self._lanes and decisions[i] is None]
            for trial_id in self._competition.losers(undecided, self._lanes):
                decisions[trial_id] = self._lanes[trial_id].pruned_by(self.study.definition.pruning.pruner)
        except DatabaseAwayError:
            self._intake.access.note_absence()
        return True

    def _hand_over(
        self,
        reports: Mapping[int, EpochReport] | None,
        decisions: Mapping[int, StopDecision | None],
        cohort: Cohort,
    ) -> None:
        """Hand the epoch over for writing and remove ended trials from their lanes immediately."""
        held, results = self._intake.held(), []
        end_states = self._end_states.copied(cohort, self._lanes, decisions)
        parameters: dict[int, BestParameters] = {}
        filters: dict[int, FilterFile] = {}
        for trial_id, decision in decisions.items():
            lane = self._lanes.get(trial_id)
            if decision is None or lane is None:
                continue
            result = lane.result(decision, self._origin)
            if result.outcome is Outcome.COMPLETE:
                result = replace(result, **record_of(cohort, trial_id))
                if self._may_be_kept(result, lane):
                    arrays = cohort.best_parameters(trial_id)
                    parameters[trial_id] = BestParameters(arrays=arrays, metadata=lane.metadata(self.study))
            if lane.filters:
                filters[trial_id] = FilterFile(series=lane.filters, metadata=lane.metadata(self.study))
            results.append(result)
            self._ended[trial_id] = lane, result
            self._intake.drop(trial_id)
        if reports is not None or results:
            entry = EpochEntry(
                held=held,
                reports=reports,
                results=results,
                parameters=parameters,
                filters=filters,
                num_restarts=self._num_restarts,
            )
            self._writer.hand_over(entry)
        self._end_states.keep(end_states, self._writer.last_write)

    def _may_be_kept(self, result: Result, lane: TrialInTraining) -> bool:
        """Whether the parameters of a COMPLETE trial are to be kept, unless a trial that is being written is better."""
        definition = self.study.definition
        # What was the worst of the best trials before the study was given more epochs may no longer count.
        is_dated = lane.claim.max_epochs not in (None, definition.training.max_epochs)
        is_worse = self._worst_kept is not None and result.loss is not None and result.loss > self._worst_kept
        return definition.keeps_all_parameters or is_dated or not is_worse

    def _note(self, written: Written) -> None:
        """Process the outcome of written epochs; trials that no longer belong to this worker are dropped."""
        self.num_finished += len(written.counted)
        self._checkpointer.discard(written.counted)
        self.metrics.fenced_writes.inc(len(written.lost))
        if written.worst_kept is not None:
            self._worst_kept = written.worst_kept
        for trial_id in written.counted:
            lane, result = self._ended.pop(trial_id)
            self.metrics.trials_ended[result.outcome].inc()
            values = self.name, lane.claim.number, result.outcome.name, result.attributes
            _log.debug("%s: trial %d %s: %s", *values, extra={"trial": lane.claim.number})
        refused = [lane for lane, _ in self._ended.values() if lane.claim.hold in written.lost]
        for lane in refused:
            del self._ended[lane.claim.trial_id]
        for lane in refused + self._intake.forget(written.lost):
            number = lane.claim.number
            _log.warning("%s: lost trial %d to another worker", self.name, number, extra={"trial": number})
