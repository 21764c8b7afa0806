"""Each tensor goes to the device once; chunked data give the same minibatches as whole data, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.data.resident import ResidentData, copy_to_device
from hpsearch.data.splits import SelectionData, Split
from hpsearch.errors import InputError
from hpsearch.training.minibatches import minibatch_order

CPU = torch.device("cpu")
NUM_PIXELS = 6
IMAGE_BYTES = 4 * NUM_PIXELS + 8  # float32 pixels and an int64 label


def make_split(num_images: int, seed: int) -> Split:
    generator = np.random.default_rng(seed)
    return Split(
        images=generator.random((num_images, NUM_PIXELS), dtype=np.float32),
        labels=generator.integers(0, 10, num_images),
    )


def make_data(num_train: int, num_validation: int = 3) -> SelectionData:
    return SelectionData(
        name="synthetic",
        train=make_split(num_train, 1),
        validation=make_split(num_validation, 2),
        example_shape=(2, 3),
        num_classes=10,
        checksums={},
    )


class CountingTransfer:
    def __init__(self) -> None:
        self.num_bytes: list[int] = []

    def __call__(self, host: torch.Tensor, device: torch.device) -> torch.Tensor:
        self.num_bytes.append(host.nbytes)
        return copy_to_device(host, device)


def minibatches(
    data: ResidentData, batch_size: int, order: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every minibatch of an epoch, copied because the next chunk may overwrite it."""
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    for images, labels in data.chunks(batch_size, order):
        assert len(images) == len(labels)
        assert len(images) % batch_size == 0
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            batches.append((images[start:stop].clone(), labels[start:stop].clone()))
    return batches


def test_each_tensor_is_transferred_once_whatever_is_trained() -> None:
    transfer = CountingTransfer()
    data = ResidentData.place(make_data(12), CPU, transfer=transfer)
    for epoch in range(3):
        minibatches(data, 4, minibatch_order(0, epoch, 12))
        minibatches(data, 4, None)
    assert transfer.num_bytes == [12 * NUM_PIXELS * 4, 12 * 8, 3 * NUM_PIXELS * 4, 3 * 8]


def test_chunked_training_data_are_never_transferred_whole() -> None:
    transfer = CountingTransfer()
    data = ResidentData.place(make_data(12), CPU, max_resident_bytes=5 * IMAGE_BYTES, transfer=transfer)
    minibatches(data, 4, None)
    assert data.is_chunked
    assert transfer.num_bytes == [3 * NUM_PIXELS * 4, 3 * 8]  # the validation tensors


def test_validation_tensors_and_shapes_are_the_data_sets() -> None:
    source = make_data(12)
    data = ResidentData.place(source, CPU)
    np.testing.assert_array_equal(data.validation_images.numpy(), source.validation.images)
    np.testing.assert_array_equal(data.validation_labels.numpy(), source.validation.labels)
    assert (data.validation_images.dtype, data.validation_labels.dtype) == (torch.float32, torch.int64)
    assert (data.num_train, data.example_shape, data.num_outputs) == (12, (2, 3), 10)


def test_whole_data_are_one_chunk_in_file_order_without_the_remainder() -> None:
    source = make_data(11)
    data = ResidentData.place(source, CPU)
    ((images, labels),) = data.chunks(4)
    np.testing.assert_array_equal(images.numpy(), source.train.images[:8])
    np.testing.assert_array_equal(labels.numpy(), source.train.labels[:8])
    assert data.num_minibatches(4) == 2


def test_an_order_is_followed() -> None:
    source = make_data(6)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    ((images, labels),) = ResidentData.place(source, CPU).chunks(4, order)
    np.testing.assert_array_equal(images.numpy(), source.train.images[[5, 0, 3, 1]])
    np.testing.assert_array_equal(labels.numpy(), source.train.labels[[5, 0, 3, 1]])


@st.composite
def layouts(draw: st.DrawFn) -> tuple[int, int, int]:
    """(training images, batch size, images that fit the bound): at least a minibatch fits, and not all do."""
    num_train = draw(st.integers(2, 40))
    batch_size = draw(st.integers(1, num_train - 1))
    return num_train, batch_size, draw(st.integers(batch_size, num_train - 1))


@given(layout=layouts(), is_shuffled=st.booleans(), seed=st.integers(0, 2**63 - 1), spare=st.integers(0, 31))
def test_chunked_data_give_the_same_minibatches_bit_for_bit(
    layout: tuple[int, int, int], is_shuffled: bool, seed: int, spare: int
) -> None:
    num_train, batch_size, num_fitting = layout
    source = make_data(num_train)
    whole = ResidentData.place(source, CPU)
    chunked = ResidentData.place(source, CPU, max_resident_bytes=num_fitting * IMAGE_BYTES + spare)
    assert (whole.is_chunked, chunked.is_chunked) == (False, True)
    assert chunked.num_minibatches(batch_size) == whole.num_minibatches(batch_size)
    for epoch in (1, 2):  # the second finds used buffers
        order = minibatch_order(seed, epoch, num_train) if is_shuffled else None
        expected = minibatches(whole, batch_size, order)
        found = minibatches(chunked, batch_size, order)
        assert len(found) == len(expected) == num_train // batch_size
        for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
            assert torch.equal(images, expected_images)
            assert torch.equal(labels, expected_labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_chunks_on_a_gpu_are_not_overwritten_while_they_are_copied(is_shuffled: bool) -> None:
    """Chunks large enough that a copy is still under way when the host would fill the next one."""
    num_train = 20_000
    source = make_data(num_train)
    whole = ResidentData.place(source, CPU)
    device = torch.device("cuda")
    chunked = ResidentData.place(source, device, max_resident_bytes=3_000 * IMAGE_BYTES)
    order = minibatch_order(0, 1, num_train) if is_shuffled else None
    expected, found = minibatches(whole, 100, order), minibatches(chunked, 100, order)
    assert len(found) == len(expected) == 200
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), expected_images)
        assert torch.equal(labels.cpu(), expected_labels)


@given(layout=layouts())
def test_chunks_are_as_large_as_the_bound_allows_and_share_their_memory(layout: tuple[int, int, int]) -> None:
    num_train, batch_size, num_fitting = layout
    data = ResidentData.place(make_data(num_train), CPU, max_resident_bytes=num_fitting * IMAGE_BYTES)
    largest = num_fitting // batch_size * batch_size
    sizes, addresses = [], set()
    for images, labels in data.chunks(batch_size):
        assert images.nbytes + labels.nbytes <= num_fitting * IMAGE_BYTES
        sizes.append(len(images))
        addresses.add((images.data_ptr(), labels.data_ptr()))
    assert all(size == largest for size in sizes[:-1])
    assert sum(sizes) == num_train // batch_size * batch_size
    assert len(addresses) == 1


def test_shuffled_epochs_of_whole_data_share_their_memory() -> None:
    data = ResidentData.place(make_data(12), CPU)
    addresses = {images.data_ptr() for epoch in range(3) for images, _ in data.chunks(4, minibatch_order(0, epoch, 12))}
    assert len(addresses) == 1


@pytest.mark.parametrize(("spare", "is_chunked"), [(0, False), (-1, True)])
def test_data_that_just_fit_the_bound_are_whole(spare: int, is_chunked: bool) -> None:
    data = ResidentData.place(make_data(12), CPU, max_resident_bytes=12 * IMAGE_BYTES + spare)
    assert data.is_chunked is is_chunked


@pytest.mark.parametrize("num_fitting", [0, 3])
def test_a_bound_below_one_minibatch_is_refused_with_the_numbers(num_fitting: int) -> None:
    bound = num_fitting * IMAGE_BYTES + 5
    data = ResidentData.place(make_data(12), CPU, max_resident_bytes=bound)
    for ask in (data.num_minibatches, data.chunks):
        with pytest.raises(InputError) as caught:
            ask(4)
        assert str(caught.value) == (
            f"data.max_resident_bytes = {bound} holds {num_fitting} training images of {IMAGE_BYTES} bytes, "
            "but a minibatch has 4"
        )
        assert caught.value.hint == f"set data.max_resident_bytes to at least {4 * IMAGE_BYTES}"


@pytest.mark.parametrize("batch_size", [0, -1, 13])
def test_a_batch_size_out_of_range_names_the_range(batch_size: int) -> None:
    data = ResidentData.place(make_data(12), CPU)
    for ask in (data.num_minibatches, data.chunks):
        with pytest.raises(
            InputError,
            match=rf"training\.batch_size must be in 1\.\.12 \(the training images\), got {batch_size}",
        ):
            ask(batch_size)


@pytest.mark.parametrize("order", [torch.arange(11), torch.arange(12.0), torch.zeros(12, 1, dtype=torch.int64)])
def test_an_order_of_another_form_is_refused(order: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"order must be \[12\] int64"):
        ResidentData.place(make_data(12), CPU).chunks(4, order)


def test_read_only_and_strided_arrays_are_placed() -> None:
    """torch warns of read-only arrays, and a warning fails this test."""
    source = make_data(12)
    images = np.asfortranarray(source.train.images)
    images.flags.writeable = False
    data = SelectionData(
        name="synthetic",
        train=Split(images=images, labels=source.train.labels),
        validation=source.validation,
        example_shape=(2, 3),
        num_classes=10,
        checksums={},
    )
    ((placed, _),) = ResidentData.place(data, CPU).chunks(12)
    np.testing.assert_array_equal(placed.numpy(), source.train.images)


@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(1, 10_000), num_images=st.integers(1, 200))
def test_an_order_is_a_permutation_and_depends_on_its_arguments_only(seed: int, epoch: int, num_images: int) -> None:
    state = torch.random.get_rng_state()
    order = minibatch_order(seed, epoch, num_images)
    torch.manual_seed(epoch)
    assert torch.equal(minibatch_order(seed, epoch, num_images), order)
    torch.random.set_rng_state(state)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(num_images))


def test_orders_differ_between_epochs_and_between_seeds_also_in_their_high_bits() -> None:
    keys = [(seed, epoch) for seed in (0, 1, 2**32, 2**62) for epoch in range(1, 26)]
    orders = {tuple(minibatch_order(seed, epoch, 50).tolist()) for seed, epoch in keys}
    assert len(orders) == len(keys)


def test_drawing_an_order_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    minibatch_order(1, 1, 100)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("max_resident_bytes", [None, 8 * IMAGE_BYTES])
@pytest.mark.parametrize("num_train", [4, 12, 40])
def test_the_head_has_the_first_minibatches_only(max_resident_bytes: int | None, num_train: int) -> None:
    source = make_data(40)
    whole = ResidentData.place(source, CPU, max_resident_bytes=max_resident_bytes)
    head = whole.head(num_train=num_train, num_validation=2)
    assert head.num_train == num_train
    assert torch.equal(head.validation_images, whole.validation_images[:2])
    assert torch.equal(head.validation_labels, whole.validation_labels[:2])
    found, expected = minibatches(head, 4, None), minibatches(whole, 4, None)[: num_train // 4]
    assert len(found) == len(expected)
    for (images, labels), (expected_images, expected_labels) in zip(found, expected, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)
    assert len(minibatches(whole, 4, None)) == 10  # the whole is as it was


def test_a_head_of_whole_data_takes_no_memory() -> None:
    whole = ResidentData.place(make_data(12), CPU)
    ((images, _),) = whole.chunks(12)
    ((first_images, _),) = whole.head(num_train=4, num_validation=1).chunks(4)
    assert first_images.data_ptr() == images.data_ptr()
