"""Fault table, rows 15 to 20: poison, broken writes, wrong clocks, full disks, diverging lanes, resumed trials."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
from optuna.trial import TrialState
from safetensors.numpy import load_file

from hpsearch.wording import value_label
from tests.faults.arena import Arena, learning_rates, read_lines
from tests.faults.driver import Faults
from tests.faults.processes import wait_until

NewArena = Callable[..., Arena]

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
SLOW = replace(FAST, epoch_seconds=0.1)


def test_row_15_poison_point(arena: Arena, tmp_path: Path) -> None:
    """`hpsearch run` with a supervised worker that the point kills whenever it has it in a lane."""
    rates = learning_rates(4)
    poison = replace(FAST, poison_learning_rate=rates[1])
    study_file = tmp_path / "study.toml"
    study_file.write_text(tomli_w.dumps(arena.document(4, max_epochs=2)))
    worker_python = tmp_path / "python-with-poison"
    worker_python.write_text(
        f"#!/bin/sh\nshift 2  # -m hpsearch\nexec {sys.executable} -m tests.faults.driver '{poison.as_json()}' \"$@\"\n"
    )
    worker_python.chmod(0o755)
    arguments = ("run", str(study_file), "--workers", "1", "--lanes", "2", "--device", "cpu")
    run = arena.start(*arguments, faults=replace(FAST, python=str(worker_python)))
    arena.num_points = 4
    assert run.wait(240) == 1, run.said
    assert "1 of 4 points could not be trained, their workers died or failed each time" in run.said
    assert f"point 1 (learning_rate {value_label(rates[1])})" in run.said
    arena.judge(given_up=[1])
    attempts = [trial for trial in arena.trials() if trial.user_attrs["point"] == 1]
    assert [trial.state for trial in attempts] == [TrialState.FAIL] * 3


# Row 16: whoever is killed right before a file gets its name leaves the old file, or the new one; never a part.


def killed_while_exporting(arena: Arena) -> None:
    arena.create(2, max_epochs=1)
    assert arena.worker(faults=FAST).wait() == 0
    best = arena.folder / "best.json"
    assert arena.start("export", "faults", "-o", str(best)).wait() == 0
    old = best.read_bytes()
    killed = arena.start("export", "faults", "-o", str(best), faults=replace(FAST, kill_before_rename="best.json"))
    assert killed.wait() == -signal.SIGKILL
    assert best.read_bytes() == old
    assert arena.start("export", "faults", "-o", str(best)).wait() == 0
    assert json.loads(best.read_text())["value"] == json.loads(old)["value"]


def killed_while_keeping_the_best_parameters(arena: Arena) -> None:
    arena.create(4, max_epochs=2)
    killed = arena.worker(faults=replace(FAST, kill_before_rename=str(arena.artifacts)))
    assert killed.wait() == -signal.SIGKILL
    assert whole_files(arena) == []
    assert arena.worker(faults=FAST).wait() == 0
    for path in whole_files(arena):
        load_file(path)


def killed_while_checkpointing(arena: Arena) -> None:
    arena.create(1, max_epochs=100)  # ten seconds for three checkpoints, on a disk that has much else to do
    often = replace(SLOW, checkpoint_seconds=0.01)
    killed = arena.worker(faults=replace(often, kill_before_rename="checkpoint-", rename_number=3))
    assert killed.wait() == -signal.SIGKILL
    (old,) = arena.ask("SELECT epoch FROM hpsearch_checkpoints")
    after = arena.worker(faults=FAST)
    assert after.wait() == 0
    (first, *_) = arena.trained(after)
    assert list(first["epochs"].values()) == [old.epoch + 1], "it goes on from the checkpoint before"


def whole_files(arena: Arena) -> list[Path]:
    """What has a name in the artifact folder; what is being written has none yet."""
    return [path for path in arena.artifacts.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize(
    "scenario",
    [killed_while_exporting, killed_while_keeping_the_best_parameters, killed_while_checkpointing],
    ids=lambda scenario: scenario.__name__,
)
def test_row_16_killed_while_writing_a_file(scenario: Callable[[Arena], None], arena: Arena) -> None:
    scenario(arena)
    arena.judge()


def test_row_17_clocks_and_time_zones_that_differ(new_arena: NewArena) -> None:
    """Leases are short and trials long: with any worker's clock or zone in the reckoning, somebody would be reaped."""
    arena = new_arena()
    arena.configure("ALTER SYSTEM SET timezone = 'Asia/Kathmandu'", "SELECT pg_reload_conf()")
    arena.create(3, max_epochs=12)
    suspicious = arena.folder / "suspicious.jsonl"
    gate = arena.folder / "gate"
    gate.touch()
    skewed = Faults(epoch_seconds=0.2, lease_seconds=6.0, absence_seconds=3.0, suspicious_values=str(suspicious))
    skewed = replace(skewed, hold=str(gate))
    workers = [
        arena.worker(faults=skewed, TZ="Pacific/Kiritimati", PGTZ="Pacific/Kiritimati"),
        arena.worker(faults=replace(skewed, clock_offset_seconds=-86_400.0), TZ="America/Los_Angeles"),
        arena.worker(faults=replace(skewed, clock_offset_seconds=86_400.0), PGTZ="Pacific/Pago_Pago"),
    ]
    arena.wait_for_training(3, min_epochs=0)
    gate.unlink()
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    arena.judge()
    assert all(trial.state is TrialState.COMPLETE for trial in arena.trials()), "nobody was taken for dead"
    assert read_lines(suspicious) == [], "no worker's clock has a part in any statement"
    (kept,) = arena.ask(
        "SELECT bool_and(abs(extract(epoch FROM timezone('UTC', now()) - datetime_start)) < 3600) AS is_utc FROM trials"
    )
    assert kept.is_utc


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 256 KiB."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("only root can mount a small disk")
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_row_18_disk_full(small_disk: Path, arena: Arena) -> None:
    # 784 x 8 weights: a trial's parameters take 28 KiB. There is room for the first trial's, not for the better second.
    arena.artifacts = small_disk / "artifacts"
    arena.create(3, max_epochs=4, search={"learning_rate": [0.0001, 0.05, 0.2]})
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((256 - 44) * 1024))
    environment = {"HPSEARCH_ARTIFACTS": str(arena.artifacts)}
    # The room that a checkpoint has taken before it is refused is free again when the first trial ends.
    worker = arena.worker(faults=replace(SLOW, epoch_seconds=0.2, checkpoint_seconds=0.01), **environment)
    assert worker.wait() == 3
    assert f"cannot write the best parameters into {arena.artifacts}: No space left on device" in worker.said
    assert "cannot write a checkpoint" in worker.said
    assert "Traceback" not in worker.said
    (earlier,) = whole_files(arena)
    kept = earlier.read_bytes()
    assert len(arena.counted()) == 1
    ballast.unlink()
    assert arena.worker(faults=FAST, **environment).wait() == 0
    arena.judge()
    assert earlier.read_bytes() == kept


def test_row_19_a_lane_diverges(new_arena: NewArena) -> None:
    """At a rate of 10^6 this lambda_2 lets weights grow by a factor of -2000 per step."""
    wild, calm = new_arena("wild"), new_arena("calm")
    for arena, third in ((wild, 1e6), (calm, 0.15)):
        training = {**arena.document(1, max_epochs=6)["training"], "lambda_2": 0.001}
        arena.create(training=training, search={"learning_rate": [0.1, 0.02, third]})
        assert arena.worker(faults=FAST, lanes=3).wait() == 0
        arena.judge()
    diverged = wild.counted()[2]
    assert (diverged.state, diverged.user_attrs["stop_reason"]) == (TrialState.PRUNED, "diverged")
    assert diverged.user_attrs["stop_detail"].startswith("diverged at epoch ")
    for neighbour in (0, 1):
        assert len(wild.curves()[neighbour]) == 6
        assert wild.curves()[neighbour] == calm.curves()[neighbour]


def test_row_20_resumed_from_a_checkpoint(new_arena: NewArena) -> None:
    """Killed after each epoch's checkpoint, and yet the curve of the uninterrupted trial, bit for bit."""
    calm, arena = new_arena("calm"), new_arena("faults")
    momentum = {"optimizer": "momentum", "schedule": "inverse-time", "shuffle": True}
    for study in (calm, arena):
        study.create(2, max_epochs=5, training={**study.document(2, max_epochs=5)["training"], **momentum})
    assert calm.worker(faults=FAST, lanes=2).wait() == 0
    calm.judge()
    often = replace(FAST, checkpoint_seconds=1e-6)
    for epoch in range(1, 5):
        (worker,) = arena.workers(1, faults=often, lanes=2)  # trains one epoch more than those before it
        wait_until(lambda at=epoch: checkpointed(arena) == at, f"epoch {epoch} is checkpointed", told=arena.told)
        worker.kill()
        arena.go()
    last = arena.worker(faults=often, lanes=2)
    assert last.wait() == 0
    arena.judge()
    assert arena.curves() == calm.curves()
    assert [trial.user_attrs["resumed_at_epoch"] for trial in arena.counted()] == [4, 4]
    assert [list(line["epochs"].values()) for line in arena.trained(last)] == [[5, 5]], "no epoch is trained again"


def checkpointed(arena: Arena) -> int:
    """The epoch up to which every point of the study has a checkpoint; 0 if one has none."""
    rows = arena.ask("SELECT epoch FROM hpsearch_checkpoints")
    return min((row.epoch for row in rows), default=0) if len(rows) == arena.num_points else 0
