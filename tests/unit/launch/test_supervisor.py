"""The supervisor with workers that cannot work or keep dying; the workers here are tiny programs."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from hpsearch import environment
from hpsearch.errors import ArtifactError
from hpsearch.launch import supervisor as module
from hpsearch.launch import worker_command as command_module
from hpsearch.launch.supervisor import MAX_RESTARTS, Supervisor
from hpsearch.launch.worker_command import SPIN_COUNT, WorkerCommand, WorkersFailedError, end_workers
from hpsearch.metric import Metric
from hpsearch.store.progress import Progress
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.round_rows import StoredRound
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import MetricsAddress, WorkerOptions


@dataclass(frozen=True, kw_only=True)
class FakeCommand(WorkerCommand):
    """Starts `program` in place of a worker."""

    program: str = ""

    def start(self, index: int) -> subprocess.Popen[bytes]:
        with self._open_log(index) as log:
            return subprocess.Popen([sys.executable, "-S", "-c", self.program], stdout=log, stderr=log)


def command(folder: Path, program: str = "") -> FakeCommand:
    return FakeCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=1, artifacts=str(folder)),
        num_workers=1,
        threads=1,
        log_folder=folder,
        program=program,
    )


def supervisor(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    program: str,
    counts: Iterable[PointCounts],
    rounds: Callable[[], tuple[StoredRound, ...]] = tuple,
) -> Supervisor:
    """A supervisor that reads these counts again and again, one after the other."""
    left = itertools.cycle(counts)

    def read(database: Any, study_id: int, metric: Metric) -> Progress:
        return Progress(
            counts=next(left),
            epochs=0,
            epochs_of_counted=0,
            best_value=None,
            best_trial=None,
            running=(),
            rounds=rounds(),
        )

    monkeypatch.setattr(module, "read_progress", read)
    study = cast(Any, type("Study", (), {"study_id": 1, "definition": parse_definition({"name": "s"}, source="test")}))
    return Supervisor(
        database=cast(Any, None), study=study, command=command(folder, program), num_workers=1, poll_seconds=0.05
    )


OPEN = PointCounts(waiting=1)
DONE = PointCounts(complete=1)


def num_starts(folder: Path) -> int:
    log = folder / "s-worker-0.log"
    return log.read_text().count("worker started") if log.exists() else 0


@pytest.mark.parametrize("code", [2, 3])
def test_a_worker_that_cannot_work_ends_the_run_with_its_error_and_its_code(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = f"print('error: the disk is full'); print('hint: make room'); raise SystemExit({code})"
    with pytest.raises(WorkersFailedError, match="worker 0 cannot work: the disk is full") as caught:
        supervisor(monkeypatch, tmp_path, program, [OPEN]).run(lambda progress: None)
    assert caught.value.exit_code == code
    assert str(tmp_path / "s-worker-0.log") in str(caught.value.hint)


def test_a_worker_that_keeps_dying_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import os; os.abort()"
    with pytest.raises(WorkersFailedError, match=rf"died {MAX_RESTARTS + 1} times in a row \(signal 6\)") as caught:
        supervisor(monkeypatch, tmp_path, program, [OPEN]).run(lambda progress: None)
    assert caught.value.exit_code == 1


def test_deaths_between_which_points_are_counted_do_not_add_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = "import os; os.abort()"

    def a_point_every_fourth_look() -> Iterator[PointCounts]:
        looks = itertools.count()
        while num_starts(tmp_path) <= MAX_RESTARTS + 1:
            yield PointCounts(waiting=1, complete=next(looks) // 4)
        yield DONE

    supervisor(monkeypatch, tmp_path, program, a_point_every_fourth_look()).run(lambda progress: None)


def test_workers_that_left_in_peace_are_called_back_while_a_point_is_open(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    def open_until_it_was_called_back() -> Iterator[PointCounts]:
        while num_starts(tmp_path) <= 1:
            yield OPEN
        yield DONE

    supervisor(monkeypatch, tmp_path, "pass", open_until_it_was_called_back()).run(lambda progress: None)


def test_workers_that_leave_in_peace_again_and_again_with_nothing_done_are_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(WorkersFailedError, match=f"ended {MAX_RESTARTS + 1} times with work left: bye") as caught:
        supervisor(monkeypatch, tmp_path, "print('bye')", [OPEN]).run(lambda progress: None)
    assert caught.value.exit_code == 1


@pytest.mark.timeout(60)
def test_the_end_of_a_worker_is_noticed_before_the_next_look_at_the_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    its_supervisor = supervisor(monkeypatch, tmp_path, "pass", [OPEN, DONE])
    its_supervisor.poll_seconds = 3600.0
    its_supervisor.run(lambda progress: None)


def test_workers_are_kept_until_the_search_has_ended_and_not_only_its_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All points are done at each look; the row that ends the search is there when a worker was started again."""
    first, end = (StoredRound(number=i, num_points=1 - i, reason="", opened_at=datetime.now(UTC)) for i in (0, 1))

    def rounds() -> tuple[StoredRound, ...]:
        return (first, end) if num_starts(tmp_path) > 1 else (first,)

    last = supervisor(monkeypatch, tmp_path, "pass", [DONE], rounds).run(lambda progress: None)
    assert last.rounds == (first, end)


class Deaf:
    """A worker that runs until it is killed; the second Ctrl-C comes as it is asked to stop."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int, /) -> None:
        raise KeyboardInterrupt

    def wait(self, timeout: float | None = None) -> int:
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        self.code = -signal.SIGKILL


def test_a_second_ctrl_c_that_comes_while_workers_are_asked_to_stop_leaves_none_of_them() -> None:
    workers = [Deaf(), Deaf()]
    with pytest.raises(KeyboardInterrupt):
        end_workers(workers)
    assert [worker.poll() for worker in workers] == [-signal.SIGKILL] * 2


def test_last_words_are_those_of_the_last_start(tmp_path: Path) -> None:
    worker = command(tmp_path)
    for words in ("error: of yesterday", ""):
        with worker._open_log(0) as log:
            log.write(words.encode() + b"\n")
    assert worker.last_words(0) == "its log is empty"


def test_a_log_that_grows_is_cut_while_its_worker_writes_and_keeps_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command_module, "LOG_LIMIT_BYTES", 100_000)
    program = (
        "import sys, time\n"
        "for i in range(60):\n"
        "    print('a line of forty characters, more or less\\n' * 500, flush=True)\n"
        "    time.sleep(0.02)\n"
        "print('error: the last of all')\n"
        "sys.exit(2)"
    )
    with pytest.raises(WorkersFailedError, match="cannot work: the last of all"):
        supervisor(monkeypatch, tmp_path, program, [OPEN]).run(lambda progress: None)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("s-worker-0.log*")}
    assert sizes.keys() == {"s-worker-0.log", "s-worker-0.log.1"}
    assert sum(sizes.values()) < 60 * 500 * 41


def test_last_words_of_a_long_log_are_read_without_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = command(tmp_path)
    with worker._open_log(0) as log:
        log.write(b"error: the last of all\n")
    path = worker.log_file(0)
    end = path.read_bytes()
    with path.open("wb") as log:
        log.truncate(2**34)  # a hole: it takes no room on the disk
        log.seek(0, 2)
        log.write(b"\n" + end)
    assert worker.last_words(0) == "the last of all"


def test_a_log_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write the workers' logs into"):
        command(tmp_path / "file" / "logs").start(0)


def test_a_full_disk_behind_a_worker_s_log_keeps_no_worker_from_starting(tmp_path: Path) -> None:
    worker = command(tmp_path)
    worker.log_file(0).parent.mkdir(exist_ok=True)
    worker.log_file(0).symlink_to("/dev/full")
    worker._open_log(0).close()


def test_workers_are_told_how_many_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the machine's memory and the study's points."""
    told: dict[str, str] = {}
    monkeypatch.setattr(command_module.subprocess, "Popen", lambda *_, env, **__: told.update(env))
    workers = WorkerCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=None, artifacts=str(tmp_path)),
        num_workers=3,
        threads=1,
        log_folder=tmp_path,
    )
    workers.start(0)
    assert told[environment.SUPERVISED_WORKERS] == "3"


def test_each_of_several_workers_serves_metrics_at_a_port_of_its_own_and_none_writes_a_life_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_LIFE_SIGN", str(tmp_path / "alive"))
    monkeypatch.setenv("HPSEARCH_METRICS", "9100")
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(command_module.subprocess, "Popen", lambda *_, env, **__: environments.append(env))
    plain = WorkerCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=None, artifacts=str(tmp_path)),
        num_workers=2,
        threads=1,
        log_folder=tmp_path,
    )
    with_metrics = replace(plain, options=replace(plain.options, metrics=MetricsAddress.parse("0.0.0.0:9100")))
    for workers in (plain, with_metrics):
        for index in range(2):
            workers.start(index)
    told = [environment.get("HPSEARCH_METRICS") for environment in environments]
    assert told == [None, None, "0.0.0.0:9100", "0.0.0.0:9101"]
    assert not any("HPSEARCH_LIFE_SIGN" in environment for environment in environments)


def test_last_words_are_found_in_a_json_log_too(tmp_path: Path) -> None:
    lines = [
        {"level": "ERROR", "message": "out of memory"},
        {"level": "ERROR", "message": "the disk is full", "hint": "make room", "exit_code": 3},
        {"level": "INFO", "message": "it leaves"},
    ]
    worker = command(tmp_path)
    with worker._open_log(0) as log:
        log.write("".join(json.dumps(line) + "\n" for line in lines).encode())
    assert worker.last_words(0) == "the disk is full"


class _StartedError(Exception):
    """In place of a process."""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": SPIN_COUNT}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "7"}),
    ],
)
def test_a_workers_threads_wait_for_each_other_as_the_user_says_or_for_a_moment(
    own: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    environments = []

    def start(*arguments: Any, env: dict[str, str], **options: Any) -> None:
        environments.append(env)
        raise _StartedError

    monkeypatch.setattr(subprocess, "Popen", start)
    worker = WorkerCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=1, artifacts=str(tmp_path)),
        num_workers=1,
        threads=3,
        log_folder=tmp_path,
    )
    with pytest.raises(_StartedError):
        worker.start(0)

    assert {name: environments[0][name] for name in names if name in environments[0]} == expected


@pytest.mark.parametrize("code", [2, 3])
def test_an_exit_code_without_an_error_of_ours_is_a_death_like_any_other(
    code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """os._exit(2) in a user's network, for example: the study goes on, and the point's attempts are counted."""
    program = f"import os; print('INFO training', flush=True); os._exit({code})"
    with pytest.raises(WorkersFailedError, match=rf"died {MAX_RESTARTS + 1} times in a row \(exit code {code}\)") as e:
        supervisor(monkeypatch, tmp_path, program, [OPEN]).run(lambda progress: None)
    assert e.value.exit_code == 1


TEXT_LINE = b"12:00:01 INFO hpsearch.lanes: 8 lanes: by this machine's model\n"
JSON_LINE = b'{"time": "1", "level": "INFO", "logger": "hpsearch.lanes", "message": "4 lanes: 2 s, 8 would take 2"}\n'
OTHER_LINES = b'12:00:02 INFO hpsearch.worker: joins\nprinted: hpsearch.lanes: 3\n{"logger": 1}\n{\n[]\n'


def test_changes_of_the_lanes_are_told_once_each(tmp_path: Path) -> None:
    worker = command(tmp_path)
    assert worker.lane_changes(0) == []  # there is no log yet
    for lines in (b"12:00:00 INFO hpsearch.lanes: 2 lanes: of an earlier start\n", TEXT_LINE + OTHER_LINES):
        with worker._open_log(0) as log:
            log.write(lines)
    assert worker.lane_changes(0) == ["8 lanes: by this machine's model"]
    assert worker.lane_changes(0) == []
    with worker.log_file(0).open("ab") as log:
        log.write(JSON_LINE[:40])
        log.flush()
        assert worker.lane_changes(0) == []
        log.write(JSON_LINE[40:])
    assert worker.lane_changes(0) == ["4 lanes: 2 s, 8 would take 2"]


def test_changes_of_the_lanes_are_found_behind_a_log_that_was_shortened(tmp_path: Path) -> None:
    worker = command(tmp_path)
    with worker._open_log(0) as log:
        log.write(OTHER_LINES * 100)
    assert worker.lane_changes(0) == []
    os.truncate(worker.log_file(0), 0)
    assert worker.lane_changes(0) == []
    with worker.log_file(0).open("ab") as log:
        log.write(TEXT_LINE)
    assert worker.lane_changes(0) == ["8 lanes: by this machine's model"]


def test_the_supervisor_passes_on_changes_of_the_lanes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = f"import sys, time; print({TEXT_LINE.decode()!r}, flush=True); time.sleep(60)"
    told: list[tuple[int, str]] = []

    def open_until_told() -> Iterator[PointCounts]:
        while not told:
            yield OPEN
        yield DONE

    one = supervisor(monkeypatch, tmp_path, program, open_until_told())
    one.on_lanes = lambda index, message: told.append((index, message))
    one.run(lambda progress: None)
    assert told == [(0, "8 lanes: by this machine's model")]
