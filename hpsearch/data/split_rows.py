"""Which rows of a source are for training, validation and test, drawn once from `data.split_seed`.

The order of rows within each part is random, too: minibatches follow it, and data sorted by class must not give
minibatches of one class. The draw depends on the arguments alone, and is the same with every version of numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError, InputError

Rows = NDArray[np.int64]
TEST_PARTS: Final = 7  # as for the digits, one row in seven is for the test
VALIDATION_PARTS: Final = 6  # and one in six of the others for validation
_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SplitRows:
    """Row numbers of a source, each in one part, in the order in which they are used.

    Args:
        train, validation, test: [N] int64 each; `test` may be empty.
    """

    train: Rows = field(repr=False)
    validation: Rows = field(repr=False)
    test: Rows = field(repr=False)

    @property
    def sha256(self) -> str:
        """SHA-256 over the parts' lengths and row numbers."""
        digest = hashlib.sha256()
        for part in _PARTS:
            rows = np.ascontiguousarray(getattr(self, part), dtype="<i8")
            digest.update(len(rows).to_bytes(8, "little"))
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def as_json(self) -> dict[str, Any]:
        """The number of rows of each part, and the checksum."""
        return {**{part: len(getattr(self, part)) for part in _PARTS}, "sha256": self.sha256}


def draw_split(
    num_rows: int,
    *,
    validation: float | int | None,
    test: float | int | None,
    seed: int,
    source: str,
    classes: NDArray[np.int64] | None = None,
    groups: Sequence[object] | NDArray[Any] | None = None,
) -> SplitRows:
    """Draw the parts.

    Args:
        validation, test: a fraction of all rows, a number of rows, or None for the default sizes; 0: no such part, for
            sources with a part of their own.
        classes: [num_rows] labels from 0; each part gets about the same share of each class, and training gets at least
            one row of each.
        groups: [num_rows] values; rows with the same value stay in one part.
        source: name of the data in messages.
    Raises:
        InputError: the parts leave no row for training.
        DataError: there are too few rows, or too few groups.
    """
    num_test = _size("test", test, num_rows, num_rows // TEST_PARTS)
    num_validation = _size("validation", validation, num_rows, (num_rows - num_test) // VALIDATION_PARTS)
    if num_test + num_validation >= num_rows:
        raise InputError(
            f"data.validation and data.test take {num_validation:,} and {num_test:,} of the {num_rows:,} rows of "
            f"{source}: none is left for training",
            hint="choose smaller parts",
        )
    if num_validation == 0 and validation != 0:
        raise DataError(f"{source}: {num_rows} rows are too few for two parts", hint="give it more rows")
    order = _random_order(num_rows, seed)
    sizes = num_rows - num_validation - num_test, num_validation, num_test
    labels = np.zeros(num_rows, dtype=np.int64) if classes is None else classes
    part_of = _by_class(labels, order, sizes) if groups is None else _by_group(labels, order, sizes, groups, source)
    train, chosen, held_out = (order[part_of[order] == part] for part in range(3))
    return SplitRows(train=train, validation=chosen, test=held_out)


def _size(name: str, wanted: float | int | None, num_rows: int, default: int) -> int:
    if wanted is None:
        return default
    if isinstance(wanted, float):
        return max(1, round(wanted * num_rows))
    if wanted > num_rows:
        raise InputError(f"data.{name} = {wanted:,} is more than the {num_rows:,} rows", hint="choose a smaller part")
    return wanted


def _random_order(num_rows: int, seed: int) -> Rows:
    # Sorted random words: numpy keeps the words of a bit generator for ever, but not its permutations.
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(num_rows)
    return np.argsort(words, kind="stable").astype(np.int64)


def _by_class(labels: NDArray[np.int64], order: Rows, sizes: Sequence[int]) -> NDArray[np.int8]:
    """Part 0, 1 or 2 of each row: of each class the first rows in this order go to the test, the next to validation."""
    part_of = np.zeros(len(labels), dtype=np.int8)
    counts = np.bincount(labels)
    left = counts - np.minimum(counts, 1)  # one row of each class stays in training
    rank = np.empty(len(labels), dtype=np.int64)  # of a row within its class
    in_order = labels[order]
    by_class = np.argsort(in_order, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rank[order[by_class]] = np.arange(len(labels)) - starts[in_order[by_class]]
    taken = np.zeros_like(counts)
    for part in (2, 1):
        shares = _apportioned(counts, sizes[part], left)
        part_of[(rank >= taken[labels]) & (rank < (taken + shares)[labels])] = part
        taken += shares
        left -= shares
    return part_of


def _apportioned(counts: NDArray[np.int64], size: int, left: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of each class a part gets: proportional, by largest remainders, and no more than are left."""
    exact = size * counts / counts.sum()
    shares: NDArray[np.int64] = np.minimum(np.floor(exact).astype(np.int64), left)
    while (missing := size - int(shares.sum())) > 0:
        room = np.flatnonzero(shares < left)
        if not len(room):
            break
        best = room[np.argsort(-(exact - shares)[room], kind="stable")][:missing]
        shares[best] += 1
    return shares


def _by_group(
    labels: NDArray[np.int64], order: Rows, sizes: Sequence[int], groups: Sequence[object] | NDArray[Any], source: str
) -> NDArray[np.int8]:
    """Part 0, 1 or 2 of each row. Large groups are placed first, each where it disturbs sizes and classes least."""
    _, group_of = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    num_groups, num_classes = int(group_of.max()) + 1, int(labels.max()) + 1
    if num_groups < sum(size > 0 for size in sizes):
        raise DataError(
            f"{source}: data.group has {num_groups} different values, too few to split the rows",
            hint="choose a column with more values, or leave group out",
        )
    # [K] groups with their classes, sorted, and how many rows they have: all of groups x classes may be too many.
    pairs, num_rows = np.unique(group_of * num_classes + labels, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(num_groups + 1) * num_classes)
    num_members = np.bincount(group_of).astype(np.float64)
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    wanted = np.outer(np.asarray(sizes, dtype=np.float64), counts / len(labels))  # [3, classes]
    first_place = np.full(num_groups, len(labels))
    np.minimum.at(first_place, group_of[order], np.arange(len(labels)))
    by_chance = np.argsort(first_place, kind="stable")
    in_turn = by_chance[np.argsort(-num_members[by_chance], kind="stable")]
    placed, part_of_group = np.zeros_like(wanted), np.zeros(num_groups, dtype=np.int8)
    weight = 1.0 / np.maximum(wanted, 1.0)
    for group in in_turn:
        own = slice(starts[group], starts[group + 1])
        members = np.zeros(num_classes)
        members[pairs[own] % num_classes] = num_rows[own]
        before, after = ((placed + add - wanted) ** 2 * weight for add in (0.0, members))
        growth = (after - before).sum(axis=1)
        growth[np.asarray(sizes) == 0] = np.inf
        part = int(np.argmin(growth))
        placed[part] += members
        part_of_group[group] = part
    _fill_empty_parts(part_of_group, by_chance, num_members, sizes)
    part_of: NDArray[np.int8] = part_of_group[group_of]
    return part_of


def _fill_empty_parts(
    part_of_group: NDArray[np.int8], by_chance: Rows, num_members: NDArray[np.float64], sizes: Sequence[int]
) -> None:
    """Move a group into each part that should have rows but has none, because every group is too large for it.

    It is the group whose size is nearest, from a part that has more than one.
    """
    for part in (2, 1, 0):
        if sizes[part] == 0 or (part_of_group == part).any():
            continue
        is_spare = np.bincount(part_of_group, minlength=len(sizes))[part_of_group[by_chance]] > 1
        spare = by_chance[is_spare]
        part_of_group[spare[np.argmin(np.abs(num_members[spare] - sizes[part]))]] = part
