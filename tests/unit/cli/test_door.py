"""What a command loads before its work begins: help and bad input need nothing that takes time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hpsearch.cli.main import COMMANDS

# Each takes from a third of a second to some seconds.
HEAVY = ("torch", "optuna", "sqlalchemy", "plotly", "boto3", "ray", "sklearn", "scipy", "prometheus_client", "jinja2")

MARK = '["door"'
# Runs each command line of argv[2] after the other, and prints its exit code and what of argv[1] is loaded by then.
PROGRAM = """
import json, sys
from hpsearch.cli.main import run_command_line
for arguments in json.loads(sys.argv[2]):
    code = run_command_line(arguments)
    loaded = [name for name in sys.argv[1].split() if name in sys.modules]
    print(json.dumps(["door", code, loaded]), file=sys.__stdout__)
"""


def run_all(command_lines: list[list[str]]) -> list[tuple[list[str], int, list[str]]]:
    """Each command line with its exit code, and what is loaded by then."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, " ".join(HEAVY), json.dumps(command_lines)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HPSEARCH_STORAGE": ""},
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(MARK)]
    return [(line, code, loaded) for line, (_, code, loaded) in zip(command_lines, found, strict=True)]


def test_help_loads_nothing_that_takes_time() -> None:
    command_lines = [["--help"], ["--version"], *([command.name or "", "--help"] for command in COMMANDS)]
    assert run_all(command_lines) == [(line, 0, []) for line in command_lines]


def test_bad_input_loads_nothing_that_takes_time(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text('name = "s"\n[search]\nlearning_rate = [0.1]\n')
    bad.write_text('name = "s"\n[model]\nfamly = "mlp"\n')
    command_lines = [
        ["run", str(bad)],
        ["create", str(bad)],
        ["run", str(tmp_path / "missing.toml")],
        ["run", str(good), "--set", "training.batch_size=0"],
        ["run", str(good), "--lanes", "many"],
        ["run", str(good), "--metrics", "nowhere"],
        ["worker", "s", "--lanes", "0"],
        ["confirm", "s", "--lanes", "0"],
        ["report", "s", "-o", "-"],
        ["status", "s", "--watch", "--json"],
        ["dashboard", "--host", "0.0.0.0"],
        ["data", "fetch"],
        ["health", "--max-age", "nan"],
        ["no-such-command"],
    ]
    assert run_all(command_lines) == [(line, 2, []) for line in command_lines]
