"""The ledger: who trains which point, what has been reported, and what is counted.

Every point of a study is counted exactly once, whatever dies. That rests on four rules, all of them kept inside the
database, by statements that compare before they set:

    claim    WAITING -> RUNNING under a row lock, together with a lease in the claimer's name
    fence    every write of a worker requires that the lease still bears its name; a worker that lost it writes nothing
    finish   the lease ends, the trial's state is set and the point is marked as counted in one transaction
    requeue  a dead worker's trial becomes FAIL and a fresh WAITING trial takes its point's place in one transaction

Times are the database's own; no worker's clock matters.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState
from sqlalchemy import Connection, Row, text

from hpsearch.epoch_report import EpochReport
from hpsearch.service.database import Database
from hpsearch.service.registry import (
    ATTEMPT_ATTRIBUTE,
    POINT_ATTRIBUTE,
    count_trials,
    insert_trials,
    write_trial_attributes,
)
from hpsearch.space import ParameterValue

LEASE_SECONDS = 30.0
ABSENCE_SECONDS = 15.0  # a lease not renewed for so long, whose owner's session is gone, is stale too
MAX_CRASHES = 3  # a point whose workers died so often is given up
PRESENCE_NAMESPACE = 0x6870  # "hp": advisory lock (namespace, owner) that a living worker's session holds


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A point that this worker now trains.

    Args:
        trial_id, number: of the trial in Optuna's tables.
        parameters: as Optuna has them; empty if a sampler has still to draw them.
    """

    trial_id: int
    number: int
    point: int
    attempt: int
    parameters: Mapping[str, ParameterValue]


class Outcome(Enum):
    """How a counted trial ended."""

    COMPLETE = TrialState.COMPLETE
    PRUNED = TrialState.PRUNED


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is written when a trial ends.

    Args:
        value: fraction of misclassified validation images; None only for a trial that diverged in its first epoch.
        attributes: user attributes of the trial.
    """

    trial_id: int
    outcome: Outcome
    value: float | None
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PointCounts:
    """The points of a study by the state of their current trial."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0  # given up after MAX_CRASHES

    @property
    def counted(self) -> int:
        return self.complete + self.pruned

    @property
    def unfinished(self) -> int:
        return self.waiting + self.running

    @property
    def total(self) -> int:
        return self.unfinished + self.counted + self.failed


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """One worker's access to the points of one study. All methods are single transactions and safe to repeat.

    Args:
        owner: the worker's number, unique among living workers (presence.py); 0 for readers.
    """

    database: Database
    study_id: int
    owner: int = 0
    lease_seconds: float = LEASE_SECONDS
    absence_seconds: float = ABSENCE_SECONDS

    def claim(self, limit: int, *, cohort: str | None = None) -> list[Claim]:
        """Take up to `limit` WAITING points, all of one cohort, in point order.

        Args:
            cohort: take only points of this cohort (or with parameters still to be drawn); None: of whichever
                cohort comes first.
        """
        values = {**self._values, "limit": limit, "cohort": cohort}
        rows = self.database.transaction(lambda connection: connection.execute(_CLAIM, values).all())
        return [_claim_from(row) for row in rows]

    def record(
        self,
        reports: Mapping[int, EpochReport],
        rung_attributes: Iterable[tuple[int, str, Any]] = (),
    ) -> set[int]:
        """Write one epoch of all lanes and renew all of the worker's leases, in one statement.

        A report for an epoch that is already there is ignored, as Optuna does.

        Args:
            reports: trial id -> its epoch; diverged ones must not be among them.
            rung_attributes: (trial id, key, value) system attributes that a pruner keeps; one statement more.
        Returns:
            The trials whose leases this worker still holds. It must drop all others.
        """
        values = {**self._values, **_report_columns(reports)}
        rungs = list(rung_attributes)

        def work(connection: Connection) -> set[int]:
            held = set(connection.execute(_RECORD, values).scalars())
            if rungs:
                connection.execute(_RECORD_RUNGS, {**self._values, **_rung_columns(rungs)})
            return held

        return self.database.transaction(work)

    def finish(self, results: Sequence[Result]) -> set[int]:
        """Count these trials: state, value, attributes and the end of the lease. Returns those that were accepted."""

        def work(connection: Connection) -> set[int]:
            values = {**self._values, **_result_columns(results)}
            accepted = set(connection.execute(_FINISH, values).scalars())
            attributes = [(r.trial_id, r.attributes) for r in results if r.trial_id in accepted]
            write_trial_attributes(connection, attributes)
            return accepted

        return self.database.transaction(work) if results else set()

    def renew(self) -> int:
        """Renew all of the worker's leases; returns how many it holds."""
        return self.database.transaction(lambda c: c.execute(_RENEW, self._values).rowcount)

    def release(self, reason: str, *, is_crash: bool = False) -> int:
        """Give back every point that this worker holds: its trials FAIL, their points WAIT again. Returns how many.

        Args:
            is_crash: count this against the points, so that one that always fails is given up in the end.
        """

        def work(connection: Connection) -> int:
            first_number = count_trials(connection, self.study_id)
            rows = connection.execute(_HELD_FOR_UPDATE, self._values).all()
            _fail_and_requeue(connection, self.study_id, rows, reason, first_number, is_crash=is_crash)
            return len(rows)

        return self.database.transaction(work)

    def reap(self) -> int:
        """Requeue the points of dead workers; returns how many. Cheap when there are none, safe for all at once."""
        stale = self.database.transaction(lambda c: c.execute(_STALE, self._values).first())
        if stale is None:
            return 0

        def work(connection: Connection) -> int:
            first_number = count_trials(connection, self.study_id)
            rows = connection.execute(_STALE_FOR_UPDATE, self._values).all()
            reason = "its worker died or lost the database"
            _fail_and_requeue(connection, self.study_id, rows, reason, first_number, is_crash=True)
            return len(rows)

        return self.database.transaction(work)

    def best_value(self) -> float | None:
        """The lowest value of a COMPLETE trial so far."""
        return self.database.transaction(lambda c: c.execute(_BEST_VALUE, self._values).scalar_one())

    def counts(self) -> PointCounts:
        """How many points are in which state."""
        rows = self.database.transaction(lambda c: c.execute(_COUNTS, self._values).all())
        by_state = {str(row.state).lower(): row.number for row in rows}
        by_state["failed"] = by_state.pop("fail", 0)
        return PointCounts(**by_state)

    @property
    def _values(self) -> dict[str, Any]:
        return {
            "study": self.study_id,
            "owner": self.owner,
            "lease": self.lease_seconds,
            "absence": self.absence_seconds,
            "namespace": PRESENCE_NAMESPACE,
        }


_CLAIM = text("""
    WITH wanted AS (
        SELECT coalesce(CAST(:cohort AS text), (
            SELECT p.cohort FROM hpsearch_points p JOIN trials t USING (trial_id)
            WHERE p.study_id = :study AND t.state = 'WAITING' ORDER BY p.point LIMIT 1)) AS cohort
    ), free AS (
        SELECT p.trial_id
        FROM hpsearch_points p JOIN trials t USING (trial_id), wanted
        WHERE p.study_id = :study AND t.state = 'WAITING' AND (p.cohort IS NULL OR p.cohort = wanted.cohort)
        ORDER BY p.point LIMIT :limit
        FOR UPDATE OF p, t SKIP LOCKED
    ), started AS (
        UPDATE trials SET state = 'RUNNING', datetime_start = timezone('UTC', clock_timestamp())
        FROM free WHERE trials.trial_id = free.trial_id AND trials.state = 'WAITING'
        RETURNING trials.trial_id, trials.number
    ), leased AS (
        UPDATE hpsearch_points SET owner = :owner, lease_expires_at = now() + make_interval(secs => :lease)
        FROM started WHERE hpsearch_points.trial_id = started.trial_id
        RETURNING hpsearch_points.trial_id, started.number, hpsearch_points.point, hpsearch_points.attempt
    )
    SELECT leased.*, (
        SELECT json_agg(json_build_array(param_name, param_value, distribution_json) ORDER BY param_id)
        FROM trial_params WHERE trial_params.trial_id = leased.trial_id) AS parameters
    FROM leased ORDER BY point
""")

_RECORD = text("""
    WITH held AS (
        UPDATE hpsearch_points SET lease_expires_at = now() + make_interval(secs => :lease)
        WHERE study_id = :study AND owner = :owner
        RETURNING trial_id
    ), reports AS (
        SELECT r.* FROM unnest(
            CAST(:trial_ids AS int[]), CAST(:epochs AS int[]), CAST(:zero_ones AS float8[]),
            CAST(:train_nlls AS float8[]), CAST(:validation_nlls AS float8[]),
            CAST(:learning_rates AS float8[]), CAST(:seconds AS float8[])
        ) AS r(trial_id, epoch, zero_one, train_nll, validation_nll, learning_rate, seconds)
        JOIN held USING (trial_id)
    ), reported AS (
        INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT trial_id, epoch, zero_one, 'FINITE' FROM reports
        ON CONFLICT (trial_id, step) DO NOTHING
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, train_nll, validation_nll, learning_rate, seconds)
        SELECT trial_id, epoch, train_nll, validation_nll, learning_rate, seconds FROM reports
        ON CONFLICT (trial_id, epoch) DO NOTHING
    )
    SELECT trial_id FROM held
""")

_RECORD_RUNGS = text("""
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT r.trial_id, r.key, r.value_json
    FROM unnest(CAST(:rung_trial_ids AS int[]), CAST(:rung_keys AS text[]), CAST(:rung_values AS text[]))
        AS r(trial_id, key, value_json)
    JOIN hpsearch_points p ON p.trial_id = r.trial_id AND p.owner = :owner
    ON CONFLICT (trial_id, key) DO NOTHING
""")

_FINISH = text("""
    WITH counted AS (
        UPDATE hpsearch_points SET owner = NULL, lease_expires_at = NULL, is_counted = true
        WHERE study_id = :study AND owner = :owner AND trial_id = ANY(CAST(:trial_ids AS int[])) AND NOT is_counted
        RETURNING trial_id
    ), results AS (
        SELECT r.* FROM unnest(CAST(:trial_ids AS int[]), CAST(:states AS text[]), CAST(:results AS float8[]))
            AS r(trial_id, state, value)
        JOIN counted USING (trial_id)
    ), ended AS (
        UPDATE trials
        SET state = CAST(results.state AS trialstate), datetime_complete = timezone('UTC', clock_timestamp())
        FROM results WHERE trials.trial_id = results.trial_id
    ), valued AS (
        INSERT INTO trial_values (trial_id, objective, value, value_type)
        SELECT trial_id, 0, value, 'FINITE' FROM results WHERE value IS NOT NULL
    )
    SELECT trial_id FROM counted
""")

_RENEW = text("""
    UPDATE hpsearch_points SET lease_expires_at = now() + make_interval(secs => :lease)
    WHERE study_id = :study AND owner = :owner
""")

_HELD_FOR_UPDATE = text("""
    SELECT point, trial_id, attempt, crashes FROM hpsearch_points
    WHERE study_id = :study AND owner = :owner ORDER BY point FOR UPDATE
""")

# A trial is stale when its lease has run out; or, sooner, when it has not been renewed for a while and the session
# that its owner keeps open is gone. The pause keeps a restarted server, which ends every session, from reaping all.
_STALE_QUERY = """
    SELECT p.point, p.trial_id, p.attempt, p.crashes
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND t.state = 'RUNNING' AND (
        p.owner IS NULL
        OR p.lease_expires_at < now()
        OR (p.lease_expires_at < now() + make_interval(secs => CAST(:lease AS float8) - :absence) AND NOT EXISTS (
            SELECT 1 FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
              AND l.classid = CAST(:namespace AS oid) AND l.objid = CAST(p.owner AS oid)
              AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))))
    ORDER BY p.point
"""
_STALE = text(_STALE_QUERY + "LIMIT 1")
_STALE_FOR_UPDATE = text(_STALE_QUERY + "FOR UPDATE OF p SKIP LOCKED")

_COUNTS = text("""
    SELECT t.state, count(*) AS number FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study GROUP BY t.state
""")

_BEST_VALUE = text("""
    SELECT min(v.value) FROM trials t JOIN trial_values v USING (trial_id)
    WHERE t.study_id = :study AND t.state = 'COMPLETE' AND v.objective = 0
""")

_FAIL = text("""
    UPDATE trials SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp())
    WHERE trial_id = ANY(CAST(:trial_ids AS int[])) AND state = 'RUNNING'
""")

_COPY_PARAMETERS = text("""
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT r.new_id, p.param_name, p.param_value, p.distribution_json
    FROM unnest(CAST(:old_ids AS int[]), CAST(:new_ids AS int[])) AS r(old_id, new_id)
    JOIN trial_params p ON p.trial_id = r.old_id ORDER BY p.param_id
""")

_REPLACE_TRIAL = text("""
    UPDATE hpsearch_points p
    SET trial_id = r.new_id, attempt = p.attempt + 1, crashes = p.crashes + :crash,
        owner = NULL, lease_expires_at = NULL
    FROM unnest(CAST(:old_ids AS int[]), CAST(:new_ids AS int[])) AS r(old_id, new_id)
    WHERE p.trial_id = r.old_id
""")

_GIVE_UP = text("""
    UPDATE hpsearch_points SET crashes = crashes + 1, owner = NULL, lease_expires_at = NULL
    WHERE trial_id = ANY(CAST(:trial_ids AS int[]))
""")


def _fail_and_requeue(
    connection: Connection,
    study_id: int,
    rows: Sequence[Row[Any]],
    reason: str,
    first_number: int,
    *,
    is_crash: bool,
) -> None:
    """FAIL the trials of `rows` and put fresh WAITING ones in their points' places (or give the points up)."""
    if not rows:
        return
    connection.execute(_FAIL, {"trial_ids": [row.trial_id for row in rows]})
    write_trial_attributes(connection, [(row.trial_id, {"fail_reason": reason}) for row in rows])
    given_up = [row for row in rows if is_crash and row.crashes + 1 >= MAX_CRASHES]
    again = [row for row in rows if row not in given_up]
    if given_up:
        connection.execute(_GIVE_UP, {"trial_ids": [row.trial_id for row in given_up]})
    if not again:
        return
    old_ids = [row.trial_id for row in again]
    new_ids = insert_trials(connection, study_id, len(again), first_number=first_number)
    pairs = {"old_ids": old_ids, "new_ids": new_ids}
    connection.execute(_COPY_PARAMETERS, pairs)
    connection.execute(_REPLACE_TRIAL, {**pairs, "crash": int(is_crash)})
    write_trial_attributes(
        connection,
        [
            (new_id, {POINT_ATTRIBUTE: row.point, ATTEMPT_ATTRIBUTE: row.attempt + 1})
            for new_id, row in zip(new_ids, again, strict=True)
        ],
    )


def _claim_from(row: Row[Any]) -> Claim:
    parameters = {
        name: json_to_distribution(distribution).to_external_repr(value)
        for name, value, distribution in row.parameters or ()
    }
    return Claim(
        trial_id=row.trial_id,
        number=row.number,
        point=row.point,
        attempt=row.attempt,
        parameters=parameters,
    )


def _report_columns(reports: Mapping[int, EpochReport]) -> dict[str, list[Any]]:
    epochs = list(reports.values())
    return {
        "trial_ids": list(reports),
        "epochs": [report.epoch for report in epochs],
        "zero_ones": [report.best.zero_one for report in epochs],
        "train_nlls": [report.train_nll for report in epochs],
        "validation_nlls": [report.best.nll for report in epochs],
        "learning_rates": [report.learning_rate for report in epochs],
        "seconds": [report.seconds for report in epochs],
    }


def _rung_columns(rungs: Sequence[tuple[int, str, Any]]) -> dict[str, list[Any]]:
    return {
        "rung_trial_ids": [trial_id for trial_id, _, _ in rungs],
        "rung_keys": [key for _, key, _ in rungs],
        "rung_values": [json.dumps(value) for _, _, value in rungs],
    }


def _result_columns(results: Sequence[Result]) -> dict[str, list[Any]]:
    return {
        "trial_ids": [result.trial_id for result in results],
        "states": [result.outcome.value.name for result in results],
        "results": [result.value for result in results],
    }
