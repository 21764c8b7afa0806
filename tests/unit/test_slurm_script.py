"""The script for Slurm: bash accepts it, and it starts a worker with what it was given, a password not among it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "slurm" / "workers.sbatch"
FAKE_SRUN = '#!/bin/sh\necho "$@"\nenv\n'


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "srun").write_text(FAKE_SRUN)
    (folder / "srun").chmod(0o755)
    return subprocess.run(
        ["bash", SCRIPT],
        env={"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "USER": "me", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


SETTINGS = {
    "STUDY": "mlp",
    "HPSEARCH_STORAGE": "postgresql://me@db.example:5432/studies",
    "HPSEARCH_ARTIFACTS": "/scratch/artifacts",
}


def test_bash_accepts_it() -> None:
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_starts_a_worker_with_the_jobs_processors_and_the_password_in_a_file(tmp_path: Path) -> None:
    done = run(tmp_path, **SETTINGS, SLURM_CPUS_PER_TASK="6")
    assert done.returncode == 0, done.stderr
    command, *variables = done.stdout.splitlines()
    assert command.endswith("hpsearch worker mlp")
    assert {"OMP_NUM_THREADS=6", "SRUN_CPUS_PER_TASK=6"} <= set(variables)
    assert f"HPSEARCH_STORAGE_PASSWORD_FILE={tmp_path}/.hpsearch-password" in variables
    assert "HPSEARCH_HOME=/tmp/hpsearch-me" in variables


@pytest.mark.parametrize("missing", SETTINGS)
def test_what_is_missing_is_named(missing: str, tmp_path: Path) -> None:
    done = run(tmp_path, **{key: value for key, value in SETTINGS.items() if key != missing})
    assert done.returncode != 0
    assert missing in done.stderr
    assert done.stdout == ""


def test_slurm_is_told_to_ask_a_worker_in_time_and_to_start_it_again() -> None:
    directives = [
        line.removeprefix("#SBATCH ") for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")
    ]
    assert {"--requeue", "--gpus-per-task=1", "--array=0-3"} <= set(directives)
    (sent,) = [line for line in directives if line.startswith("--signal=")]
    seconds = int(sent.rpartition("@")[2])
    assert sent.startswith("--signal=TERM")
    assert seconds >= 60  # Slurm's clock for it may be a minute off; a worker needs ten seconds
