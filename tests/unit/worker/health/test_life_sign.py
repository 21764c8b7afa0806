"""A worker's life sign: what is written when, and what a health check makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import ArtifactError, InputError
from hpsearch.worker.health import life_sign as module
from hpsearch.worker.health.life_sign import (
    DEFAULT_MAX_AGE_SECONDS,
    LifeSign,
    UnhealthyError,
    WorkerState,
    check_life_sign,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "alive"


class Clock:
    """In place of the machine's: seconds pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1.7e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def document(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**document(path), **fields}))


def test_the_file_is_there_while_the_worker_is_and_says_what_it_does(path: Path, clock: Clock) -> None:
    with LifeSign(path) as life_sign:
        assert document(path)["state"] == "starting"
        life_sign.renew(WorkerState.TRAINING, "trial 7, epoch 3")
        seen = document(path)
        assert (seen["state"], seen["detail"], seen["pid"]) == ("training", "trial 7, epoch 3", os.getpid())
        assert datetime.fromisoformat(seen["time"]).timestamp() == pytest.approx(
            life_sign.latest.unix_seconds, abs=0.001
        )
        assert check_life_sign(path).describe() == "training (trial 7, epoch 3), 0 s ago"
        assert [file.name for file in path.parent.iterdir()] == ["alive"]  # nothing is left of how it was written
    assert not path.exists()


def test_within_a_second_only_another_state_is_written(path: Path, clock: Clock) -> None:
    with LifeSign(path) as life_sign:
        life_sign.renew(WorkerState.TRAINING, "epoch 1")
        clock.now += 0.5
        life_sign.renew(WorkerState.TRAINING, "epoch 2")
        assert document(path)["detail"] == "epoch 1"
        assert life_sign.latest.detail == "epoch 2"
        assert life_sign.latest.age_seconds == 0
        life_sign.renew(WorkerState.IDLE)
        assert document(path)["state"] == "idle"
        clock.now += 1.0
        life_sign.renew(WorkerState.IDLE, "still")
        assert document(path)["detail"] == "still"


def test_a_sign_grows_old_unless_more_time_was_asked_for(path: Path, clock: Clock) -> None:
    with LifeSign(path, max_age_seconds=60) as life_sign:
        life_sign.renew(WorkerState.TRAINING)
        clock.now += 59
        assert life_sign.latest.is_fresh
        check_life_sign(path)
        clock.now += 2
        assert not life_sign.latest.is_fresh
        with pytest.raises(UnhealthyError, match=r"no progress for 61 s \(the limit is 60 s\); .*training") as bad:
            check_life_sign(path)
        assert bad.value.exit_code == 1
        life_sign.renew(WorkerState.TRAINING, allowed_seconds=500)
        clock.now += 499
        assert life_sign.latest.is_fresh
        check_life_sign(path)
        with pytest.raises(UnhealthyError, match="the limit is 30 s"):
            check_life_sign(path, max_age_seconds=30)
        check_life_sign(path, max_age_seconds=499)


def test_the_wall_clock_does_not_matter(path: Path) -> None:
    with LifeSign(path):
        change(path, time="1999-01-01T00:00:00.000Z")
        check_life_sign(path)


def test_a_worker_that_is_gone_is_unhealthy_at_once(path: Path, clock: Clock) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with LifeSign(path):
        change(path, pid=process.pid)
        with pytest.raises(UnhealthyError, match=f"gone \\(pid {process.pid}\\); it was last starting, 0 s ago"):
            check_life_sign(path)


def test_another_users_process_counts_as_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    with LifeSign(path):
        monkeypatch.setattr(os, "kill", refuse)
        check_life_sign(path)


def test_a_sign_from_before_the_machine_was_started_is_unhealthy(path: Path) -> None:
    with LifeSign(path):
        change(path, monotonic_seconds=time.monotonic() + 1000)
        with pytest.raises(UnhealthyError, match="before this machine was started"):
            check_life_sign(path)


def test_no_file_no_worker(path: Path) -> None:
    with pytest.raises(UnhealthyError, match=r"there is no life sign .*alive"):
        check_life_sign(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"state": 1', b"\xff", b'{"monotonic_seconds": "x"}'])
def test_what_is_no_life_sign_is_unhealthy(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(UnhealthyError, match="is not a worker's life sign"):
        check_life_sign(path)


def test_what_cannot_be_read_is_unhealthy(path: Path) -> None:
    path.mkdir()
    with pytest.raises(UnhealthyError, match=r"cannot read the life sign .*: Is a directory"):
        check_life_sign(path)


def test_a_place_that_cannot_be_written_is_an_error_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write the life sign .*no/alive: No such file") as bad:
        LifeSign(tmp_path / "no" / "alive").__enter__()
    assert "HPSEARCH_LIFE_SIGN" in str(bad.value.hint)


def test_a_place_that_cannot_be_written_any_more_is_said_once_and_training_goes_on(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    said: list[str] = []
    monkeypatch.setattr(module._log, "warning", lambda message, *values: said.append(message % values))
    with LifeSign(folder / "alive") as life_sign:
        (folder / "alive").unlink()
        folder.rmdir()
        for _ in range(3):
            clock.now += 2
            life_sign.renew(WorkerState.TRAINING)
        assert said == [f"cannot write the life sign {folder / 'alive'}: No such file or directory"]
        folder.mkdir()
        clock.now += 2
        life_sign.renew(WorkerState.TRAINING)
        assert document(folder / "alive")["state"] == "training"


def test_without_a_path_it_is_kept_in_memory(clock: Clock) -> None:
    with LifeSign() as life_sign:
        life_sign.renew(WorkerState.WAITING_FOR_GPU, "4 are taken")
        clock.now += 5
        assert (life_sign.latest.state, life_sign.latest.detail, life_sign.latest.age_seconds) == (
            WorkerState.WAITING_FOR_GPU,
            "4 are taken",
            5,
        )


def test_the_environment_names_file_and_age(path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    monkeypatch.setenv("HPSEARCH_LIFE_SIGN", str(path))
    monkeypatch.setenv("HPSEARCH_LIFE_SIGN_MAX_AGE", "2.5")
    with LifeSign.from_environment() as life_sign:
        assert document(path)["max_age_seconds"] == 2.5
        clock.now += 3
        assert not life_sign.latest.is_fresh
    monkeypatch.delenv("HPSEARCH_LIFE_SIGN")
    monkeypatch.delenv("HPSEARCH_LIFE_SIGN_MAX_AGE")
    with LifeSign.from_environment() as life_sign:
        clock.now += DEFAULT_MAX_AGE_SECONDS
        assert life_sign.latest.is_fresh


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_an_age_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HPSEARCH_LIFE_SIGN_MAX_AGE", text)
    with pytest.raises(InputError, match=f"HPSEARCH_LIFE_SIGN_MAX_AGE must be .* got '{text}'"):
        LifeSign.from_environment()
