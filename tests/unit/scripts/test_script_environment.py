"""What a script finds in its environment, and what it does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from hpsearch import environment
from hpsearch.errors import InputError
from hpsearch.launch.worker_command import WorkerCommand
from hpsearch.scripts.script_environment import parameter_variables, script_environment
from hpsearch.study.command_line import check_command
from hpsearch.worker.options import WorkerOptions

SENTINEL = "Sentinel-7f3a91c4"


def made(
    base: Mapping[str, str] | None = None,
    *,
    pass_environment: Collection[str] = (),
    own: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    cpus: int = 2,
    devices: Sequence[str] | None = None,
) -> dict[str, str]:
    return script_environment(
        base or {},
        pass_environment=pass_environment,
        own=own or {},
        settings=settings or {},
        cpus=cpus,
        devices=devices,
        temporary=Path("/scratch/tmp"),
    )


def test_the_callers_variables_are_passed() -> None:
    found = made({"HOME": "/home/me", "PYTHONPATH": "/code", "EMPTY": ""})
    assert found.items() >= {"HOME": "/home/me", "PYTHONPATH": "/code", "EMPTY": ""}.items()


@pytest.mark.parametrize("name", ["HPSEARCH_HOME", "PGPASSWORD", "PGHOST", "AWS_SECRET_ACCESS_KEY", "GOMP_SPINCOUNT"])
def test_variables_of_hpsearch_the_database_and_the_bucket_are_left_out(name: str) -> None:
    assert name not in made({name: "x"})


def test_named_variables_are_passed() -> None:
    named = {"AWS_PROFILE": "mine", "PGHOST": "db", "GOMP_SPINCOUNT": "7"}
    assert made({**named, "AWS_REGION": "x"}, pass_environment=named.keys()).items() >= named.items()


def test_variables_of_hpsearch_are_not_passed_even_if_they_are_named() -> None:
    base = {"HPSEARCH_STORAGE": "x"}
    assert "HPSEARCH_STORAGE" not in made(base, pass_environment=["HPSEARCH_STORAGE"], settings=base)


@pytest.mark.parametrize(("devices", "text"), [(None, ""), ([], ""), (["GPU-a"], "GPU-a"), (["A", "B"], "A,B")])
def test_a_script_sees_the_gpus_of_its_attempt_only(devices: list[str] | None, text: str) -> None:
    everything = {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert made(everything, settings=everything, devices=devices)["CUDA_VISIBLE_DEVICES"] == text


def test_threads_temporary_files_and_output_are_set() -> None:
    found = made({"OMP_NUM_THREADS": "64", "TMPDIR": "/tmp", "PYTHONUNBUFFERED": ""}, cpus=3)
    assert (found["OMP_NUM_THREADS"], found["TMPDIR"], found["PYTHONUNBUFFERED"]) == ("3", "/scratch/tmp", "1")


def test_the_studys_variables_come_before_the_callers() -> None:
    found = made({"MODE": "a"}, settings={"MODE": "b", "OMP_NUM_THREADS": "1", "PGHOST": "scores"})
    assert (found["MODE"], found["OMP_NUM_THREADS"], found["PGHOST"]) == ("b", "1", "scores")


def test_nothing_overrides_the_trials_own_variables() -> None:
    own = {environment.SEED: "3", **parameter_variables({"learning_rate": 1e-3, "nesterov": True})}
    found = made({"HPSEARCH_SEED": "1"}, settings={"HPSEARCH_SEED": "2", "HPSEARCH_PARAM_NESTEROV": "no"}, own=own)
    assert {name: text for name, text in found.items() if name.startswith("HPSEARCH_")} == {
        "HPSEARCH_SEED": "3",
        "HPSEARCH_PARAM_LEARNING_RATE": "0.001",
        "HPSEARCH_PARAM_NESTEROV": "true",
    }


def test_every_own_variable_is_one_that_a_study_cannot_set() -> None:
    names = (environment.REPORTS, environment.VERDICT, environment.FOLDER, environment.SEED, environment.TRIAL)
    for name in (*names, environment.ATTEMPT, environment.PARAMETERS, environment.PARAMETER_PREFIX + "X"):
        with pytest.raises(InputError, match="hpsearch's own"):
            check_command(["train"], {name: "x"}, [])


def test_the_storages_password_is_nowhere_in_a_scripts_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a supervisor with every kind of password, through a real worker's environment, to a real child."""
    secret_file = tmp_path / "password"
    secret_file.write_text(SENTINEL)
    monkeypatch.setenv("HPSEARCH_STORAGE", f"postgresql://u:{SENTINEL}@db/d")
    monkeypatch.setenv("HPSEARCH_STORAGE_PASSWORD_FILE", str(secret_file))
    monkeypatch.setenv("PGPASSWORD", SENTINEL)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SENTINEL)
    base = _worker_environment(tmp_path, f"postgresql://u:{SENTINEL}@db/d", monkeypatch)
    assert SENTINEL in "".join(base.values())
    assert base["HPSEARCH_STORAGE_PASSWORD_FILE"].startswith("/dev/fd/")
    found = made(base, own={environment.SEED: "1"})
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    told = json.loads(
        subprocess.run([sys.executable, "-c", program], env=found, capture_output=True, check=True).stdout
    )
    assert {name for name in told if name.startswith(("HPSEARCH_", "PG", "AWS_"))} == {"HPSEARCH_SEED"}
    text = "\n".join(f"{name}={value}" for name, value in told.items())
    assert SENTINEL not in text
    assert "/dev/fd/" not in text
    assert str(secret_file) not in text


def _worker_environment(folder: Path, storage_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables with which a supervisor starts a worker."""
    seen: list[dict[str, str]] = []

    def start(*_: object, env: dict[str, str], **__: object) -> None:
        seen.append(env)

    with monkeypatch.context() as patches:
        patches.setattr("hpsearch.launch.worker_command.subprocess.Popen", start)
        command = WorkerCommand(
            study_name="s",
            storage_url=storage_url,
            options=WorkerOptions(),
            num_workers=1,
            threads=1,
            log_folder=folder,
        )
        command.start(0)
    assert seen[0].keys() >= {"GOMP_SPINCOUNT"} or "OMP_WAIT_POLICY" in os.environ
    return seen[0]
