"""Device-resident data: training and validation tensors, one transfer each; a minibatch is a slice by index.

Training data that exceeds a bound stays on the host and is copied to the device in chunks of whole minibatches,
through buffers that are allocated once. The minibatches are the same, bit for bit.
Source: docs/sources.md, section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.data.example_shape import ExampleShape
from hpsearch.data.minibatch_fit import bytes_per_image, check_batch_size, check_resident_bytes
from hpsearch.data.splits import LARGEST_LEVEL, SelectionData, Split

# Levels of 8 bits take a quarter of the memory, but scaling them again in each epoch costs a logistic regression 30 to
# 70 % of its time (an MLP nothing that can be measured): benchmarks/results/own_images.json. MNIST's floats fit.
MOST_FLOAT_BYTES = 2**28
Transfer = Callable[[Tensor, torch.device], Tensor]


def copy_to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device. On the CPU the result shares the memory; nothing is copied."""
    return host.to(device)


def as_inputs(images: Tensor, dtype: torch.dtype) -> Tensor:
    """Images as a network takes them: levels are scaled to [0, 1], exactly as `Split.floats` scales them.

    Args:
        images: of any shape, floating or uint8.
        dtype: of the result.
    """
    if images.dtype != torch.uint8:
        return images.to(dtype)
    # The divisor is a tensor on the device: by a number of the host, CUDA multiplies with a rounded 1/255 instead.
    largest = torch.full((), LARGEST_LEVEL, dtype=torch.float32, device=images.device)
    return (images / largest).to(dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentData:
    """The training and validation tensors of one data set on one device; created by `place`.

    Args:
        train: read with `chunks`.
        validation_images: [V, inputs] on the device, float32 or uint8 (`as_inputs`).
        validation_labels: [V] int64, or float32 in regression; on the device.
        num_classes: 0 in regression.
        target_deviation: of the target in its own unit, in regression.
        class_counts: training examples of each class; empty in regression.
        validation_groups: [V] int64 on the device (`Split.groups`); None: all validation examples are independent.
    """

    train: _WholeTraining | _ChunkedTraining
    validation_images: Tensor
    validation_labels: Tensor
    example_shape: ExampleShape
    num_classes: int
    target_deviation: float = 1.0
    class_counts: tuple[int, ...] = ()
    validation_groups: Tensor | None = None

    @classmethod
    def place(
        cls,
        data: SelectionData,
        device: torch.device,
        *,
        max_resident_bytes: int | None = None,
        keeps_levels: bool | None = None,
        transfer: Transfer = copy_to_device,
    ) -> ResidentData:
        """Put a data set on a device: four transfers (two if the training part is copied in chunks).

        Args:
            max_resident_bytes: bound on the training images and labels on the device; larger ones are copied in
                chunks. It does not include the validation tensors, which are always resident, and the gathered copy
                that a shuffled epoch of resident training data needs.
            keeps_levels: whether uint8 images stay what they are on the device (`as_inputs`); None: if as floats they
                would exceed MOST_FLOAT_BYTES or `max_resident_bytes`. The results are the same, bit for bit.
            transfer: copies one host tensor to the device; tests count its calls.
        """
        if keeps_levels is None:
            limit = min(MOST_FLOAT_BYTES, max_resident_bytes or MOST_FLOAT_BYTES)
            keeps_levels = data.train.images.size * torch.float32.itemsize + data.train.labels.nbytes > limit
        groups = data.validation.groups
        images, labels = _stored(data.train, keeps_levels=keeps_levels), _as_labels(data.train.labels)
        train: _WholeTraining | _ChunkedTraining
        if max_resident_bytes is None or images.nbytes + labels.nbytes <= max_resident_bytes:
            train = _WholeTraining(transfer(images, device), transfer(labels, device))
        else:
            train = _ChunkedTraining(images, labels, device, max_resident_bytes)
        return cls(
            train=train,
            validation_images=transfer(_stored(data.validation, keeps_levels=keeps_levels), device),
            validation_labels=transfer(_as_labels(data.validation.labels), device),
            example_shape=data.example_shape,
            num_classes=data.num_classes,
            target_deviation=data.target_deviation,
            class_counts=data.train.class_counts(data.num_classes),
            validation_groups=None if groups is None else torch.from_numpy(np.array(groups)).to(device),
        )

    def head(self, *, num_train: int, num_validation: int) -> ResidentData:
        """The data set limited to the first images of each part, for measurements.

        Resident training data are shared; chunks get their own buffers.
        """
        return replace(
            self,
            train=self.train.head(num_train),
            validation_images=self.validation_images[:num_validation],
            validation_labels=self.validation_labels[:num_validation],
            validation_groups=None if self.validation_groups is None else self.validation_groups[:num_validation],
        )

    @property
    def num_outputs(self) -> int:
        """The number of a network's outputs: one per class, a single one in regression."""
        return self.num_classes or 1

    @property
    def num_train(self) -> int:
        return self.train.num_images

    @property
    def is_chunked(self) -> bool:
        return isinstance(self.train, _ChunkedTraining)

    def train_images(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Copies of some training images, [N, inputs] float32, and their labels [N], on the device."""
        images, labels = self.train.rows(torch.from_numpy(rows))
        return as_inputs(images, torch.float32), labels

    def num_minibatches(self, batch_size: int) -> int:
        """The number of minibatches in an epoch. Images that do not fill a last minibatch are left out.

        Raises:
            InputError: the batch size is below 1 or above the number of training images, or one minibatch is
                larger than `max_resident_bytes`.
        """
        check_batch_size(batch_size, self.num_train)
        self.train.check_fit(batch_size)
        return self.num_train // batch_size

    def chunks(self, batch_size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The training data of one epoch on the device, as consecutive chunks of whole minibatches.

        Resident training data give one chunk. The next chunk, and the next epoch, may overwrite the memory of the
        previous chunk.

        Args:
            order: [num_train] int64 on the host, a permutation of the images (`minibatch_order`); None: file
                order.
        Returns:
            An iterator over images [K * batch_size, inputs], float32 or uint8 (`as_inputs`), and labels
            [K * batch_size]; K may be smaller in the last chunk.
        Raises:
            InputError: as `num_minibatches`, when it is called.
            ValueError: `order` has a wrong shape or type.
        """
        num_images = self.num_minibatches(batch_size) * batch_size
        if order is not None and (order.shape != (self.num_train,) or order.dtype != torch.int64):
            raise ValueError(f"order must be [{self.num_train}] int64, got {list(order.shape)} {order.dtype}")
        return self.train.chunks(batch_size, None if order is None else order[:num_images])


class _WholeTraining:
    """All training images and labels, on the device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._images = images
        self._labels = labels
        self._gathered: tuple[Tensor, Tensor] | None = None

    @property
    def num_images(self) -> int:
        return len(self._labels)

    def head(self, num_images: int) -> _WholeTraining:
        return _WholeTraining(self._images[:num_images], self._labels[:num_images])

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        index = rows.to(self._images.device)
        return self._images[index], self._labels[index]

    def check_fit(self, batch_size: int) -> None:
        """Nothing to check: all data are on the device."""

    def chunks(self, batch_size: int, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        num_images = self.num_images // batch_size * batch_size
        if order is None:
            yield self._images[:num_images], self._labels[:num_images]
            return
        if self._gathered is None:  # allocated once: captured graphs need constant addresses
            self._gathered = torch.empty_like(self._images), torch.empty_like(self._labels)
        images, labels = (buffer[:num_images] for buffer in self._gathered)
        index = order.to(self._images.device)  # the only transfer: one index per image
        torch.index_select(self._images, 0, index, out=images)
        torch.index_select(self._labels, 0, index, out=labels)
        yield images, labels


class _ChunkedTraining:
    """All training images and labels on the host, and device buffers of the size that the bound allows."""

    def __init__(self, images: Tensor, labels: Tensor, device: torch.device, max_resident_bytes: int) -> None:
        self._host = images, labels
        self._max_resident_bytes = max_resident_bytes
        self._image_bytes = bytes_per_image(images.shape[1], images.element_size())
        self._capacity = max_resident_bytes // self._image_bytes
        self._buffers = tuple(torch.empty_like(part[: self._capacity], device=device) for part in self._host)
        # CUDA copies asynchronously from pinned memory only. On the CPU chunks are gathered directly into the buffers.
        self._stage = _PinnedStage(self._buffers) if device.type == "cuda" else None

    @property
    def num_images(self) -> int:
        return len(self._host[1])

    def head(self, num_images: int) -> _ChunkedTraining:
        images, labels = (part[:num_images] for part in self._host)
        return _ChunkedTraining(images, labels, self._buffers[0].device, self._max_resident_bytes)

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = (part[rows].to(self._buffers[0].device) for part in self._host)
        return images, labels

    def check_fit(self, batch_size: int) -> None:
        check_resident_bytes(batch_size, self._image_bytes, self._max_resident_bytes)

    def chunks(self, batch_size: int, order: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        num_images = self.num_images // batch_size * batch_size
        chunk_size = self._capacity // batch_size * batch_size
        for start in range(0, num_images, chunk_size):
            stop = min(start + chunk_size, num_images)
            chosen = slice(start, stop) if order is None else order[start:stop]
            yield self._fill(chosen, stop - start)

    def _fill(self, chosen: slice | Tensor, size: int) -> tuple[Tensor, Tensor]:
        images, labels = (buffer[:size] for buffer in self._buffers)
        if self._stage is None:
            _gather(self._host, chosen, (images, labels))
        else:
            self._stage.copy(self._host, chosen, (images, labels))
        return images, labels


class _PinnedStage:
    """Pinned host memory for one chunk, through which chunks are copied to a CUDA device.

    The host gathers the next chunk here while the device still trains on the last one. The copy itself waits for that
    training, because both are on the current stream.
    """

    def __init__(self, buffers: tuple[Tensor, ...]) -> None:
        self._staged = tuple(torch.empty_like(buffer, device="cpu", pin_memory=True) for buffer in buffers)
        self._is_free = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def copy(self, host: tuple[Tensor, Tensor], chosen: slice | Tensor, targets: tuple[Tensor, Tensor]) -> None:
        self._is_free.synchronize()  # host sync: the last copy from this memory must be complete
        staged = tuple(part[: len(target)] for part, target in zip(self._staged, targets, strict=True))
        _gather(host, chosen, staged)
        for target, source in zip(targets, staged, strict=True):
            target.copy_(source, non_blocking=True)
        self._is_free.record(torch.cuda.current_stream(targets[0].device))


def _gather(host: tuple[Tensor, Tensor], chosen: slice | Tensor, targets: tuple[Tensor, ...]) -> None:
    for source, target in zip(host, targets, strict=True):
        if isinstance(chosen, slice):
            target.copy_(source[chosen])
        else:
            torch.index_select(source, 0, chosen, out=target)


def _stored(part: Split, *, keeps_levels: bool) -> Tensor:
    """Images on the host, in the type in which the device keeps them."""
    if keeps_levels and part.images.dtype == np.uint8:
        return _as_tensor(part.images, np.uint8)
    return _as_tensor(part.floats(), np.float32)


def _as_labels(labels: NDArray[np.generic]) -> Tensor:
    return _as_tensor(labels, np.float32 if labels.dtype.kind == "f" else np.int64)


def _as_tensor(array: NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
    # torch needs writable, contiguous memory; numpy copies the array only if it is not.
    return torch.from_numpy(np.require(array, dtype=dtype, requirements=["C", "W"]))
