"""Counts the test images that are also training or validation images: the network may have seen them.

They are looked for only when the test set is open, because nothing else reads a test image. The number is not on record
yet: memory is bounded, whatever the size of the data, and no error here costs the number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hpsearch.checks.duplicates import exact_copies, near_copies
from hpsearch.data.example_shape import is_image
from hpsearch.data.splits import SelectionData, Split
from hpsearch.results.openings.record import Copies

NEAR_SECONDS: Final = 30.0  # for near copies; test images that were not looked at by then are not counted


def try_to_count_copies(held_out: Split, selection: SelectionData, tell: Callable[[str], None]) -> Copies | None:
    """As `count_copies`; None if it fails, which must not cost the number of an opened test set.

    Args:
        tell: receives a line for display in that case.
    """
    try:
        return count_copies(held_out, selection)
    except MemoryError:
        tell("no memory to look for copies of training images among the test images: they are not counted")
    except Exception as error:  # of whatever kind: the number comes first
        what = str(error).partition("\n")[0] or type(error).__name__
        tell(f"copies of training images among the test images are not counted: {what}")
    return None


def count_copies(held_out: Split, selection: SelectionData) -> Copies:
    """Count exact copies and, but for rows of a table, near ones among at most MOST_NEAR_IMAGES test images.

    An image with an exact copy is no near copy. Takes about ten seconds for MNIST on two cores.

    Args:
        held_out: the test images, with as many pixels as those of the selection.
    """
    known = selection.train.images, selection.validation.images
    exact = {place for part in known for _, place in exact_copies(part, held_out.images)}
    if not is_image(selection.example_shape):
        return Copies(exact=len(exact), near=0, num_looked_at=0)
    pairs, num_looked_at = near_copies(known, held_out.images, deadline=time.monotonic() + NEAR_SECONDS)
    near = {place for _, place in pairs} - exact
    return Copies(exact=len(exact), near=len(near), num_looked_at=num_looked_at)
