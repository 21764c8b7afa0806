"""Rounds of a study: when the last round is trained, the next one is opened, or the search ends.

Any worker may call `advance` at any time, and any number of workers at once. Each call reads the study and computes the
next step without holding a lock. The first call that locks the study's row writes the step, if the study is still as it
was read. A round is therefore opened exactly once, whichever process fails, and repeating a call is safe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from functools import cache, partial
from typing import Any, final

import numpy as np
from pydantic import ValidationError
from sqlalchemy import Connection, text

import hpsearch
from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.metric import PairedTest
from hpsearch.search.narrowing.closed_round import Finished, FinishReason, KnownPoint, NarrowingState, Round
from hpsearch.search.proportions import SIGNIFICANCE_LEVEL, proportions_differ
from hpsearch.search.significance import discordant, mcnemar_p_value, sign_flip_p_value
from hpsearch.store.claims.continuing import continue_trials
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import Situation, read_situation
from hpsearch.store.rows.correct_images import Correctness, read_correctness
from hpsearch.store.rows.counts import num_lost_points, read_num_images
from hpsearch.store.rows.example_losses import Losses, read_example_losses
from hpsearch.store.rows.points import CohortOf, StoredPoint, add_points, narrowing_of, read_points
from hpsearch.store.rows.round_rows import (
    damaged_state,
    has_ended,
    insert_round,
    read_last_state,
)
from hpsearch.store.rows.trial_rows import lock_study
from hpsearch.store.rows.trial_state import RESUMED_AT_ATTRIBUTE, StoredState
from hpsearch.store.rows.widening import num_allowed, restore_lost_points
from hpsearch.store.studies import parse_stored_definition
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import SearchSettings, point_key

_log = get_logger("rounds")


def cohort_name(settings: TrialSettings) -> str:
    """Name the cohort of a point that hpsearch trains itself; loads torch."""
    from hpsearch.worker.cohorts import cohort_name as name_of

    return name_of(settings)


class Advance(Enum):
    """What `advance` has found."""

    UNFINISHED = auto()  # points wait or run, or another process was faster: look again
    OPENED = auto()  # this call opened a round of new points
    ENDED = auto()  # nothing is left to train, and nothing will be added


def advance(
    database: Database,
    study_id: int,
    *,
    is_trainable: Callable[[TrialSettings], bool] | None = None,
    cohort_of: CohortOf = cohort_name,
) -> Advance:
    """Open the next round, or end the search, if the last round is trained.

    Args:
        is_trainable: whether the data suits these settings (None: always); the same for all callers of one study.
        cohort_of: names the cohort of a point's settings.
    Raises:
        DatabaseAwayError: call again later.
        StorageError: the stored study cannot be read, because a newer hpsearch or another program has changed it.
    """
    situation = database.transaction(lambda connection: read_situation(connection, study_id))
    if situation.num_unfinished:
        return Advance.UNFINISHED
    if situation.definition is None:
        return Advance.ENDED
    definition = _definition_from(situation.definition, study_id)
    if situation.num_continuable:
        # A worker that knew the old number of epochs has ended trials there after the study was given more.
        go_on = partial(continue_trials, study_id=study_id, max_epochs=definition.training.max_epochs)
        return Advance.OPENED if database.transaction(go_on) else Advance.UNFINISHED
    if num_lost_points(definition, situation.num_points):
        restore = partial(restore_lost_points, study_id=study_id, definition=definition, cohort_of=cohort_of)
        number = database.transaction(restore)
        if number:
            message = "study %s: %d points were deleted by another program and are queued again"
            _log.warning(message, definition.name, number)
        return Advance.OPENED if number else Advance.UNFINISHED
    if has_ended(0, situation.rounds):
        return Advance.ENDED
    following = _following(database, study_id, definition, situation, is_trainable)
    number = situation.rounds[-1].number + 1
    points = following.points if isinstance(following, Round) else ()
    reason = following.reason if isinstance(following, Round) else following.detail

    def write(connection: Connection) -> bool:
        lock_study(connection, study_id)
        if read_situation(connection, study_id) != situation:
            return False
        state = following.state.as_json() if isinstance(following, Round) else read_last_state(connection, study_id)
        insert_round(connection, study_id, number, num_points=len(points), state=state, reason=reason)
        if points:
            add_points(connection, study_id, definition, points, cohort_of, round_number=number)
        return True

    if not database.transaction(write):
        return Advance.UNFINISHED
    if isinstance(following, Finished):
        _log.info("study %s: the search has ended: %s", definition.name, reason)
        return Advance.ENDED
    _log.info("study %s, round %d of %d points: %s", definition.name, number, len(points), reason)
    return Advance.OPENED


def _following(
    database: Database,
    study_id: int,
    definition: StudyDefinition,
    situation: Situation,
    is_trainable: Callable[[TrialSettings], bool] | None,
) -> Round | Finished:
    """Return what follows a trained round. Reads the study and changes nothing."""
    points = database.transaction(lambda connection: read_points(connection, study_id))
    state = database.transaction(lambda connection: read_last_state(connection, study_id))
    differ = TrialComparison(
        database, study_id, definition.judged_by.test, is_reported=definition.judged_by.is_reported
    )
    room = num_allowed(definition) - situation.num_points
    following = narrowing_of(definition, is_trainable, points).next_round(
        _state_from(state, study_id), map(_known, points), differ, room=max(1, room)
    )
    note = f" ({differ.note})" if differ.note else ""
    if isinstance(following, Finished):
        return replace(following, detail=following.detail + note)
    values = {"study": study_id, "resumed": RESUMED_AT_ATTRIBUTE}
    trained = database.transaction(lambda connection: connection.execute(_TRAINED, values).one())
    spent = describe_spent_budget(
        definition.search, num_points=situation.num_points, epochs=trained.epochs, seconds=trained.seconds
    )
    if spent is not None:
        return Finished(reason=FinishReason.BUDGET, detail=spent)
    return replace(following, reason=following.reason + note)


def describe_spent_budget(search: SearchSettings, *, num_points: int, epochs: int, seconds: float) -> str | None:
    """Describe the budget that is spent, for people; None if none is.

    Args:
        epochs, seconds: of training, summed over all lanes of all workers.
    """
    hours = seconds / 3600
    if search.budget_points is not None and num_points >= search.budget_points:
        return f"search.budget_points = {search.budget_points} is spent: there are {num_points:,} points"
    if num_points >= search.max_points:
        return f"search.max_points = {search.max_points} is reached"
    if search.budget_epochs is not None and epochs >= search.budget_epochs:
        return f"search.budget_epochs = {search.budget_epochs} is spent: {epochs:,} epochs were trained"
    if search.budget_hours is not None and hours >= search.budget_hours:
        return f"search.budget_hours = {search.budget_hours:g} is spent: {hours:.2f} hours were trained"
    return None


def _definition_from(text: str, study_id: int) -> StudyDefinition:
    try:
        return parse_stored_definition(text, f"study number {study_id}")
    except ValidationError as error:
        raise StorageError(
            f"the definition of study number {study_id} was changed into one that hpsearch {hpsearch.__version__} "
            "cannot read",
            hint="a newer version has probably changed it: use that version; all results so far are stored",
        ) from error


def _state_from(document: Mapping[str, Any], study_id: int) -> NarrowingState:
    try:
        state = NarrowingState.from_json(document)
        for point in (*state.given, *state.missing):
            point_key(point)
        is_sound = all(isinstance(level, int) and level >= 0 for level in document["levels"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged_state(study_id, repr(error)) from error
    if not is_sound:
        raise damaged_state(study_id, f"levels {dict(state.levels)}")
    return state


def _known(point: StoredPoint) -> KnownPoint:
    is_complete = point.state is StoredState.COMPLETE
    return KnownPoint(point.values, point.loss if is_complete else None, point.nll, point.trial_id)


NOT_TRAINED = "trials that hpsearch has not trained were compared without a record of their {}"
EVERY_DIFFERENCE_COUNTS = "without results per example, every difference counts"  # of programs


@final
class TrialComparison:
    """Decides whether two trials differ significantly on the validation images; reads the bits of compared trials.

    Uses the exact two-sided McNemar test, or the sign-flip test in a study that is not judged by its errors, or whose
    examples come in groups, which are then compared by their sums. Programs may report which examples they got right.
    Trials without bits (of a version that kept none) are compared as independent samples, which is far less sensitive.
    If even the number of images is unknown, or the values were reported or are no error rates, every difference counts,
    so that the search continues rather than ends.

    Args:
        is_reported: programs have reported the values.
        note: what must be said about the comparisons so far; empty if all of them used the exact test.
    """

    def __init__(
        self,
        database: Database,
        study_id: int,
        test: PairedTest = PairedTest.MCNEMAR,
        *,
        is_reported: bool = False,
    ) -> None:
        self._database = database
        self._study_id = study_id
        self._test = test
        self._is_reported = is_reported
        self._read = cache(partial(_read_bits, database))  # a trial takes part in several comparisons
        self._read_losses = cache(partial(_read_losses, database))
        self._answers: dict[tuple[object, object], bool] = {}
        self.note = ""

    def __call__(self, one: KnownPoint, other: KnownPoint) -> bool:
        """Compare two points. Both have values; their keys are trial ids. The answer of each pair is kept."""
        pair = one.key, other.key
        if pair not in self._answers:
            self._answers[pair] = self._differ(one, other)
        return self._answers[pair]

    def _differ(self, one: KnownPoint, other: KnownPoint) -> bool:
        assert one.value is not None
        assert other.value is not None
        if self._test is PairedTest.SIGN_FLIP and not self._is_reported:
            return self._losses_differ(one, other)
        bits_one, bits_other = self._read(one.key), self._read(other.key)
        if bits_one is not None and bits_other is not None and bits_one.num_images == bits_other.num_images:
            return mcnemar_p_value(*discordant(bits_one.bits, bits_other.bits)) < SIGNIFICANCE_LEVEL
        if self._is_reported:
            self.note = EVERY_DIFFERENCE_COUNTS
            if bits_one is not None and bits_other is not None:
                sizes = f"{bits_one.num_images} and {bits_other.num_images}"
                self.note = f"results of {sizes} examples cannot be compared: every difference counts"
            return one.value != other.value
        if self._read_losses(one.key) is not None and self._read_losses(other.key) is not None:  # groups of images
            return self._losses_differ(one, other)
        self.note = NOT_TRAINED.format("images")
        num_images = read_num_images(self._database, self._study_id)
        if num_images is None or not (0 <= one.value <= 1 and 0 <= other.value <= 1):
            return one.value != other.value
        return proportions_differ(one.value, other.value, num_images)

    def _losses_differ(self, one: KnownPoint, other: KnownPoint) -> bool:
        losses_one, losses_other = self._read_losses(one.key), self._read_losses(other.key)
        if losses_one is None or losses_other is None or len(losses_one) != len(losses_other):
            self.note = NOT_TRAINED.format("examples")
            return one.value != other.value
        return sign_flip_p_value(losses_one.astype(np.float64) - losses_other) < SIGNIFICANCE_LEVEL


def _read_losses(database: Database, trial_id: object) -> Losses | None:
    assert isinstance(trial_id, int)
    return read_example_losses(database, [trial_id]).get(trial_id)


def _read_bits(database: Database, trial_id: object) -> Correctness | None:
    assert isinstance(trial_id, int)
    return read_correctness(database, [trial_id]).get(trial_id)


# Epochs that an attempt has taken over from an earlier one are counted once.
_TRAINED = text("""
    SELECT count(*) AS epochs, coalesce(sum(e.seconds), 0) AS seconds
    FROM trials t JOIN hpsearch_epochs e USING (trial_id)
        LEFT JOIN trial_user_attributes r ON r.trial_id = t.trial_id AND r.key = :resumed
    WHERE t.study_id = :study AND e.epoch > coalesce(CAST(r.value_json AS int), 0)
""")
