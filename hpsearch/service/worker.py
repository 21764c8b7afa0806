"""The worker: claims points into lanes, trains them, reports every epoch, ends trials, and refills.

This is where `training` and `search` meet the database. One turn of the loop is one epoch of all lanes:

    fill free lanes -> train an epoch -> own stopping rules -> record (one statement) -> ask the pruner -> finish

A worker ends when no point of the study is waiting or running; while others still train, it stays to take over
what they may drop.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import optuna
import torch
from optuna.exceptions import UpdateFinishedTrialError

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.search.pruners import build_pruner, is_competitive
from hpsearch.search.samplers import build_sampler
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.search.stopping import (
    StopDecision,
    StoppingRule,
    StopReason,
    decide,
    stopping_rule,
    validation_interval,
)
from hpsearch.service.artifacts import ArtifactFolder
from hpsearch.service.curves import CurveReader
from hpsearch.service.database import Database
from hpsearch.service.devices import describe_device
from hpsearch.service.ledger import Claim, Ledger, Outcome, Result
from hpsearch.service.presence import Presence
from hpsearch.service.registry import StoredStudy
from hpsearch.service.signals import StopSignal, WorkerStopped
from hpsearch.settings import TrialSettings
from hpsearch.training.lanes import Cohort, CohortShape

_log = get_logger("worker")
PRUNED = "pruned"  # the stop_reason of a trial that lost against others


def cohort_name(settings: TrialSettings) -> str:
    """A short name for the cohort of a point, the same in every process; points of one name can share lanes."""
    return hashlib.sha256(repr(CohortShape.of(settings)).encode()).hexdigest()[:16]


@dataclass(kw_only=True)
class Lane:
    """A trial in training.

    Args:
        best: the best validation so far; None before the first epoch has ended.
        last_value: the value of the last epoch that was recorded.
    """

    claim: Claim
    settings: TrialSettings
    rule: StoppingRule
    best: Validation | None = None
    best_epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    last_value: float | None = None

    def take_in(self, report: EpochReport) -> StopDecision | None:
        """Update the trial's history with an epoch; says whether it was the last one."""
        decision = decide(self.rule, report, self.settings.training.max_epochs)
        self.seconds += report.seconds
        if not report.has_diverged:
            self.num_epochs = report.epoch
            self.last_value = report.best.zero_one
            if report.best.is_better_than(self.best):
                self.best, self.best_epoch = report.best, report.epoch
        return decision


@dataclass(kw_only=True)
class Worker:
    """One process, one device, many lanes, one study.

    Args:
        data: resident on `device`; the test pair is not part of it.
        num_lanes: how many trials are trained at once at most.
        name: how this worker appears in trials and logs.
        poll_seconds: how often an idle worker looks for points that others dropped.
    """

    database: Database
    study: StoredStudy
    data: ResidentData
    device: torch.device
    num_lanes: int
    artifacts: ArtifactFolder
    stop: StopSignal
    name: str
    poll_seconds: float = 1.0
    num_finished: int = 0
    _lanes: dict[int, Lane] = field(default_factory=dict)  # by trial id
    _held_over: list[Claim] = field(default_factory=list)  # claimed, but of another cohort: next in line
    _cohort: Cohort | None = None
    _cohort_name: str | None = None
    _last_reap: float = 0.0

    def run(self, ledger: Ledger | None = None) -> int:
        """Work until the study has no unfinished point or the worker is told to stop. Returns its finished trials."""
        definition = self.study.definition
        self._curves = CurveReader(self.database, self.study.study_id)
        pruner = build_pruner(definition.pruning, definition.training.max_epochs)
        self._snapshot = StudySnapshot(study_name=definition.name, study_id=self.study.study_id, pruner=pruner)
        with Presence(ledger or Ledger(database=self.database, study_id=self.study.study_id)) as presence:
            self._ledger = presence.ledger
            try:
                while not self.stop.is_set() and self._turn():
                    pass
            except WorkerStopped:
                pass
            except StorageError:
                raise  # nothing can be given back to a database that is away: the leases run out
            except BaseException:
                self._ledger.release("its worker failed", is_crash=True)
                raise
            num_released = self._ledger.release("its worker was stopped")
            if num_released:
                _log.info("%s: stopped; %d trials given back", self.name, num_released)
        return self.num_finished

    def _turn(self) -> bool:
        """One epoch, or one look around while there is nothing to train. False: the study is finished."""
        self._reap_now_and_then()
        self._fill_lanes()
        if self._lanes:
            self._train_epoch()
            return True
        if self._ledger.counts().unfinished == 0:
            return False
        self.stop.wait(self.poll_seconds)
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
        while len(self._lanes) < self.num_lanes:
            if self._held_over:
                if self._lanes:
                    return  # the current cohort drains before another one is opened
                claims, self._held_over = self._held_over, []
            else:
                free = self.num_lanes - len(self._lanes)
                claims = self._ledger.claim(free, cohort=self._cohort_name if self._lanes else None)
            if not claims:
                return
            for claim in claims:
                self._admit(claim)

    def _admit(self, claim: Claim) -> None:
        definition = self.study.definition
        if definition.is_drawn:
            try:
                claim = replace(claim, parameters=self.database.with_optuna(lambda: self._draw(claim)))
            except UpdateFinishedTrialError:
                _log.warning("%s: lost trial %d before it began", self.name, claim.number)
                return
        settings = definition.resolve(claim.parameters)
        name = cohort_name(settings)
        if not self._lanes:
            interval = validation_interval(definition.stopping, self._num_minibatches(settings))
            self._cohort = Cohort(CohortShape.of(settings), self.data, self.device, interval)
            self._cohort_name = name
        elif name != self._cohort_name:
            self._held_over.append(claim)
            return
        assert self._cohort is not None
        self._cohort.admit(claim.trial_id, settings)
        rule = stopping_rule(definition.stopping, num_minibatches=self._num_minibatches(settings))
        self._lanes[claim.trial_id] = Lane(claim=claim, settings=settings, rule=rule)
        _log.debug("%s: trial %d begins: %s", self.name, claim.number, dict(claim.parameters))

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

    # One epoch

    def _train_epoch(self) -> None:
        assert self._cohort is not None
        with self.stop.interruptible():
            by_trial = cast("dict[int, EpochReport]", self._cohort.train_epoch())  # keys are the trial ids we gave it
        decisions = {trial_id: self._lanes[trial_id].take_in(report) for trial_id, report in by_trial.items()}
        held = self._ledger.record({i: r for i, r in by_trial.items() if not r.has_diverged})
        for trial_id in by_trial.keys() - held:
            _log.warning("%s: lost trial %d to another worker", self.name, self._lanes[trial_id].claim.number)
            self._drop(trial_id)
        self._held_over = [claim for claim in self._held_over if claim.trial_id in held]
        undecided = [i for i in by_trial if i in held and decisions[i] is None]
        losers = self._ask_pruner(undecided)
        results = [self._result(i, decision) for i, decision in decisions.items() if i in held and decision]
        results += [self._pruned_result(i) for i in losers]
        self._finish([result for result in results if result is not None])

    def _ask_pruner(self, trial_ids: list[int]) -> list[int]:
        """The trials that the pruner gives up, by Optuna's own decision on all curves as of now."""
        if not trial_ids or not is_competitive(self.study.definition.pruning):
            return []
        self._snapshot.replace_trials(self._curves.read())
        # A trial may have been taken from us since its report was recorded: the next record finds that out.
        running = [trial_id for trial_id in trial_ids if self._snapshot.is_running(trial_id)]
        losers = [trial_id for trial_id in running if self._snapshot.should_prune(trial_id)]
        rungs = self._snapshot.drain_system_attrs()
        if rungs:
            self._ledger.record({}, rungs)
        return losers

    def _result(self, trial_id: int, decision: StopDecision) -> Result | None:
        """What is written for a trial that ended of its own accord; None if another worker has taken it."""
        lane = self._lanes[trial_id]
        attributes = self._attributes(lane, decision.reason.value, decision.detail)
        if decision.reason is StopReason.DIVERGED or lane.best is None:
            return Result(trial_id=trial_id, outcome=Outcome.PRUNED, value=lane.last_value, attributes=attributes)
        if not self._save_if_best(lane):
            return None
        return Result(trial_id=trial_id, outcome=Outcome.COMPLETE, value=lane.best.zero_one, attributes=attributes)

    def _pruned_result(self, trial_id: int) -> Result:
        """As Optuna has it, the value of a pruned trial is its last report."""
        lane = self._lanes[trial_id]
        pruner = self.study.definition.pruning.pruner
        detail = f"pruned at epoch {lane.num_epochs}: {pruner} found it worse than the others"
        attributes = self._attributes(lane, PRUNED, detail)
        return Result(trial_id=trial_id, outcome=Outcome.PRUNED, value=lane.last_value, attributes=attributes)

    def _attributes(self, lane: Lane, reason: str, detail: str) -> dict[str, str | int | float | None]:
        return {
            "stop_reason": reason,
            "stop_detail": detail,
            "epochs": lane.num_epochs,
            "best_epoch": lane.best_epoch,
            "best_validation_zero_one": lane.best.zero_one if lane.best else None,
            "best_validation_nll": lane.best.nll if lane.best else None,
            "seconds": round(lane.seconds, 3),
            "worker": self.name,
            "device": describe_device(self.device),
        }

    def _save_if_best(self, lane: Lane) -> bool:
        """Keep the parameters of a trial that is as good as any so far. False: the trial is no longer ours."""
        assert self._cohort is not None
        assert lane.best is not None
        best_so_far = self._ledger.best_value()
        if best_so_far is not None and lane.best.zero_one > best_so_far:
            return True
        metadata = {
            "study": self.study.name,
            "definition_sha256": self.study.definition.sha256,
            "trial": str(lane.claim.number),
            "settings": lane.settings.model_dump_json(),
            "validation_zero_one": repr(lane.best.zero_one),
        }
        parameters = self._cohort.best_parameters(lane.claim.trial_id)
        try:
            self.database.with_optuna(
                lambda: self.artifacts.save_parameters(self.database.storage, lane.claim.trial_id, parameters, metadata)
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def _finish(self, results: list[Result]) -> None:
        accepted = self._ledger.finish(results)
        for result in results:
            lane = self._lanes[result.trial_id]
            self._drop(result.trial_id)
            if result.trial_id in accepted:
                self.num_finished += 1
                _log.debug(
                    "%s: trial %d %s: %s",
                    self.name,
                    lane.claim.number,
                    result.outcome.name,
                    result.attributes,
                )
