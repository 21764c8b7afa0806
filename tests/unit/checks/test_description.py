"""What is told about a data set is counted from its training and validation parts, and from its record."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpsearch.checks.description import NUM_ROWS, describe_data
from hpsearch.console.data_view import description_lines
from hpsearch.data.splits import SelectionData, Split
from hpsearch.search.proportions import wilson_interval


def images(labels: list[int], value: float = 0.5) -> Split:
    return Split(images=np.full((len(labels), 12), value, np.float32), labels=np.array(labels, dtype=np.int64))


def selection(**changes: Any) -> SelectionData:
    values: dict[str, Any] = {
        "name": "mine",
        "train": images([0] * 6 + [1] * 3 + [2]),
        "validation": images([0] * 3 + [1] * 5, 0.25),
        "example_shape": (3, 4),
        "num_classes": 3,
        "checksums": {},
    }
    return SelectionData(**{**values, **changes})


def text(data: SelectionData) -> str:
    return "\n".join(description_lines(describe_data(data)))


def test_classes_are_counted_in_both_parts() -> None:
    found = describe_data(selection(class_names=("cat", "dog", "emu")))
    assert [(entry.name, entry.train, entry.validation) for entry in found.classes] == [
        ("cat", 6, 3),
        ("dog", 3, 5),
        ("emu", 1, 0),
    ]
    assert (found.num_train, found.num_validation, found.num_inputs, found.num_outputs) == (10, 8, 12, 3)
    assert [entry.name for entry in describe_data(selection()).classes] == ["0", "1", "2"]
    assert "most: cat (60.0 %), least: emu (10.0 % of training)" in text(selection(class_names=("cat", "dog", "emu")))


def test_the_intervals_are_wilsons_at_the_guess_of_trainings_most_frequent_class_and_at_a_typical_error() -> None:
    guess, typical = describe_data(selection(validation=images([0] * 30 + [1] * 50 + [2] * 20))).intervals
    assert (guess.error, (guess.low, guess.high)) == (0.7, wilson_interval(70, 100))
    assert (typical.error, (typical.low, typical.high)) == (0.05, wilson_interval(5, 100))


def test_rows_of_one_group_count_once_in_the_intervals() -> None:
    rows = replace(images([0] * 30 + [1] * 50 + [2] * 20), groups=np.repeat(np.arange(20), 5))
    _, typical = describe_data(selection(validation=rows)).intervals
    assert (typical.low, typical.high) == wilson_interval(1, 20)
    assert "(95 % interval over 20 groups)" in text(selection(validation=rows))


def test_memory_is_that_of_the_arrays_as_they_are_stored() -> None:
    found = describe_data(selection())
    assert (found.train_bytes, found.validation_bytes) == (10 * (12 * 4 + 8), 8 * (12 * 4 + 8))
    assert (found.input_type, found.lowest, found.highest) == ("float32", 0.5, 0.5)


@pytest.mark.parametrize(
    ("record", "expected", "words"),
    [
        ({}, (None, None), "test not opened"),
        ({"split": {"test": 1200}}, (1200, True), "test 1,200"),
        ({"split": {"test": 0}}, (None, False), "test none"),
        ({"split": {"test": None}}, (None, None), "test not opened"),
        ({"split": {"test": 0}, "has_test": True}, (None, True), "test not opened"),  # in a file of its own
    ],
)
def test_the_size_of_the_test_part_is_told_where_it_is_on_record(
    record: dict[str, Any], expected: tuple[int | None, bool | None], words: str
) -> None:
    found = describe_data(selection(record=record))
    assert (found.num_test, found.has_test) == expected
    assert words in text(selection(record=record))


def table(**changes: Any) -> SelectionData:
    rows = np.arange(60, dtype=np.float32).reshape(10, 6)
    split = Split(images=rows, labels=np.zeros(10, np.float32))
    values = {"train": split, "validation": split, "example_shape": (6,), "num_classes": 0}
    return selection(**{**values, **changes})


def test_a_regression_has_a_target_and_no_classes_or_intervals() -> None:
    data = table(record={"target": {"name": "price", "task": "regression", "mean": 200.5, "deviation": 10.0}})
    found = describe_data(data)
    assert (found.task, found.classes, found.intervals, found.num_outputs) == ("regression", (), (), 1)
    assert found.target == {"mean": 200.5, "deviation": 10.0}
    lines = text(data)
    assert "regression: 6 inputs, 1 output" in lines
    assert "mean 200.5, standard deviation 10" in lines


def test_a_table_has_first_rows_filled_columns_and_those_that_are_left_out() -> None:
    features = [{"name": "age", "has_indicator": True}, {"name": "fare", "has_indicator": False}]
    data = table(record={"preparation": {"features": features}, "left_out": {"ticket": "counts rows"}})
    found = describe_data(data)
    assert (found.filled, found.left_out) == (("age",), {"ticket": "counts rows"})
    assert found.first_rows[1] == (6, 7, 8, 9, 10, 11)
    assert len(found.first_rows) == NUM_ROWS
    assert "filled, with an indicator: age" in text(data)
    assert "ticket: counts rows" in text(data)
    assert describe_data(selection()).first_rows == ()


def test_the_document_is_json() -> None:
    document = json.loads(json.dumps(describe_data(selection()).as_json(), allow_nan=False))
    assert document["classes"][0] == {"name": "0", "train": 6, "validation": 3}
    assert (document["num_inputs"], document["example_shape"]) == (12, [3, 4])


def test_many_classes_are_shown_in_part() -> None:
    labels = list(range(50)) * 2
    lines = text(selection(train=images(labels), validation=images(labels), num_classes=50))
    assert "and 30 more classes (--json lists all)" in lines
    assert "50; most: 0 (2.0 %)" in lines
