"""Images of one part that are also in another part: exactly, or nearly.

A network that has seen an image is judged too well on it. The checks compare validation with training images; only an
opening of the test set (results/vault) compares test images, which it hands in here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from hpsearch.checks.finding import DATA, Finding, Verdict
from hpsearch.data.example_shape import is_image, maps_shape
from hpsearch.data.splits import SelectionData, as_floats
from hpsearch.wording import percent

MOST_NEAR_IMAGES = 5000  # validation images whose nearest training image is looked for
NEAR = 0.15  # of an image's own distance from the mean image
SHARE_TO_WARN = 0.01  # MNIST has a few images that are alike; a leak has many
SHARE_TO_FAIL = 0.5
NUM_PICTURES = 3
_BLOCK = 512  # rows of a block of distances: 100 MB for MNIST
_KNOWN_BLOCK = 16_384  # known images that are floats at once
_MOST_FLOATS = 2**24  # of a block of images: fewer rows if they are large
_MOST_PRODUCTS = 2**36  # of a block of distances, some seconds: the deadline is looked at between blocks
_HASHED_BYTES = 2**24  # of a block of images that are hashed
_MOST_COLUMNS = 32  # of a picture: reports are stored with studies
_RAMP = " .:-=+*#%@"

Images = NDArray[np.float32] | NDArray[np.uint8]
Pairs = list[tuple[int, int]]


def exact_duplicates(data: SelectionData) -> Finding:
    """Count the validation images that are equal to a training image, bit for bit."""
    pairs = exact_copies(data.train.images, data.validation.images)
    return _finding("duplicates", data, pairs, len(data.validation), "the same image as a training image")


def near_duplicates(data: SelectionData, *, deadline: float) -> Finding:
    """Count validation images that nearly equal a training image, among at most MOST_NEAR_IMAGES.

    Args:
        deadline: on `time.monotonic`; images that could not be looked at by then are left out.
    """
    pairs, num_looked_at = near_copies([data.train.images], data.validation.images, deadline=deadline)
    return _finding("near duplicates", data, pairs, num_looked_at, "nearly the same image as a training image")


def exact_copies(known: Images, others: Images) -> Pairs:
    """The images of `others` [M, pixels] that equal one of `known` [N, pixels], bit for bit, each with its first twin.

    Returns:
        Pairs of places: in `known`, and in `others`.
    """
    hashes, of_others = _hashes(known), _hashes(others)
    order = np.argsort(hashes, kind="stable")
    places = np.searchsorted(hashes[order], of_others).clip(max=len(order) - 1)
    twins = order[places]
    candidates = np.flatnonzero(hashes[twins] == of_others)
    return [(int(twins[at]), int(at)) for at in candidates if (known[twins[at]] == others[at]).all()]


def near_copies(known: Sequence[Images], others: Images, *, deadline: float) -> tuple[Pairs, int]:
    """The images of `others` [M, pixels] that nearly equal one of `known` [N, pixels], among at most MOST_NEAR_IMAGES.

    Memory is bounded: parts larger than memory may be mapped from files.

    Args:
        known: parts, whose places are counted through.
        deadline: on `time.monotonic`; images that could not be looked at by then are left out, but for the first ones.
    Returns:
        Pairs of places as in `exact_copies`, without exact copies; and the number of images that were looked at.
    """
    num_images = min(MOST_NEAR_IMAGES, len(others))
    looked_at = np.unique(np.linspace(0, len(others) - 1, num_images).astype(np.intp))
    pairs, num_looked_at = [], 0
    for rows, nearest, ratios in _nearest_ratios(known, others, looked_at):
        near = np.flatnonzero((ratios > 0) & (ratios < NEAR))
        pairs += [(int(nearest[place]), int(rows[place])) for place in near]
        num_looked_at += len(rows)
        if time.monotonic() > deadline:
            break
    return pairs, num_looked_at


def _nearest_ratios(
    known: Sequence[Images], others: Images, looked_at: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]]:
    """Places in `others`, their nearest known images, and distance over the image's distance from the mean."""
    num_known, num_pixels = sum(map(len, known)), others.shape[1]
    most_rows = max(1, _MOST_FLOATS // num_pixels)
    mean = _mean(known, min(_KNOWN_BLOCK, most_rows), num_known)
    num_rows = max(1, min(_BLOCK, most_rows, _MOST_PRODUCTS // (num_known * num_pixels)))
    for start in range(0, len(looked_at), num_rows):
        rows = looked_at[start : start + num_rows]
        images = as_floats(others[rows]) - mean
        nearest, smallest = np.zeros(len(rows), dtype=np.intp), np.full(len(rows), np.inf, dtype=np.float32)
        closest = np.zeros_like(images)
        for place, block in _blocks(known, min(_KNOWN_BLOCK, most_rows)):  # all as floats may not fit into memory
            centred = as_floats(block) - mean
            apart = np.einsum("ij,ij->i", centred, centred) - 2 * (
                images @ centred.T
            )  # [rows, block], but for a constant
            places = np.argmin(apart, axis=1)
            found = apart[np.arange(len(rows)), places]
            is_nearer = found < smallest
            nearest[is_nearer], smallest[is_nearer] = places[is_nearer] + place, found[is_nearer]
            closest[is_nearer] = centred[places[is_nearer]]
        # From the images themselves: the difference of the squares above is inexact for near ones.
        distances = np.linalg.norm(images - closest, axis=1)
        scale = np.linalg.norm(images, axis=1)
        yield rows, nearest, np.divide(distances, scale, out=np.zeros_like(distances), where=scale > 0)


def _mean(known: Sequence[Images], num_rows: int, num_known: int) -> NDArray[np.float32]:
    total = sum(as_floats(block).sum(axis=0, dtype=np.float64) for _, block in _blocks(known, num_rows))
    mean: NDArray[np.float32] = (total / num_known).astype(np.float32)
    return mean


def _blocks(parts: Sequence[Images], num_rows: int) -> Iterator[tuple[int, Images]]:
    """Some rows at once, without a copy, each time with the place of the first of them."""
    before = 0
    for part in parts:
        for start in range(0, len(part), num_rows):
            yield before + start, part[start : start + num_rows]
        before += len(part)


def _finding(check: str, data: SelectionData, pairs: Pairs, num_looked_at: int, what: str) -> Finding:
    share = len(pairs) / max(1, num_looked_at)
    verdict = Verdict.PASSED
    if share > SHARE_TO_WARN:
        verdict = Verdict.FAILED if share > SHARE_TO_FAIL else Verdict.WARNING
    others = sum(int(data.train.labels[t] != data.validation.labels[v]) for t, v in pairs)
    differing = f", {others} of them with another label" if others else ""
    return Finding(
        check=check,
        subject=DATA,
        verdict=verdict,
        found=f"{len(pairs):,} of {num_looked_at:,} validation images: {what}{differing}",
        expected=f"at most {percent(SHARE_TO_WARN)}",
        look_at=("how the parts were split: put all images of one source into one part",)
        if verdict is not Verdict.PASSED
        else (),
        numbers={"pairs": len(pairs), "looked_at": num_looked_at, "share": share},
        pictures=tuple(_picture(data, *pair) for pair in pairs[:NUM_PICTURES])
        if verdict is not Verdict.PASSED and is_image(data.example_shape)
        else (),
    )


def _hashes(images: Images) -> NDArray[np.uint64]:
    """A number of 64 bits for each image, [N]: a sum of its words times random odd numbers."""
    num_bytes = images.shape[1] * images.itemsize
    num_words = -(-num_bytes // 4)
    factors = np.random.default_rng(0).integers(0, 2**63, num_words, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = []
    for _, block in _blocks([images], max(1, min(1024, _HASHED_BYTES // num_bytes))):
        content = np.ascontiguousarray(block).view(np.uint8)
        words = np.pad(content, ((0, 0), (0, 4 * num_words - num_bytes))).view(np.uint32)
        hashes.append(words @ factors)
    return np.concatenate(hashes)


def _picture(data: SelectionData, train: int, validation: int) -> str:
    """Both images side by side, as text; those in colour in grey."""
    shape = maps_shape(data.example_shape)
    _, height, width = shape
    parts = (data.train, train), (data.validation, validation)
    pair = [part.floats(np.array([row])).reshape(shape).mean(axis=0) for part, row in parts]
    lines = [f"training image {train} (class {data.class_name(data.train.labels[train])}) and validation image "]
    lines[0] += f"{validation} (class {data.class_name(data.validation.labels[validation])})"
    across = -(-width // _MOST_COLUMNS)
    down = max(1, 2 * across if height > 16 else across)  # a character is twice as high as wide
    low, high = min(float(image.min()) for image in pair), max(float(image.max()) for image in pair)
    for row in range(0, height, down):
        shown = [
            [_RAMP[int((len(_RAMP) - 1) * (v - low) / ((high - low) or 1.0))] for v in image[row, ::across]]
            for image in pair
        ]
        lines.append("  ".join("".join(part) for part in shown).rstrip())
    return "\n".join(lines)
