"""How many epoch reports one PostgreSQL takes, from 1 to 1300 simulated workers of eight lanes each.

    python -m benchmarks.report_rate
    python -m benchmarks.report_rate --tiny

Three kinds of load on an embedded PostgreSQL of its own (as hpsearch configures it, but for max_connections):

    full speed    every worker reports its next epoch at once: how many reports per second are possible
    paced         every worker ends an epoch per second: up to which number of workers that is kept up
    with curves   full speed, and each worker reads all curves of the study after each report, as it must when a pruner
                  compares trials: this costs in proportion to the trials of the study

One call of `Ledger.record` writes the reports of a worker's eight lanes and renews their leases. The workers are
threads (simulated_workers.py) on the same cores as the server: the table shows how many cores each side used. The
knee is the largest number of paced workers of which all smaller numbers, too, were kept up with.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import text

from benchmarks.measurement import RESULTS, machine, print_table, run_script, say, write_result
from benchmarks.scratch import scratch_folder, scratch_postgres
from benchmarks.simulated_workers import Load, Share, ShareResult, run_share, set_barrier
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.registration import register_study
from hpsearch.study.study_file import parse_definition

TITLE = "Epoch reports that one PostgreSQL takes"
KEPT_UP = 0.95  # of the calls that were due
DEFAULT_CONNECTIONS = 100  # PostgreSQL's own max_connections
SPARE_CONNECTIONS = 30
PATIENCE_SECONDS = 300.0  # for a process that does not come to a barrier: it was killed
CURVE_EPOCHS = 20  # that each trial has when curves are read


@dataclass(frozen=True, kw_only=True)
class Step:
    """One load, and what came of it.

    Args:
        calls: of Ledger.record that ended.
        latencies_ms: of a call: median, 99th percentile, longest.
        server_cores, client_cores: processor seconds per second.
        syncs: of the write-ahead log to the disk, per second; one can serve many commits.
    """

    kind: str
    workers: int
    lanes: int
    seconds: float
    period_seconds: float | None
    calls: int
    latencies_ms: tuple[float, float, float]
    server_cores: float
    client_cores: float
    syncs: float

    @property
    def calls_per_second(self) -> float:
        return self.calls / self.seconds

    @property
    def reports_per_second(self) -> float:
        return self.calls_per_second * self.lanes

    @property
    def is_kept_up(self) -> bool:
        """Whether a paced load was met: nearly all that was due came in, and nobody had to wait for a whole period."""
        assert self.period_seconds is not None
        due = self.workers / self.period_seconds
        return self.calls_per_second >= KEPT_UP * due and self.latencies_ms[1] <= 1000 * self.period_seconds

    def as_json(self) -> dict[str, Any]:
        kept_up = {} if self.period_seconds is None else {"is_kept_up": self.is_kept_up}
        rates = {"calls_per_second": self.calls_per_second, "reports_per_second": self.reports_per_second}
        return {**asdict(self), **rates, **kept_up, "server_ms_per_call": self.server_ms_per_call}

    @property
    def server_ms_per_call(self) -> float:
        """Processor time: with a core of its own, the server takes 1000 / this many calls per second."""
        return 1000 * self.server_cores / self.calls_per_second if self.calls else 0.0


def main() -> None:
    options = _options()
    described = machine()
    most = max([*options.full_speed, *options.paced, *options.with_curves])
    connections = most + SPARE_CONNECTIONS
    settings = {"max_connections": connections} if connections > DEFAULT_CONNECTIONS else None
    steps = []
    with scratch_folder() as folder, scratch_postgres(folder, settings) as postgres:
        bench = Bench(postgres=postgres, options=options)
        try:
            server = bench.server_settings()
            for kind, workers in loads(options):
                step = bench.run(kind, workers)
                say(f"{kind}, {workers} workers: {step.reports_per_second:,.0f} reports/s")
                steps.append(step)
        finally:
            bench.close()
    _print(steps)
    output = options.output or (None if options.tiny else RESULTS / "report_rate.json")
    if output is not None:
        arguments = {key: value for key, value in vars(options).items() if key not in ("tiny", "output")}
        details = {"steps": [step.as_json() for step in steps], "knee": knee(steps)}
        write_result(
            output, title=TITLE, machine=described, settings={**arguments, "postgresql": server}, details=details
        )


def loads(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """(kind, workers) of every step."""
    for kind, numbers in (
        ("full speed", options.full_speed),
        ("paced", options.paced),
        ("with curves", options.with_curves),
    ):
        for number in numbers:
            yield kind, number


def knee(steps: Sequence[Step]) -> dict[str, Any]:
    """The most paced workers that were kept up with, the fewest that were not, and the highest rate of all."""
    paced = sorted((step for step in steps if step.period_seconds is not None), key=lambda step: step.workers)
    failed = next((step.workers for step in paced if not step.is_kept_up), None)
    kept_up = [step.workers for step in paced if failed is None or step.workers < failed]
    full_speed = [step for step in steps if step.kind == "full speed"]
    return {
        "kept_up_workers": max(kept_up, default=None),
        "failed_workers": failed,
        "highest_reports_per_second": max((step.reports_per_second for step in full_speed), default=None),
    }


class Bench:
    """The processes that put load on a server, and a fresh study for each step."""

    def __init__(self, *, postgres: EmbeddedPostgres, options: argparse.Namespace) -> None:
        self._postgres = postgres
        self._options = options
        self._num_studies = 0
        self._database: Database = open_database(postgres.url)
        # `spawn`: a fork would copy this process's connections.
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(options.processes + 1, timeout=options.seconds + PATIENCE_SECONDS)
        self._executor = ProcessPoolExecutor(
            options.processes, mp_context=context, initializer=set_barrier, initargs=(self._barrier,)
        )

    def close(self) -> None:
        self._executor.shutdown()
        self._database.close()

    def server_settings(self) -> dict[str, str]:
        """What decides how fast the server commits."""
        names = (
            "server_version",
            "max_connections",
            "fsync",
            "synchronous_commit",
            "shared_buffers",
            "wal_sync_method",
        )
        with self._database.engine.connect() as connection:
            return {name: str(connection.execute(text(f"SHOW {name}")).scalar_one()) for name in names}

    def run(self, kind: str, workers: int) -> Step:
        """Put one load on the server.

        Raises:
            HpsearchError: a simulated worker failed.
        """
        options = self._options
        reads_curves = kind == "with curves"
        load = Load(
            period_seconds=options.period if kind == "paced" else None,
            reads_curves=reads_curves,
            first_epoch=CURVE_EPOCHS + 1 if reads_curves else 1,
            seconds=options.seconds,
        )
        study_id, trials_of = self._new_study(workers)
        if reads_curves:
            self._write_curves(study_id)
        shares = [
            Share(url=self._postgres.url, study_id=study_id, trials_of=part, load=load)
            for part in _parts(trials_of, options.processes)
        ]
        return self._measure(kind, load, shares)

    def _measure(self, kind: str, load: Load, shares: Sequence[Share]) -> Step:
        """Run all shares at once; what the server did is taken between the barriers (`run_share` has them, too)."""
        futures = [self._executor.submit(run_share, share) for share in shares]
        with _telling_failures(futures):
            self._barrier.wait()
            server_started, syncs_started = self._server_seconds(), self._num_syncs()
            self._barrier.wait()
            server_seconds = sum(end - server_started.get(pid, 0.0) for pid, end in self._server_seconds().items())
            self._barrier.wait()
        results: list[ShareResult] = [future.result() for future in futures]
        # Read now: a session hands its counts in when it ends, or every second or so.
        syncs = self._num_syncs() - syncs_started
        # Calls that began in time may end late.
        seconds = max(load.seconds, *(result.seconds for result in results))
        latencies = np.array([latency for result in results for latency in result.latencies])
        quantiles = np.quantile(latencies, [0.5, 0.99, 1.0]) if len(latencies) else np.zeros(3)
        return Step(
            kind=kind,
            workers=sum(len(share.trials_of) for share in shares),
            lanes=self._options.lanes,
            seconds=seconds,
            period_seconds=load.period_seconds,
            calls=len(latencies),
            latencies_ms=(1000 * float(quantiles[0]), 1000 * float(quantiles[1]), 1000 * float(quantiles[2])),
            server_cores=server_seconds / seconds,
            client_cores=sum(result.processor_seconds for result in results) / seconds,
            syncs=syncs / seconds,
        )

    def _new_study(self, workers: int) -> tuple[int, dict[int, list[int]]]:
        """A study whose points are all claimed, eight by each worker: owner -> trial ids."""
        lanes = self._options.lanes
        num_points = workers * lanes
        search = {"strategy": "random", "num_points": num_points, "max_points": num_points}
        self._num_studies += 1
        definition = parse_definition(
            {"name": f"study-{self._num_studies}", "search": {**search, "learning_rate": [0.1, 0.01]}},
            source="benchmark",
        )
        study = register_study(self._database, definition, dataset_checksums={}, cohort_of=lambda _: "").study
        claims = Ledger(database=self._database, study_id=study.study_id, owner=1).claim(num_points)
        with self._database.engine.begin() as connection:
            connection.execute(_SHARE_OUT, {"study": study.study_id, "lanes": lanes})
            connection.execute(text("ANALYZE"))  # what autovacuum would have done in a study's first minute
        trials = [claim.trial_id for claim in claims]
        return study.study_id, {1 + i: trials[i * lanes : (i + 1) * lanes] for i in range(workers)}

    def _write_curves(self, study_id: int) -> None:
        with self._database.engine.begin() as connection:
            connection.execute(_WRITE_CURVES, {"study": study_id, "epochs": CURVE_EPOCHS})

    def _server_seconds(self) -> dict[int, float]:
        """Processor time of each of the server's processes so far."""
        assert self._postgres.postmaster_pid is not None
        postmaster = psutil.Process(self._postgres.postmaster_pid)
        seconds = {}
        for process in [postmaster, *postmaster.children(recursive=True)]:
            with contextlib.suppress(OSError):  # one that has just ended
                # In nanoseconds, where psutil's times have hundredths: a session needs a few milliseconds in all.
                schedule = Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii")
                seconds[process.pid] = int(schedule.split()[0]) / 1e9
        return seconds

    def _num_syncs(self) -> int:
        with self._database.engine.connect() as connection:
            return int(connection.execute(_NUM_SYNCS).scalar_one())


_SHARE_OUT = text("UPDATE hpsearch_points SET owner = 1 + point / :lanes WHERE study_id = :study")

_WRITE_CURVES = text("""
    WITH epochs AS (
        SELECT trial_id, epoch FROM hpsearch_points, generate_series(1, :epochs) AS epoch WHERE study_id = :study
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, train_nll, validation_nll, learning_rate, seconds)
        SELECT trial_id, epoch, 0.5, 0.5, 0.1, 1.0 FROM epochs
    )
    INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    SELECT trial_id, epoch, 1.0 / (epoch + 1), 'FINITE' FROM epochs
""")

_NUM_SYNCS = text("SELECT coalesce(sum(fsyncs), 0) FROM pg_stat_io WHERE object = 'wal'")


def _parts(trials_of: Mapping[int, list[int]], number: int) -> list[dict[int, list[int]]]:
    """The workers, dealt out to so many processes; a process may have none."""
    owners = list(trials_of)
    return [{owner: trials_of[owner] for owner in owners[index::number]} for index in range(number)]


@contextlib.contextmanager
def _telling_failures(futures: Sequence[Future[ShareResult]]) -> Iterator[None]:
    """If a process fails before a barrier, raise its error and not that the barrier broke."""
    try:
        yield
    except threading.BrokenBarrierError:
        for future in futures:
            future.result()
        raise


def _print(steps: Sequence[Step]) -> None:
    header = ["", "workers", "calls/s", "reports/s", "p50, ms", "p99, ms", "max, ms"]
    header += ["server cores", "client cores", "server ms/call", "syncs/s", "kept up"]
    rows = []
    for step in steps:
        kept_up = "" if step.period_seconds is None else ("yes" if step.is_kept_up else "NO")
        rates = [f"{step.calls_per_second:,.0f}", f"{step.reports_per_second:,.0f}"]
        latencies = [f"{latency:,.1f}" for latency in step.latencies_ms]
        cores = [f"{step.server_cores:.2f}", f"{step.client_cores:.2f}", f"{step.server_ms_per_call:.2f}"]
        rows.append([step.kind, f"{step.workers:,}", *rates, *latencies, *cores, f"{step.syncs:,.0f}", kept_up])
    print_table(TITLE, header, rows)
    found = knee(steps)
    kept_up, failed = found["kept_up_workers"], found["failed_workers"]
    print(f"paced: keeps up with {kept_up} workers; the first number that it does not keep up with: {failed}")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-speed", type=_numbers, default=[1, 10, 100, 1000], metavar="N,N", help="workers")
    parser.add_argument("--paced", type=_numbers, default=[1, 10, 100, 300, 600, 800, 1000, 1300], metavar="N,N")
    parser.add_argument("--with-curves", type=_numbers, default=[1, 10, 100], metavar="N,N")
    parser.add_argument("--lanes", type=int, default=8, help="of each worker")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step")
    parser.add_argument("--period", type=float, default=1.0, help="seconds of an epoch, paced")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="that hold the workers")
    parser.add_argument("--tiny", action="store_true", help="1 and 3 workers, half a second each; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/report_rate.json")
    options = parser.parse_args()
    if options.tiny:
        options.full_speed, options.paced, options.with_curves, options.seconds = [1], [3], [3], 0.5
    return options


if __name__ == "__main__":
    run_script(main)
