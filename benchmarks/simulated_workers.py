"""Workers without training: threads that report epochs of eight lanes, each through a connection of its own.

A process of report_rate.py runs many of them. What they call is what a real worker calls: `Ledger.record`, and with a
pruner `CurveReader.read`. A real worker is a process with a pool of its own, so each has an engine of its own here;
1000 processes would only make the two cores of a small machine wait for their memory.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.synchronize import Barrier

import sqlalchemy

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import HpsearchError
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.rows.curves import CurveReader

START_DELAY_SECONDS = 0.5  # from the last worker's connection to the first report: the server's time is read meanwhile


@dataclass(frozen=True, kw_only=True)
class Load:
    """What each simulated worker does.

    Args:
        period_seconds: one epoch in so many; None: the next one at once.
        reads_curves: as a worker does whose pruner compares trials.
        first_epoch: the number of the first epoch that is reported.
        seconds: how long.
    """

    period_seconds: float | None
    reads_curves: bool
    first_epoch: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Share:
    """The workers of one process.

    Args:
        trials_of: a worker's number -> the trials in its lanes.
    """

    url: str
    study_id: int
    trials_of: dict[int, list[int]]
    load: Load


@dataclass(frozen=True, kw_only=True)
class ShareResult:
    """What the workers of one process have seen.

    Args:
        latencies: seconds of each call; with a period, from the moment at which the call was due.
        seconds: from the first call's beginning to the last one's end.
        processor_seconds: of this process, while they worked.
    """

    latencies: list[float]
    seconds: float
    processor_seconds: float


# Set in each process when it starts: a barrier cannot be sent to one that runs.
_barrier: Barrier | None = None


def set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def run_share(share: Share) -> ShareResult:
    """Run these workers, all from the same moment as those of the other processes.

    Raises:
        HpsearchError: a worker failed.
    """
    assert _barrier is not None
    database = open_database(share.url)
    workers = [
        SimulatedWorker(database=database, share=share, owner=owner, trials=trials)
        for owner, trials in share.trials_of.items()
    ]
    try:
        for worker in workers:
            worker.connect()
        _barrier.wait()  # all have connected
        started, processor_started = time.monotonic() + START_DELAY_SECONDS, time.process_time()
        threads = [threading.Thread(target=worker.work, args=(started,)) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds, processor_seconds = time.monotonic() - started, time.process_time() - processor_started
        _barrier.wait()  # all have finished
        _barrier.wait()  # the server's processor time has been read, before connections are closed
    except BaseException:
        _barrier.abort()
        raise
    finally:
        for worker in workers:
            worker.close()
        database.close()
    failures = [worker.failure for worker in workers if worker.failure is not None]
    if failures:
        raise HpsearchError(f"{len(failures)} of {len(workers)} simulated workers failed: {failures[0]}")
    latencies = [latency for worker in workers for latency in worker.latencies]
    return ShareResult(latencies=latencies, seconds=seconds, processor_seconds=processor_seconds)


@dataclass(kw_only=True)
class SimulatedWorker:
    """One worker: its lanes' trials, its own connection, and how long its calls took."""

    database: Database
    share: Share
    owner: int
    trials: Sequence[int]
    latencies: list[float] = field(default_factory=list)
    failure: BaseException | None = None

    def connect(self) -> None:
        """Connect, and make the calls once: statements are compiled then, which every worker does once in its life."""
        engine = sqlalchemy.create_engine(self.share.url, pool_size=1, max_overflow=0, pool_pre_ping=True)
        own = replace(self.database, engine=engine)
        self._ledger = Ledger(database=own, study_id=self.share.study_id, owner=self.owner)
        with engine.connect() as connection:
            for token, trials in connection.execute(_CLAIMS, {"trial_ids": list(self.trials)}):
                self._ledger.holdings.take(token, trials)
        self._curves = CurveReader(own, self.share.study_id)
        self._epoch = self.share.load.first_epoch
        self._report()

    def close(self) -> None:
        if hasattr(self, "_ledger"):
            self._ledger.database.engine.dispose()

    def work(self, started: float) -> None:
        """Report until the time is over.

        Args:
            started: of time.monotonic, the same clock in all processes.
        """
        try:
            self._work(started)
        except BaseException as error:
            self.failure = error  # told by the thread that joins this one

    def _work(self, started: float) -> None:
        load = self.share.load
        # Workers are not in step: each has its own place within the period.
        phase = random.Random(self.owner).random() * (load.period_seconds or 0.0)
        due, end = started + phase, started + load.seconds
        while max(due, time.monotonic()) < end:
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.monotonic()
            self._report()
            ended = time.monotonic()
            if load.period_seconds is None:
                self.latencies.append(ended - began)
                due = ended
            else:
                # From when it was due: a worker that waits for the database is late for its next epoch as well.
                self.latencies.append(ended - due)
                due += load.period_seconds

    def _report(self) -> None:
        held = self._ledger.record({trial: _epoch_report(self._epoch) for trial in self.trials})
        if len(held) != len(self.trials):
            raise HpsearchError(f"worker {self.owner} holds {len(held)} trials and not {len(self.trials)}")
        self._epoch += 1
        if self.share.load.reads_curves:
            self._curves.read()


_CLAIMS = sqlalchemy.text("""
    SELECT claim, array_agg(trial_id) FROM hpsearch_points
    WHERE trial_id = ANY(CAST(:trial_ids AS int[])) GROUP BY claim
""")


def _epoch_report(epoch: int) -> EpochReport:
    validation = Validation(iteration=2500 * epoch, loss=1 / (epoch + 1), nll=2 / (epoch + 1))
    return EpochReport(epoch=epoch, validations=(validation,), train_nll=0.5, learning_rate=0.01, seconds=1.0)
