"""The soak: short studies under a rain of faults, one after the other, each judged at its end.

Four workers under a keeper that starts them again train studies of 200 short points, while a seeded die kills, stops
and ends workers, cuts sessions, restarts, stops and hangs the database, and has its clock jump. In every second study,
the first one included, the database now and then loses what it has acknowledged. When the time is over, the last study
is finished in peace. What happened is written to a log that a person can read:

    python -m tests.faults.soak --seconds 1800 --log docs/results/soak.log
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import OperationalError

import hpsearch
from hpsearch.errors import SurroundingsError
from tests.faults.arena import Arena
from tests.faults.driver import Faults
from tests.faults.postgres import FaultyPostgres, make_template
from tests.faults.processes import ForkServer, HpsearchProcess

NUM_POINTS, MAX_EPOCHS = 200, 5
NUM_WORKERS, NUM_LANES = 4, 2
PAUSE_SECONDS = (0.3, 2.0)  # between two faults
TERM_SECONDS = 30.0  # between SIGTERM and a worker's end: ten are promised, of a machine that runs nothing else
INTERRUPTED = 130  # exit code of a command that is told to end before it has anything to give back
STUDY_SECONDS = 300.0  # a study that takes longer, faults and all, has got stuck
# Leases, pauses and checkpoints at a fifth of their length or less, or a minute would see few of them end. The bound on
# attempts is for points that kill their workers; here the die does, and it may well hit one point thrice.
FAULTS = Faults(epoch_seconds=0.1, lease_seconds=6.0, absence_seconds=3.0, checkpoint_seconds=0.3, max_crashes=1000)


@dataclass
class Log:
    """Lines with the seconds since the beginning, to a file and to whoever looks."""

    path: Path
    echo: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def __call__(self, message: str) -> None:
        line = f"{self.seconds:8.1f} s  {message}"
        self.echo(line)
        with self.path.open("a") as file:
            file.write(line + "\n")


@dataclass
class Slot:
    """A worker's place: whoever is in it is replaced when he has gone."""

    number: int
    process: HpsearchProcess | None = None
    was_killed: bool = False
    resumes_at: float | None = None  # it is stopped until then
    must_end_by: float | None = None  # it was asked to


class Soak:
    """One soak on one server.

    Args:
        folder: for the studies' files; one that PostgreSQL's user need not reach.
        num_points: of each study.
    """

    def __init__(
        self, server: FaultyPostgres, fork_server: ForkServer, folder: Path, *, num_points: int, seed: int, log: Log
    ) -> None:
        self._server = server
        self._fork_server = fork_server
        self._folder = folder
        self._num_points = num_points
        self._random = random.Random(seed)
        self._log = log
        self._slots = [Slot(number=i + 1) for i in range(NUM_WORKERS)]
        self._arena: Arena
        self._next_fault = 0.0
        self._minute = 0
        self.num_faults: Counter[str] = Counter()
        self.num_trials = 0
        self.num_acknowledged = 0
        self.num_studies = 0
        self._clock_shift = 0.0
        self._faults: dict[str, tuple[int, Callable[[], None]]] = {
            "SIGKILL to a worker": (6, self._kill),
            "SIGSTOP to a worker": (4, self._stop),
            "SIGTERM to a worker": (3, self._terminate),
            "session cut": (2, self._cut_session),
            "database restarted": (2, self._restart),
            "database away": (1, self._take_away),
            "database hangs": (1, self._hang),
            "clock jumps": (1, self._jump),
        }
        self._losses: dict[str, tuple[int, Callable[[], None]]] = {"commits lost": (3, self._lose_commits)}

    @property
    def _may_lose_commits(self) -> bool:
        """In every second study; in the others, all that was acknowledged must be stored."""
        return self.num_studies % 2 == 1

    def run(self, seconds: float) -> None:
        """Study after study until the time is over. Raises AssertionError for a promise that was not kept."""
        self._server.shift_clock(self._clock_shift)
        while self.num_studies < 2 or self._log.seconds < seconds:
            half = self._log.seconds + seconds / 2  # of the time at least, for each of the two kinds of study
            self._run_study({0: half, 1: max(half, seconds)}.get(self.num_studies, seconds))

    def _run_study(self, fault_seconds: float) -> None:
        self.num_studies += 1
        folder = self._folder / f"study-{self.num_studies}"
        folder.mkdir()
        self._arena = Arena(folder, self._server, self._fork_server, study=f"soak-{self.num_studies}")
        began = self._log.seconds
        try:
            self._arena.create(self._num_points, max_epochs=MAX_EPOCHS)
            losses = ", and commits may be lost" if self._may_lose_commits else ""
            self._log(f"study {self.num_studies} begins: {self._num_points} points{losses}")
            while not self._is_finished():
                assert self._log.seconds < began + STUDY_SECONDS, f"study {self.num_studies} does not get on"
                self._look_after_workers()
                if self._next_fault <= self._log.seconds < fault_seconds:
                    self._do_harm()
                self._tell_minute()
                time.sleep(0.05)
            self._end_workers()
            self._arena.judge(has_lost_commits=self._may_lose_commits)
        finally:
            self._arena.close()
        self._tell_study(self._log.seconds - began)

    def _is_finished(self) -> bool:
        try:
            return sum(count for state, count in self._counts().items() if state in ("WAITING", "RUNNING")) == 0
        except OperationalError:
            return False  # the server is just recovering

    def _counts(self) -> dict[str, int]:
        rows = self._arena.ask(
            """
            SELECT t.state::text AS state, count(*) AS number
            FROM hpsearch_points p JOIN trials t USING (trial_id) JOIN studies s ON s.study_id = p.study_id
            WHERE s.study_name = :name GROUP BY t.state
            """,
            name=self._arena.study_name,
        )
        return {row.state: row.number for row in rows}

    # The keeper

    def _look_after_workers(self) -> None:
        for slot in self._slots:
            if slot.process is not None and slot.process.is_alive:
                self._look_after(slot, slot.process)
                continue
            if slot.process is not None:
                self._note_end(slot, slot.process)
            slot.process = self._arena.worker(faults=FAULTS, lanes=NUM_LANES)
            slot.was_killed, slot.resumes_at, slot.must_end_by = False, None, None

    def _look_after(self, slot: Slot, process: HpsearchProcess) -> None:
        now = self._log.seconds
        if slot.resumes_at is not None and now >= slot.resumes_at:
            process.send(signal.SIGCONT)
            slot.resumes_at = None
            self._log(f"worker {slot.number} goes on (SIGCONT)")
        assert slot.must_end_by is None or now < slot.must_end_by, (
            f"worker {slot.number} ignores SIGTERM\n{process.said}"
        )

    def _note_end(self, slot: Slot, process: HpsearchProcess) -> None:
        """A worker may end in peace, because it was killed, or before it began where it found no database to join."""
        code, said = process.poll(), process.said
        is_at_work = "joins study" in said and "leaves:" not in said
        if code == SurroundingsError.exit_code and not is_at_work:
            self.num_faults["worker that found no database as it started"] += 1
            self._log(f"worker {slot.number} found no database as it started (exit {code}): it is started again")
            return
        allowed = {0, -signal.SIGKILL if slot.was_killed else 0}
        if not is_at_work and slot.must_end_by is not None:
            # Python itself, as it starts and ends, does not handle it; a command that starts is interrupted by it.
            allowed |= {-signal.SIGTERM, INTERRUPTED}
        assert code in allowed, f"worker {slot.number} ended with {code}:\n{said}"

    def _end_workers(self) -> None:
        """The study is finished: all leave by themselves."""
        for slot in self._slots:
            if slot.process is None:
                continue
            if slot.resumes_at is not None:
                slot.process.send(signal.SIGCONT)
            slot.process.wait()
            self._note_end(slot, slot.process)
            slot.process = None

    # Faults

    def _do_harm(self) -> None:
        faults = self._faults | (self._losses if self._may_lose_commits else {})
        names = list(faults)
        (name,) = self._random.choices(names, weights=[faults[name][0] for name in names])
        faults[name][1]()
        self.num_faults[name] += 1
        self._next_fault = self._log.seconds + self._random.uniform(*PAUSE_SECONDS)

    def _victim(self) -> tuple[Slot, HpsearchProcess]:
        slot = self._random.choice(self._slots)
        assert slot.process is not None
        return slot, slot.process

    def _kill(self) -> None:
        slot, process = self._victim()
        self._log(f"worker {slot.number} (process {process.pid}): SIGKILL")
        slot.was_killed = True
        process.send(signal.SIGKILL)

    def _stop(self) -> None:
        """For less than a lease, or for more."""
        slot, process = self._victim()
        seconds = self._random.uniform(0.5, 1.5 * FAULTS.lease_seconds)
        self._log(f"worker {slot.number} (process {process.pid}): SIGSTOP for {seconds:.1f} s")
        process.send(signal.SIGSTOP)
        slot.resumes_at = self._log.seconds + seconds
        if slot.must_end_by is not None:
            slot.must_end_by += seconds

    def _terminate(self) -> None:
        slot, process = self._victim()
        if slot.resumes_at is not None or slot.must_end_by is not None:
            return  # stopped: it cannot listen; asked twice, it would not clean up
        self._log(f"worker {slot.number} (process {process.pid}): SIGTERM")
        process.send(signal.SIGTERM)
        slot.must_end_by = self._log.seconds + TERM_SECONDS

    def _cut_session(self) -> None:
        sessions = [row.pid for row in self._arena.sessions()]
        if sessions:
            pid = self._random.choice(sessions)
            self._log(f"session {pid} is cut")
            self._arena.ask("SELECT pg_terminate_backend(:pid)", pid=pid)

    def _restart(self) -> None:
        self._log("database: immediate restart")
        self._server.restart()

    def _take_away(self) -> None:
        seconds = self._random.uniform(1.0, 1.2 * FAULTS.lease_seconds)
        self._log(f"database: away for {seconds:.1f} s")
        self._server.stop()
        time.sleep(seconds)
        self._server.start()
        self._spare_the_terminated(seconds)

    def _hang(self) -> None:
        seconds = self._random.uniform(0.5, 4.0)
        self._log(f"database: hangs for {seconds:.1f} s")
        self._server.hang()
        time.sleep(seconds)
        self._server.resume()
        self._spare_the_terminated(seconds)

    def _jump(self) -> None:
        """Up to three hours from what it was, either way; as often by less than a lease."""
        seconds = self._random.uniform(-1, 1) * self._random.choice([FAULTS.lease_seconds, 3 * 3600.0])
        self._clock_shift += seconds
        self._log(f"database: its clock jumps by {seconds:+.1f} s")
        self._server.shift_clock(self._clock_shift)

    def _lose_commits(self) -> None:
        """Acknowledged before they are on the disk, for a while; then it crashes."""
        seconds = self._random.uniform(0.2, 4.0)
        self._log(f"database: the commits of {seconds:.1f} s are lost")
        self._server.commit_asynchronously(True)
        time.sleep(seconds)
        self._server.stop()
        self._server.commit_asynchronously(False)
        self._server.start()
        self._spare_the_terminated(seconds)

    def _spare_the_terminated(self, seconds: float) -> None:
        """Nobody has looked after the workers in these seconds: whoever has ended meanwhile did so in time."""
        for slot in self._slots:
            if slot.must_end_by is not None:
                slot.must_end_by += seconds

    # The log

    def _tell_minute(self) -> None:
        minute = int(self._log.seconds / 60)
        if minute > self._minute:
            self._minute = minute
            try:
                counts = self._counts()
            except OperationalError:
                return
            number = counts.get("COMPLETE", 0)
            self._log(f"minute {minute}: study {self.num_studies} has {number} of {self._num_points} points counted")

    def _tell_study(self, seconds: float) -> None:
        trials = self._arena.trials()
        num_resumed = sum("resumed_at_epoch" in trial.user_attrs for trial in self._arena.counted())
        num_acknowledged = 0 if self._may_lose_commits else len(self._arena.acknowledged())
        kept = f"{num_acknowledged} acknowledged results, all there"
        if self._may_lose_commits:
            kept = "no gap in any curve, though commits were lost"
        self.num_trials += len(trials)
        self.num_acknowledged += num_acknowledged
        self._log(
            f"study {self.num_studies} ends after {seconds:.0f} s: {self._num_points} points, each counted once; "
            f"{len(trials) - self._num_points} trials were cut short, {num_resumed} were taken up from a checkpoint; "
            f"{kept}"
        )


def run_soak(
    server: FaultyPostgres,
    fork_server: ForkServer,
    folder: Path,
    *,
    seconds: float,
    seed: int,
    num_points: int = NUM_POINTS,
    log_file: Path,
    echo: Callable[[str], None] = print,
) -> None:
    """Run one soak on a server that is up, and write its log.

    Raises:
        AssertionError: a promise was not kept; the log says so too.
    """
    log_file.write_text("")
    log = Log(log_file, echo)
    now = datetime.now(UTC)
    machine = f"{platform.system()}, {len(os.sched_getaffinity(0))} cores"
    log(f"soak of hpsearch {hpsearch.__version__} on {now:%Y-%m-%d %H:%M} UTC, {machine}")
    log(f"seed {seed}; repeat: make soak SOAK_SECONDS={seconds:.0f} SOAK_SEED={seed}")
    log(
        f"{NUM_WORKERS} workers of {NUM_LANES} lanes; {MAX_EPOCHS} epochs of {FAULTS.epoch_seconds} s; leases of "
        f"{FAULTS.lease_seconds:g} s, absence after {FAULTS.absence_seconds:g} s, "
        f"checkpoints every {FAULTS.checkpoint_seconds:g} s"
    )
    soak = Soak(server, fork_server, folder, num_points=num_points, seed=seed, log=log)
    try:
        soak.run(seconds)
    except BaseException as error:
        log(f"verdict: FAILED ({type(error).__name__}): {error}")
        raise
    finally:
        faults = ", ".join(f"{name} {number}" for name, number in sorted(soak.num_faults.items()))
        log(f"faults: {sum(soak.num_faults.values())} ({faults})")
    log(
        f"verdict: passed. {soak.num_studies} studies of {num_points} points, each point counted exactly once; "
        f"{soak.num_trials} trials; {soak.num_acknowledged} acknowledged results, all there"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long faults happen (default: 30 minutes)")
    parser.add_argument("--seed", type=int, default=None, help="of the die; a failing run's log names its seed")
    parser.add_argument("--log", type=Path, default=Path("docs/results/soak.log"))
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    open_folder = Path(tempfile.mkdtemp(prefix="hpsearch-soak-"))
    open_folder.chmod(0o755)  # PostgreSQL's user passes through
    studies = open_folder / "studies"
    studies.mkdir()
    server = FaultyPostgres(open_folder / "postgres", make_template(open_folder / "template"))
    fork_server = ForkServer()
    try:
        server.start()
        run_soak(server, fork_server, studies, seconds=arguments.seconds, seed=seed, log_file=arguments.log)
    except AssertionError:
        sys.exit(1)  # the log has told
    finally:
        server.remove()
        fork_server.close()
        shutil.rmtree(open_folder)


if __name__ == "__main__":
    main()
