"""A worker that makes progress is not disturbed, however slow; one that hangs is noticed, busy processor or not."""

from __future__ import annotations

import torch

from hpsearch.training.pulse import Pulse
from hpsearch.worker.health.watchdog import Watchdog


def test_a_worker_without_progress_has_stalled_after_its_limit() -> None:
    watchdog = Watchdog(30.0)
    assert [watchdog.turn(10.0) for _ in range(4)] == [False, False, False, True]
    assert watchdog.quiet_seconds == 40.0


def test_progress_begins_the_limit_anew() -> None:
    watchdog = Watchdog(30.0)
    for _ in range(10):
        assert not watchdog.turn(25.0)
        watchdog.note_progress()


def test_an_epoch_may_take_for_ever_as_long_as_its_minibatches_end() -> None:
    pulse, signs = Pulse(torch.device("cpu")), []
    watchdog = Watchdog(30.0, pulse=pulse.count, on_progress=lambda: signs.append("on"))
    for _ in range(100):
        pulse.beat()
        assert not watchdog.turn(25.0)
    assert len(signs) == 100
    assert [watchdog.turn(25.0) for _ in range(2)] == [False, True]


def test_processor_time_is_no_progress() -> None:
    watchdog = Watchdog(0.0, pulse=Pulse(torch.device("cpu")).count)
    assert sum(n * n for n in range(100_000))
    assert watchdog.turn(0.1)


class Mark:
    """An event in a GPU's queue."""

    is_passed = False

    def query(self) -> bool:
        return self.is_passed


def test_on_a_gpu_what_has_been_queued_counts_when_it_is_done() -> None:
    pulse, marks = Pulse(torch.device("cuda", 0)), [Mark() for _ in range(3)]
    pulse._marks.extend(marks)
    assert pulse.count() == 0
    marks[0].is_passed = True
    assert (pulse.count(), pulse.count()) == (1, 1)
    for mark in marks:
        mark.is_passed = True
    assert pulse.count() == 3


def test_a_device_that_cannot_be_asked_makes_no_progress_and_ends_no_thread() -> None:
    answers = iter([0, 1])

    def pulse() -> int:
        if (answer := next(answers, None)) is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return answer

    watchdog = Watchdog(30.0, pulse=pulse)
    assert [watchdog.turn(25.0) for _ in range(3)] == [False, False, True]
