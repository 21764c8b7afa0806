"""Checks of tables: a table without faults passes, and each planted fault is found by the check that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.rows import LARGEST_DEVIATIONS
from hpsearch.checks.suite import check_data, check_study
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from tests.unit.checks.conftest import Define

Change = Callable[[SelectionData], SelectionData]


@pytest.fixture
def table(define: Define, tmp_path: Path) -> Callable[..., SelectionData]:
    def load(dataset: str = "sklearn:breast_cancer") -> SelectionData:
        definition = define(data={"dataset": dataset})
        return load_selection_data(definition.data, locations=DataLocations(local=None, cache=tmp_path))

    return load


def findings(define: Define, data: SelectionData) -> dict[str, Finding]:
    every = list(check_data(define(data={"dataset": data.name}), data))
    for finding in every:
        json.dumps(finding.numbers, allow_nan=False)
    return {finding.check: finding for finding in every}


def changed(data: SelectionData, part: str, change: Callable[[np.ndarray], np.ndarray]) -> SelectionData:
    split = getattr(data, part)
    return replace(data, **{part: replace(split, images=change(np.array(split.images)).astype(np.float32))})


def with_column(place: int, change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def inner(inputs: np.ndarray) -> np.ndarray:
        inputs[:, place] = change(inputs[:, place])
        return inputs

    return inner


def test_a_table_without_faults_passes_and_nothing_speaks_of_images(
    define: Define, table: Callable[..., SelectionData]
) -> None:
    found = findings(define, table())
    assert set(found) == {"classes", "order", "values", "likeness", "duplicates"}
    for finding in found.values():
        assert finding.verdict is Verdict.PASSED, finding
        assert "image" not in f"{finding.found} {finding.expected} {finding.look_at}"
    assert "training rows" in found["classes"].found


def test_a_table_for_regression_is_told_its_target(define: Define, table: Callable[..., SelectionData]) -> None:
    found = findings(define, table("sklearn:diabetes"))
    assert set(found) == {"target", "values", "likeness", "duplicates"}
    assert found["target"].verdict is Verdict.PASSED
    assert "316 training and 63 validation rows; mean 152.9" in found["target"].found


@pytest.mark.parametrize(
    ("check", "verdict", "part", "change", "told"),
    [
        ("values", Verdict.FAILED, "train", with_column(3, lambda c: c * np.nan), "NaN or infinite"),
        (
            "values",
            Verdict.WARNING,
            "train",
            with_column(3, lambda c: 0 * c),
            "the same in training: 'mean area'",
        ),
        ("values", Verdict.FAILED, "train", lambda rows: 0 * rows, "all training rows are the same"),
        (
            "values",
            Verdict.WARNING,
            "train",
            with_column(3, lambda c: c * 0 + np.r_[2 * LARGEST_DEVIATIONS, c[1:]]),
            "the largest value is 100 standard deviations, of 'mean area'",
        ),
        (
            "likeness",
            Verdict.WARNING,
            "validation",
            with_column(3, lambda c: c + 2),
            "the means of 'mean area' differ by",
        ),
    ],
)
def test_planted_faults_are_found(
    define: Define,
    table: Callable[..., SelectionData],
    check: str,
    verdict: Verdict,
    part: str,
    change: Callable[[np.ndarray], np.ndarray],
    told: str,
) -> None:
    finding = findings(define, changed(table(), part, change))[check]
    assert finding.verdict is verdict
    assert told in finding.found
    assert finding.look_at


def test_a_constant_column_has_its_line_of_the_study_file(define: Define, table: Callable[..., SelectionData]) -> None:
    data = changed(table(), "train", with_column(3, lambda column: 0 * column))
    assert findings(define, data)["values"].fix == 'exclude = ["mean area"]  # in [data]'


def test_equal_rows_of_both_parts_are_counted_and_never_a_failure(
    define: Define, table: Callable[..., SelectionData]
) -> None:
    data = table()
    data = replace(data, validation=replace(data.train, images=data.train.images[:50], labels=data.train.labels[:50]))
    finding = findings(define, data)["duplicates"]
    assert finding.verdict is Verdict.WARNING
    assert "50 of 50 validation rows" in finding.found
    assert "name a column that they share in data.group" in finding.look_at[0]


def test_a_table_that_is_split_by_groups_is_not_told_to_name_one(
    define: Define, table: Callable[..., SelectionData]
) -> None:
    data = table()
    data = replace(data, validation=replace(data.train, images=data.train.images[:50], labels=data.train.labels[:50]))
    every = check_data(define(data={"dataset": data.name, "group": "mean area"}), data)
    (finding,) = [one for one in every if one.check == "duplicates"]
    assert finding.look_at[0].startswith("things that have several rows with different values of 'mean area': ")


def test_a_shifted_target_is_found(define: Define, table: Callable[..., SelectionData]) -> None:
    data = table("sklearn:diabetes")
    moved = replace(data, validation=replace(data.validation, labels=data.validation.labels + 3))
    finding = findings(define, moved)["target"]
    assert finding.verdict is Verdict.WARNING
    assert finding.look_at


def test_classes_sorted_in_a_table_are_found_in_the_words_for_rows(
    define: Define, table: Callable[..., SelectionData]
) -> None:
    data = table()
    order = np.argsort(data.train.labels, kind="stable")
    train = replace(data.train, images=data.train.images[order], labels=data.train.labels[order])
    finding = findings(define, replace(data, train=train))["order"]
    assert finding.verdict is Verdict.WARNING
    assert finding.look_at[0].startswith("rows that are sorted by class")


def test_all_checks_of_a_study_on_a_table_speak_of_rows(define: Define, table: Callable[..., SelectionData]) -> None:
    data = table()
    definition = define(data={"dataset": data.name}, training={"batch_size": 20, "max_epochs": 2})
    report = check_study(definition, lambda: data, version="test")
    names = {finding.check for finding in report.findings}
    assert "near duplicates" not in names
    assert {"labels", "gradients", "overfit", "cost"} <= names
    for finding in report.findings:
        assert finding.verdict in (Verdict.PASSED, Verdict.WARNING), finding
        assert "image" not in f"{finding.found} {finding.expected} {finding.look_at}"
