"""Which trials a worker trains: claims, draws and resumes points, and admits them to the lanes of one cohort at a time.

While there is something to train, the database is asked without waiting and, if it is away, asked again later. An
outage then does not stop the training: free lanes stay empty for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hpsearch.logs import get_logger
from hpsearch.search.pruners import is_competitive
from hpsearch.store.checkpoints import ResumeOutcome
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.cohort_names import name_cohorts
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.claims.ledger import Ledger, new_claim_token
from hpsearch.store.connection.database import DatabaseAwayError
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import ParameterValue
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.worker.cohorts import Cohorts, cohort_name
from hpsearch.worker.drawing import Drawing
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lanes.checkpointer import Checkpointer
from hpsearch.worker.lanes.epoch_writer import EpochWriter, Written
from hpsearch.worker.lanes.lane_count import LaneChoice
from hpsearch.worker.lanes.trial import TrialInTraining
from hpsearch.worker.ledger_access import LedgerAccess
from hpsearch.worker.options import WorkerSettings

_log = get_logger("worker")

# Of trials, at least: trials that start together cannot prune each other, and a sampler learns nothing from them.
GENERATIONS_TO_PRUNE, GENERATIONS_TO_LEARN = 3, 5
# Trials that a worker may hold, with those that wait for another cohort: for each lane, and as a part of its share of
# all points. What is drawn waits for its turn, and learns nothing from what ends meanwhile.
HELD_PER_LANE, HELD_OF_SHARE = 2, 0.5
MOST_PASSED = 5  # points, for each lane, that may be claimed while others wait for another cohort
TOGETHER = 100  # points that are drawn in one transaction, or enter the cohort with one copy of its lanes


@dataclass(kw_only=True)
class Intake:
    """The trials that one worker holds, and how it gets them. For use by one thread.

    Args:
        ledger: in the worker's name.
        choice: decides how many lanes a cohort has.
        origin: attributes that a trial has from the start: where it is trained.
        watchdog: notified of each claim before it is admitted.
        note: called with the outcome of written epochs, before a sampler draws or a lone point is claimed.
    """

    study: StoredStudy
    cohorts: Cohorts
    ledger: Ledger
    writer: EpochWriter
    checkpointer: Checkpointer
    choice: LaneChoice
    worker: WorkerSettings
    origin: Mapping[str, str]
    watchdog: Watchdog
    note: Callable[[Written], None]
    lanes: dict[int, TrialInTraining] = field(default_factory=dict, init=False)  # the trials in training, by trial id
    cohort: Cohort | None = field(default=None, init=False)  # None before the first trial
    opened_by: TrialSettings | None = field(default=None, init=False)  # the first trial of that cohort
    num_lanes: int = field(default=1, init=False)  # of the current cohort
    seconds_per_lane: float | None = field(default=None, init=False)  # in the last epoch of the current cohort

    def __post_init__(self) -> None:
        self.access = LedgerAccess(
            ledger=self.ledger, is_busy=lambda: bool(self.lanes), is_behind=lambda: self.writer.is_behind
        )
        self._drawing = Drawing(self.study)
        self._cohort_name: str | None = None  # under which the cohort's waiting points are stored
        self._most_held = 1
        self._has_unnamed = True  # waiting points may be without the name of a cohort
        self._held_over: list[Claim] = []  # claimed, but of another cohort than the current one
        self._num_fitting = 0  # lanes that were in training when another trial found no memory
        self._num_passed = 0  # points that were claimed while those waited
        self._unadmitted: list[Claim] = []  # claimed and not yet processed: an outage may interrupt it
        self._claim_token: int | None = None  # token of a claim whose answer was lost

    def fill(self) -> None:
        """Claim points until all lanes are busy or no point of the current cohort is left."""
        if not self.lanes:
            self.num_lanes = 1  # the first trial opens a cohort and so decides how many may join it
        while len(self.lanes) < self.num_lanes:
            if self.lanes and self.access.is_away:
                return
            claims = self._next_claims(self.num_lanes - len(self.lanes))
            if not claims:
                return
            self._admit_all(claims)

    def _next_claims(self, number: int) -> list[Claim]:
        """Return claims to admit: first those that an outage interrupted, then those held over, then new ones."""
        if self._unadmitted:
            claims = self._unadmitted
        elif self._held_over and not self.lanes:
            claims, self._held_over = self._held_over, []  # the first one opens its cohort
        elif fitting := [claim for claim in self._held_over if self._fits(claim)][:number]:
            claims = fitting
            self._held_over = [claim for claim in self._held_over if claim not in fitting]
        else:
            # Up to these numbers, points may wait for another cohort, and others be claimed meanwhile for this one.
            if not self._held_over:
                self._num_passed = 0
            most_passed = MOST_PASSED * self.num_lanes - self._num_passed
            room = min(max(self.num_lanes, self._most_held) - len(self.held()), most_passed)
            claims = self._claim(min(number, room)) if room > 0 else []
            if self._held_over:
                self._num_passed += len(claims)
        return claims

    def _admit_all(self, claims: Sequence[Claim]) -> None:
        self._unadmitted = list(claims)
        if self._drawing.learns:
            # The sampler must see the trials that ended here: they are written first. With lanes in training, the wait
            # is only a moment, and the claims may be left to a later turn.
            self.note(self.writer.collect() if self.lanes else self.writer.drain())
            if self.writer.is_outstanding:
                return
        newcomers: dict[Hashable, TrialSettings] = {}
        try:
            self._draw()
            while self._unadmitted:
                self.watchdog.note_progress()
                settings = self._admit(self._unadmitted[0])
                claim = self._unadmitted.pop(0)
                if settings is not None:
                    newcomers[claim.trial_id] = settings
        except DatabaseAwayError:
            if not self.lanes:
                raise
            self.access.note_absence()
        entering = list(newcomers.items())
        for start in range(0, len(entering), TOGETHER):
            assert self.cohort is not None
            self.watchdog.note_progress()
            self.cohort.admit_all(dict(entering[start : start + TOGETHER]))

    def _draw(self) -> None:
        """Draw the parameters of the claims that are to be admitted, many in one transaction."""
        if not self.study.definition.is_drawn:
            return
        undrawn = [claim for claim in self._unadmitted if not claim.is_continued]  # which has an earlier trial's
        size = 1 if self._drawing.learns else TOGETHER
        for start in range(0, len(undrawn), size):
            self.watchdog.note_progress()
            part = undrawn[start : start + size]
            drawn = self._drawing.draw(self.access.brief if self.lanes else self.ledger, part)
            lost = {claim.trial_id: claim for claim in part if claim.trial_id not in drawn}
            for claim in lost.values():
                self._tell_lost(claim)
            self._unadmitted = [
                replace(claim, parameters=drawn.get(claim.trial_id, claim.parameters))
                for claim in self._unadmitted
                if claim.trial_id not in lost
            ]

    def _claim(self, number: int) -> list[Claim]:
        if self._drawing.foresees_cohorts:
            # Before a cohort is opened, and while its lanes are not full: one more of its points may be without a name.
            self._has_unnamed = self._has_unnamed or not self.lanes
            if self._has_unnamed:
                self._has_unnamed = self.access.ask(self._name_cohorts, True)
        claims = self.access.ask(lambda ledger: self._claim_from(ledger, number), None) or []
        if not claims and not self.lanes and self.writer.is_outstanding:
            # A suspect point is given only to a worker that holds nothing else: its ended trials must be
            # written first.
            self.note(self.writer.drain())
            claims = self._claim_from(self.ledger, number)
        return claims

    def _name_cohorts(self, ledger: Ledger) -> bool:
        return name_cohorts(ledger.database, self.study.study_id, self._future_cohort)

    def _future_cohort(self, number: int, point: int, stored: Mapping[str, ParameterValue]) -> str:
        try:
            return cohort_name(self.study.definition.resolve(stored or self._drawing.foresee(number, point)))
        except ValueError:  # left to the worker that claims the point
            return "unknown"

    def _claim_from(self, ledger: Ledger, number: int) -> list[Claim]:
        self._claim_token = self._claim_token or new_claim_token()
        claims = ledger.claim(
            number,
            cohort=self._cohort_name if self.lanes else None,
            takes_unnamed=not self._drawing.foresees_cohorts,
            token=self._claim_token,
            attributes=self.origin,
        )
        # A trial that is claimed while this worker holds it: the database has lost the first claim.
        again = {claim.trial_id for claim in claims}
        self.forget([hold for hold in self.held() if hold[0] in again])
        self.checkpointer.look_up(claims, is_brief=ledger is self.access.brief)
        self._claim_token = None
        return claims

    def _admit(self, claim: Claim) -> TrialSettings | None:
        """Give a trial a lane. Return its settings if it has yet to enter the cohort, at its first epoch.

        Raises:
            DatabaseAwayError: the trial has no lane, and the call can be repeated.
        """
        definition = self.study.definition
        settings = _with_epochs(definition.resolve(claim.parameters), claim, definition)
        is_first = not self.lanes
        if not is_first and (not self._fits_cohort(settings) or len(self.lanes) >= self.num_lanes):
            self._held_over.append(claim)
            return None
        rule = self.cohorts.stopping_rule(settings)
        lane = self.lanes[claim.trial_id] = TrialInTraining(
            claim=claim, settings=settings, rule=rule, num_classes=self.cohorts.num_classes, metric=self.cohorts.metric
        )
        try:
            cohort = self._open_cohort(settings, claim.cohort) if is_first or self.cohort is None else self.cohort
            outcome, self.lanes[claim.trial_id] = self.checkpointer.resume(lane, cohort, is_brief=not is_first)
        except DatabaseAwayError:
            del self.lanes[claim.trial_id]
            raise
        if outcome is ResumeOutcome.LOST:
            del self.lanes[claim.trial_id]
            self._tell_lost(claim)
        if outcome is not None:
            return None
        values = self.worker.name, claim.number, dict(claim.parameters)
        _log.debug("%s: trial %d starts: %s", *values, extra={"trial": claim.number})
        return settings

    def _fits(self, claim: Claim) -> bool:
        return self._fits_cohort(self.study.definition.resolve(claim.parameters))

    def _fits_cohort(self, settings: TrialSettings) -> bool:
        return self.opened_by is not None and CohortShape.of(settings) == CohortShape.of(self.opened_by)

    def _tell_lost(self, claim: Claim) -> None:
        self.ledger.holdings.drop([claim.hold])
        number = claim.number
        _log.warning("%s: lost trial %d before it started", self.worker.name, number, extra={"trial": number})

    def _open_cohort(self, settings: TrialSettings, stored_name: str | None) -> Cohort:
        """Open a cohort for a trial.

        Args:
            stored_name: of the trial's point. Another version of hpsearch may have stored another one than this version
                gives. It is not used if the point had no parameters when it was stored.
        """
        if self.study.definition.is_drawn:
            stored_name = None
        self._num_fitting = 0
        self.cohort = self.seconds_per_lane = None  # the memory of the last one counts as free for the next one
        self._cohort_name, self.opened_by = stored_name or cohort_name(settings), settings
        self.num_lanes = self.choice.num_lanes(settings, lambda: self._share(self.ledger))
        if self._drawing.learns:
            num_workers = max(1, self.worker.num_siblings, self.ledger.num_workers())
            part = int(HELD_OF_SHARE * self.study.definition.num_points / num_workers)
            self._most_held = min(HELD_PER_LANE * self.num_lanes, part)
        self.cohort = self.cohorts.open(settings)
        return self.cohort

    def review_lanes(self, num_busy: int, seconds: float) -> None:
        """Adapt the number of lanes after an epoch: `fill` claims points for new lanes, and does not refill others."""
        assert self.opened_by is not None
        self.num_lanes = self.choice.review(
            self.opened_by, num_busy, seconds, lambda: self.access.ask(self._share, None)
        )

    def _share(self, ledger: Ledger) -> int:
        """Return how many points of the cohort this worker may take, at least 1.

        The unfinished points of the study are divided equally among the workers. With a pruner that compares trials, or
        a sampler that learns, a worker takes no more than a part of all points.
        """
        assert self._cohort_name is not None
        num_workers = max(1, self.worker.num_siblings, ledger.num_workers())
        definition, counts = self.study.definition, ledger.counts()
        num_generations = 1
        if is_competitive(definition.pruning):
            num_generations = GENERATIONS_TO_PRUNE
        if self._drawing.learns:
            num_generations = GENERATIONS_TO_LEARN
        share = min(-(-counts.unfinished // num_workers), -(-counts.total // (num_workers * num_generations)))
        waiting = (*self._held_over, *(claim for claim in self._unadmitted if claim.parameters))
        num_ours = len(self.held()) - sum(not self._fits(claim) for claim in waiting)
        return max(1, min(share, num_ours + ledger.num_waiting(self._cohort_name)))

    def forget_history(self) -> None:
        """Make the sampler read all trials again."""
        self._drawing = Drawing(self.study)

    def drop(self, trial_id: int) -> None:
        """Remove a trial from its lane, which becomes free."""
        del self.lanes[trial_id]
        assert self.cohort is not None
        self.cohort.release(trial_id)

    def held(self) -> frozenset[Hold]:
        """Return all holds of this worker: in lanes, held over, or not yet admitted."""
        claims = (*(lane.claim for lane in self.lanes.values()), *self._held_over, *self._unadmitted)
        return frozenset(claim.hold for claim in claims)

    def forget(self, holds: Collection[Hold]) -> list[TrialInTraining]:
        """Drop holds that no longer belong to this worker, and return the lanes of those that were in training."""
        lost = [lane for lane in self.lanes.values() if lane.claim.hold in holds]
        for lane in lost:
            self.drop(lane.claim.trial_id)
        self._held_over = [claim for claim in self._held_over if claim.hold not in holds]
        self._unadmitted = [claim for claim in self._unadmitted if claim.hold not in holds]
        return lost

    def give_back_left_out(self, reason: str) -> int:
        """Give back the trials that the cohort could not admit, if it has others, and return their number.

        The trials in lanes stay there. The new limit is their number or half of the lanes that were wanted, whichever
        is more. It is half where as many lanes as were wanted have been in training before: then one trial needs more
        memory than others. A database that is away still has the trials in this worker's name; its next answer is
        corrected.
        """
        entered = frozenset(() if self.cohort is None else self.cohort.keys)
        left_out = self.lanes.keys() - entered
        if not entered or not left_out:
            return 0
        before = self.held()
        self._unadmitted.clear()
        for trial_id in left_out:
            del self.lanes[trial_id]
        dropped = before - self.held()
        num_wanted = len(self.lanes) + len(dropped)
        known_to_fit = len(self.lanes) if num_wanted > self._num_fitting else 1
        self._num_fitting = len(self.lanes)
        self.num_lanes = min(self.num_lanes, max(known_to_fit, num_wanted // 2))
        if self.access.ask(lambda ledger: ledger.give_back(dropped, reason), None) is None:  # the database is away
            self.ledger.holdings.owe(dropped, reason)
        return len(dropped)

    def clear(self) -> None:
        """Forget all trials and release their tensors."""
        self.lanes.clear()
        self._held_over.clear()
        self._unadmitted.clear()
        self.cohort = None


def _with_epochs(settings: TrialSettings, claim: Claim, definition: StudyDefinition) -> TrialSettings:
    """The settings with the study's present number of epochs: it may have been raised since this worker began."""
    if claim.max_epochs is None or not definition.is_continuable:
        return settings
    training = settings.training.model_copy(update={"max_epochs": claim.max_epochs})
    return settings.model_copy(update={"training": training})
