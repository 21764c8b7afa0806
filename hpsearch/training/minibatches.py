"""An epoch's minibatches, for one trial or for lanes, and after which of them to validate.

Both training loops (`reference`, `lanes`) take their minibatches from here, so that they see the same ones.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData

# Images gathered at once for lanes that each have an order of their own.
GATHERED_BYTES = 2**26


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
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            yield images[rows].to(dtype), labels[rows]


def lane_stretches(
    data: ResidentData,
    batch_size: int,
    *,
    dtype: torch.dtype,
    ends: Sequence[int],
    orders: Sequence[Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """An epoch as stretches of minibatches without a validation between them.

    Args:
        ends: the minibatches (1-based, ascending) after which a stretch has to end; the last is the epoch's.
        orders: one [num_train] int64 on the host per lane, or a single one for all lanes
            (`resident.minibatch_order`); None: the file's order for all.
    Returns:
        Images [N, pixels] shared by all lanes or, with an order for each, [L, N, pixels]; labels [N] or [L, N];
        both valid until the next ones are asked for. And the number of the last minibatch.
    """
    done = 0
    for images, labels in _pieces(data, batch_size, orders):
        position, length = 0, labels.shape[-1] // batch_size
        while position < length:
            next_end = ends[bisect.bisect_right(ends, done)]
            size = min(length - position, next_end - done)
            rows = position * batch_size, size * batch_size
            done, position = done + size, position + size
            yield images.narrow(-2, *rows).to(dtype), labels.narrow(-1, *rows), done


def _pieces(data: ResidentData, batch_size: int, orders: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole minibatches, as many as the memory allows: images [..., N, pixels], labels [..., N]."""
    if orders is None or len(orders) == 1:
        yield from data.chunks(batch_size, orders[0] if orders else None)
        return
    if data.is_chunked:
        yield from _lane_chunks(data, batch_size, orders)
        return
    # Minibatches of one image leave no remainder out: this chunk is the whole training set, not a copy of it.
    ((images, labels),) = data.chunks(1)
    indices = torch.stack(list(orders)).to(images.device)  # [L, num_train], the epoch's only transfer
    bytes_per_minibatch = len(orders) * batch_size * images.shape[1] * images.element_size()
    rows = batch_size * max(1, GATHERED_BYTES // bytes_per_minibatch)
    num_images = data.num_minibatches(batch_size) * batch_size
    for start in range(0, num_images, rows):
        chosen = indices[:, start : min(start + rows, num_images)]
        flat = chosen.reshape(-1)  # index_select copies whole rows, which images[chosen] does not
        yield images.index_select(0, flat).reshape(*chosen.shape, -1), labels[chosen]


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
