"""One trial that is a program: what it has reported, why it is ended, and what is written when it has ended.

`EndedTrials` (ended_trials.py) writes it: the trial is counted, failed or given back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hpsearch.epoch_report import EpochReport, StepReport, Validation
from hpsearch.metric import Metric
from hpsearch.scripts.report_lines import Report
from hpsearch.search.stopping import StopDecision, StoppingRule, StopReason
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.earlier_attempt import EarlierReport
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.rows.trial_state import (
    ATTEMPT_ATTRIBUTE,
    CONTINUES_ATTRIBUTE,
    NLL_ATTRIBUTE,
    POINT_ATTRIBUTE,
    REPORTED_PREFIX,
    RESUMED_AT_ATTRIBUTE,
    ROUND_ATTRIBUTE,
)
from hpsearch.study.program import ObjectiveSettings, ProgramSettings
from hpsearch.study.space import ParameterValue
from hpsearch.worker.programs.example_results import CORRECT, ExampleResults

_INCOMPLETE = (StopReason.DIVERGED, StopReason.PRUNED)
_OWN_ATTRIBUTES = frozenset(
    (
        *("stop_reason", "stop_detail", "epochs", "best_epoch", "best_value", "seconds", "fail_reason", NLL_ATTRIBUTE),
        *(POINT_ATTRIBUTE, ATTEMPT_ATTRIBUTE, ROUND_ATTRIBUTE, RESUMED_AT_ATTRIBUTE, CONTINUES_ATTRIBUTE),
    )
)
LONGEST_NAME = 490  # characters of a parameter's or an attribute's name: 512 in Optuna's tables, with our prefixes
_MOST_VALUES = 20  # further values of the last report that become attributes


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an objective has ended, as its process tells: with a decision, or with a failure.

    Args:
        loss: of a returned value.
        cannot_start: the function could not be called at all.
    """

    decision: StopDecision | None = None
    loss: float | None = None
    failure: str | None = None
    cannot_start: bool = False
    at: float = field(default_factory=time.monotonic)


@dataclass(kw_only=True)
class ProgramTrial:
    """A trial whose program runs, or has ended and is about to be written.

    Args:
        started_at, ended_at: time.monotonic() of the attempt's start and end.
        decision: why hpsearch ends the program; None while it may go on.
        is_lost: another worker has the trial, or may have it: nothing of it is written any more.
        is_dismissed: the worker gives the trial back: what the program does from now on does not count, and what it
            has reported before is written.
        reason: why it is lost or dismissed.
        best, last: its best and its last report, as losses with their steps.
        recorded: the last step in the database, 0 at first.
        unrecorded: reports that are not in the database yet.
        more: further values of the last report.
        rungs: the pruner's notes on this trial, by system attribute.
        attributes: user attributes that an objective has set.
        ending: of an objective, once it has ended by itself: later decisions about the trial do not count.
        asks: the program has asked whether it should stop: it is told, and ends by itself.
        results: reads the files of single examples' results that reports name; None: they are left out.
    """

    claim: Claim
    program: ProgramSettings
    rule: StoppingRule
    results: ExampleResults | None = None
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    decision: StopDecision | None = None
    is_lost: bool = False
    is_dismissed: bool = False
    reason: str = ""
    best: tuple[float, int] | None = None
    last: tuple[float, int] | None = None
    recorded: int = 0
    unrecorded: list[StepReport] = field(default_factory=list)
    more: Mapping[str, Any] = field(default_factory=dict)
    rungs: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    ending: Ending | None = None
    asks: bool = False
    asked: int | None = None  # the step of a question that is not answered yet
    told_to_end_at: float | None = None
    earlier_seconds: float = 0.0  # of the attempts whose reports it has taken over
    _reported_at: float | None = None
    _correct: tuple[int, Correctness] | None = None  # of this step, which may be the one that counts

    @property
    def metric(self) -> Metric:
        return self.program.judged_by

    @property
    def seconds(self) -> float:
        return (self.ended_at or time.monotonic()) - self.started_at

    @property
    def last_step(self) -> int:
        return 0 if self.last is None else self.last[1]

    @property
    def is_open(self) -> bool:
        """Whether what the program does may still change the trial's result."""
        return self.decision is None and self.counts

    @property
    def counts(self) -> bool:
        """Whether this worker writes the trial's end."""
        return not self.is_lost and not self.is_dismissed

    def lose(self, reason: str) -> None:
        """Another worker has the trial, or may have it."""
        self.is_lost, self.reason = True, self.reason or reason

    def dismiss(self, reason: str) -> None:
        """The worker gives the trial back."""
        self.is_dismissed, self.reason = True, self.reason or reason

    @property
    def is_undecided(self) -> bool:
        """Whether the program may still be pruned or run out of time."""
        return self.decision is None and self.ending is None and self.counts

    def set_parameters(self, parameters: Mapping[str, ParameterValue]) -> None:
        """Note the parameters that the trial has in the database."""
        self.claim = replace(self.claim, parameters=dict(parameters))

    def end(self, ending: Ending) -> None:
        """Note how the objective has ended. What comes after our decision to end it is no result."""
        if self.is_undecided:
            self.ending = ending

    def is_overdue(self, grace_seconds: float) -> bool:
        """Whether the objective has ended, and its process has not (threads that go on, for example)."""
        return self.ending is not None and time.monotonic() - self.ending.at > grace_seconds

    def take_over(self, reports: Sequence[EarlierReport]) -> None:
        """Begin with the reports of the attempt before, which are in the database as this trial's.

        It may have been killed between the report that decided its end and that end.
        """
        for report in reports:
            self.recorded = report.step
            self.earlier_seconds += report.seconds
            decided = self._observe(report.step, report.loss)
            self.decision = self.decision or decided

    def take_in(self, reports: Iterable[Report]) -> None:
        """Update the history with new reports, and decide whether the trial ends by them.

        What comes after the decision to end the program is no result.
        """
        has_results = False
        for report in reports:
            has_results = has_results or CORRECT in report.more
            if self.is_open:
                self._take_in(report)
        if has_results and self.results is not None:
            self.results.sweep(self.last_step)

    def _take_in(self, report: Report) -> None:
        if report.step <= self.last_step:
            return  # reported before, perhaps by another process of the program
        if not math.isfinite(report.value):
            shown = f"{report.value:g}".lower()
            self.decision = StopDecision(StopReason.DIVERGED, f"diverged at step {report.step}: reported {shown}")
            return
        loss, now = self.metric.loss_of(report.value), time.monotonic()
        since = self.started_at if self._reported_at is None else self._reported_at
        self._reported_at = now
        self.more = {name: value for name, value in report.more.items() if name != CORRECT}
        self._note_correct(report, loss)
        self.unrecorded.append(StepReport(step=report.step, loss=loss, seconds=max(0.0, now - since)))
        self.decision = self._observe(report.step, loss)

    def _note_correct(self, report: Report, loss: float) -> None:
        """Read which examples are right if this report may be the one that counts."""
        if self.results is None or CORRECT not in report.more:
            return
        is_wanted = self.program.value == "last" or self.best is None or loss < self.best[0]
        correct = self.results.take(report.more[CORRECT], is_wanted=is_wanted)
        if correct is not None:
            self._correct = report.step, correct

    def _observe(self, step: int, loss: float) -> StopDecision | None:
        """Add a report to the history, and decide whether it is the last one."""
        self.last = loss, step
        if self.best is None or loss < self.best[0]:
            self.best = self.last
        decision = self.rule.observe(_as_epoch(step, loss))
        if decision is None and step >= (self.program.max_steps or math.inf):
            detail = f"reported step {step}, the last one by {self.program.section}.max_steps"
            return StopDecision(StopReason.MAX_STEPS, detail)
        return decision

    def prune(self, pruner: str) -> None:
        """Decide to end the trial because its pruner gives it up."""
        detail = f"pruned at step {self.last_step}: {pruner} found it worse than the others"
        self.decision = StopDecision(StopReason.PRUNED, detail)

    def fail(self, why: str) -> None:
        """Decide to end the trial's attempt without a result."""
        if self.decision is None:
            self.decision = StopDecision(StopReason.TIMEOUT, why)
            self.best = None

    def check_time(self) -> None:
        """Decide to end the trial if its attempt has taken too long."""
        minutes = self.program.timeout_minutes
        if minutes is not None and self.is_undecided and self.seconds > 60 * minutes:
            self.decision = StopDecision(StopReason.TIMEOUT, f"took longer than timeout_minutes = {minutes:g}")

    def failure(self, exit_code: int | None, signal: int | None) -> str | None:
        """Why the attempt has failed, if it has ended by itself or by its timeout; None: it has a result."""
        if self.ending is not None:
            return self.ending.failure
        if self.decision is not None:
            is_late = self.decision.reason is StopReason.TIMEOUT and self.best is None
            return f"{self.decision.detail}, and reported nothing" if is_late else None
        if signal is not None:
            return f"was ended by signal {signal}"
        if exit_code:
            return f"ended with exit code {exit_code}"
        if isinstance(self.program, ObjectiveSettings):
            return "ended before its objective returned"
        if self.best is not None:
            return None
        if not self.program.counts_matches:
            return "ended without a report"
        goes_on = " of this attempt (one that goes on needs a group `step` in its pattern)" * (self.claim.attempt > 1)
        return f"ended without a report: its pattern has matched no line{goes_on}"

    def result(self, origin: Mapping[str, str]) -> Result:
        """Return what is written when the trial has ended with a result.

        The value of a complete trial is its best or its last one, as the study says. As in Optuna, that of a pruned
        trial is its last report. What an objective returns counts whatever it has reported. `best_epoch` is the step
        of that value; of a pruned trial, its best step.
        """
        ended = None if self.ending is None else self.ending.decision
        decision = ended or self.decision or StopDecision(StopReason.FINISHED, "the program has ended")
        loss = None if self.ending is None else self.ending.loss
        is_complete = (loss is not None or self.best is not None) and decision.reason not in _INCOMPLETE
        counted = self.best if is_complete and self.program.value == "best" else self.last
        if loss is not None:  # returned: it may be the best report, and comes after the last one
            counted = self.best if self.best is not None and loss == self.best[0] else self.last
        elif counted is not None:
            loss = counted[0]
        of_step = counted if is_complete else self.best
        correct_step, correct = self._correct or (0, None)
        is_of_counted = is_complete and counted == (loss, correct_step)
        best_value = None if self.best is None else self.metric.value_of(self.best[0])
        return Result(
            trial_id=self.claim.trial_id,
            outcome=Outcome.COMPLETE if is_complete else Outcome.PRUNED,
            loss=loss,
            attributes={
                "stop_reason": decision.reason.value,
                "stop_detail": decision.detail,
                "epochs": self.last_step,
                "best_epoch": 0 if of_step is None else of_step[1],
                "best_value": best_value,
                NLL_ATTRIBUTE: None,
                "seconds": round(self.earlier_seconds + self.seconds, 3),
                **self._reported(),
                **origin,
                **self._set_by_objective(origin),
            },
            correct=correct if is_of_counted else None,
            claim=self.claim.token,
            num_epochs=self.recorded,
            num_parameters=len(self.claim.parameters),
        )

    def _set_by_objective(self, origin: Mapping[str, str]) -> dict[str, Any]:
        """The objective's own attributes; one that has a name of ours becomes `objective:NAME`."""
        ours = _OWN_ATTRIBUTES | origin.keys()
        return {f"objective:{key}" if key in ours else key: value for key, value in self.attributes.items()}

    def _reported(self) -> dict[str, Any]:
        """Attributes with the further plain values of the last report: `reported:train_loss`."""
        plain = [(n, v) for n, v in self.more.items() if isinstance(v, str | bool | int | float)]
        finite = [(n, v) for n, v in plain if is_storable(n) and (not isinstance(v, float) or math.isfinite(v))]
        return {f"{REPORTED_PREFIX}{name}": value for name, value in finite[:_MOST_VALUES]}


def is_storable(name: str) -> bool:
    """Whether PostgreSQL can hold this name in Optuna's tables."""
    is_unicode = not any("\ud800" <= character <= "\udfff" for character in name)
    return 0 < len(name) <= LONGEST_NAME and "\0" not in name and is_unicode


def _as_epoch(step: int, loss: float) -> EpochReport:
    """A report in the form in which stopping rules observe epochs."""
    validation = Validation(iteration=step, loss=loss, nll=0.0)
    return EpochReport(epoch=step, validations=(validation,), train_nll=0.0, learning_rate=0.0, seconds=0.0)
