"""The summary of a study: what `status`, `export` and `report` tell, read from the database as of one moment.

Trials are ordered best first: COMPLETE ones by their value, ties by their validation NLL; then the others.
Nothing here trains, claims or writes. Reading takes five SQL statements (six with curves), however many
trials there are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Row, text

from hpsearch.errors import NothingCompleteError, UncountedPointsError
from hpsearch.results.vault_ledger import Openings, VaultRecord, select_openings
from hpsearch.service.artifacts import RECORD_PREFIX
from hpsearch.service.checkpoints import RESUMED_AT_ATTRIBUTE
from hpsearch.service.database import Database
from hpsearch.service.home import log_folder
from hpsearch.service.ledger import PointCounts
from hpsearch.service.points import NLL_ATTRIBUTE, POINT_ATTRIBUTE
from hpsearch.service.registry import StoredStudy, load_study
from hpsearch.service.round_rows import StoredRound, has_ended, read_rounds
from hpsearch.space import ParameterValue, without_zero_switches

_MOST_NAMED = 3  # points in an error message


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One epoch of a learning curve, as the database has it.

    Args:
        zero_one: fraction of misclassified validation images at the epoch's best validation.
        train_nll, validation_nll: nats.
    """

    epoch: int
    zero_one: float
    train_nll: float
    validation_nll: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSummary:
    """One trial: an attempt at a point.

    Args:
        number: Optuna's, from 0.
        point: the point that it is an attempt at; None for a trial that is not ours.
        is_current: False for an attempt that failed and was replaced, and for a trial that is not ours.
        parameters: as Optuna has them, with `_is_zero` switches.
        value: fraction of misclassified validation images: the best of a COMPLETE trial, the last of a PRUNED
            one.
        attributes: the user attributes that the worker wrote.
        artifact_records: Optuna's system attributes that name artifacts.
        num_epochs: epochs that were reported.
        started_at, ended_at: UTC.
        curve: its epochs in order; empty unless it was asked for.
    """

    trial_id: int
    number: int
    point: int | None
    is_current: bool
    state: TrialState
    parameters: Mapping[str, ParameterValue]
    distributions: Mapping[str, BaseDistribution]
    value: float | None
    attributes: Mapping[str, Any]
    artifact_records: Mapping[str, str]
    num_epochs: int
    started_at: datetime | None
    ended_at: datetime | None
    curve: tuple[EpochRecord, ...] = ()

    @property
    def is_complete(self) -> bool:
        """True if it may be selected: it ended of its own accord, as the counted attempt at its point."""
        return self.is_current and self.state is TrialState.COMPLETE and self.value is not None

    @property
    def point_parameters(self) -> dict[str, ParameterValue]:
        """The searched keys with their values; a switched-off lambda is 0."""
        return without_zero_switches(self.parameters)

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
        """The trial as Optuna's own functions take it, with its curve if that was read."""
        return FrozenTrial(
            number=self.number,
            trial_id=self.trial_id,
            state=self.state,
            value=self.value,
            datetime_start=self.started_at and self.started_at.replace(tzinfo=None),
            datetime_complete=self.ended_at and self.ended_at.replace(tzinfo=None),
            params=dict(self.parameters),
            distributions=dict(self.distributions),
            user_attrs=dict(self.attributes),
            system_attrs=dict(self.artifact_records),
            intermediate_values={record.epoch: record.zero_one for record in self.curve},
        )


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study and all its trials as of one moment.

    Args:
        trials: best first.
        openings: of the test set, in their order; empty while nobody has looked at it.
        earlier_openings: of the test set, by deleted studies of this name.
        round_rows: its rounds in order, the row that ended its search included.
        read_at: UTC.
    """

    study: StoredStudy
    trials: tuple[TrialSummary, ...]
    openings: tuple[VaultRecord, ...] = ()
    earlier_openings: tuple[VaultRecord, ...] = ()
    round_rows: tuple[StoredRound, ...] = ()
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def complete(self) -> tuple[TrialSummary, ...]:
        """The trials that may be selected, best first."""
        return tuple(trial for trial in self.trials if trial.is_complete)

    @property
    def best(self) -> TrialSummary | None:
        return next((trial for trial in self.trials if trial.is_complete), None)

    @property
    def points(self) -> PointCounts:
        """The points by the state of their current trial."""
        states = [trial.state for trial in self.trials if trial.is_current]
        return PointCounts(
            waiting=states.count(TrialState.WAITING),
            running=states.count(TrialState.RUNNING),
            complete=states.count(TrialState.COMPLETE),
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL),
        )

    @property
    def is_finished(self) -> bool:
        """True when nothing is left to train and no round will follow."""
        return has_ended(self.points.unfinished, self.round_rows)

    @property
    def rounds(self) -> tuple[StoredRound, ...]:
        """The rounds that added points, in order; empty for a study that had all its points from the start."""
        return tuple(row for row in self.round_rows if not row.is_end)

    @property
    def search_ended(self) -> str | None:
        """Why no further round was opened; None while one may follow, and for a study that has no rounds."""
        return next((row.reason for row in self.round_rows[-1:] if row.is_end), None)

    @property
    def running(self) -> tuple[TrialSummary, ...]:
        """The trials in training, by number; `worker` and `device` among their attributes say where."""
        running = [trial for trial in self.trials if trial.is_current and trial.state is TrialState.RUNNING]
        return tuple(sorted(running, key=lambda trial: trial.number))

    @property
    def num_epochs(self) -> int:
        """Epochs trained so far, by all attempts; what one has taken over from another counts once."""
        return sum(trial.num_epochs - int(trial.attributes.get(RESUMED_AT_ATTRIBUTE, 0)) for trial in self.trials)

    @property
    def failed_attempts(self) -> tuple[TrialSummary, ...]:
        """Attempts that ended with their worker, by number; their points were taken up again or given up."""
        failed = [trial for trial in self.trials if trial.state is TrialState.FAIL]
        return tuple(sorted(failed, key=lambda trial: trial.number))

    def require_best(self) -> TrialSummary:
        """The best trial.

        Raises:
            NothingCompleteError: there is none; says how many points are in which state.
        """
        if self.best is None:
            raise NothingCompleteError(
                f"study {self.name!r} has no complete trial yet: {describe_counts(self.points)}",
                hint=f"train it first: hpsearch worker {self.name}"
                if self.points.unfinished
                else "every point was pruned or given up: change the search space or the pruning",
            )
        return self.best

    def require_all_counted(self) -> None:
        """Raises UncountedPointsError if points were given up: names some of them and where the logs are."""
        given_up = [trial for trial in self.failed_attempts if trial.is_current]
        if not given_up:
            return
        named = "; ".join(
            f"point {trial.point} ({', '.join(f'{k}={v}' for k, v in trial.point_parameters.items())})"
            for trial in given_up[:_MOST_NAMED]
        )
        more = f" and {len(given_up) - _MOST_NAMED} more" if len(given_up) > _MOST_NAMED else ""
        raise UncountedPointsError(
            f"{len(given_up)} of {self.points.total} points could not be trained, their workers died or "
            f"failed each time: {named}{more}",
            hint=f"the logs of the workers are in {log_folder()}",
        )

    def as_json(self) -> dict[str, Any]:
        """What `hpsearch status --json` prints, but for `confirmation`, which `StudyStatus.as_json` adds.

        These keys stay; others may join them.

        name, strategy, dataset, seed, definition_sha256, read_at (UTC)
        finished            no point is waiting or running, and no round will follow
        points              total, waiting, running, complete, pruned, failed (given up)
        rounds              of points, in order: round (its number, as the trials' attribute), points (how many it
                            added), reason, opened_at (UTC); [] if the study had all its points from the start
        search_ended        null, or why no further round was opened
        epochs              trained so far, failed attempts included
        failed_attempts     how many trials ended with their worker
        running             trials in training: trial (its number), point, epochs, worker and device (null if
                            they are not known), params
        best                null, or the best trial: trial (its number), point, value (fraction of
                            misclassified validation images), validation_nll (nats), best_epoch, epochs,
                            params (the searched keys)
        test_openings       of the test set, in their order, as `VaultRecord.as_json` tells them; [] if it is unopened
        earlier_test_openings   the same by deleted studies of this name
        """
        definition, best = self.study.definition, self.best
        return {
            "name": self.name,
            "strategy": definition.search.strategy,
            "dataset": definition.data.dataset,
            "seed": definition.seed,
            "definition_sha256": definition.sha256,
            "read_at": format_time(self.read_at),
            "finished": self.is_finished,
            "points": counts_as_json(self.points),
            "rounds": [
                {
                    "round": row.number,
                    "points": row.num_points,
                    "reason": row.reason,
                    "opened_at": format_time(row.opened_at),
                }
                for row in self.rounds
            ],
            "search_ended": self.search_ended,
            "epochs": self.num_epochs,
            "failed_attempts": len(self.failed_attempts),
            "running": [
                {
                    "trial": trial.number,
                    "point": trial.point,
                    "epochs": trial.num_epochs,
                    "worker": trial.attributes.get("worker"),
                    "device": trial.attributes.get("device"),
                    "params": trial.point_parameters,
                }
                for trial in self.running
            ],
            "best": best
            and {
                "trial": best.number,
                "point": best.point,
                "value": best.value,
                "validation_nll": best.best_validation_nll,
                "best_epoch": best.best_epoch,
                "epochs": best.num_epochs,
                "params": best.point_parameters,
            },
            "test_openings": [record.as_json() for record in self.openings],
            "earlier_test_openings": [record.as_json() for record in self.earlier_openings],
        }


def read_summary(database: Database, name: str, *, with_curves: bool = False) -> StudySummary:
    """Read a study with all its trials.

    Args:
        with_curves: read every trial's epochs too.
    Raises:
        StudyNotFoundError: no such study.
        InputError: not a study of hpsearch.
        StorageError: the database went away.
    """
    study = load_study(database, name)
    values = {"study": study.study_id, "record": f"{RECORD_PREFIX}%"}

    def work(
        connection: Connection,
    ) -> tuple[list[Row[Any]], dict[int, list[Any]], tuple[StoredRound, ...], Openings]:
        rows = list(connection.execute(_TRIALS, values))
        curves = connection.execute(_CURVES, values) if with_curves else ()
        rounds = read_rounds(connection, study.study_id)
        return rows, {row.trial_id: row.curve for row in curves}, rounds, select_openings(connection, study)

    rows, curves, rounds, (openings, earlier) = database.transaction(work)
    distribution_of = cache(json_to_distribution)  # every trial repeats the study's few distributions
    trials = [_trial_from(row, curves.get(row.trial_id, ()), distribution_of) for row in rows]
    return StudySummary(
        study=study,
        trials=tuple(sorted(trials, key=_rank)),
        openings=openings,
        earlier_openings=earlier,
        round_rows=rounds,
    )


def describe_counts(points: PointCounts) -> str:
    """`3 waiting, 1 running, 0 complete, 2 pruned, 0 given up`."""
    return (
        f"{points.waiting} waiting, {points.running} running, {points.complete} complete, "
        f"{points.pruned} pruned, {points.failed} given up"
    )


def counts_as_json(points: PointCounts) -> dict[str, int]:
    """The points of a study by the state of their current trial; `failed`: given up."""
    return {
        "total": points.total,
        "waiting": points.waiting,
        "running": points.running,
        "complete": points.complete,
        "pruned": points.pruned,
        "failed": points.failed,
    }


def format_time(moment: datetime) -> str:
    """An aware time as UTC to the second: 2026-11-21T07:05:00Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


_TRIALS = text("""
    SELECT t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete, v.value, p.point,
        (SELECT json_agg(json_build_array(param_name, param_value, distribution_json) ORDER BY param_id)
            FROM trial_params WHERE trial_id = t.trial_id) AS parameters,
        (SELECT json_object_agg(key, value_json)
            FROM trial_user_attributes WHERE trial_id = t.trial_id) AS attributes,
        (SELECT json_object_agg(key, value_json)
            FROM trial_system_attributes WHERE trial_id = t.trial_id AND key LIKE :record) AS records,
        (SELECT max(epoch) FROM hpsearch_epochs WHERE trial_id = t.trial_id) AS num_epochs
    FROM trials t
    LEFT JOIN trial_values v ON v.trial_id = t.trial_id AND v.objective = 0
    LEFT JOIN hpsearch_points p ON p.trial_id = t.trial_id
    WHERE t.study_id = :study
""")

_CURVES = text("""
    SELECT trial_id, json_agg(json_build_array(
        epoch, intermediate_value, train_nll, validation_nll, learning_rate, seconds) ORDER BY epoch) AS curve
    FROM trials
    JOIN trial_intermediate_values USING (trial_id)
    JOIN hpsearch_epochs USING (trial_id)
    WHERE study_id = :study AND epoch = step
    GROUP BY trial_id
""")

# COMPLETE first, then those that have come far, then those that are still to come, then failures.
_ORDER = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)


def _rank(trial: TrialSummary) -> tuple[int, float, float, int]:
    """Ties in the value break on the NLL, as between two validations of one trial."""
    value = math.inf if trial.value is None else trial.value
    nll = math.inf if trial.best_validation_nll is None else trial.best_validation_nll
    return _ORDER.index(trial.state), value, nll, trial.number


def _trial_from(
    row: Row[Any], curve: list[Any] | tuple[()], distribution_of: Callable[[str], BaseDistribution]
) -> TrialSummary:
    distributions = {name: distribution_of(text) for name, _, text in row.parameters or ()}
    attributes = {key: json.loads(value) for key, value in (row.attributes or {}).items()}
    return TrialSummary(
        trial_id=row.trial_id,
        number=row.number,
        point=attributes.get(POINT_ATTRIBUTE) if row.point is None else row.point,
        is_current=row.point is not None,
        state=TrialState[row.state],
        parameters={n: distributions[n].to_external_repr(value) for n, value, _ in row.parameters or ()},
        distributions=distributions,
        value=row.value,
        attributes=attributes,
        artifact_records={key: json.loads(value) for key, value in (row.records or {}).items()},
        num_epochs=row.num_epochs or 0,
        started_at=_utc(row.datetime_start),
        ended_at=_utc(row.datetime_complete),
        curve=tuple(_epoch_from(*epoch) for epoch in curve),
    )


def _epoch_from(
    epoch: int,
    zero_one: float,
    train_nll: float,
    validation_nll: float,
    learning_rate: float,
    seconds: float,
) -> EpochRecord:
    return EpochRecord(
        epoch=epoch,
        zero_one=zero_one,
        train_nll=train_nll,
        validation_nll=validation_nll,
        learning_rate=learning_rate,
        seconds=seconds,
    )


def _utc(moment: datetime | None) -> datetime | None:
    """Optuna keeps naive times, which are UTC."""
    return moment and moment.replace(tzinfo=UTC)
