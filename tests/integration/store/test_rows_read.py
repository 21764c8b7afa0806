"""What PostgreSQL handles for a statement grows as the tables do, whatever it knows of them.

Plans follow statistics, which are always of some time ago: a study of 2,000 points that each take one epoch has ended
before PostgreSQL first looks at it. What counts as one row is then combined with each row of something else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from hpsearch.epoch_report import EpochReport
from hpsearch.results.status import read_status
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.cohort_names import name_cohorts
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import is_finished, read_progress
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.rows.history import History
from hpsearch.store.studies import StoredStudy

NUM_POINTS = 2_000  # as large a table is read by its index where there is one, and not as a whole
NUM_ENDED = 1_900
NUM_BEFORE = 100
LANES = 50
# Several steps of a plan handle each of the study's rows, and a table of NUM_BEFORE rows is read as a whole. Where the
# points are combined with each other, it is four million rows.
MOST_ROWS = 4 * NUM_BEFORE * NUM_POINTS
SEARCH = {"strategy": "random", "learning_rate": {"log10": [-3, 0]}}

Train = Callable[[Ledger, int], None]


@contextmanager
def counting_rows(database: Database) -> Iterator[Counter[str]]:
    """The most rows that PostgreSQL handled for one execution of each statement; each is executed twice for it."""
    most: Counter[str] = Counter()

    def note(_connection: Any, cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        words = statement.split()
        if words[0] not in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
            return
        with cursor.connection.cursor() as other:
            other.execute("SAVEPOINT explained")
            other.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", parameters)
            ((((explained,),),),) = (other.fetchall(),)
            other.execute("ROLLBACK TO SAVEPOINT explained")
        name = " ".join(words)
        most[name] = max(most[name], num_handled(explained["Plan"]))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield most
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def num_handled(plan: Mapping[str, Any]) -> int:
    """The rows that a step of a plan, and those below it, gave on or threw away."""
    kinds = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")
    own = plan["Actual Loops"] * sum(plan.get(kind, 0) for kind in kinds)
    return round(own) + sum(num_handled(step) for step in plan.get("Plans", ()))


def train(ledger: Ledger, number: int, epoch: Callable[..., EpochReport], look: Callable[[], None]) -> None:
    """Claim so many points, report an epoch of each, look, and end them, as a worker does."""
    claims = ledger.claim(number)
    losses = {claim.trial_id: claim.trial_id / 1e6 for claim in claims}
    ledger.record({trial_id: epoch(1, loss) for trial_id, loss in losses.items()})
    look()
    results = [
        Result(
            trial_id=claim.trial_id,
            outcome=Outcome.COMPLETE,
            loss=losses[claim.trial_id],
            claim=claim.token,
            num_epochs=1,
            num_parameters=len(claim.parameters),
        )
        for claim in claims
    ]
    for _ in range(2):  # as after a lost answer
        assert len(ledger.finish(results)) == number


@pytest.mark.parametrize(
    ("known", "is_drawn"),
    [
        ("nothing", True),
        ("a study that waits", False),
        ("the study when it began", True),
    ],
)
def test_no_statement_handles_a_row_once_for_each_row_of_something_else(
    known: str,
    is_drawn: bool,
    database: Database,
    new_study: Callable[..., StoredStudy],
    epoch: Callable[..., EpochReport],
    execute: Callable[..., Any],
) -> None:
    if known == "a study that waits":
        earlier = Ledger(database=database, study_id=new_study(NUM_BEFORE).study_id, owner=1)
        execute("ANALYZE")
        train(earlier, NUM_BEFORE, epoch, lambda: None)
    study = new_study({**SEARCH, "num_points": NUM_POINTS} if is_drawn else NUM_POINTS)
    if known == "the study when it began":
        execute("ANALYZE")
    ledger = Ledger(database=database, study_id=study.study_id, owner=2)
    another = Ledger(database=database, study_id=study.study_id, owner=3)

    def look() -> None:
        trials = History(study.study_id).read(database)
        if trials:
            ids = [trial._trial_id for trial in trials[:LANES]]
            assert len(History(study.study_id).read(database, only=ids)) == len(ids)
        CurveReader(database, study.study_id).read()
        assert read_progress(database, study.study_id).counts.total == NUM_POINTS
        assert not is_finished(database, study)
        read_status(database, study.name, with_curves=True)
        another.reap()
        ledger.renew()
        ledger.num_waiting("batch 20")
        ledger.num_workers()

    with counting_rows(database) as most:
        look()
        name_cohorts(database, study.study_id, lambda *_: "batch 20")
        train(ledger, NUM_ENDED, epoch, look)
        train(ledger, LANES // 2, epoch, look)
        assert len(ledger.best_losses(3)) == 3
        assert ledger.best_point() is not None
        assert len(ledger.counted_points()) == NUM_ENDED + LANES // 2
        assert len(ledger.claim(LANES)) == LANES
        assert ledger.release("stopped") == LANES
        assert len(ledger.claim(LANES)) == LANES
        assert ledger.release("crashed", is_crash=True) == LANES
        look()
    assert not {statement: number for statement, number in most.items() if number > MOST_ROWS}
