"""The summary of a trial: one attempt at a point, read from the database.

The module only reads. Reading takes one SQL statement (two with curves), whatever the number of trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Connection, Row, text

from hpsearch.epoch_report import Diagnosis
from hpsearch.store.rows.diagnoses import COLUMNS, NUMBERS
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE, FOREIGN_VALUES, foreign_attributes
from hpsearch.store.rows.parameter_values import FromNumber, external_value, parse_from_number
from hpsearch.store.rows.trial_state import (
    CONTINUES_ATTRIBUTE,
    MAX_EPOCHS_REASON,
    NLL_ATTRIBUTE,
    POINT_ATTRIBUTE,
    RESUMED_AT_ATTRIBUTE,
    STOP_REASON_ATTRIBUTE,
    VERDICT_ATTRIBUTES,
    StoredState,
)
from hpsearch.stored_json import ARTIFACT_RECORD_PREFIX, Kind, check_kind, parse_stored, parse_stored_object
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import ParameterValue, without_zero_switches

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, TrialState


class EpochRecord(NamedTuple):
    """One epoch of a learning curve, as stored in the database.

    Args:
        value: of the study's metric, at the epoch's best validation.
        train_nll, validation_nll: means of what training minimises (`epoch_report.Validation`); as the learning rate,
            None for the report of a program.
    """

    epoch: int
    value: float
    train_nll: float | None
    validation_nll: float | None
    learning_rate: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSummary:
    """One trial: an attempt at a point.

    Args:
        number: Optuna's trial number, from 0.
        point: the number of its point.
        is_current: False for an attempt that failed and was or will be replaced, and for a trial that was continued.
        was_continued: another trial of its point goes on where this one ended, with more epochs.
        is_prior: it was continued, and is its point's result until the new trial has ended.
        awaits_requeue: another program has ended it, and no worker has queued its point again yet. It is shown in its
            later state: FAIL, without a value.
        parameters: as stored by Optuna, with `_is_zero` switches.
        stored_distributions: the parameters' distributions as Optuna's JSON.
        value: of the study's metric: the best of a COMPLETE trial, the last of a PRUNED trial.
        loss: of that value; lower is better.
        attributes: the user attributes that the worker wrote.
        artifact_records: Optuna's system attributes that name artifacts.
        left_to_study: the study's own values of searched keys that its (listed) point does not name.
        num_epochs: number of reported epochs.
        started_at, ended_at: UTC.
        curve: its epochs in order; empty unless curves were read.
        diagnoses: by epoch; empty unless curves were read.
    """

    trial_id: int
    number: int
    point: int | None
    is_current: bool
    stored_state: StoredState
    parameters: Mapping[str, ParameterValue]
    stored_distributions: Mapping[str, str]
    value: float | None
    loss: float | None
    attributes: Mapping[str, Any]
    artifact_records: Mapping[str, str]
    num_epochs: int
    started_at: datetime | None
    ended_at: datetime | None
    curve: tuple[EpochRecord, ...] = ()
    diagnoses: Mapping[int, Diagnosis] = field(default_factory=dict)
    left_to_study: Mapping[str, ParameterValue] = field(default_factory=dict)
    awaits_requeue: bool = False
    was_continued: bool = False
    is_prior: bool = False

    @property
    def is_listed(self) -> bool:
        """Whether views of the points show it: it is neither a replaced attempt nor superseded."""
        return self.is_current or self.is_prior

    @property
    def is_complete(self) -> bool:
        """Whether the trial can be selected: it is COMPLETE, and its point's result."""
        return self.is_listed and self.stored_state is StoredState.COMPLETE and self.value is not None

    @property
    def is_counted(self) -> bool:
        """Whether it is its point's result: COMPLETE or PRUNED."""
        return self.is_listed and self.stored_state in (StoredState.COMPLETE, StoredState.PRUNED)

    @property
    def is_superseded(self) -> bool:
        """Whether another trial has continued it with more epochs and taken its place."""
        return self.was_continued and not self.is_listed

    @property
    def state(self) -> TrialState:
        """Its state as Optuna's; what does not show it to users compares `stored_state`, which does not load Optuna."""
        from optuna.trial import TrialState

        return TrialState[self.stored_state.name]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The parameters' distributions, as Optuna's."""
        return {name: _distribution(text) for name, text in self.stored_distributions.items()}

    @property
    def point_parameters(self) -> dict[str, ParameterValue]:
        """The searched keys with the values used in training; a lambda that is switched off is 0."""
        return {**self.named_parameters, **self.left_to_study}

    @property
    def named_parameters(self) -> dict[str, ParameterValue]:
        """The values that the point itself names, without those that a listed point leaves to the study."""
        return without_zero_switches(self.parameters)

    def settings(self, definition: StudyDefinition) -> TrialSettings:
        """The settings that it was trained with: the study may have been given more epochs since."""
        settings = definition.resolve(self.parameters)
        if self.attributes.get(STOP_REASON_ATTRIBUTE) != MAX_EPOCHS_REASON or not definition.is_continuable:
            return settings
        training = settings.training.model_copy(update={"max_epochs": self.num_epochs})
        return settings.model_copy(update={"training": training})

    @property
    def best_validation_nll(self) -> float | None:
        """In nats, at the validation that gave the value; None before the trial has ended."""
        nll: float | None = self.attributes.get(NLL_ATTRIBUTE)
        return nll

    @property
    def best_epoch(self) -> int | None:
        epoch: int | None = self.attributes.get("best_epoch")
        return epoch

    def frozen(self) -> FrozenTrial:
        """The trial as an Optuna FrozenTrial, with its curve if that was read."""
        from optuna.trial import FrozenTrial

        return FrozenTrial(
            number=self.number,
            trial_id=self.trial_id,
            state=self.state,
            value=self.value,
            datetime_start=self.started_at and self.started_at.replace(tzinfo=None),
            datetime_complete=self.ended_at and self.ended_at.replace(tzinfo=None),
            params=dict(self.parameters),
            distributions=self.distributions,
            user_attrs=dict(self.attributes),
            system_attrs=dict(self.artifact_records),
            intermediate_values={record.epoch: record.value for record in self.curve},
        )


@lru_cache(maxsize=1000)  # all trials of a study have the same ones
def _distribution(text: str) -> BaseDistribution:
    from hpsearch.store.rows.distributions import parse_stored_distribution

    return parse_stored_distribution(text, "a parameter of a trial")


def _attribute(name: str) -> Callable[[TrialSummary], Any]:
    return lambda trial: trial.attributes.get(name)


# The values of a trial under their names in JSON documents, exports and data frames.
TRIAL_VALUES: Mapping[str, Callable[[TrialSummary], Any]] = {
    "trial": attrgetter("number"),
    "point": attrgetter("point"),
    "state": attrgetter("stored_state.name"),
    "value": attrgetter("value"),
    "validation_nll": attrgetter("best_validation_nll"),
    "best_epoch": attrgetter("best_epoch"),
    "epochs": attrgetter("num_epochs"),
    "stop_reason": _attribute("stop_reason"),
    "seconds": _attribute("seconds"),
    "started_at": attrgetter("started_at"),
    "ended_at": attrgetter("ended_at"),
    "worker": _attribute("worker"),
    "device": _attribute("device"),
    "lanes": _attribute("lanes"),
    **{name: _attribute(name) for name in VERDICT_ATTRIBUTES},
    "is_counted": attrgetter("is_counted"),
    "params": attrgetter("point_parameters"),
    "continues_trial": _attribute(CONTINUES_ATTRIBUTE),
}


def values_of(trial: TrialSummary, *names: str) -> dict[str, Any]:
    """The values of `TRIAL_VALUES` with these names, in this order."""
    return {name: TRIAL_VALUES[name](trial) for name in names}


@dataclass(frozen=True, kw_only=True)
class TrialRows:
    """A study's trials as database rows.

    Args:
        rows: the points' current trials and their failed attempts.
        curves: trial id -> its epochs; empty unless curves were read.
        num_foreign: number of trials that other programs have added, which belong to no point.
    """

    rows: Sequence[Row[Any]]
    curves: Mapping[int, list[Any]]
    num_foreign: int


def select_trials(connection: Connection, study_id: int, *, with_curves: bool) -> TrialRows:
    """Read all trials of a study. One statement, two with curves."""
    values = {"study": study_id, "record": f"{ARTIFACT_RECORD_PREFIX}%", "point_key": POINT_ATTRIBUTE}
    rows = connection.execute(_TRIALS, values).all()
    curves = connection.execute(_CURVES, values) if with_curves else ()
    ours = [row for row in rows if not row.is_foreign]
    return TrialRows(rows=ours, curves={row.trial_id: row.curve for row in curves}, num_foreign=len(rows) - len(ours))


def trials_from(found: TrialRows, definition: StudyDefinition) -> tuple[TrialSummary, ...]:
    """The trials, best first: COMPLETE trials by their value, ties broken by validation NLL; then the others.

    Raises:
        StorageError: a trial's records in the database are damaged.
    """
    # Every trial repeats the study's few distributions, so parsing is cached.
    from_number_of = cache(partial(parse_from_number, what=f"a parameter of study {definition.name!r}"))
    trials = (_trial_from(row, found.curves.get(row.trial_id, ()), from_number_of, definition) for row in found.rows)
    return tuple(sorted(trials, key=_rank))


# COMPLETE first, then trials that have epochs, then waiting trials, then failures.
_ORDER = (StoredState.COMPLETE, StoredState.PRUNED, StoredState.RUNNING, StoredState.WAITING, StoredState.FAIL)


def _rank(trial: TrialSummary) -> tuple[int, float, float, int]:
    """The sort key of a trial. Ties in the value are broken by NLL, as between two validations of one trial."""
    loss = math.inf if trial.loss is None else trial.loss
    nll = math.inf if trial.best_validation_nll is None else trial.best_validation_nll
    return _ORDER.index(trial.stored_state), loss, nll, trial.number


# The types of the attributes that views use. Other attributes are not checked.
_KINDS = {
    NLL_ATTRIBUTE: Kind.NUMBER,
    "seconds": Kind.NUMBER,
    **dict.fromkeys((POINT_ATTRIBUTE, RESUMED_AT_ATTRIBUTE, CONTINUES_ATTRIBUTE, "best_epoch", "epochs"), Kind.WHOLE),
    "lanes": Kind.COUNTS,
    **dict.fromkeys(("stop_reason", "stop_detail", "fail_reason", "worker", "device"), Kind.TEXT),
    **dict.fromkeys(VERDICT_ATTRIBUTES[:2], Kind.TEXT),
    **dict.fromkeys(VERDICT_ATTRIBUTES[2:], Kind.NUMBER),
}


def _trial_from(
    row: Row[Any],
    curve: list[Any] | tuple[()],
    from_number_of: Callable[[str], FromNumber],
    definition: StudyDefinition,
) -> TrialSummary:
    what = f"trial {row.number} of study {definition.name!r}"
    from_numbers = {name: from_number_of(text) for name, _, text in row.parameters or ()}
    parameters = {n: external_value(from_numbers[n], value, what) for n, value, _ in row.parameters or ()}
    attributes = _attributes(row.attributes, what, "table trial_user_attributes")
    is_ended_outside = bool(row.is_ended_outside)  # NULL for an earlier attempt
    if is_ended_outside:
        attributes |= foreign_attributes(row.state, row.told)
    if row.point is not None and row.value is not None and not is_ended_outside:
        check_kind(row.value, Kind.NUMBER, what, "table trial_values, column value")
    value = None if is_ended_outside else row.value
    return TrialSummary(
        trial_id=row.trial_id,
        number=row.number,
        point=attributes.get(POINT_ATTRIBUTE) if row.point is None else row.point,
        is_current=row.point is not None and not is_ended_outside,
        stored_state=StoredState.FAIL if is_ended_outside else StoredState(row.state),
        parameters=parameters,
        stored_distributions={name: text for name, _, text in row.parameters or ()},
        value=value,
        loss=None if value is None else definition.judged_by.loss_of(value),
        attributes=attributes,
        artifact_records=_attributes(row.records, what, "table trial_system_attributes"),
        num_epochs=row.num_epochs or 0,
        started_at=_utc(row.datetime_start),
        ended_at=_utc(row.datetime_complete),
        curve=tuple(_epoch_from(what, *epoch, is_reported=definition.is_program) for epoch, _ in curve),
        diagnoses={epoch[0]: _diagnosis_from(what, epoch[0], found) for epoch, found in curve if found is not None},
        left_to_study={} if row.point is None and not row.was_continued else definition.left_to_study(parameters),
        awaits_requeue=is_ended_outside,
        was_continued=row.was_continued,
        is_prior=row.is_prior,
    )


def _attributes(texts: Mapping[str, str] | None, what: str, table: str) -> dict[str, Any]:
    found = {key: parse_stored(value, what, f"{table}, key {key}") for key, value in (texts or {}).items()}
    for key in found.keys() & _KINDS.keys():
        if found[key] is not None:
            check_kind(found[key], _KINDS[key], what, f"{table}, key {key}")
    return found


def _epoch_from(what: str, epoch: int, *numbers: Any, is_reported: bool) -> EpochRecord:
    """A program reports a value and no losses and learning rate, which are then NULL."""
    is_value_alone = is_reported and all(number is None for number in numbers[1:4])
    for number in (numbers[0], numbers[4]) if is_value_alone else numbers:
        check_kind(number, Kind.NUMBER, f"epoch {epoch} of {what}", "tables trial_intermediate_values, hpsearch_epochs")
    return EpochRecord(epoch, *numbers)


def _diagnosis_from(what: str, epoch: int, found: list[Any]) -> Diagnosis:
    what, place = f"the diagnosis after epoch {epoch} of {what}", "table hpsearch_diagnoses"
    *numbers, ratios = *found[:-1], parse_stored_object(found[-1], what, f"{place}, column update_ratios")
    for number in (*numbers, *ratios.values()):
        if number is not None:
            check_kind(number, Kind.NUMBER, what, place)
    return Diagnosis(**dict(zip(NUMBERS, numbers, strict=True)), update_ratios=ratios)


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna stores naive times, which are UTC."""
    return moment and moment.replace(tzinfo=UTC)


# A trial without a point is a failed attempt, which has its point's number as an attribute, or was continued by its
# point's current trial, or is foreign.
_TRIALS = text(f"""
    SELECT t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete, v.value, p.point,
        (SELECT json_agg(json_build_array(param_name, param_value, distribution_json) ORDER BY param_id)
            FROM trial_params WHERE trial_id = t.trial_id) AS parameters,
        (SELECT json_object_agg(key, value_json)
            FROM trial_user_attributes WHERE trial_id = t.trial_id) AS attributes,
        (SELECT json_object_agg(key, value_json ORDER BY trial_system_attribute_id)
            FROM trial_system_attributes WHERE trial_id = t.trial_id AND key LIKE :record) AS records,
        (SELECT max(epoch) FROM hpsearch_epochs WHERE trial_id = t.trial_id) AS num_epochs,
        {ENDED_OUTSIDE} AS is_ended_outside, CASE WHEN {ENDED_OUTSIDE} THEN {FOREIGN_VALUES} END AS told,
        k.trial_id IS NOT NULL AS was_continued,
        k.trial_id IS NOT NULL AND p.point IS NULL
            AND EXISTS (SELECT FROM hpsearch_points c
                WHERE (c.study_id, c.point) = (k.study_id, k.point) AND NOT c.is_counted)
            AND NOT EXISTS (SELECT FROM hpsearch_continued l
                WHERE (l.study_id, l.point) = (k.study_id, k.point) AND l.trial_id > k.trial_id) AS is_prior,
        p.point IS NULL AND k.trial_id IS NULL AND NOT (t.state = 'FAIL' AND EXISTS (
            SELECT FROM trial_user_attributes a WHERE a.trial_id = t.trial_id AND a.key = :point_key)) AS is_foreign
    FROM trials t
    LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
    LEFT JOIN hpsearch_points p ON p.trial_id = t.trial_id
    LEFT JOIN hpsearch_continued k ON k.trial_id = t.trial_id
    WHERE t.study_id = :study
""")

_CURVES = text(f"""
    SELECT trial_id, json_agg(json_build_array(
        json_build_array(e.epoch, intermediate_value, train_nll, validation_nll, learning_rate, seconds),
        CASE WHEN d.epoch IS NOT NULL THEN json_build_array({", ".join(f"d.{name}" for name in COLUMNS)}) END
        ) ORDER BY e.epoch) AS curve
    FROM trials
    JOIN trial_intermediate_values USING (trial_id)
    JOIN hpsearch_epochs e USING (trial_id)
    LEFT JOIN hpsearch_diagnoses d USING (trial_id, epoch)
    WHERE study_id = :study AND e.epoch = step
    GROUP BY trial_id
""")
