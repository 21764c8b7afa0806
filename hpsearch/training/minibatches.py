"""An epoch's minibatches and their order, and the minibatches after which to validate.

Lanes and the reference loop (benchmarks/reference_loop.py) take their order from here, so that both train on the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData

# Size of the images that are gathered at once when each lane has its own order.
GATHERED_BYTES = 2**26


def minibatch_order(seed: int, epoch: int, num_images: int) -> Tensor:
    """The order of the training images in a shuffled epoch: a permutation [num_images] int64, on the host.

    It depends on the arguments alone, so it is the same on every device and in every lane.

    Args:
        seed: the trial's training seed, which is the study's seed unless the trial has its own.
        epoch: 1-based.
    """
    # Mixed first: torch's CPU generator uses only the low 32 bits of its seed.
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    generator = torch.Generator(device="cpu").manual_seed(int(mixed[0] >> np.uint64(1)))
    return torch.randperm(num_images, generator=generator)


def is_validation_due(minibatch: int, *, num_minibatches: int, validations_every: int) -> bool:
    """Whether to validate after this minibatch of the epoch (1-based).

    Validations take place every `validations_every` minibatches and at the end of the epoch. The deeplearning.net
    tutorial counts minibatches from the start of the trial. Counting from the start of the epoch is the same if the
    epoch is a multiple of `validations_every`, and lets lanes in different epochs validate together.
    """
    return minibatch % validations_every == 0 or minibatch == num_minibatches


def lane_stretches(
    data: ResidentData,
    batch_size: int,
    *,
    dtype: torch.dtype,
    ends: Sequence[int],
    orders: Sequence[Tensor] | None = None,
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """An epoch as stretches of consecutive minibatches, with no validation inside a stretch.

    Args:
        ends: the minibatches (1-based, ascending) after which a stretch must end; the last one ends the epoch.
        orders: one [num_train] int64 on the host per lane, or a single one for all lanes
            (`minibatch_order`); None: the file's order for all.
    Yields:
        Images [N, inputs] shared by all lanes or, with several orders, [L, N, inputs], of `dtype` or uint8: the steps
        scale levels minibatch by minibatch (`as_inputs`). Labels [N] or [L, N]. Both are valid until the next stretch
        is requested. The third element is the number of the last minibatch.
    """
    done = 0
    for images, labels in _pieces(data, batch_size, orders):
        position, length = 0, labels.shape[-1] // batch_size
        while position < length:
            next_end = ends[bisect.bisect_right(ends, done)]
            size = min(length - position, next_end - done)
            rows = position * batch_size, size * batch_size
            done, position = done + size, position + size
            stretch = images.narrow(-2, *rows)
            yield stretch if stretch.dtype == torch.uint8 else stretch.to(dtype), labels.narrow(-1, *rows), done


def _pieces(data: ResidentData, batch_size: int, orders: Sequence[Tensor] | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of whole minibatches, as large as memory allows: images [..., N, pixels], labels [..., N]."""
    if orders is None or len(orders) == 1:
        yield from data.chunks(batch_size, orders[0] if orders else None)
        return
    if data.is_chunked:
        yield from _lane_chunks(data, batch_size, orders)
        return
    # With minibatches of one image no remainder is dropped: this chunk is the whole training set, not a copy.
    ((images, labels),) = data.chunks(1)
    indices = torch.stack(list(orders)).to(images.device)  # [L, num_train], the epoch's only transfer
    bytes_per_minibatch = len(orders) * batch_size * images.shape[1] * torch.float32.itemsize  # levels take a quarter
    rows = batch_size * max(1, GATHERED_BYTES // bytes_per_minibatch)
    num_images = data.num_minibatches(batch_size) * batch_size
    for start in range(0, num_images, rows):
        chosen = indices[:, start : min(start + rows, num_images)]
        flat = chosen.reshape(-1)  # index_select copies whole rows, unlike images[chosen]
        yield images.index_select(0, flat).reshape(*chosen.shape, -1), labels[chosen]


def _lane_chunks(data: ResidentData, batch_size: int, orders: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The stacked chunks of all lanes: images [L, K*B, pixels], labels [L, K*B].

    All visits share the same device buffers, so each lane's chunk is copied before the next one is loaded. The copies
    exist together with their stack: this takes 2 L chunks of memory in addition to the buffers.
    """
    visits = [data.chunks(batch_size, order) for order in orders]
    for first_images, first_labels in visits[0]:
        images, labels = [first_images.clone()], [first_labels.clone()]
        for visit in visits[1:]:
            lane_images, lane_labels = next(visit)
            images.append(lane_images.clone())
            labels.append(lane_labels.clone())
        yield torch.stack(images), torch.stack(labels)
