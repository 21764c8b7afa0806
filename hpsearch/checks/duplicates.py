"""Validation images that are also training images: exactly, or nearly.

A network that has seen an image is judged too well on it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hpsearch.checks.finding import DATA, Finding, Verdict
from hpsearch.data.splits import SelectionData
from hpsearch.wording import percent

MOST_NEAR_IMAGES = 5000  # validation images whose nearest training image is looked for
NEAR = 0.15  # of an image's own distance from the mean image
SHARE_TO_WARN = 0.01  # MNIST has a few images that are alike; a leak has many
SHARE_TO_FAIL = 0.5
NUM_PICTURES = 3
_BLOCK = 512  # rows of a block of distances: 100 MB for MNIST
_MOST_COLUMNS = 32  # of a picture: reports are stored with studies
_RAMP = " .:-=+*#%@"


def exact_duplicates(data: SelectionData) -> Finding:
    """Count the validation images that are equal to a training image, bit for bit."""
    hashes, of_validation = _hashes(data.train.images), _hashes(data.validation.images)
    order = np.argsort(hashes, kind="stable")
    places = np.searchsorted(hashes[order], of_validation).clip(max=len(order) - 1)
    twins = order[places]
    is_twin = (hashes[twins] == of_validation) & (data.train.images[twins] == data.validation.images).all(axis=1)
    pairs = [(int(twins[index]), int(index)) for index in np.flatnonzero(is_twin)]
    return _finding("duplicates", data, pairs, len(data.validation), "the same image as a training image")


def near_duplicates(data: SelectionData, *, deadline: float) -> Finding:
    """Count validation images that nearly equal a training image, among at most MOST_NEAR_IMAGES.

    Args:
        deadline: on `time.monotonic`; images that could not be looked at by then are left out.
    """
    num_images = min(MOST_NEAR_IMAGES, len(data.validation))
    looked_at = np.unique(np.linspace(0, len(data.validation) - 1, num_images).astype(np.intp))
    pairs, num_looked_at = [], 0
    for rows, nearest, ratios in _nearest_ratios(data, looked_at):
        near = np.flatnonzero((ratios > 0) & (ratios < NEAR))
        pairs += [(int(nearest[place]), int(rows[place])) for place in near]
        num_looked_at += len(rows)
        if time.monotonic() > deadline:
            break
    return _finding("near duplicates", data, pairs, num_looked_at, "nearly the same image as a training image")


def _nearest_ratios(
    data: SelectionData, looked_at: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]]:
    """Validation images, their nearest training images, and distance over the image's distance from the mean."""
    mean = data.train.images.mean(axis=0)
    train = data.train.images - mean
    squares = np.einsum("ij,ij->i", train, train)
    for start in range(0, len(looked_at), _BLOCK):
        rows = looked_at[start : start + _BLOCK]
        images = data.validation.images[rows] - mean
        nearest = np.argmin(squares - 2 * (images @ train.T), axis=1)
        # From the images themselves: the difference of the squares above is inexact for near ones.
        distances = np.linalg.norm(images - train[nearest], axis=1)
        scale = np.linalg.norm(images, axis=1)
        yield rows, nearest, np.divide(distances, scale, out=np.zeros_like(distances), where=scale > 0)


def _finding(check: str, data: SelectionData, pairs: list[tuple[int, int]], num_looked_at: int, what: str) -> Finding:
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
        look_at=("how the parts were split: images of one source belong into one part",)
        if verdict is not Verdict.PASSED
        else (),
        numbers={"pairs": len(pairs), "looked_at": num_looked_at, "share": share},
        pictures=tuple(_picture(data, *pair) for pair in pairs[:NUM_PICTURES]) if verdict is not Verdict.PASSED else (),
    )


def _hashes(images: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A number of 64 bits for each image, [N]: a sum of its words times random odd numbers."""
    words = np.ascontiguousarray(images).view(np.uint32)
    factors = np.random.default_rng(0).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return np.concatenate([words[start : start + 1024] @ factors for start in range(0, len(words), 1024)])


def _picture(data: SelectionData, train: int, validation: int) -> str:
    """Both images side by side, as text."""
    height, width = data.image_shape
    pair = [data.train.images[train].reshape(height, width), data.validation.images[validation].reshape(height, width)]
    lines = [f"training image {train} (class {data.train.labels[train]}) and validation image {validation} "]
    lines[0] += f"(class {data.validation.labels[validation]})"
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
