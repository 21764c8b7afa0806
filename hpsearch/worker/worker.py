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

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import torch

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.resident import ResidentData
from hpsearch.device.devices import describe_device
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import DeviceError, StorageError
from hpsearch.logs import get_logger
from hpsearch.search.pruners import is_competitive
from hpsearch.search.stopping import StopDecision
from hpsearch.signals import RELEASE_SECONDS, StopSignal, WorkerStopped
from hpsearch.store.checkpoints import Checkpoints
from hpsearch.store.claims.ledger import Ledger, Outcome
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.studies import StoredStudy, stored_definition
from hpsearch.training.device_memory import describe_shortage, is_out_of_memory, release_cached_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.checkpointer import Checkpointer
from hpsearch.worker.cohorts import Trainability
from hpsearch.worker.epoch_writer import EpochEntry, EpochWriter, Written
from hpsearch.worker.health.failures import describe_failure
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.intake import BuildCohort, Intake
from hpsearch.worker.lane_count import LaneChoice
from hpsearch.worker.lease_keeper import Presence
from hpsearch.worker.options import DEFAULT_CHECKPOINT_SECONDS
from hpsearch.worker.pruning import Competition
from hpsearch.worker.rounds import Advance, advance
from hpsearch.worker.trial import TrialInTraining

_log = get_logger("worker")
T = TypeVar("T")

_LONGEST_EPOCHS = 10.0  # a life sign allows an epoch to take this many times as long as the last one


@dataclass(kw_only=True)
class Worker:
    """One process, one device, many lanes, one study.

    Args:
        data: resident on `device`; it does not include the test set.
        lanes: decides how many trials are trained at once at most.
        stop: ends the worker when it is set.
        name: name of the worker in trials and logs.
        num_siblings: number of workers that were started together, including this one; they share the points.
        poll_seconds: how often an idle worker looks for points that other workers dropped.
        checkpoint_seconds: between two checkpoints of all lanes; 0 takes only the last one, when the worker is stopped.
        device_name: name of the device in trials; None: `describe_device`.
        is_device_lost: whether another worker has taken the device (device/pin.py); ends the worker like a stop.
        keep: called with each renewal of the leases (worker/lease_keeper.py).
        watchdog: ends the process if the device hangs; None: the device is not watched.
        metrics: None: metrics are collected but not served.
        build_cohort: injected in tests.
        num_finished: number of trials that this worker has ended and that are counted.
    """

    database: Database
    study: StoredStudy
    data: ResidentData
    device: torch.device
    lanes: LaneChoice
    artifacts: Artifacts
    stop: StopSignal
    name: str
    num_siblings: int = 1
    poll_seconds: float = 1.0
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS
    device_name: str | None = None
    is_device_lost: Callable[[], bool] = lambda: False
    keep: Sequence[Callable[[], object]] = ()
    watchdog: Watchdog | None = None
    life_sign: LifeSign = field(default_factory=LifeSign)
    metrics: WorkerMetrics | None = None
    build_cohort: BuildCohort = Cohort
    num_finished: int = 0
    _outcomes: dict[int, Outcome] = field(default_factory=dict)  # of trials whose ends are being written
    _num_lone_shortages: int = 0  # consecutive trials that ran out of memory alone
    _best_value: float | None = None  # lowest known value of the study's COMPLETE trials
    _num_restarts: int = 0  # restarts of the server that this worker has handled
    _last_reap: float = 0.0
    _last_outside_look: float = -math.inf
    _outside_look_seconds: float = 0.0  # how long the last look took
    _lane_epoch_seconds: float | None = None  # of the last epoch, per lane
    _timed_cohort: Cohort | None = None  # the cohort that trained that epoch
    _is_mid_epoch: bool = False  # an epoch was begun and not finished: the lanes' tensors match no epoch

    def run(self, ledger: Ledger | None = None) -> int:
        """Work until the study is finished or the worker is asked to stop. Return the number of its finished trials.

        Args:
            ledger: to use instead of one on the worker's database; benchmarks pass their own.
        Raises:
            StorageError: the database was away for too long.
            DeviceError: the device has not enough memory for a single trial, whichever it is.
        """
        definition = self.study.definition
        metrics = self.metrics or WorkerMetrics(study=definition.name, worker=self.name, life_sign=self.life_sign)
        self._metrics = metrics
        self._is_trainable = Trainability(self.data)
        # Once the worker is asked to stop, it waits only for the answers to its last writes.
        self.database = replace(_observed(self.database, metrics), abandoned=self.stop.event)
        ledger = ledger or Ledger(database=self.database, study_id=self.study.study_id)
        database = replace(_observed(ledger.database, metrics), abandoned=self.stop.event)
        ledger = replace(ledger, database=database)
        with Presence(ledger, watchdog=self.watchdog, keep=self.keep) as presence:
            self._ledger = presence.ledger
            checkpoints = Checkpoints(self._ledger, self.artifacts)
            with (
                Checkpointer(
                    checkpoints, interval_seconds=self.checkpoint_seconds, name=self.name, metrics=metrics
                ) as checkpointer,
                EpochWriter(
                    self._ledger, self.artifacts, self.stop, self.name, discard=checkpointer.discard
                ) as self._writer,
            ):
                self._checkpointer = checkpointer
                self._intake = self._build_intake()
                self._competition = Competition(self.study, self._intake.brief_ledger)
                self._work()
        return self.num_finished

    def _build_intake(self) -> Intake:
        return Intake(
            study=self.study,
            data=self.data,
            device=self.device,
            ledger=self._ledger,
            writer=self._writer,
            checkpointer=self._checkpointer,
            choice=self.lanes,
            build_cohort=self.build_cohort,
            name=self.name,
            origin=self._origin,
            num_siblings=self.num_siblings,
            note=self._note,
            note_progress=self._note_progress,
        )

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
            self._release_hurriedly("its worker was stopped")

    def _give_up(self, what: str) -> None:
        """Give the trials back after an error. Their progress is recorded first, so that it counts in their favour."""
        try:
            self._note(self._writer.flush())
        except Exception as error:
            _log.warning("%s: its last epoch was not recorded: %s", self.name, error)
        self._release_hurriedly(f"its worker failed: {what}", is_crash=True)

    def _release_hurriedly(self, reason: str, *, is_crash: bool = False) -> None:
        database = replace(
            self._ledger.database,
            patience_seconds=RELEASE_SECONDS,
            answer_seconds=RELEASE_SECONDS,
            abandoned=threading.Event(),
        )
        try:
            num_released = replace(self._ledger, database=database).release(reason, is_crash=is_crash)
        except StorageError as error:
            _log.warning("%s: its trials could not be given back, their leases will run out: %s", self.name, error)
            return
        if num_released:
            _log.info("%s: %s; %s given back", self.name, reason, _trials(num_released))

    def _turn(self) -> bool:
        """Train one epoch, or look around if there is nothing to train. Return False if the study is finished."""
        self._note_progress()
        if self.is_device_lost():
            return False
        if self._ledger.holdings.num_restarts != self._num_restarts:
            self._note_restart()
        self._reap_now_and_then()
        self._give_back_now_and_then()
        try:
            self._intake.fill()
            if self._lanes:
                self._train_epoch()
                return True
        except Exception as error:
            if not is_out_of_memory(error) or not self._lanes:
                raise
            shortage = describe_shortage(error)
        else:
            self.life_sign.renew(WorkerState.IDLE)
            return self._look_around()
        self._make_room(shortage)  # not in the handler: the error's traceback keeps tensors alive
        return True

    def _note_restart(self) -> None:
        """Handle a restart of the server, which may have older data: discard what was read of other trials before.

        Raises:
            StorageError: the study's id now belongs to another study.
        """
        num_restarts = self._ledger.holdings.num_restarts
        self._best_value = None
        self._competition = Competition(self.study, self._intake.brief_ledger)
        self._intake.forget_history()
        definition = self._intake.ask(lambda ledger: stored_definition(ledger.database, ledger.study_id), None)
        if definition is None:
            return  # the database is away: the next turn asks again
        self._num_restarts = num_restarts
        if definition.value_sha256 != self.study.definition.value_sha256:
            raise StorageError(
                f"the database has gone back to older data: study number {self.study.study_id} is another one now",
                hint=f"start the workers of study {self.study.name} again",
            )

    def _look_around(self) -> bool:
        """Open the next round if it is due, or wait. Return False if the study is finished."""
        found = advance(self._ledger.database, self.study.study_id, is_trainable=self._is_trainable)
        if found is Advance.ENDED:
            self._checkpointer.discard_left_over()
        elif found is Advance.UNFINISHED:
            self.stop.wait(self.poll_seconds)
        return found is not Advance.ENDED

    def _reap_now_and_then(self) -> None:
        is_idle = not self._lanes
        if is_idle or time.monotonic() - self._last_reap > self._ledger.absence_seconds:
            self._last_reap = time.monotonic()
            num_requeued = self._intake.ask(Ledger.reap, 0)
            if num_requeued:
                _log.warning("%s: %s of dead workers queued again", self.name, _trials(num_requeued))

    def _give_back_now_and_then(self) -> None:
        """Give back trials that other programs have ended.

        The query takes 0.3 s for 20,000 points that are not counted: a worker without lanes spends at most a tenth of
        its time on it.
        """
        pause = 4 * self._ledger.absence_seconds if self._lanes else 10 * self._outside_look_seconds
        started = time.monotonic()
        if started - self._last_outside_look < pause:
            return
        num_given_back = self._intake.ask(Ledger.give_back_ended_outside, 0)
        self._last_outside_look = time.monotonic()
        self._outside_look_seconds = self._last_outside_look - started
        if num_given_back:
            _log.warning("%s: %s ended outside hpsearch queued again", self.name, _trials(num_given_back))

    def _note_progress(self) -> None:
        if self.watchdog is not None:
            self.watchdog.note_progress()

    def _make_room(self, shortage: str) -> None:
        """Handle a shortage of memory: give all trials back.

        An interrupted epoch leaves no lane in a known state.

        If more than one lane was in use, the cohort gets at most half as many lanes from now on.

        Raises:
            DeviceError: single trials have run out of memory more than MAX_CRASHES times in a row.
        """
        num_lanes = len(self._lanes)
        settings = next(iter(self._lanes.values())).settings
        self._intake.clear()
        self._note(self._writer.drain())  # epochs that were completed before still count
        release_cached_memory(self.device)
        where = self._origin["device"]
        if num_lanes > 1:
            self.lanes.note_shortage(settings, num_lanes // 2)
            num_released = self._ledger.release(f"out of memory on {where} with {num_lanes} lanes")
            _log.warning(
                "%s: out of memory on %s with %d lanes (%s): %d trials are taken up again, in %d lanes at most",
                *(self.name, where, num_lanes, shortage, num_released, num_lanes // 2),
            )
            return
        reason = f"out of memory on {where} with one lane: {shortage}"
        hint = "choose a smaller network or training.batch_size, or free the device"
        _log.error("%s: %s; %s", self.name, reason, hint)
        self._ledger.release(f"{reason}; {hint}", is_crash=True)
        self._num_lone_shortages += 1
        if self._num_lone_shortages > MAX_CRASHES:  # then the points are not the cause
            raise DeviceError(f"{reason}, {self._num_lone_shortages} times in a row", hint=hint)

    # One epoch

    def _train_epoch(self) -> None:
        cohort = self._intake.cohort
        assert cohort is not None
        num_lanes, started = len(self._lanes), time.monotonic()
        per_lane = self._lane_epoch_seconds if cohort is self._timed_cohort else None
        self._timed_cohort = cohort
        with self.stop.interruptible(None if per_lane is None else per_lane * num_lanes):
            self._is_mid_epoch = True
            by_trial = cast("dict[int, EpochReport]", cohort.train_epoch())  # the keys are our trial ids
        self._note_epoch(num_lanes, time.monotonic() - started)
        self._num_lone_shortages = 0
        decisions = {trial_id: self._lanes[trial_id].take_in(report) for trial_id, report in by_trial.items()}
        self._is_mid_epoch = False  # from here on, the lanes' history and tensors are of the same epoch
        self._note(self._writer.collect())  # of the previous epoch
        reports = {i: r for i, r in by_trial.items() if i in self._lanes and not r.has_diverged}
        losers = self._losers(reports, decisions)
        if losers is None:
            self._hand_over(reports, decisions)
        else:
            self._hand_over(None, decisions, losers)
        if self._lanes:
            self._checkpointer.take_if_due(cohort, self._lanes, self._writer.last_write)

    def _note_epoch(self, num_lanes: int, seconds: float) -> None:
        self._lane_epoch_seconds = seconds / num_lanes
        self._note_progress()
        state = WorkerState.DATABASE_AWAY if self._writer.is_behind else WorkerState.TRAINING
        self.life_sign.renew(state, f"{num_lanes} lanes", allowed_seconds=_LONGEST_EPOCHS * seconds)
        self._metrics.epoch_trained(num_lanes, seconds)
        self._metrics.set_lanes(busy=num_lanes, total=max(self._intake.num_lanes, num_lanes))
        self._metrics.set_reports_buffered(self._writer.num_buffered)

    def _losers(
        self, reports: Mapping[int, EpochReport], decisions: Mapping[int, StopDecision | None]
    ) -> list[int] | None:
        """Record the epoch and ask a competitive pruner. None: the epoch was neither recorded nor judged."""
        if not is_competitive(self.study.definition.pruning) or self._intake.is_database_away():
            return None
        held = self._intake.held()
        try:
            recorded = self._competition.record(reports)
        except DatabaseAwayError:
            self._intake.note_absence()
            return None
        self._note(Written(lost=frozenset(hold for hold in held if hold[0] not in recorded)))
        try:
            undecided = [i for i in decisions if i in self._lanes and decisions[i] is None]
            return self._competition.losers(undecided, self._lanes)
        except DatabaseAwayError:
            self._intake.note_absence()
            return []

    @property
    def _origin(self) -> dict[str, str]:
        """Attributes that say where a trial was trained."""
        return {"worker": self.name, "device": self.device_name or describe_device(self.device)}

    def _hand_over(
        self,
        reports: Mapping[int, EpochReport] | None,
        decisions: Mapping[int, StopDecision | None],
        losers: Sequence[int] = (),
    ) -> None:
        """Hand the epoch over for writing and remove ended trials from their lanes immediately."""
        held = self._intake.held()
        origin = self._origin
        ended = [(i, self._lanes[i].result(d, origin)) for i, d in decisions.items() if d and i in self._lanes]
        pruner = self.study.definition.pruning.pruner
        ended += [(i, self._lanes[i].pruned_result(pruner, origin)) for i in losers]
        self._outcomes.update({i: result.outcome for i, result in ended})
        cohort = self._intake.cohort
        assert cohort is not None
        endings = [self._lanes[i].ending(result, self.study, cohort, self._best_value) for i, result in ended]
        for trial_id, _ in ended:
            self._intake.drop(trial_id)
        if reports is not None or endings:
            entry = EpochEntry(held=held, reports=reports, endings=endings, num_restarts=self._num_restarts)
            self._writer.hand_over(entry)

    def _note(self, written: Written) -> None:
        """Process the outcome of written epochs; trials that no longer belong to this worker are dropped."""
        self.num_finished += len(written.counted)
        self._metrics.writes_fenced(len(written.lost))
        for trial_id in written.counted:
            self._metrics.trial_ended(self._outcomes.pop(trial_id))
        if written.best_value is not None:
            self._best_value = written.best_value
        for lane in self._intake.forget(written.lost):
            number = lane.claim.number
            _log.warning("%s: lost trial %d to another worker", self.name, number, extra={"trial": number})


def _observed(database: Database, metrics: WorkerMetrics) -> Database:
    return replace(database, on_call=metrics.database_called, on_retry=metrics.database_retried)


def _trials(number: int) -> str:
    return f"{number} {'trial' if number == 1 else 'trials'}"
