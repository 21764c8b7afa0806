"""Whether the training images fill a minibatch, and whether a minibatch fits the bound on resident data. No torch."""

from __future__ import annotations

from hpsearch.errors import InputError

_LABEL_BYTES = 8  # int64


def bytes_per_image(num_inputs: int, input_bytes: int) -> int:
    """Bytes of a training image with its label, as `ResidentData` has them where they are bounded.

    Args:
        input_bytes: 4 for float32, 1 for uint8 levels.
    """
    return num_inputs * input_bytes + _LABEL_BYTES


def check_batch_size(batch_size: int, num_train: int) -> None:
    """Raises InputError: the batch size is below 1 or above the number of training images."""
    if not 1 <= batch_size <= num_train:
        raise InputError(f"training.batch_size must be in 1..{num_train} (the training images), got {batch_size}")


def check_resident_bytes(batch_size: int, image_bytes: int, max_resident_bytes: int) -> None:
    """Raises InputError: one minibatch is larger than `data.max_resident_bytes`."""
    capacity = max_resident_bytes // image_bytes
    if batch_size > capacity:
        raise InputError(
            f"data.max_resident_bytes = {max_resident_bytes} holds {capacity} training "
            f"images of {image_bytes} bytes, but a minibatch has {batch_size}",
            hint=f"set data.max_resident_bytes to at least {batch_size * image_bytes}",
        )
