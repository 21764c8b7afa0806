"""The split that hpsearch draws: every row in one part, the classes in equal shares, groups on one side."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.data.split_rows import SplitRows, draw_split
from hpsearch.errors import DataError, InputError

SIZES = st.one_of(st.none(), st.floats(0.01, 0.4), st.integers(1, 20))


def parts(split: SplitRows) -> list[np.ndarray]:
    return [split.train, split.validation, split.test]


@given(
    num_rows=st.integers(60, 300),
    validation=SIZES,
    test=st.one_of(SIZES, st.just(0)),
    seed=st.integers(0, 2**63 - 1),
    num_classes=st.integers(1, 8),
    has_groups=st.booleans(),
)
def test_each_row_is_in_one_part_of_the_wanted_size(
    num_rows: int,
    validation: float | int | None,
    test: float | int | None,
    seed: int,
    num_classes: int,
    has_groups: bool,
) -> None:
    classes = np.random.default_rng(seed).integers(0, num_classes, num_rows)
    classes[:num_classes] = np.arange(num_classes)
    groups = [f"ticket {row // 2}" for row in range(num_rows)] if has_groups else None
    split = draw_split(
        num_rows, validation=validation, test=test, seed=seed, source="rows", classes=classes, groups=groups
    )
    assert np.array_equal(np.sort(np.concatenate(parts(split))), np.arange(num_rows))
    wanted_test = num_rows // 7 if test is None else round(test * num_rows) if isinstance(test, float) else test
    slack = 0 if groups is None else 3 + num_classes
    assert abs(len(split.test) - max(wanted_test, int(bool(test)))) <= slack
    if groups is None:
        assert np.array_equal(np.unique(classes[split.train]), np.unique(classes))
        for part in parts(split):
            exact = len(part) * np.bincount(classes, minlength=num_classes) / num_rows
            assert np.abs(np.bincount(classes[part], minlength=num_classes) - exact).max() < 2 + num_classes
    else:
        owners = [{groups[row] for row in part} for part in parts(split)]
        assert sum(map(len, owners)) == len(set(groups))


def test_the_split_is_the_same_for_ever() -> None:
    split = draw_split(30, validation=None, test=None, seed=0, source="rows", classes=np.arange(30) % 3)
    assert split.as_json() == {
        "train": 22,
        "validation": 4,
        "test": 4,
        "sha256": "ebe275fa0785411fe00b653b2121cc7b5ed8091aab3349727fa8a3eeeb99dd96",
    }


def test_the_seed_changes_the_split_and_the_order() -> None:
    one, other = (draw_split(100, validation=0.2, test=0, seed=seed, source="rows") for seed in (0, 1))
    assert one.sha256 != other.sha256
    assert not np.array_equal(one.train, np.sort(one.train))
    assert len(one.test) == 0


def test_parts_that_leave_nothing_for_training_are_an_input_error() -> None:
    with pytest.raises(InputError, match="take 6 and 4 of the 10 rows of rows: none is left for training"):
        draw_split(10, validation=6, test=4, seed=0, source="rows")
    with pytest.raises(InputError, match=r"data\.test = 11 is more than the 10 rows"):
        draw_split(10, validation=6, test=11, seed=0, source="rows")


@pytest.mark.parametrize("num_groups", [3, 4, 6])
def test_no_part_is_empty_if_every_group_is_larger_than_it(num_groups: int) -> None:
    groups = np.arange(60) % num_groups
    split = draw_split(60, validation=None, test=None, seed=0, source="rows", groups=groups)
    owners = [set(groups[part].tolist()) for part in parts(split)]
    assert all(owners)
    assert sum(map(len, owners)) == num_groups


def test_too_few_rows_or_groups_are_a_data_error() -> None:
    with pytest.raises(DataError, match="rows: 5 rows are too few"):
        draw_split(5, validation=None, test=None, seed=0, source="rows")
    with pytest.raises(DataError, match=r"data\.group has 2 different values, too few"):
        draw_split(70, validation=None, test=None, seed=0, source="rows", groups=np.arange(70) % 2)


def test_the_split_of_groups_is_the_same_for_ever() -> None:
    generator = np.random.default_rng(0)
    classes, groups = generator.integers(0, 7, 300), generator.integers(0, 40, 300)
    split = draw_split(300, validation=0.2, test=0.1, seed=3, source="rows", classes=classes, groups=groups)
    assert split.as_json() == {
        "train": 208,
        "validation": 59,
        "test": 33,
        "sha256": "7e47c29edad51a3109049476928ea0893435802f57b1b5880c83697e93d7c056",
    }


def test_many_groups_and_classes_do_not_take_memory_for_their_product() -> None:
    num_rows, num_classes = 10_000, 1000  # a float64 for each pair would be 80 MB
    tracemalloc.start()
    draw_split(
        num_rows,
        validation=None,
        test=None,
        seed=0,
        source="rows",
        classes=np.arange(num_rows) % num_classes,
        groups=np.arange(num_rows),
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
