"""GPUs of programs: a worker locks as many as one trial needs, or none of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import pytest

from hpsearch.device.devices import Gpu
from hpsearch.errors import DeviceError
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database
from hpsearch.worker.programs.gpus import PinnedGpus, pin_gpus


def gpus(number: int) -> list[Gpu]:
    return [Gpu(index=i, uuid=f"GPU-{i:08d}-0000-0000-0000-000000000000", name="NVIDIA Fake") for i in range(number)]


def pinned(
    database: Database, seen: Sequence[Gpu], number: int, *, waits: bool = False, is_finished: bool = False
) -> AbstractContextManager[PinnedGpus | None]:
    return pin_gpus(
        database, seen, number, worker="node7:1", waits=waits, stop=StopSignal(), is_finished=lambda: is_finished
    )


def uuids(found: PinnedGpus | None) -> list[str]:
    assert found is not None
    return found.uuids


def test_two_workers_never_have_the_same_gpu(database: Database) -> None:
    with pinned(database, gpus(4), 2) as one, pinned(database, gpus(4), 2) as other:
        assert sorted(uuids(one) + uuids(other)) == [gpu.uuid for gpu in gpus(4)]


def test_a_worker_that_does_not_get_all_keeps_none(database: Database) -> None:
    with pinned(database, gpus(3), 2):
        with pytest.raises(DeviceError, match="2 of the 3 GPUs are not free"), pinned(database, gpus(3), 2):
            pytest.fail("it has a GPU of another worker")
        with pinned(database, gpus(3), 1) as one:  # the third one is free for a trial that needs no more
            assert uuids(one) == [gpus(3)[2].uuid]


def test_gpus_are_free_again_when_their_worker_leaves(database: Database) -> None:
    for _ in range(3):
        with pinned(database, gpus(2), 2) as found:
            assert uuids(found) == [gpu.uuid for gpu in gpus(2)]


def test_a_worker_that_waits_leaves_when_the_study_is_finished(database: Database) -> None:
    with pinned(database, gpus(2), 2), pinned(database, gpus(2), 2, waits=True, is_finished=True) as found:
        assert found is None


@pytest.mark.parametrize(
    ("seen", "number", "message"),
    [
        (gpus(1), 2, "a trial needs 2 GPUs, and this worker sees 1"),
        ([Gpu(index=0, uuid=None, name="Old")], 1, r"cuda:0 \(Old\) has no UUID"),
    ],
)
def test_gpus_that_cannot_be_had_are_refused(
    database: Database, seen: Sequence[Gpu], number: int, message: str
) -> None:
    with ExitStack() as stack, pytest.raises(DeviceError, match=message):
        stack.enter_context(pinned(database, seen, number, waits=True))
