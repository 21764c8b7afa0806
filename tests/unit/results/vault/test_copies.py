"""Copies are counted in bounded memory: the data may be larger than it, and the number is not on record yet."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from hpsearch.checks import duplicates
from hpsearch.data.splits import SelectionData, Split
from hpsearch.results.openings.record import Copies
from hpsearch.results.vault.copies import count_copies


def selection_of(train: np.ndarray, validation: np.ndarray) -> SelectionData:
    parts = [Split(images=images, labels=np.zeros(len(images), np.int64)) for images in (train, validation)]
    return SelectionData(
        name="x", train=parts[0], validation=parts[1], example_shape=(64, 64), num_classes=2, checksums={}
    )


@pytest.fixture
def mapped(tmp_path: Path) -> SelectionData:
    """64 MiB in files."""
    generator = np.random.default_rng(0)
    parts = []
    for name, number in (("train", 12_288), ("validation", 4096)):
        path = tmp_path / f"{name}.npy"
        np.save(path, generator.integers(0, 256, (number, 64 * 64), dtype=np.uint8))
        parts.append(np.load(path, mmap_mode="c"))
    return selection_of(*parts)


def test_copies_of_both_parts_are_counted_without_a_copy_of_them(
    mapped: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_MOST_FLOATS", 2**19, raising=False)
    monkeypatch.setattr(duplicates, "_HASHED_BYTES", 2**20, raising=False)
    train, validation = mapped.train.images, mapped.validation.images
    test = np.stack([train[5], train[12_000], validation[7], train[9] ^ 1, validation[8] ^ 1, train[3] ^ 128])
    tracemalloc.start()
    copies = count_copies(Split(images=test, labels=np.zeros(6, np.int64)), mapped)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert copies == Copies(exact=3, near=2, num_looked_at=6)
    assert peak < 2**25  # half of the data


def test_blocks_of_any_size_find_the_same(mapped: SelectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = mapped.train.images[:50], mapped.validation.images[:20]
    test = np.stack([train[5], validation[7], train[9] ^ 1, validation[8] ^ 1])
    small = selection_of(train, validation)
    held_out = Split(images=test, labels=np.zeros(4, np.int64))
    for products in (1, 2**36):
        monkeypatch.setattr(duplicates, "_MOST_PRODUCTS", products)
        for floats in (1, 3 * 4096, 2**24):
            monkeypatch.setattr(duplicates, "_MOST_FLOATS", floats)
            assert count_copies(held_out, small) == Copies(exact=2, near=2, num_looked_at=4)
            pairs, _ = duplicates.near_copies([train, validation], test, deadline=np.inf)
            assert pairs == [(9, 2), (58, 3)]
