"""What only a GPU can show of checkpoints: copies taken behind training that goes on, beside captured graphs."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.epoch_report import EpochReport
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.checkpoint import PendingCheckpoint, TrialCheckpoint
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
CPU = torch.device("cpu")
NEVER = 10**9


def cohort_of(device: torch.device, widths: list[int], checkpoints: dict[int, TrialCheckpoint] | None = None) -> Cohort:
    """Lanes in float64, so that CPU and GPU agree."""
    cohort = Cohort(CohortShape.of(trial(0, widths)), resident(device), device, NEVER, dtype=torch.float64)
    for lane in range(len(widths)):
        cohort.admit(lane, trial(lane, widths), (checkpoints or {}).get(lane))
    return cohort


def resident(device: torch.device) -> ResidentData:
    generator = np.random.default_rng(0)

    def split(num_images: int) -> Split:
        labels = generator.integers(0, 10, num_images)
        noise = generator.random((num_images, 784), dtype=np.float32)
        return Split(images=0.5 * noise + 0.05 * labels[:, None].astype(np.float32), labels=labels)

    data = SelectionData(
        name="random", train=split(2000), validation=split(500), example_shape=(28, 28), num_classes=10, checksums={}
    )
    return ResidentData.place(data, device)


def trial(lane: int, widths: list[int]) -> TrialSettings:
    return TrialSettings(
        model=ModelSettings(hidden_units=widths[lane]),
        training=TrainingSettings(batch_size=20, learning_rate=0.002, optimizer="adam", seed=lane),
    )


def numbers(epochs: list[dict[object, EpochReport]]) -> list[dict[object, EpochReport]]:
    return [{key: replace(report, seconds=0.0) for key, report in epoch.items()} for epoch in epochs]


def bits(checkpoints: dict[object, TrialCheckpoint]) -> dict[object, dict[str, bytes]]:
    return {key: {n: array.tobytes() for n, array in one.arrays.items()} for key, one in checkpoints.items()}


def test_a_checkpoint_is_fetched_while_graphs_are_captured_and_replayed() -> None:
    """It holds what stood there when it was taken, and the training beside it is that of a calm run, bit for bit."""
    device = torch.device("cuda")
    widths = [500, 300, 500, 200]
    calm, busy = cohort_of(device, widths), cohort_of(device, widths)
    expected: list[dict[object, TrialCheckpoint]] = []
    calm_epochs, busy_epochs = [], []
    for _ in range(5):
        expected.append(dict(calm.checkpoint(calm.keys).fetch()))
        torch.cuda.synchronize()
        calm_epochs.append(calm.train_epoch())

    fetched: dict[int, dict[object, TrialCheckpoint]] = {}

    def fetch(epoch: int, pending: PendingCheckpoint) -> None:
        fetched[epoch] = dict(pending.fetch())

    threads = []
    for epoch in range(5):
        threads.append(threading.Thread(target=fetch, args=(epoch, busy.checkpoint(busy.keys))))
        threads[-1].start()
        busy_epochs.append(busy.train_epoch())  # the first epochs capture
    for thread in threads:
        thread.join()

    assert numbers(busy_epochs) == numbers(calm_epochs)
    assert [bits(fetched[epoch]) for epoch in range(5)] == [bits(one) for one in expected]


def test_a_trial_goes_on_from_one_device_to_the_other() -> None:
    widths = [500, 300]
    whole = cohort_of(CPU, widths)
    epochs = [whole.train_epoch() for _ in range(4)]
    device = torch.device("cuda")
    first = cohort_of(device, widths)
    first.train_epoch()
    second = cohort_of(CPU, widths, {int(str(k)): one for k, one in first.checkpoint(first.keys).fetch().items()})
    second.train_epoch()
    third = cohort_of(device, widths, {int(str(k)): one for k, one in second.checkpoint(second.keys).fetch().items()})

    for expected in epochs[2:]:
        for key, report in third.train_epoch().items():
            assert report.epoch == expected[key].epoch
            assert report.validations[-1].nll == pytest.approx(expected[key].validations[-1].nll, rel=1e-6)
