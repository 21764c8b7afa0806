"""The lock on a GPU: lost with its session, taken again, or lost for good; and a command line that meets taken GPUs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from hpsearch.cli.main import run_command_line
from hpsearch.device.devices import Gpu, VisibleDevices
from hpsearch.device.gpu_lock import GpuLockSession, lock_key
from hpsearch.device.pin import PinnedDevice, PinRules, describe_taken, pin_device
from hpsearch.errors import DeviceError, DeviceLostError, InputError
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database

GPU = Gpu(index=0, uuid="GPU-00000000-0000-0000-0000-000000000000", name="NVIDIA Fake")
ONE_GPU = VisibleDevices(gpus=(GPU,), has_cuda_build=True)
NO_GPU = VisibleDevices(gpus=(), has_cuda_build=False)
ROOT = Path(__file__).parents[3]
HOLDERS = """
    SELECT l.pid, s.application_name AS title FROM pg_locks l JOIN pg_stat_activity s USING (pid)
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@contextmanager
def pin(
    database: Database, visible: VisibleDevices = ONE_GPU, wanted: str = "auto", *, worker: str = "node7:4711"
) -> Iterator[PinnedDevice]:
    with pin_device(
        database,
        wanted,
        visible,
        worker=worker,
        stop=StopSignal(),
        is_finished=lambda: False,
        rules=PinRules(waits=False),
    ) as pinned:
        assert pinned is not None
        yield pinned


def end_session(execute: Any, pid: int) -> None:
    execute("SELECT pg_terminate_backend(:pid, 10000)", pid=pid)  # returns once it is gone


def test_the_lock_is_held_under_the_workers_name_and_given_back(database: Database, execute: Any) -> None:
    with pin(database) as pinned:
        assert pinned.device == torch.device("cuda", 0)
        assert pinned.description == "cuda:0 (NVIDIA Fake, GPU-00000000-0000-0000-0000-000000000000)"
        ((_, title),) = execute(HOLDERS)
        assert title.startswith("hpsearch gpu node7:4711 ")
        assert pinned.keep()
        assert database.engine.pool.checkedout() == 0  # the session is none of the pool's
    assert execute(HOLDERS) == []


def test_a_long_worker_name_keeps_its_end_where_the_process_id_is(database: Database, execute: Any) -> None:
    with pin(database, worker=f"{'long' * 30}:4711"):
        assert describe_taken(database, [GPU])[0].endswith("long:4711")


def test_a_cut_session_is_replaced_at_the_next_turn(
    database: Database, execute: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pin(database) as pinned:
        ((pid, _),) = execute(HOLDERS)
        end_session(execute, pid)
        assert execute(HOLDERS) == []
        with caplog.at_level(logging.INFO, logger="hpsearch"):
            assert pinned.keep()
        ((other_pid, _),) = execute(HOLDERS)
        assert other_pid != pid
        assert not pinned.is_lost
        pinned.require()
    assert caplog.messages == [f"the session that pins {GPU.description} was cut: pinned again"]
    assert execute(HOLDERS) == []


def test_our_own_session_that_the_server_has_not_missed_yet_is_ended(database: Database, execute: Any) -> None:
    """A half-open connection: the worker has lost it, the server has not noticed."""
    with pin(database) as pinned:
        ((pid, _),) = execute(HOLDERS)
        assert pinned._session is not None
        session = pinned._session._session
        old, session._connection = session._connection, None
        assert pinned.keep()
        assert pinned.keep()
        ((other_pid, _),) = execute(HOLDERS)
        assert other_pid != pid
        assert old is not None
        old.close()


def test_a_gpu_that_another_has_taken_meanwhile_is_lost_for_good(
    database: Database, execute: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = GpuLockSession(database, "node7:9")
    with pin(database) as pinned:
        ((pid, _),) = execute(HOLDERS)
        end_session(execute, pid)
        assert other.try_lock(str(GPU.uuid))
        assert not pinned.is_lost
        assert not pinned.keep()
        assert pinned.is_lost
        assert f"another worker has taken {GPU.description}" in caplog.text
        other.close()
        assert not pinned.keep()  # its memory there may be in others' way already
        assert execute(HOLDERS) == []
        with pytest.raises(DeviceLostError, match="another worker has taken cuda:0") as caught:
            pinned.require()
    # A supervisor ends the whole run at 3; started again, the worker takes another GPU.
    assert caught.value.exit_code == 1


def test_keeping_outlives_a_database_that_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pin(database) as pinned:
        assert pinned._session is not None
        pinned._session._session.close()

        def refuse(*_: Any, **__: Any) -> Any:
            raise OperationalError("SELECT", {}, Exception("could not connect\nto the server"))

        with monkeypatch.context() as away:
            away.setattr(type(database.engine), "connect", refuse)
            assert pinned.keep()
        assert "could not check the lock on cuda:0" in caplog.text
        assert pinned.keep()


def test_any_number_of_threads_may_keep_it(database: Database, execute: Any) -> None:
    with pin(database) as pinned, ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            ((pid, _),) = execute(HOLDERS)
            end_session(execute, pid)
            assert all(threads.map(lambda _: pinned.keep(), range(8)))
            assert len(execute(HOLDERS)) == 1


def test_keys_of_gpus_differ_and_do_not_depend_on_how_a_uuid_is_written() -> None:
    keys = {lock_key(f"GPU-{index:032x}") for index in range(1000)}
    assert len(keys) == 1000
    assert min(keys) < 0 < max(keys)
    assert max(map(abs, keys)) < 2**63
    assert lock_key("GPU-ABCDEF") == lock_key("gpu-abcdef")


def test_holders_are_found_for_keys_of_either_sign(database: Database) -> None:
    for uuid in ("GPU-0", "GPU-1", "GPU-2", "GPU-3", "GPU-4", "GPU-5"):
        with pin(database, replace(ONE_GPU, gpus=(replace(GPU, uuid=uuid),))) as pinned:
            assert len(describe_taken(database, [replace(GPU, uuid=uuid)])) == 1
            assert pinned.keep()


def test_those_of_another_database_do_not_count(database: Database, execute: Any, database_url: str) -> None:
    """As the documentation says: workers that share a machine's GPUs must use one database."""
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key(str(GPU.uuid))})
        assert describe_taken(database, [GPU]) == []
        with pin(database):
            pass
    engine.dispose()


# Without a lock


@pytest.mark.parametrize(("wanted", "visible"), [("auto", NO_GPU), ("cpu", ONE_GPU)])
def test_any_number_train_on_the_cpu_and_none_asks_the_database(
    wanted: str, visible: VisibleDevices, database: Database, statements: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.INFO, logger="hpsearch"),
        statements() as seen,
        pin(database, visible, wanted) as one,
        pin(database, visible, wanted) as other,
    ):
        assert one.device == other.device == torch.device("cpu")
        assert one.description == "cpu"
        assert one.keep()
        one.require()
    assert seen == []
    assert caplog.messages == (["no GPU is visible: training on the CPU"] * 2 if wanted == "auto" else [])


@pytest.mark.parametrize(("wanted", "error"), [("cuda:1", DeviceError), ("gpu", InputError)])
def test_a_device_that_is_not_there_is_refused_before_anything_is_locked(
    wanted: str, error: type[Exception], database: Database, statements: Any
) -> None:
    with statements() as seen, pytest.raises(error), pin(database, ONE_GPU, wanted):
        pass
    assert seen == []


def test_a_gpu_that_cannot_be_told_from_others_is_not_used(database: Database) -> None:
    unknown = VisibleDevices(gpus=(replace(GPU, uuid=None),), has_cuda_build=True)
    with (
        pytest.raises(DeviceError, match="has neither a UUID nor a known place on the PCI bus") as caught,
        pin(database, unknown),
    ):
        pass
    assert caught.value.exit_code == 3
    assert describe_taken(database, unknown.gpus) == []


# The command line


STUDY = """
name = "small"
[data]
dataset = "digits"
[model]
hidden_units = 4
[training]
max_epochs = 1
[search]
learning_rate = [0.1, 0.2]
"""

# `hpsearch` with a GPU that is not there; takes itself for Python, so that the workers of `run` see the same.
HPSEARCH = f"""#!{sys.executable}
import sys
from hpsearch.cli.main import main
from hpsearch.device.devices import Gpu, VisibleDevices
VisibleDevices.detect = classmethod(lambda cls: cls(gpus=({GPU!r},), has_cuda_build=True))
sys.executable = sys.argv[0]
main(sys.argv[3:])  # after -m hpsearch
"""


@pytest.fixture
def hpsearch(tmp_path: Path, tables_url: str) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command in a process with one fake GPU."""
    program = tmp_path / "hpsearch"
    program.write_text(HPSEARCH)
    program.chmod(0o755)

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [program, "-m", "hpsearch", *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HPSEARCH_STORAGE": tables_url, "NO_COLOR": "1"},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def taken_gpu(database: Database) -> Iterator[GpuLockSession]:
    """The GPU has its worker already."""
    session = GpuLockSession(database, "node7:4711")
    assert session.try_lock(str(GPU.uuid))
    yield session
    session.close()


@pytest.fixture
def study_file(tmp_path: Path, tables_url: str) -> Path:
    """Of a study that is in the database."""
    file = tmp_path / "small.toml"
    file.write_text(STUDY)
    assert run_command_line(["create", str(file), "--storage", tables_url]) == 0
    return file


def test_a_worker_that_is_not_to_wait_says_who_has_the_gpu(
    hpsearch: Callable[..., subprocess.Popen[str]], study_file: Path, taken_gpu: GpuLockSession
) -> None:
    process = hpsearch("worker", "small", "--no-wait-for-gpu")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 3
    assert f"error: no GPU is free for this worker: {GPU.description} by node7:4711\n" in errors
    assert "hint: --wait-for-gpu waits for one; --share-gpu" in errors
    assert "Traceback" not in errors


def test_a_worker_that_waits_ends_well_with_the_study(
    hpsearch: Callable[..., subprocess.Popen[str]], study_file: Path, taken_gpu: GpuLockSession, execute: Any
) -> None:
    process = hpsearch("worker", "small")
    assert process.stderr is not None
    line = next(line for line in process.stderr if "no GPU is free" in line)
    assert f"{GPU.description} by node7:4711; it waits until one is free or the study is finished" in line
    execute("UPDATE trials SET state = 'COMPLETE'")
    execute("UPDATE hpsearch_points SET is_counted = true")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "leaves: nothing is left for it" in errors


def test_a_run_says_which_gpus_are_taken_and_by_whom(
    hpsearch: Callable[..., subprocess.Popen[str]], study_file: Path, taken_gpu: GpuLockSession
) -> None:
    process = hpsearch("run", study_file, "--no-wait-for-gpu")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 3
    assert f"in use by another worker: {GPU.description} by node7:4711\n" in errors
    assert f"error: worker 0 cannot work: no GPU is free for this worker: {GPU.description} by node7:4711\n" in errors


def test_a_run_of_more_workers_than_gpus_is_bad_input(
    hpsearch: Callable[..., subprocess.Popen[str]], study_file: Path
) -> None:
    process = hpsearch("run", study_file, "--workers", "2")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "error: 2 workers were requested, but 1 GPU is available for --device auto, one for each worker\n" in errors
    assert "hint: --workers 1, or --share-gpu" in errors
