"""Makes the studies that test_earlier_studies.py goes on with: trained half-way by an older checkout of hpsearch.

    git worktree add ../older REV
    python -m tests.acceptance.earlier_studies.make ../older

The checkout's `hpsearch` creates and trains one study per strategy in a scratch PostgreSQL, with the packages of the
current environment, and is told to end in the middle of a trial. It finishes two studies more, and confirms one of them
completely and the other one half-way. `studies_of_REV.tar.xz` then holds:

    dump.sql        the database, as INSERT statements
    NAME.toml       the study files
    artifacts/      checkpoints and best parameters
    confirmed.*     the confirmed point and its parameters, as the older `export` wrote them
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
CONFIRMED, HALF_CONFIRMED = "confirmed", "half-confirmed"
CONFIRMATION = ("--top", "2", "--seeds", "3")  # of both
TO_CONFIRM = {
    CONFIRMED: {"keep_parameters": "all", **COMMON, "search": {"learning_rate": [0.1, 0.03, 0.01]}},
    HALF_CONFIRMED: {**COMMON, "search": {"learning_rate": [0.1, 0.03, 0.01]}},
}
EXPORTED = (f"{CONFIRMED}.json", f"{CONFIRMED}.safetensors")
# A part of the grid, the second round, a draw that depends on the trials before it, and a part of a confirmation.
ENOUGH_COMPLETE = {"grid": 2, "coarse-to-fine": 5, "tpe": 11, f"{HALF_CONFIRMED}-confirm": 2}
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
        studies = {**{name: {**COMMON, "search": search} for name, search in SEARCHES.items()}, **TO_CONFIRM}
        for name, sections in studies.items():
            (folder / f"{name}.toml").write_text(tomli_w.dumps({"name": name, **sections}))
        for name in SEARCHES:
            older.run("create", f"{name}.toml")
            older.train_half(name, "worker", name)
        for name in TO_CONFIRM:
            older.run("run", f"{name}.toml", "--device", "cpu")
        older.run("confirm", CONFIRMED, *CONFIRMATION, "--device", "cpu")
        older.run("test", CONFIRMED, "--device", "cpu")
        older.run("export", CONFIRMED, "-o", EXPORTED[0], "--model", EXPORTED[1])
        older.train_half(f"{HALF_CONFIRMED}-confirm", "confirm", HALF_CONFIRMED, *CONFIRMATION, "--workers", "1")
        (folder / DUMP).write_text(dump(folder, postgres.url))
        with tarfile.open(HERE / f"studies_of_{revision}.tar.xz", "w:xz") as tar:
            for path in (DUMP, *(f"{name}.toml" for name in studies), *EXPORTED, "artifacts"):
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

    def run(self, *arguments: str) -> None:
        assert self._start(*arguments).wait() == 0, f"hpsearch {' '.join(arguments)} has failed"

    def train_half(self, name: str, *command: str) -> None:
        """Let the command train this study, and end it in the middle of a trial."""
        while not self._ask(HAS_CHECKPOINT, name):  # its trial may end before it is stopped
            trainer = self._start(*command, "--device", "cpu", "--lanes", "1")
            while not self._ask(IS_HALF_WAY, name):
                assert trainer.poll() is None, f"{command[0]} of {name} ended too early"
                time.sleep(0.002)
            trainer.send_signal(signal.SIGTERM)
            assert trainer.wait() in (0, 130)  # `worker` and `confirm`

    def _ask(self, question: TextClause, name: str) -> bool:
        with self._engine.begin() as connection:
            values = {"study": name, "complete": ENOUGH_COMPLETE[name]}
            return bool(connection.execute(question, values).scalar_one())

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "hpsearch", *arguments], cwd=self._folder, env=self._environment)


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
