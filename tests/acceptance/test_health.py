"""`hpsearch health` as a container's health check runs it, and how commands end with JSON logs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.cli.main import run_command_line
from hpsearch.logs import configure_logging
from hpsearch.worker.health.life_sign import LifeSign, WorkerState

pytestmark = pytest.mark.acceptance


def hpsearch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    return subprocess.run(
        [sys.executable, "-m", "hpsearch", *arguments],
        env={**own, **environment, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_worker_at_work_is_healthy(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    with LifeSign(path) as life_sign:
        life_sign.renew(WorkerState.TRAINING, "8 of 8 lanes")
        done = hpsearch("health", HPSEARCH_LIFE_SIGN=str(path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("training (8 of 8 lanes), ")
    assert len(done.stdout.splitlines()) == 1


def test_a_worker_that_has_gone_is_not(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    done = hpsearch("health", "--life-sign", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: there is no life sign {path}: no worker is running, or it does not write one\n"


def test_a_worker_that_hangs_is_not(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    with LifeSign(path):
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "monotonic_seconds": document["monotonic_seconds"] - 100}))
        assert hpsearch("health", "--life-sign", str(path)).returncode == 0
        done = hpsearch("health", "--max-age", "60", HPSEARCH_LIFE_SIGN=str(path))
        assert done.returncode == 1
        assert re.search(r"the worker has made no progress for 1\d\d s", done.stderr)


def test_the_environment_of_a_container_does_not_cut_what_its_worker_allows_itself(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    with LifeSign(path, max_age_seconds=60) as life_sign:
        life_sign.renew(WorkerState.IDLE, allowed_seconds=500)
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "monotonic_seconds": document["monotonic_seconds"] - 100}))
        done = hpsearch("health", HPSEARCH_LIFE_SIGN=str(path), HPSEARCH_LIFE_SIGN_MAX_AGE="60")
    assert done.returncode == 0


def test_a_health_check_that_is_not_told_where_to_look_is_bad_input() -> None:
    done = hpsearch("health")
    assert done.returncode == 2
    assert "hint: set HPSEARCH_LIFE_SIGN to a file" in done.stderr


def json_lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_with_json_logs_an_error_is_one_line_of_json_with_its_hint() -> None:
    done = hpsearch("--log-format", "json", "health")
    assert done.returncode == 2
    (line,) = json_lines(done)
    assert line["level"] == "ERROR"
    assert line["exit_code"] == 2
    assert str(line["hint"]).startswith("set HPSEARCH_LIFE_SIGN")


def test_with_json_logs_a_wrong_option_is_json_too() -> None:
    done = hpsearch("health", "--bogus", HPSEARCH_LOG_FORMAT="json")
    assert done.returncode == 2
    (line,) = json_lines(done)
    assert line["message"] == "No such option: --bogus"


def test_an_unknown_log_format_names_the_choices() -> None:
    done = hpsearch("health", HPSEARCH_LOG_FORMAT="xml")
    assert done.returncode == 2
    assert "'text', 'json'" in done.stderr


def test_the_password_of_a_storage_url_shows_in_no_error() -> None:
    done = hpsearch("status", "--storage", "postgresql://mary:pa@ss@127.0.0.1:1/x", HPSEARCH_LOG_FORMAT="json")
    assert done.returncode == 3
    assert json_lines(done)[-1]["exit_code"] == 3
    assert "pa@ss" not in done.stderr


def test_with_json_logs_a_bug_is_one_line_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, *, max_age_seconds: float | None) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setenv("HPSEARCH_LOG_FORMAT", "json")
    monkeypatch.setattr("hpsearch.cli.health_command.check_life_sign", fail)
    try:
        assert run_command_line(["health", "--life-sign", "x"]) == 1
    finally:
        configure_logging()
    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert line["level"] == "CRITICAL"
    assert line["exception"].endswith("ZeroDivisionError: of all things")
    with pytest.raises(ZeroDivisionError):
        run_command_line(["--log-format", "text", "health", "--life-sign", "x"])


def test_an_aborted_command_says_so_in_the_same_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def abort(path: Path, *, max_age_seconds: float | None) -> None:
        raise EOFError

    monkeypatch.setattr("hpsearch.cli.health_command.check_life_sign", abort)
    assert run_command_line(["health", "--life-sign", "x"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
    monkeypatch.setenv("HPSEARCH_LOG_FORMAT", "json")
    try:
        assert run_command_line(["health", "--life-sign", "x"]) == 130
    finally:
        configure_logging()
    assert json.loads(capsys.readouterr().err)["message"] == "interrupted"
