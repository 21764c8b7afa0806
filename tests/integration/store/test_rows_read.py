"""What PostgreSQL reads for a statement grows as the tables do, whatever it knows of them.

Plans follow statistics, which are always of some time ago: a study of 2,000 points that each take one epoch has ended
before PostgreSQL first looks at it. A table that is taken for a few rows is then read again for each row of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from hpsearch.epoch_report import EpochReport
from hpsearch.results.status import read_status
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import is_finished, read_progress
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.rows.history import History
from hpsearch.store.studies import StoredStudy

NUM_POINTS = 2_000
NUM_ENDED = 1_900
LANES = 50
# Of a table of so few rows PostgreSQL reads all rather than ask its index.
SMALL_TABLE = 500
MOST_ROWS = SMALL_TABLE * NUM_POINTS
_ROWS_READ = "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0) FROM pg_stat_xact_user_tables"

Train = Callable[[Ledger, int], None]


@pytest.fixture
def train(epoch: Callable[..., EpochReport]) -> Train:
    """Claims so many points, reports an epoch of each, and ends them."""

    def train(ledger: Ledger, number: int) -> None:
        claims = ledger.claim(number)
        ledger.record({claim.trial_id: epoch(1, claim.trial_id / 1e6) for claim in claims})
        results = [
            Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=claim.trial_id / 1e6) for claim in claims
        ]
        assert len(ledger.finish(results)) == number

    return train


@contextmanager
def counting_rows(database: Database) -> Iterator[Counter[str]]:
    """The most rows that PostgreSQL read for one execution of each statement."""
    most: Counter[str] = Counter()
    before: dict[Any, int] = {}

    def num_read(cursor: Any) -> int:
        with cursor.connection.cursor() as other:
            other.execute(_ROWS_READ)
            return int(other.fetchone()[0])

    def begin(_connection: Any, cursor: Any, *_rest: Any) -> None:
        before[cursor] = num_read(cursor)

    def end(_connection: Any, cursor: Any, statement: str, *_rest: Any) -> None:
        name = " ".join(statement.split())
        most[name] = max(most[name], num_read(cursor) - before.pop(cursor))

    event.listen(database.engine, "before_cursor_execute", begin)
    event.listen(database.engine, "after_cursor_execute", end)
    try:
        yield most
    finally:
        event.remove(database.engine, "before_cursor_execute", begin)
        event.remove(database.engine, "after_cursor_execute", end)


@pytest.mark.parametrize(
    "known", ["nothing", "a study that waits", "the study when it began", "a study that has ended"]
)
def test_no_statement_reads_a_table_once_for_each_row_of_another(
    known: str,
    database: Database,
    new_study: Callable[..., StoredStudy],
    train: Train,
    execute: Callable[..., Any],
) -> None:
    if known.startswith("a study"):
        earlier = Ledger(database=database, study_id=new_study(300).study_id, owner=1)
        if known == "a study that has ended":
            train(earlier, 300)
        execute("ANALYZE")
        if known == "a study that waits":
            train(earlier, 300)
    study = new_study(NUM_POINTS)
    if known == "the study when it began":
        execute("ANALYZE")
    ledger = Ledger(database=database, study_id=study.study_id, owner=2)
    with counting_rows(database) as most:
        train(ledger, NUM_ENDED)
        for _ in range(2):
            train(ledger, LANES // 2)
            assert len(History(study.study_id).read(database)) >= NUM_ENDED
            assert len(CurveReader(database, study.study_id).read()) >= NUM_ENDED
            assert len(ledger.best_losses(3)) == 3
            assert ledger.best_point() is not None
            assert len(ledger.claim(LANES)) == LANES
            assert ledger.release("stopped") == LANES
            assert ledger.reap() == 0
            assert read_progress(database, study.study_id).counts.counted >= NUM_ENDED
            assert not is_finished(database, study)
            read_status(database, study.name, with_curves=True)
    assert not {statement: number for statement, number in most.items() if number > MOST_ROWS}
