"""The worker: claims points into lanes, trains them, reports every epoch, ends trials, and refills.

This is where `training` and `search` meet the database. One turn of the loop is one epoch of all lanes:

    fill free lanes -> train an epoch -> own stopping rules -> hand the epoch over to be written -> ...

What is written is written in the background, while the next epoch trains (epoch_writer.py). Only a pruner has to
know the epoch before the next one begins: with one, the epoch is recorded and the pruner asked in between.

A worker ends when no point of the study is waiting or running; while others still train, it stays to take over
what they may drop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import DeviceError, StorageError
from hpsearch.logs import get_logger
from hpsearch.search.pruners import build_pruner, is_competitive
from hpsearch.search.samplers import build_sampler
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.search.stopping import StopDecision, stopping_rule, validation_interval
from hpsearch.service.artifacts import ArtifactFolder
from hpsearch.service.cohorts import cohort_name
from hpsearch.service.curves import CurveReader
from hpsearch.service.database import Database
from hpsearch.service.devices import describe_device
from hpsearch.service.epoch_writer import BestParameters, Ending, EpochEntry, EpochWriter, Written
from hpsearch.service.lane import Lane
from hpsearch.service.lane_choice import LaneChoice
from hpsearch.service.ledger import MAX_CRASHES, Claim, Ledger, Outcome, Result
from hpsearch.service.presence import Presence
from hpsearch.service.registry import StoredStudy
from hpsearch.service.signals import StopSignal, WorkerStopped
from hpsearch.settings import TrialSettings
from hpsearch.training.lanes import Cohort, CohortShape
from hpsearch.training.memory import describe_shortage, is_out_of_memory, release_cached_memory

_log = get_logger("worker")


@dataclass(kw_only=True)
class Worker:
    """One process, one device, many lanes, one study.

    Args:
        data: resident on `device`; the test pair is not part of it.
        lanes: decides how many trials are trained at once at most.
        num_siblings: workers that were started together with this one, itself included: they share the points.
        name: how this worker appears in trials and logs.
        poll_seconds: how often an idle worker looks for points that others dropped.
        build_cohort: injected in tests.
    """

    database: Database
    study: StoredStudy
    data: ResidentData
    device: torch.device
    lanes: LaneChoice
    artifacts: ArtifactFolder
    stop: StopSignal
    name: str
    num_siblings: int = 1
    poll_seconds: float = 1.0
    build_cohort: Callable[[CohortShape, ResidentData, torch.device, int], Cohort] = Cohort
    num_finished: int = 0
    _lanes: dict[int, Lane] = field(default_factory=dict)  # by trial id
    _held_over: list[Claim] = field(default_factory=list)  # claimed, but in no lane yet: mostly of another cohort
    _cohort: Cohort | None = None
    _cohort_name: str | None = None
    _num_lanes: int = 1  # of the current cohort
    _num_lone_shortages: int = 0  # single trials that memory did not suffice for, one after the other
    _best_value: float | None = None  # of the study's COMPLETE trials, as far as is known here
    _last_reap: float = 0.0

    def run(self, ledger: Ledger | None = None) -> int:
        """Work until the study has no unfinished point or the worker is told to stop. Returns its finished trials.

        Raises:
            StorageError: the database has been away for too long.
            DeviceError: the device has no memory even for one trial at a time, whichever it is.
        """
        definition = self.study.definition
        self._curves = CurveReader(self.database, self.study.study_id)
        pruner = build_pruner(definition.pruning, definition.training.max_epochs)
        self._snapshot = StudySnapshot(study_name=definition.name, study_id=self.study.study_id, pruner=pruner)
        with (
            Presence(ledger or Ledger(database=self.database, study_id=self.study.study_id)) as presence,
            EpochWriter(presence.ledger, self.artifacts, self.stop, self.name) as self._writer,
        ):
            self._ledger = presence.ledger
            try:
                while not self.stop.is_set() and self._turn():
                    pass
            except WorkerStopped:
                pass
            except StorageError:
                raise  # nothing can be given back to a database that is away: the leases run out
            except BaseException:
                self._give_up()
                raise
            self._note(self._writer.flush())
            num_released = self._ledger.release("its worker was stopped")
            if num_released:
                _log.info("%s: stopped; %d trials given back", self.name, num_released)
        return self.num_finished

    def _give_up(self) -> None:
        """Give the trials back after an error of ours; what they have reached counts in their favour."""
        try:
            self._note(self._writer.flush())
        except Exception as error:
            _log.warning("%s: its last epoch was not recorded: %s", self.name, error)
        self._ledger.release("its worker failed", is_crash=True)

    def _turn(self) -> bool:
        """One epoch, or one look around while there is nothing to train. False: the study is finished."""
        self._reap_now_and_then()
        try:
            self._fill_lanes()
            if self._lanes:
                self._train_epoch()
                return True
        except Exception as error:
            if not is_out_of_memory(error) or not self._lanes:
                raise
            shortage = describe_shortage(error)
        else:
            if self._ledger.counts().unfinished == 0:
                return False
            self.stop.wait(self.poll_seconds)
            return True
        self._make_room(shortage)  # not in the handler: the error holds on to the tensors of where it happened
        return True

    def _reap_now_and_then(self) -> None:
        is_idle = not self._lanes
        if is_idle or time.monotonic() - self._last_reap > self._ledger.absence_seconds:
            self._last_reap = time.monotonic()
            num_requeued = self._ledger.reap()
            if num_requeued:
                _log.warning("%s: %d trials of dead workers are queued again", self.name, num_requeued)

    # Lanes

    def _fill_lanes(self) -> None:
        """Claim points until all lanes are busy or nothing of the current cohort is left."""
        if not self._lanes:
            self._num_lanes = 1  # the first trial opens a cohort, which decides how many may join it
        while len(self._lanes) < self._num_lanes:
            if not self._held_over:
                self._held_over = self._claim(self._num_lanes - len(self._lanes))
            elif self._lanes:
                return  # the current cohort drains before another one is opened
            if not self._held_over:
                return
            for _ in range(len(self._held_over)):
                self._admit(self._held_over.pop(0))

    def _claim(self, number: int) -> list[Claim]:
        cohort = self._cohort_name if self._lanes else None
        claims = self._ledger.claim(number, cohort=cohort)
        if claims and self.study.definition.is_drawn:
            self._note(self._writer.collect())  # a sampler must know the trials that have just ended
        if not claims and not self._lanes and self._writer.is_outstanding:
            # A point on its last attempt comes to a worker that holds nothing else: trials must have ended first.
            self._note(self._writer.collect())
            claims = self._ledger.claim(number, cohort=cohort)
        return claims

    def _admit(self, claim: Claim) -> None:
        definition = self.study.definition
        if definition.is_drawn:
            try:
                claim = replace(claim, parameters=self.database.with_optuna(lambda: self._draw(claim)))
            except UpdateFinishedTrialError:
                _log.warning("%s: lost trial %d before it began", self.name, claim.number)
                return
        settings = definition.resolve(claim.parameters)
        is_first = not self._lanes
        if not is_first and (cohort_name(settings) != self._cohort_name or len(self._lanes) >= self._num_lanes):
            self._held_over.append(claim)
            return
        rule = stopping_rule(definition.stopping, num_minibatches=self._num_minibatches(settings))
        self._lanes[claim.trial_id] = Lane(claim=claim, settings=settings, rule=rule)
        if is_first:
            self._open_cohort(settings)
        assert self._cohort is not None
        self._cohort.admit(claim.trial_id, settings)
        _log.debug("%s: trial %d begins: %s", self.name, claim.number, dict(claim.parameters))

    def _open_cohort(self, settings: TrialSettings) -> None:
        self._cohort = None  # its memory may be what the measurement needs
        self._cohort_name = cohort_name(settings)
        self._num_lanes = self.lanes.num_lanes(settings, self._share)
        interval = validation_interval(self.study.definition.stopping, self._num_minibatches(settings))
        self._cohort = self.build_cohort(CohortShape.of(settings), self.data, self.device, interval)

    def _share(self) -> int:
        """How many points of the cohort there are for this worker if as many are to be left for each of the others."""
        assert self._cohort_name is not None
        num_workers = max(1, self.num_siblings, self._ledger.num_workers())
        share = -(-self._ledger.counts().unfinished // num_workers)
        num_ours = len(self._lanes) + len(self._held_over)
        return max(1, min(share, num_ours + self._ledger.num_waiting(self._cohort_name)))

    def _draw(self, claim: Claim) -> Mapping[str, float | int | str | bool]:
        """Let the sampler choose parameters; those that an earlier attempt has drawn stay."""
        study = self.database.load_study(self.study.name)
        strategy = self.study.definition.search.strategy
        study.sampler = build_sampler(strategy, study_seed=self.study.definition.seed, trial_number=claim.number)
        study.get_trials(deepcopy=False)  # Optuna's cache refuses to write to a trial that it has not read
        trial = optuna.Trial(study, claim.trial_id)
        for dimension in self.study.definition.search.dimensions:
            dimension.suggest(trial)
        return trial.params

    def _num_minibatches(self, settings: TrialSettings) -> int:
        return self.data.num_minibatches(settings.training.batch_size)

    def _drop(self, trial_id: int) -> None:
        del self._lanes[trial_id]
        assert self._cohort is not None
        self._cohort.release(trial_id)

    def _make_room(self, shortage: str) -> None:
        """Memory did not suffice. All trials begin anew, for a broken epoch leaves no lane in a known state."""
        num_lanes = len(self._lanes)
        settings = next(iter(self._lanes.values())).settings
        self._lanes.clear()
        self._held_over.clear()
        self._cohort = None
        self._note(self._writer.collect())  # what was reached before counts
        release_cached_memory(self.device)
        where = describe_device(self.device)
        if num_lanes > 1:
            self.lanes.note_shortage(settings, num_lanes // 2)
            num_released = self._ledger.release(f"out of memory on {where} with {num_lanes} lanes")
            _log.warning(
                "%s: out of memory on %s with %d lanes (%s): %d trials begin anew, in %d lanes at most",
                *(self.name, where, num_lanes, shortage, num_released, num_lanes // 2),
            )
            return
        reason = f"out of memory on {where} with one lane: {shortage}"
        hint = "choose a smaller network or training.batch_size, or free the device"
        _log.error("%s: %s; %s", self.name, reason, hint)
        self._ledger.release(f"{reason}; {hint}", is_crash=True)
        self._num_lone_shortages += 1
        if self._num_lone_shortages > MAX_CRASHES:  # it is not the point, then
            raise DeviceError(f"{reason}, {self._num_lone_shortages} times in a row", hint=hint)

    # One epoch

    def _train_epoch(self) -> None:
        assert self._cohort is not None
        with self.stop.interruptible():
            by_trial = cast("dict[int, EpochReport]", self._cohort.train_epoch())  # keys are the trial ids we gave it
        self._num_lone_shortages = 0
        decisions = {trial_id: self._lanes[trial_id].take_in(report) for trial_id, report in by_trial.items()}
        self._note(self._writer.collect())  # of the epoch before
        reports = {i: r for i, r in by_trial.items() if i in self._lanes and not r.has_diverged}
        if is_competitive(self.study.definition.pruning):
            held = self._held()
            self._note(Written(lost=held - self._ledger.record(reports)))
            undecided = [i for i in by_trial if i in self._lanes and decisions[i] is None]
            self._hand_over(None, decisions, losers=self._ask_pruner(undecided))
        else:
            self._hand_over(reports, decisions)

    def _held(self) -> frozenset[int]:
        return frozenset(self._lanes).union(claim.trial_id for claim in self._held_over)

    def _hand_over(
        self,
        reports: Mapping[int, EpochReport] | None,
        decisions: Mapping[int, StopDecision | None],
        losers: Sequence[int] = (),
    ) -> None:
        """Have the epoch written and take the trials that ended out of their lanes, at once."""
        held = self._held()
        origin = {"worker": self.name, "device": describe_device(self.device)}
        ended = [(i, self._lanes[i].result(d, origin)) for i, d in decisions.items() if d and i in self._lanes]
        pruner = self.study.definition.pruning.pruner
        ended += [(i, self._lanes[i].pruned_result(pruner, origin)) for i in losers]
        endings = [self._ending(self._lanes[i], result) for i, result in ended]
        for trial_id, _ in ended:
            self._drop(trial_id)
        if reports is not None or endings:
            self._writer.hand_over(EpochEntry(held=held, reports=reports, endings=endings))

    def _ending(self, lane: Lane, result: Result) -> Ending:
        """A trial's end, with its parameters if it may be the study's best: its lane is gone when that is known."""
        is_worse = self._best_value is not None and result.value is not None and result.value > self._best_value
        if result.outcome is not Outcome.COMPLETE or is_worse:
            return Ending(number=lane.claim.number, result=result)
        assert self._cohort is not None
        metadata = {
            "study": self.study.name,
            "definition_sha256": self.study.definition.sha256,
            "trial": str(lane.claim.number),
            "settings": lane.settings.model_dump_json(),
            "validation_zero_one": repr(result.value),
        }
        best = BestParameters(arrays=self._cohort.best_parameters(lane.claim.trial_id), metadata=metadata)
        return Ending(number=lane.claim.number, result=result, best=best)

    def _note(self, written: Written) -> None:
        """Learn what became of an epoch; trials that are no longer ours are dropped."""
        self.num_finished += len(written.counted)
        if written.best_value is not None:
            self._best_value = written.best_value
        for trial_id in written.lost & self._lanes.keys():
            _log.warning("%s: lost trial %d to another worker", self.name, self._lanes[trial_id].claim.number)
            self._drop(trial_id)
        self._held_over = [claim for claim in self._held_over if claim.trial_id not in written.lost]

    def _ask_pruner(self, trial_ids: list[int]) -> list[int]:
        """The trials that the pruner gives up, by Optuna's own decision on all curves as of now."""
        if not trial_ids:
            return []
        self._snapshot.replace_trials(self._curves.read())
        # A trial may have been taken from us since its report was recorded: the next record finds that out.
        running = [trial_id for trial_id in trial_ids if self._snapshot.is_running(trial_id)]
        losers = [trial_id for trial_id in running if self._snapshot.should_prune(trial_id)]
        rungs = self._snapshot.drain_system_attrs()
        if rungs:
            self._ledger.record({}, rungs)
        return losers
