"""The ledger: which worker trains which point, what has been reported, and what is counted.

Every point of a study is counted exactly once, whatever process fails. Four rules ensure this. All of them are enforced
in the database, by statements that compare before they set (ledger_sql.py):

    claim    WAITING -> RUNNING under a row lock, together with a lease in the claiming worker's name
    fence    a worker's writes require that the lease still has its name: a worker that lost it writes nothing
    finish   the lease ends, the trial's state is set and the point is marked as counted in one transaction
    requeue  a dead worker's trial, or one that another program has ended, becomes FAIL and a new WAITING trial takes
             its place in one transaction

A database may lose acknowledged commits. Each renewal therefore compares what the worker believes it holds
(holdings.py) with what the database has in its name. What only the database has is given back; what only the worker has
is dropped. Nothing is written after a gap: an epoch requires the epoch before it, and a result requires all of its
epochs.

A worker decides that a lease is stale from what it has seen of the lease, and for how long (lease.py). No stored time
is compared with a clock, neither the database's nor a worker's.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, TextClause

from hpsearch.epoch_report import EpochReport, StepReport
from hpsearch.logs import get_logger
from hpsearch.store.claims import ledger_sql as statements
from hpsearch.store.claims import requeue
from hpsearch.store.claims.claim import Claim, Result
from hpsearch.store.claims.holdings import Hold, Holdings
from hpsearch.store.claims.lease import ABSENCE_SECONDS, LEASE_SECONDS, Lease, LeaseWatch
from hpsearch.store.claims.report_columns import report_columns, step_columns
from hpsearch.store.connection.database import Database, DatabaseOperation
from hpsearch.store.rows.columns import as_columns
from hpsearch.store.rows.correct_images import write_correctness
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.diagnoses import write_diagnoses
from hpsearch.store.rows.example_losses import write_example_losses
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE_REASON
from hpsearch.store.rows.parameter_values import read_parameters
from hpsearch.store.rows.trial_rows import lock_study, write_trial_attributes
from hpsearch.store.rows.trial_state import parse_budgets

_log = get_logger("ledger")

UNDONE = "the database has lost acknowledged writes of this trial"  # the reason of such a trial's failure


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """One worker's access to the points of one study.

    Any number of workers may call the methods at once, and every method is safe to repeat. Each method is one
    transaction; if it finds points to requeue, one more for each reason.

    Args:
        owner: the worker's number, unique among live workers (worker/lease_keeper.py); 0 for readers.
        lease_seconds: how long a lease may stay unchanged before it is stale.
        absence_seconds: the same for a lease whose owner's session is gone.
        max_crashes: a point is given up after this many crashes; None: MAX_CRASHES.
        holdings, lease_watch: what this worker believes it holds, and what it has seen of other workers' leases; shared
            by all copies of this ledger.
    """

    database: Database
    study_id: int
    owner: int = 0
    lease_seconds: float = LEASE_SECONDS
    absence_seconds: float = ABSENCE_SECONDS
    max_crashes: int | None = None
    holdings: Holdings = field(default_factory=Holdings, repr=False, compare=False)
    lease_watch: LeaseWatch = field(default_factory=LeaseWatch, repr=False, compare=False)

    def claim(
        self,
        limit: int,
        *,
        cohort: str | None = None,
        takes_unnamed: bool = True,
        token: int | None = None,
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Claim]:
        """Claim up to `limit` WAITING points, all of one cohort, in point order.

        A suspect point, which the next crash would give up, is claimed alone, and only by a worker that holds nothing
        else.

        Args:
            cohort: claim only points of this cohort, or points whose parameters are still to be drawn; None: use the
                cohort of the first point found.
            takes_unnamed: also claim points whose parameters are still to be drawn and whose cohort nobody has named.
            token: of this claim (`new_claim_token`). To repeat a claim whose answer was lost, pass the same token: the
                call then returns the points of the first claim, and no others.
            attributes: user attributes to set on the claimed trials, for example where they are trained.
        """
        token = new_claim_token() if token is None else token
        values = {**self.values, "limit": limit, "cohort": cohort, "claim": token, "takes_unnamed": takes_unnamed}

        def work(connection: Connection) -> Sequence[Row[Any]]:
            # If the connection was lost after the commit, these points are already ours: claiming others instead would
            # leave them without a lane, and their leases would be renewed for ever.
            rows = connection.execute(statements.CLAIMED, values).all()
            if not rows:
                connection.execute(statements.CLAIM, values)
                rows = connection.execute(statements.CLAIMED, values).all()
                write_trial_attributes(connection, [(row.trial_id, attributes) for row in rows])
            return rows

        self.holdings.expect(token)
        claims = [_claim_from(row, token) for row in self.database.transaction(work, "claim")]
        self.holdings.take(token, [claim.trial_id for claim in claims])
        return claims

    def record(
        self,
        reports: Mapping[int, EpochReport],
        system_attributes: Iterable[tuple[int, str, Any]] = (),
        *,
        held: Collection[Hold] | None = None,
    ) -> set[int]:
        """Write one epoch of all lanes and renew all of the worker's leases, in one statement.

        A report for an epoch that is already recorded is ignored, as in Optuna. A report whose preceding epoch is
        missing is not written. Its trial is given back, and so is what the database has in this worker's name without
        the worker's knowledge.

        Args:
            reports: trial id -> its epoch; must not contain diverged ones.
            system_attributes: (trial id, key, value): what a pruner notes, or records of artifacts; they need one more
                statement. Not set on a trial that has ended.
            held: what the worker held when it trained the epoch; None: what it holds now.
        Returns:
            The trials whose leases this worker still holds. It must drop all others.
        """
        believed = self.holdings.now() if held is None else frozenset(held)
        return self._record(report_columns(reports, dict(believed)), believed, system_attributes)

    def record_steps(
        self,
        reports: Mapping[int, Sequence[StepReport]],
        previous: Mapping[int, int],
        system_attributes: Iterable[tuple[int, str, Any]] = (),
    ) -> set[int]:
        """Write all new reports of trials that are programs, and renew all of the worker's leases, as `record` does.

        Args:
            reports: trial id -> its reports, in order of steps.
            previous: trial id -> the last step that was recorded before, or 0.
        """
        believed = self.holdings.now()
        return self._record(step_columns(reports, previous, dict(believed)), believed, system_attributes)

    def _record(
        self,
        epochs: dict[str, list[Any]],
        believed: frozenset[Hold],
        system_attributes: Iterable[tuple[int, str, Any]],
    ) -> set[int]:
        reported = set(epochs["trial_id"])
        rungs = as_columns("trial_id key value_json", [(i, key, json.dumps(v)) for i, key, v in system_attributes])

        def work(connection: Connection) -> Sequence[Row[Any]]:
            rows = connection.execute(statements.RECORD, {**self.values, **epochs}).all()
            if rungs["trial_id"]:
                connection.execute(statements.RECORD_RUNGS, {**self.values, **rungs})
            return rows

        rows = self.database.transaction(work, "record")
        stored = self._note_stored(rows)
        gaps = {(r.trial_id, r.claim) for r in rows if r.trial_id in reported and not r.is_recorded} & believed
        self.holdings.drop((believed - stored) | gaps)
        self._give_back(self.holdings.surplus(stored))
        return {trial_id for trial_id, _ in (stored & believed) - gaps}

    def set_system_attribute(self, trial_id: int, key: str, value: Any) -> bool:
        """Set a system attribute of a trial as Optuna does. Returns False if the trial has ended or was deleted."""
        given = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        return bool(self.database.rows(statements.SET_SYSTEM_ATTRIBUTE, given))

    def finish(self, results: Sequence[Result]) -> set[int]:
        """Count these trials: state, value, attributes, bits or losses, diagnosis and the end of the lease.

        In four statements.

        Returns:
            The trials that are counted. Nothing was written for the others: this worker had lost the lease, or the
                database has lost parameters or epochs of the trial, which is then given back.
        """
        if not results:
            return set()
        given = as_columns(
            "trial_id claim state loss num_epochs num_parameters",
            ((r.trial_id, r.claim, r.outcome.name, r.loss, r.num_epochs, r.num_parameters) for r in results),
        )

        def work(connection: Connection) -> set[int]:
            is_new = {r.trial_id: r.is_new for r in connection.execute(statements.FINISH, {**self.values, **given})}
            news = [result for result in results if is_new.get(result.trial_id)]
            write_trial_attributes(connection, [(result.trial_id, result.attributes) for result in news])
            write_correctness(connection, [(result.trial_id, result.correct) for result in news])
            write_example_losses(connection, [(result.trial_id, result.losses) for result in news])
            write_diagnoses(connection, [(result.trial_id, result.num_epochs, result.diagnosis) for result in news])
            return set(is_new)

        counted = self.database.transaction(work, "finish")
        claim_of = dict(self.holdings.now())
        ended = {(r.trial_id, claim_of.get(r.trial_id, 0) if r.claim is None else r.claim) for r in results}
        self.holdings.drop(ended)
        self._give_back({hold for hold in ended if hold[0] not in counted})
        return counted

    def renew(self) -> int:
        """Renew all of the worker's leases, give back those that it does not know of, and return how many it holds."""
        stored = self._note_stored(self.rows(statements.RECORD, "renew", **report_columns({}, {})))
        surplus = self.holdings.surplus(stored)
        self._give_back(surplus)
        return len(stored - surplus)

    def release(self, reason: str, *, is_crash: bool = False) -> int:
        """Give back every point that this worker holds, and return their number.

        The trials become FAIL, the points WAITING.

        Args:
            reason: stored with each failed trial.
            is_crash: count this as a crash of the points, so that a point that always fails is eventually given up.
        """
        points = self._requeue(statements.HELD_FOR_UPDATE, {}, reason, is_crash=is_crash, operation="release")
        self.holdings.clear()
        return len(points)

    def give_back(
        self, holds: Collection[Hold], reason: str, *, max_attempts: int | None = None, is_crash: bool = False
    ) -> list[int]:
        """Give back the points of these claims, and return the points that were this worker's.

        Args:
            reason: stored with each failed trial.
            max_attempts: the attempts have failed, however far they got; a point is given up after this many. None:
                they are no failures.
            is_crash: without `max_attempts`: the attempts have ended as by their worker's death.
        """
        claimed = as_columns("trial_id claim", holds)
        limit = requeue.CrashLimit(max_crashes=max_attempts, always=True) if max_attempts else None
        points = self._requeue(
            statements.CLAIMED_FOR_UPDATE,
            claimed,
            reason,
            is_crash=is_crash or max_attempts is not None,
            operation="release",
            limit=limit,
        )
        self.holdings.drop(holds)
        return points

    def _note_stored(self, rows: Sequence[Row[Any]]) -> frozenset[Hold]:
        """Return what the database has in this worker's name, from an answer to RECORD."""
        self.holdings.note_server(rows[0].started_at)
        return frozenset((row.trial_id, row.claim) for row in rows if row.trial_id is not None)

    def _give_back(self, holds: Collection[Hold]) -> None:
        """Requeue the points of these claims, if the database still has them in this worker's name."""
        by_reason: dict[str, list[Hold]] = {}
        for hold in holds:
            by_reason.setdefault(self.holdings.reason_for(hold) or UNDONE, []).append(hold)
        for reason, some in by_reason.items():
            points = self.give_back(some, reason)
            if points and reason == UNDONE:
                _log.warning("the database has lost acknowledged writes: points %s start again", sorted(points))

    def watch_leases(self) -> None:
        """Look at other workers' leases, so that `reap` knows how long they have not been renewed."""
        self._stale(self.rows(statements.LEASES, "reap"))

    def reap(self) -> int:
        """Requeue the points of dead workers and return their number. Cheap if there are none; any worker may call it.

        Which workers are dead is decided from what this worker has seen so far (lease.py), so the first call finds no
        stale lease. A trial that is RUNNING without a worker is requeued at once.
        """
        rows = self.rows(statements.LEASES, "reap")
        stale = as_columns("stale_owner stale_renewal", self._stale(rows))
        if not stale["stale_owner"] and all(row.owner is not None or row.renewal is None for row in rows):
            return 0
        reason = "its worker died or lost the database"
        return len(self._requeue(statements.STALE_FOR_UPDATE, stale, reason, is_crash=True, operation="reap"))

    def _stale(self, rows: Sequence[Row[Any]]) -> set[Lease]:
        return self.lease_watch.look(rows, lease_seconds=self.lease_seconds, absence_seconds=self.absence_seconds)

    def _requeue(
        self,
        statement: TextClause,
        values: Mapping[str, Any],
        reason: str,
        *,
        is_crash: bool,
        operation: DatabaseOperation,
        limit: requeue.CrashLimit | None = None,
    ) -> list[int]:
        """Requeue the points that a statement selects and locks, and return them."""

        def work(connection: Connection) -> list[int]:
            lock_study(connection, self.study_id)
            rows = connection.execute(statement, {**self.values, **values}).all()
            requeue.fail_and_requeue(
                connection, self.study_id, rows, reason, is_crash=is_crash, limit=limit or self._crash_limit
            )
            return [row.point for row in rows]

        return self.database.transaction(work, operation)

    def give_back_ended_outside(self) -> int:
        """Requeue the points whose trials another program has ended, and return their number; cheap if none."""
        if not self.rows(statements.ENDED_OUTSIDE_TRIALS, "reap"):
            return 0
        again = statements.ENDED_OUTSIDE_FOR_UPDATE
        return len(self._requeue(again, {}, ENDED_OUTSIDE_REASON, is_crash=False, operation="reap"))

    def best_losses(self, number: int) -> list[float]:
        """Return the lowest losses of counted COMPLETE trials so far, in order; at most this number."""
        return [row.loss for row in self.rows(statements.BEST_LOSSES, number=number)]

    def best_loss(self) -> float | None:
        """Return the lowest loss of a counted COMPLETE trial so far, or None."""
        return next(iter(self.best_losses(1)), None)

    def best_point(self) -> int | None:
        """Return the point of the counted COMPLETE trial with the lowest loss, the first of several, or None."""
        return next((int(row.point) for row in self.rows(statements.BEST_POINT)), None)

    def counted_points(self) -> set[int]:
        """Return the points that have a result."""
        return {int(row.point) for row in self.rows(statements.COUNTED_POINTS)}

    def counts(self) -> PointCounts:
        """Count the points by state. A point whose trial another program has ended counts as WAITING."""
        by_state = {str(row.state).lower(): row.number for row in self.rows(statements.COUNTS)}
        by_state["failed"] = by_state.pop("fail", 0)
        return PointCounts(**by_state)

    def num_waiting(self, cohort: str) -> int:
        """Count the WAITING points that may belong to this cohort, including those still to be drawn."""
        return int(self.rows(statements.NUM_WAITING, cohort=cohort)[0].number)

    def num_workers(self) -> int:
        """Count the live workers that may claim points of this study: all except those that train another study."""
        return int(self.rows(statements.NUM_WORKERS)[0].number)

    def rows(self, statement: TextClause, operation: DatabaseOperation = "other", **more: Any) -> Sequence[Row[Any]]:
        """Run one statement, with `values` and these, in a transaction of its own. Raises as `Database.transaction`."""
        return self.database.rows(statement, {**self.values, **more}, operation)

    @property
    def _crash_limit(self) -> requeue.CrashLimit:
        return requeue.CrashLimit(max_crashes=self.max_crashes or requeue.MAX_CRASHES)

    @property
    def values(self) -> dict[str, Any]:
        """The parameters that the worker's statements share."""
        return {
            "study": self.study_id,
            "owner": self.owner,
            "lease": self.lease_seconds,
            "suspect_crashes": max(1, self._crash_limit.max_crashes - 1),
        }


def new_claim_token() -> int:
    """Return a random token that identifies one claim."""
    return secrets.randbelow(2**62)


def _claim_from(row: Row[Any], token: int) -> Claim:
    parameters = read_parameters(row.parameters, f"trial {row.number}")
    values = row._asdict()
    budgets = parse_budgets(values.pop("budgets"), f"the study of trial {row.number}")
    max_epochs = budgets[-1] if budgets else None
    return Claim(**{**values, "parameters": parameters, "token": token, "max_epochs": max_epochs})
