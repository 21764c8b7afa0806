"""Minibatches of one trial and of lanes: which images, in which order, whatever the residence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import minibatches
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.training.minibatches import is_validation_due, lane_stretches, minibatch_order

Build = Callable[..., ResidentData]
BATCH = 20
CHUNK_BYTES = 45 * (256 * 4 + 8)  # room for two minibatches of 20 images of 16x16


def collected(batches: object) -> list[tuple[Tensor, Tensor]]:
    """Copies, since a minibatch is valid only until the next one."""
    return [(images.clone(), labels.clone()) for images, labels in batches]


@pytest.mark.parametrize(
    ("num_minibatches", "every", "due"),
    [(7, 3, [3, 6, 7]), (6, 3, [3, 6]), (4, 100, [4]), (3, 1, [1, 2, 3]), (1, 1, [1])],
)
def test_validations_are_due_every_so_many_minibatches_and_at_the_end(
    num_minibatches: int, every: int, due: list[int]
) -> None:
    minibatches = range(1, num_minibatches + 1)
    sizes = {"num_minibatches": num_minibatches, "validations_every": every}

    assert [m for m in minibatches if is_validation_due(m, **sizes)] == due


@pytest.mark.parametrize("max_resident_bytes", [None, CHUNK_BYTES])
def test_minibatches_are_slices_in_file_order_without_the_remainder(
    resident: Build, selection_data: Callable[..., SelectionData], max_resident_bytes: int | None
) -> None:
    train = selection_data(num_train=130).train
    data = resident(num_train=130, max_resident_bytes=max_resident_bytes)

    batches = collected(minibatches(data, BATCH, dtype=torch.float32))

    assert len(batches) == 6  # 130 = 6 * 20 + 10
    for index, (images, labels) in enumerate(batches):
        chosen = slice(index * BATCH, (index + 1) * BATCH)
        assert torch.equal(images, torch.from_numpy(train.images[chosen]))
        assert torch.equal(labels, torch.from_numpy(train.labels[chosen]))


def minibatches_of(stretches: object) -> list[tuple[Tensor, Tensor]]:
    """Stretches cut into minibatches, as copies."""
    return [
        (images.narrow(-2, start, BATCH).clone(), labels.narrow(-1, start, BATCH).clone())
        for images, labels, _ in stretches
        for start in range(0, labels.shape[-1], BATCH)
    ]


@pytest.mark.parametrize("ends", [[6], [1, 6], [2, 4, 6], [1, 2, 3, 4, 5, 6], [5, 6]])
@pytest.mark.parametrize("max_resident_bytes", [None, CHUNK_BYTES])
def test_stretches_are_the_minibatches_without_a_validation_between_them(
    resident: Build, max_resident_bytes: int | None, ends: list[int]
) -> None:
    data = resident(num_train=130, max_resident_bytes=max_resident_bytes)
    last_ones = [last for *_, last in lane_stretches(data, BATCH, dtype=torch.float32, ends=ends)]

    found = minibatches_of(lane_stretches(data, BATCH, dtype=torch.float32, ends=ends))

    if max_resident_bytes is None:
        assert last_ones == ends  # as long as can be
    assert set(ends) <= set(last_ones)
    expected = collected(minibatches(data, BATCH, dtype=torch.float32))
    assert len(found) == len(expected)
    for pair, other in zip(found, expected, strict=True):
        assert torch.equal(pair[0], other[0])
        assert torch.equal(pair[1], other[1])


@pytest.mark.parametrize("gathered_bytes", [1, 3 * 40 * 1024, 2**26], ids=["one", "two", "all"])
@pytest.mark.parametrize("max_resident_bytes", [None, CHUNK_BYTES])
def test_each_lane_gets_the_minibatches_of_its_own_order(
    resident: Build, max_resident_bytes: int | None, gathered_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.training.minibatches.GATHERED_BYTES", gathered_bytes)
    data = resident(num_train=130, max_resident_bytes=max_resident_bytes)
    orders = [minibatch_order(5, epoch, 130) for epoch in (1, 2, 9)]

    batches = minibatches_of(lane_stretches(data, BATCH, dtype=torch.float64, ends=[4, 6], orders=orders))

    for lane, order in enumerate(orders):
        alone = collected(minibatches(data, BATCH, dtype=torch.float64, order=order))
        assert len(batches) == len(alone) == 6
        for (images, labels), (own_images, own_labels) in zip(batches, alone, strict=True):
            assert images.shape == (3, BATCH, 256)
            assert torch.equal(images[lane], own_images)
            assert torch.equal(labels[lane], own_labels)


def test_shuffled_lanes_may_draw_images_from_the_remainder(resident: Build) -> None:
    """The order decides which images are left out, not their place in the file."""
    data = resident(num_train=21)
    order = torch.arange(21).flip(0)  # begins with the last image, leaves out the first

    ((_, labels, _),) = lane_stretches(data, BATCH, dtype=torch.float32, ends=[1], orders=[order, order])

    ((_, file_labels),) = data.chunks(1)
    assert torch.equal(labels[0], file_labels.flip(0)[:20])


@pytest.mark.parametrize("max_resident_bytes", [None, CHUNK_BYTES])
def test_a_single_order_is_shared_by_all_lanes(resident: Build, max_resident_bytes: int | None) -> None:
    data = resident(num_train=130, max_resident_bytes=max_resident_bytes)
    order = minibatch_order(5, 2, 130)

    found = minibatches_of(lane_stretches(data, BATCH, dtype=torch.float32, ends=[4, 6], orders=[order]))

    expected = collected(minibatches(data, BATCH, dtype=torch.float32, order=order))
    assert len(found) == len(expected)
    for (images, labels), (own_images, own_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, own_images)  # [B, pixels]: one minibatch for all
        assert torch.equal(labels, own_labels)
