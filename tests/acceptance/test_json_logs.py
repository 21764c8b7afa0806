"""A study run with JSON logs: whatever stands on stderr, of `run` and of its workers, is one object per line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

STUDY = """
name = "small"
[data]
dataset = "digits"
[model]
hidden_units = 10
[training]
max_epochs = 2
[search]
learning_rate = [0.1, 0.01]
"""


def parse(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_a_run_and_its_workers_write_json(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "small.toml").write_text(STUDY)
    own = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    done = subprocess.run(
        [sys.executable, "-m", "hpsearch", "--log-format", "json", "run", "small.toml", "--lanes", "2", "--json"],
        env={**own, "HPSEARCH_HOME": str(tmp_path / "home"), "HPSEARCH_STORAGE": database_url},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["points"]["complete"] == 2
    messages = [line["message"] for line in parse(done.stderr.splitlines())]
    assert messages[0].startswith("study 'small' created: 2 points")
    assert messages[-1].startswith("2 complete, 0 pruned")
    (log,) = (tmp_path / "home" / "logs").iterdir()
    heading, *lines = log.read_text().splitlines()
    assert heading.startswith("--- worker started")
    assert any("joins study small" in line["message"] for line in parse(lines))
