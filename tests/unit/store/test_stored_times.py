"""No decision compares a stored time with a clock: the database's may jump, and differs after a failover."""

from __future__ import annotations

import re
from pathlib import Path

import hpsearch

PACKAGE = Path(hpsearch.__file__).parent
_CLOCK = r"(?:now\(\)|(?:clock|statement|transaction)_timestamp\(\)|current_timestamp|localtimestamp)"
# Where a time is written, or given to people: the right-hand side of an assignment, or a value of a new row.
_WRITTEN = (
    rf"= {_CLOCK}(?: \+ make_interval\(secs => :lease\))?\s*[,\n\"]",
    rf"= timezone\('UTC', {_CLOCK}\)",
    r"= greatest\(now\(\), renewed_at \+ interval '1 microsecond'\)",
    rf"VALUES \([^)]*, {_CLOCK}",
    rf"INSERT INTO \w+(?: AS \w+)? \([\w, ]+\)\s+SELECT [\w., ]+, {_CLOCK}\s+FROM",
    rf"(?:=|\": )func\.{_CLOCK}",
)
_START = r"(?<!SELECT )pg_postmaster_start_time\(\)"


def sql_of(text: str) -> str:
    """Without comments, neither Python's nor SQL's."""
    return re.sub(r"#.*|--.*", "", text)


def test_every_use_of_the_databases_clock_in_sql_writes_a_time() -> None:
    num_uses = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        sql = sql_of(path.read_text(encoding="utf-8"))
        sql = re.sub(r"(?<!func)\._?now\([^)]*\)", "", sql)  # Python's: for logs and files
        uses = re.findall(_CLOCK, sql, flags=re.IGNORECASE)
        written = [match for pattern in _WRITTEN for match in re.findall(pattern, sql, flags=re.IGNORECASE)]
        assert len(written) == len(uses), f"{path.name}: {uses} in SQL, of which {written} are written"
        num_uses += len(uses)
    assert num_uses >= 8, "the pattern finds what there is"


def test_the_servers_start_is_only_read() -> None:
    """It is compared in lease.py and holdings.py, for equality."""
    for path in sorted(PACKAGE.rglob("*.py")):
        assert not re.search(_START, sql_of(path.read_text(encoding="utf-8"))), path.name
