"""An epoch's minibatches, for one trial or for lanes, and after which of them to validate.

Both training loops (`reference`, `lanes`) take their minibatches from here, so that they see the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData


def is_validation_due(minibatch: int, *, num_minibatches: int, validations_every: int) -> bool:
    """Whether to validate after this minibatch of the epoch (1-based): every so many, and at the epoch's end.

    DLT counts minibatches from the trial's first; counting from the epoch's first is the same whenever the
    epoch is a multiple, and lets lanes in different epochs validate together.
    """
    return minibatch % validations_every == 0 or minibatch == num_minibatches


def minibatches(
    data: ResidentData, batch_size: int, *, dtype: torch.dtype, order: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's minibatches: images [B, pixels] and labels [B], each valid until the next is asked for.

    Args:
        order: [num_train] int64 on the host (`resident.minibatch_order`); None is the file's order.
    Source: DLT, "MNIST Dataset": x[i*B:(i+1)*B].
    """
    for images, labels in data.chunks(batch_size, order):
        yield from _slices(images.to(dtype), labels, batch_size, dim=0)


def lane_minibatches(
    data: ResidentData, batch_size: int, *, dtype: torch.dtype, orders: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's minibatches of lanes that each have their own order: images [L, B, pixels], labels [L, B].

    Args:
        orders: one [num_train] int64 on the host per lane.
    """
    if data.is_chunked:
        for images, labels in _lane_chunks(data, batch_size, orders):
            yield from _slices(images.to(dtype), labels, batch_size, dim=1)
        return
    # Minibatches of one image leave no remainder out: this chunk is the whole training set, not a copy of it.
    ((images, labels),) = data.chunks(1)
    indices = torch.stack(list(orders)).to(images.device)  # [L, num_train], the epoch's only transfer
    for start in range(0, data.num_minibatches(batch_size) * batch_size, batch_size):
        chosen = indices[:, start : start + batch_size]
        flat = chosen.reshape(-1)  # index_select copies whole rows, which images[chosen] does not
        yield images.index_select(0, flat).reshape(*chosen.shape, -1).to(dtype), labels[chosen]


def _slices(images: Tensor, labels: Tensor, batch_size: int, *, dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, labels.shape[dim], batch_size):
        yield images.narrow(dim, start, batch_size), labels.narrow(dim, start, batch_size)


def _lane_chunks(data: ResidentData, batch_size: int, orders: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The lanes' chunks side by side: images [L, K*B, pixels], labels [L, K*B].

    All visits share the same device buffers: each lane's chunk is copied before the next lane's comes. The
    copies stay beside their stack, so that this takes 2 L chunks of memory besides those buffers.
    """
    visits = [data.chunks(batch_size, order) for order in orders]
    for first_images, first_labels in visits[0]:
        images, labels = [first_images.clone()], [first_labels.clone()]
        for visit in visits[1:]:
            lane_images, lane_labels = next(visit)
            images.append(lane_images.clone())
            labels.append(lane_labels.clone())
        yield torch.stack(images), torch.stack(labels)
