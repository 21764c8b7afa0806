"""Makes the studies that test_earlier_studies.py resumes: trained half-way by an older checkout of hpsearch.

    git worktree add ../older REV
    python -m tests.acceptance.earlier_studies.make ../older

The checkout's `hpsearch` creates and trains one study per strategy in a scratch PostgreSQL, with the packages of the
current environment, and is told to end in the middle of a trial. `studies_of_REV.tar.xz` then holds:

    dump.sql        the database, as INSERT statements
    NAME.toml       the study files
    artifacts/      checkpoints and best parameters
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import tomli_w
from sqlalchemy import Engine, TextClause, create_engine, make_url, text

from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch.postgres.programs import PostgresPrograms

HERE = Path(__file__).parent
DUMP = "dump.sql"
COMMON: dict[str, dict[str, Any]] = {
    "data": {"dataset": "digits"},
    "model": {"hidden_units": 2},  # small checkpoints
    "training": {"batch_size": 50, "max_epochs": 8, "optimizer": "momentum"},
    "stopping": {"rule": "none"},
}
SEARCHES = {
    "grid": {"learning_rate": {"log10": [-1, -3]}, "lambda_2": [0.0, 0.001]},
    "coarse-to-fine": {
        "strategy": "coarse-to-fine",
        "learning_rate": {"log10": [0, -3]},
        "finest_per_decade": 4,
        "budget_points": 12,
    },
    "tpe": {"strategy": "tpe", "num_points": 13, "learning_rate": {"log10": [0, -3]}, "lambda_2": {"log10": [-2, -5]}},
}
# A part of the grid, the second round, and a draw that depends on the trials before it.
ENOUGH_COMPLETE = {"grid": 2, "coarse-to-fine": 5, "tpe": 11}
IS_HALF_WAY = text("""
    SELECT count(*) FILTER (WHERE state = 'COMPLETE') >= :complete AND bool_or(state = 'RUNNING' AND epochs >= 2)
    FROM (
        SELECT state, (SELECT count(*) FROM trial_intermediate_values v WHERE v.trial_id = t.trial_id) AS epochs
        FROM trials t JOIN studies USING (study_id) WHERE study_name = :study
    ) AS all_trials
""")
HAS_CHECKPOINT = text("""
    SELECT count(*) = 1 AND :complete > 0
    FROM hpsearch_checkpoints JOIN studies USING (study_id) WHERE study_name = :study
""")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make studies of an older hpsearch to be resumed by this one.")
    parser.add_argument("checkout", type=Path, help="folder of the older checkout")
    checkout = parser.parse_args().checkout.resolve()
    revision = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, text=True).strip()
    with scratch_folder() as folder, scratch_postgres(folder, {"fsync": "off"}) as postgres:
        older = OlderHpsearch(checkout, folder, postgres.url)
        for name, search in SEARCHES.items():
            (folder / f"{name}.toml").write_text(tomli_w.dumps({"name": name, **COMMON, "search": search}))
            older.train_half(name)
        (folder / DUMP).write_text(dump(folder, postgres.url))
        with tarfile.open(HERE / f"studies_of_{revision}.tar.xz", "w:xz") as tar:
            for path in (DUMP, *(f"{name}.toml" for name in SEARCHES), "artifacts"):
                tar.add(folder / path, arcname=path)


class OlderHpsearch:
    """The commands of the older checkout, on a database and in a folder. A worker that leaves saves checkpoints."""

    def __init__(self, checkout: Path, folder: Path, url: str) -> None:
        self._checkout = checkout
        self._folder = folder
        self._engine: Engine = create_engine(url)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HPSEARCH_")},
            "PYTHONPATH": str(checkout),
            "HPSEARCH_HOME": str(folder / "home"),
            "HPSEARCH_STORAGE": url,
            "HPSEARCH_ARTIFACTS": str(folder / "artifacts"),
        }

    def train_half(self, name: str) -> None:
        assert self._start("create", str(self._folder / f"{name}.toml")).wait() == 0
        while not self._ask(HAS_CHECKPOINT, name):  # its trial may end before it is stopped
            worker = self._start("worker", name, "--device", "cpu", "--lanes", "1")
            while not self._ask(IS_HALF_WAY, name):
                assert worker.poll() is None, f"the worker of {name} ended too early"
                time.sleep(0.002)
            worker.send_signal(signal.SIGTERM)
            assert worker.wait() == 0

    def _ask(self, question: TextClause, name: str) -> bool:
        with self._engine.begin() as connection:
            values = {"study": name, "complete": ENOUGH_COMPLETE[name]}
            return bool(connection.execute(question, values).scalar_one())

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "hpsearch", *arguments], cwd=self._checkout, env=self._environment
        )


def dump(folder: Path, url: str) -> str:
    """The database as SQL that any client can run: without psql's own commands, owners and rights."""
    options = ("--inserts", "--rows-per-insert=500", "--no-owner", "--no-privileges", "--no-comments")
    parsed = make_url(url)
    place = f"host={parsed.query['host']} user={parsed.username} dbname={parsed.database}"
    done = PostgresPrograms.find(folder).run("pg_dump", *options, place, folder=folder, timeout_seconds=60)
    assert done.returncode == 0, done.stdout
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("\\"))


if __name__ == "__main__":
    main()
