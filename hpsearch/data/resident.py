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

from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError

Transfer = Callable[[Tensor, torch.device], Tensor]


def copy_to_device(host: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device. On the CPU the result shares the memory; nothing is copied."""
    return host.to(device)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResidentData:
    """The training and validation tensors of one data set on one device; created by `place`.

    Args:
        train: read with `chunks`.
        validation_images: [V, pixels] float32 in [0, 1], on the device.
        validation_labels: [V] int64, on the device.
        image_shape: height and width in pixels.
    """

    train: _WholeTraining | _ChunkedTraining
    validation_images: Tensor
    validation_labels: Tensor
    image_shape: tuple[int, int]
    num_classes: int

    @classmethod
    def place(
        cls,
        data: SelectionData,
        device: torch.device,
        *,
        max_resident_bytes: int | None = None,
        transfer: Transfer = copy_to_device,
    ) -> ResidentData:
        """Put a data set on a device: four transfers (two if the training part is copied in chunks).

        Args:
            max_resident_bytes: bound on the training images and labels on the device; larger ones are copied in
                chunks. It does not include the validation tensors, which are always resident, and the gathered copy
                that a shuffled epoch of resident training data needs.
            transfer: copies one host tensor to the device; tests count its calls.
        """
        images, labels = _as_tensor(data.train.images, np.float32), _as_tensor(data.train.labels, np.int64)
        train: _WholeTraining | _ChunkedTraining
        if max_resident_bytes is None or images.nbytes + labels.nbytes <= max_resident_bytes:
            train = _WholeTraining(transfer(images, device), transfer(labels, device))
        else:
            train = _ChunkedTraining(images, labels, device, max_resident_bytes)
        return cls(
            train=train,
            validation_images=transfer(_as_tensor(data.validation.images, np.float32), device),
            validation_labels=transfer(_as_tensor(data.validation.labels, np.int64), device),
            image_shape=data.image_shape,
            num_classes=data.num_classes,
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
        )

    @property
    def num_train(self) -> int:
        return self.train.num_images

    @property
    def is_chunked(self) -> bool:
        return isinstance(self.train, _ChunkedTraining)

    def num_minibatches(self, batch_size: int) -> int:
        """The number of minibatches in an epoch. Images that do not fill a last minibatch are left out.

        Raises:
            InputError: the batch size is below 1 or above the number of training images, or one minibatch is
                larger than `max_resident_bytes`.
        """
        if not 1 <= batch_size <= self.num_train:
            raise InputError(
                f"training.batch_size must be in 1..{self.num_train} (the training images), got {batch_size}"
            )
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
            An iterator over images [K * batch_size, pixels] and labels [K * batch_size]; K may be smaller in the last
            chunk.
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
        self._image_bytes = (images.nbytes + labels.nbytes) // len(labels)  # size of one image and its label
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

    def check_fit(self, batch_size: int) -> None:
        if batch_size > self._capacity:
            raise InputError(
                f"data.max_resident_bytes = {self._max_resident_bytes} holds {self._capacity} training "
                f"images of {self._image_bytes} bytes, but a minibatch has {batch_size}",
                hint=f"set data.max_resident_bytes to at least {batch_size * self._image_bytes}",
            )

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


def _as_tensor(array: NDArray[np.generic], dtype: type[np.generic]) -> Tensor:
    # torch needs writable, contiguous memory; numpy copies the array only if it is not.
    return torch.from_numpy(np.require(array, dtype=dtype, requirements=["C", "W"]))
