"""The ledger: who trains which point, what has been reported, and what is counted.

Every point of a study is counted exactly once, whatever dies. That rests on four rules, all of them kept in
the database, by statements that compare before they set (ledger_statements.py):

    claim    WAITING -> RUNNING under a row lock, together with a lease in the claimer's name
    fence    a worker's writes require that the lease still bears its name: one that lost it writes nothing
    finish   the lease ends, the trial's state is set and the point is marked as counted in one transaction
    requeue  a dead worker's trial, or one that another program has ended, becomes FAIL and a fresh WAITING trial takes
             its place in one transaction

Times are the database's own; no worker's clock matters.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from optuna.trial import TrialState
from sqlalchemy import Connection, Row

from hpsearch.epoch_report import EpochReport
from hpsearch.safe_text import mask_passwords
from hpsearch.service import ledger_statements as statements
from hpsearch.service.correctness import Correctness, write_correctness
from hpsearch.service.database import Database
from hpsearch.service.foreign_endings import ENDED_OUTSIDE_REASON, FAIL_REASON_ATTRIBUTE, set_aside
from hpsearch.service.points import ATTEMPT_ATTRIBUTE, POINT_ATTRIBUTE, ROUND_ATTRIBUTE
from hpsearch.service.stored_json import parse_stored, parse_stored_distribution
from hpsearch.service.trial_rows import count_trials, insert_trials, write_trial_attributes
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
        value: fraction of misclassified validation images, finite; None only for a trial that is PRUNED
            because it diverged in its first epoch.
        attributes: user attributes of the trial.
        correct: which validation images its best parameters are right on; of a COMPLETE trial only.
    """

    trial_id: int
    outcome: Outcome
    value: float | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    correct: Correctness | None = None

    def __post_init__(self) -> None:
        # Optuna would take a COMPLETE trial of -inf for the best one, and choke on one without a value.
        assert math.isfinite(self.value) if self.value is not None else self.outcome is Outcome.PRUNED


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

    def claim(
        self,
        limit: int,
        *,
        cohort: str | None = None,
        token: int | None = None,
        attributes: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Claim]:
        """Take up to `limit` WAITING points, all of one cohort, in point order.

        A point on its last attempt comes alone, and only to a worker that holds nothing else.

        Args:
            cohort: take only points of this cohort (or with parameters still to be drawn); None: of whichever
                cohort comes first.
            token: of this claim (`new_claim_token`). Whoever makes a claim again whose answer was lost must give the
                same one: what the first has taken is then given, and nothing more.
            attributes: user attributes of the trials from the start, such as where they are trained.
        """
        token = new_claim_token() if token is None else token
        values = {**self._values, "limit": limit, "cohort": cohort, "claim": token}

        def work(connection: Connection) -> Sequence[Row[Any]]:
            # If the connection was lost after the commit, these points are ours: claiming others instead
            # would leave them without a lane, and renewed for ever.
            rows = connection.execute(statements.CLAIMED, values).all()
            if not rows:
                connection.execute(statements.CLAIM, values)
                rows = connection.execute(statements.CLAIMED, values).all()
                write_trial_attributes(connection, [(row.trial_id, attributes) for row in rows])
            return rows

        return [_claim_from(row) for row in self.database.transaction(work, "claim")]

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
            held = set(connection.execute(statements.RECORD, values).scalars())
            if rungs:
                connection.execute(statements.RECORD_RUNGS, {**self._values, **_rung_columns(rungs)})
            return held

        return self.database.transaction(work, "record")

    def finish(self, results: Sequence[Result]) -> set[int]:
        """Count these trials: state, value, attributes, bits and the end of the lease, in three statements.

        Returns:
            The trials that stand counted. For the others this worker had lost the lease; nothing was written.
        """

        def work(connection: Connection) -> set[int]:
            values = {**self._values, **_result_columns(results)}
            is_new = {row.trial_id: row.is_new for row in connection.execute(statements.FINISH, values)}
            news = [result for result in results if is_new.get(result.trial_id)]
            write_trial_attributes(connection, [(result.trial_id, result.attributes) for result in news])
            write_correctness(connection, [(result.trial_id, result.correct) for result in news])
            return set(is_new)

        return self.database.transaction(work, "finish") if results else set()

    def renew(self) -> int:
        """Renew all of the worker's leases; returns how many it holds."""
        return self.database.transaction(lambda c: c.execute(statements.RENEW, self._values).rowcount, "renew")

    def release(self, reason: str, *, is_crash: bool = False) -> int:
        """Give back every point that this worker holds: its trials FAIL, their points WAIT. Returns how many.

        Args:
            is_crash: count this against the points, so that one that always fails is given up in the end.
        """

        def work(connection: Connection) -> int:
            first_number = count_trials(connection, self.study_id)
            rows = connection.execute(statements.HELD_FOR_UPDATE, self._values).all()
            _fail_and_requeue(connection, self.study_id, rows, reason, first_number, is_crash=is_crash)
            return len(rows)

        return self.database.transaction(work, "release")

    def reap(self) -> int:
        """Requeue the points of dead workers; returns how many. Cheap if there are none; all may call it."""
        stale = self.database.transaction(lambda c: c.execute(statements.STALE, self._values).first(), "reap")
        if stale is None:
            return 0

        def work(connection: Connection) -> int:
            first_number = count_trials(connection, self.study_id)
            rows = connection.execute(statements.STALE_FOR_UPDATE, self._values).all()
            reason = "its worker died or lost the database"
            _fail_and_requeue(connection, self.study_id, rows, reason, first_number, is_crash=True)
            return len(rows)

        return self.database.transaction(work, "reap")

    def give_back_ended_outside(self) -> int:
        """Queue the points again whose trials another program has ended; returns how many. Cheap if there are none."""
        look = statements.ENDED_OUTSIDE_TRIALS
        found = self.database.transaction(lambda c: c.execute(look, self._values).first(), "reap")
        if found is None:
            return 0

        def work(connection: Connection) -> int:
            first_number = count_trials(connection, self.study_id)
            rows = connection.execute(statements.ENDED_OUTSIDE_FOR_UPDATE, self._values).all()
            _fail_and_requeue(connection, self.study_id, rows, ENDED_OUTSIDE_REASON, first_number, is_crash=False)
            return len(rows)

        return self.database.transaction(work, "reap")

    def best_value(self) -> float | None:
        """The lowest value of a counted COMPLETE trial so far."""
        best: float | None = self.database.transaction(
            lambda c: c.execute(statements.BEST_VALUE, self._values).scalar_one()
        )
        return best

    def counts(self) -> PointCounts:
        """How many points are in which state; one whose trial another program has ended waits."""
        rows = self.database.transaction(lambda c: c.execute(statements.COUNTS, self._values).all())
        by_state = {str(row.state).lower(): row.number for row in rows}
        by_state["failed"] = by_state.pop("fail", 0)
        return PointCounts(**by_state)

    def num_waiting(self, cohort: str) -> int:
        """How many WAITING points may be of this cohort: those that are, and those still to be drawn."""
        values = {**self._values, "cohort": cohort}
        number: int = self.database.transaction(lambda c: c.execute(statements.NUM_WAITING, values).scalar_one())
        return number

    def num_workers(self) -> int:
        """How many living workers may want points of this study: all but those that train another one."""
        number: int = self.database.transaction(lambda c: c.execute(statements.NUM_WORKERS, self._values).scalar_one())
        return number

    @property
    def _values(self) -> dict[str, Any]:
        return {
            "study": self.study_id,
            "owner": self.owner,
            "lease": self.lease_seconds,
            "absence": self.absence_seconds,
            "namespace": PRESENCE_NAMESPACE,
            "outage": self.database.outage_seconds,
            "last_attempt": MAX_CRASHES - 1,
        }


def new_claim_token() -> int:
    """What tells one claim from all others."""
    return secrets.randbelow(2**62)


def _fail_and_requeue(
    connection: Connection,
    study_id: int,
    rows: Sequence[Row[Any]],
    reason: str,
    first_number: int,
    *,
    is_crash: bool,
) -> None:
    """FAIL the trials of `rows` and put fresh WAITING ones in their places (or give their points up).

    Those that another program has ended, be it a moment ago, are set aside, whatever the reason is for the others.
    """
    if not rows:
        return
    failed = set(connection.execute(statements.FAIL, {"trial_ids": [row.trial_id for row in rows]}).scalars())
    set_aside(connection, [row.trial_id for row in rows if row.trial_id not in failed])
    write_trial_attributes(connection, [(i, {FAIL_REASON_ATTRIBUTE: mask_passwords(reason)}) for i in failed])
    # An attempt that got farther than all before it was not killed by its point: machines die, too.
    crash_of = {row.trial_id: int(is_crash and row.reached <= row.furthest_epoch) for row in rows}
    given_up = [row for row in rows if crash_of[row.trial_id] and row.crashes + 1 >= MAX_CRASHES]
    again = [row for row in rows if row not in given_up]
    if given_up:
        connection.execute(statements.GIVE_UP, {"trial_ids": [row.trial_id for row in given_up]})
    if not again:
        return
    old_ids = [row.trial_id for row in again]
    new_ids = insert_trials(connection, study_id, len(again), first_number=first_number)
    pairs = {"old_ids": old_ids, "new_ids": new_ids}
    connection.execute(statements.COPY_PARAMETERS, pairs)
    crashes = {"crashes": [crash_of[i] for i in old_ids], "reached": [row.reached for row in again]}
    connection.execute(statements.REPLACE_TRIAL, {**pairs, **crashes})
    write_trial_attributes(
        connection,
        [
            (new_id, {POINT_ATTRIBUTE: row.point, ATTEMPT_ATTRIBUTE: row.attempt + 1, **_round_of(row)})
            for new_id, row in zip(new_ids, again, strict=True)
        ],
    )


def _round_of(row: Row[Any]) -> dict[str, Any]:
    what, place = f"trial id {row.trial_id}", f"table trial_user_attributes, key {ROUND_ATTRIBUTE}"
    return {} if row.round is None else {ROUND_ATTRIBUTE: parse_stored(row.round, what, place)}


def _claim_from(row: Row[Any]) -> Claim:
    parameters = {
        name: parse_stored_distribution(distribution, f"parameter {name} of trial {row.number}").to_external_repr(value)
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
    assert not any(report.has_diverged for report in epochs)
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
