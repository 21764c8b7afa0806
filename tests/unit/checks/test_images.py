"""Checks of the data: digits pass, and each planted fault is found by the check that it belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpsearch.checks.duplicates import exact_duplicates, near_duplicates
from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.images import check_classes, check_labels, check_values
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition

Change = Callable[[SelectionData], SelectionData]
NEVER = float("inf")


def study(**sections: Any) -> StudyDefinition:
    return parse_definition({"name": "a", "search": {"learning_rate": [0.1]}, **sections}, source="test")


def findings(data: SelectionData, definition: StudyDefinition | None = None) -> dict[str, Finding]:
    every = [
        *check_classes(data, definition or study()),
        *check_values(data),
        check_labels(data),
        exact_duplicates(data),
        near_duplicates(data, deadline=NEVER),
    ]
    for finding in every:
        json.dumps(finding.numbers, allow_nan=False)
    return {finding.check: finding for finding in every}


def of(part: str, change: Callable[[Split], Split]) -> Change:
    return lambda data: replace(data, **{part: change(getattr(data, part))})


def of_both(change: Callable[[Split], Split]) -> Change:
    return lambda data: replace(data, train=change(data.train), validation=change(data.validation))


def images(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Split], Split]:
    return lambda part: replace(part, images=change(part.images).astype(np.float32))


def with_nan(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images[1, 2] = np.nan
    return images


def sort_by_class(part: Split) -> Split:
    order = np.argsort(part.labels, kind="stable")
    return Split(images=part.images[order], labels=part.labels[order])


def without_class(label: int) -> Callable[[Split], Split]:
    return lambda part: Split(images=part.images[part.labels != label], labels=part.labels[part.labels != label])


def transpose(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, 28, 28).transpose(0, 2, 1).reshape(len(images), -1)


def shuffle(part: Split) -> Split:
    return replace(part, labels=np.random.default_rng(1).permutation(part.labels))


def leak(noise: float) -> Change:
    def change(data: SelectionData) -> SelectionData:
        random, half = np.random.default_rng(1), len(data.validation) // 2
        images, labels = data.train.images.copy(), data.train.labels.copy()
        images[:half] = data.validation.images[:half] + noise * random.standard_normal((half, images.shape[1]))
        labels[:half] = data.validation.labels[:half]
        return replace(data, train=Split(images=images.astype(np.float32), labels=labels))

    return change


def test_good_data_passes_every_check(digits: SelectionData) -> None:
    assert {finding.verdict for finding in findings(digits).values()} == {Verdict.PASSED}


@pytest.mark.parametrize(
    ("change", "check", "verdict", "words"),
    [
        (of("train", sort_by_class), "order", "warning", "sorted by class"),
        (of("train", without_class(3)), "classes", "failed", "sorted by class"),
        (of("validation", without_class(3)), "classes", "warning", "too few validation images"),
        (of_both(without_class(0)), "classes", "warning", "labels that begin at 1"),
        (of_both(images(lambda x: 255 * x)), "values", "warning", "not scaled"),
        (of_both(images(lambda x: x / 255)), "values", "warning", "scaled twice"),
        (of("train", images(with_nan)), "values", "failed", "missing values"),
        (of_both(images(lambda x: np.repeat(x[:1], len(x), axis=0))), "values", "failed", "the loader"),
        (of("validation", images(transpose)), "likeness", "warning", "transposed"),
        (of("validation", images(lambda x: x[:, ::-1])), "likeness", "warning", "turned by 180 degrees"),
        (of("validation", images(lambda x: 1 - x)), "likeness", "warning", "inverted"),
        (of("validation", images(lambda x: x / 4)), "likeness", "warning", "scaled in another way"),
        (of("train", shuffle), "labels", "warning", "shuffled or shifted against the images"),
        (of("validation", shuffle), "labels", "warning", "validation labels"),
        (leak(0.0), "duplicates", "warning", "how the parts were split"),
        (leak(0.01), "near duplicates", "warning", "how the parts were split"),
    ],
)
def test_a_fault_is_found_and_its_cause_is_named(
    digits: SelectionData, change: Change, check: str, verdict: str, words: str
) -> None:
    with np.errstate(invalid="ignore"):
        finding = findings(change(digits))[check]
    assert finding.verdict.value == verdict
    assert words in finding.look_at[0]


def test_sorted_images_are_no_fault_if_each_epoch_is_shuffled(digits: SelectionData) -> None:
    data = replace(digits, train=sort_by_class(digits.train))
    assert findings(data)["order"].fix == "shuffle = true  # in [training]"
    assert findings(data, study(training={"shuffle": True}))["order"].verdict is Verdict.PASSED
    searched = study(search={"shuffle": [True, False]})
    assert findings(data, searched)["order"].fix == "shuffle = [true]  # in [search]"


def test_a_class_that_the_first_images_lack_is_blamed_on_their_number(digits: SelectionData) -> None:
    data = of("train", without_class(3))(digits)
    finding = findings(data, study(data={"train_samples": 900}))["classes"]
    assert finding.look_at[0].startswith("data.train_samples: the first 900 images lack the class")
    assert finding.fix == "train_samples = 1280  # in [data]"


def test_a_class_that_few_training_images_lack_by_accident_is_only_warned_about(digits: SelectionData) -> None:
    few = replace(digits, train=Split(images=digits.train.images[:8], labels=digits.train.labels[:8]))
    (balance, _) = check_classes(few, study())
    assert balance.verdict is Verdict.WARNING
    assert balance.found.startswith("no training image of class 8, 9")


def test_very_unequal_classes_are_warned_about(digits: SelectionData) -> None:
    def rarely_1(part: Split) -> Split:
        kept = np.flatnonzero((part.labels != 1) | (np.arange(len(part)) < len(part) / 20))
        return Split(images=part.images[kept], labels=part.labels[kept])

    (balance, _) = check_classes(of_both(rarely_1)(digits), study())
    assert balance.verdict is Verdict.WARNING
    assert "the largest class" in balance.look_at[0]


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_duplicates_are_counted_and_shown(digits: SelectionData, noise: float) -> None:
    data = leak(noise)(digits)
    finding = findings(data)["near duplicates" if noise else "duplicates"]
    half = len(digits.validation) // 2
    assert finding.numbers["pairs"] == half
    assert len(finding.pictures) == 3
    first, *rows = finding.pictures[0].splitlines()
    assert first.startswith("training image 0 (class ")
    assert "and validation image 0 (class " in first
    assert len(rows) == 14
    assert any(character in "".join(rows) for character in "#%@")


def test_pairs_with_another_label_are_counted(digits: SelectionData) -> None:
    data = leak(0.0)(digits)
    data = replace(data, train=replace(data.train, labels=(data.train.labels + 1) % 10))
    finding = exact_duplicates(data)
    assert f"{finding.numbers['pairs']} of them with another label" in finding.found


def test_near_duplicates_stop_in_time(digits: SelectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.checks.duplicates._BLOCK", 16)
    numbers: Any = near_duplicates(digits, deadline=0.0).numbers
    assert numbers["looked_at"] == 16


def test_levels_give_the_same_findings_as_floats(digits: SelectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where training images are compared in several blocks."""
    levels = of_both(lambda part: replace(part, images=np.rint(part.images * 255).astype(np.uint8)))(leak(0.0)(digits))
    found = findings(levels)
    monkeypatch.setattr("hpsearch.checks.duplicates._KNOWN_BLOCK", 100)
    assert findings(of_both(lambda part: replace(part, images=part.floats()))(levels)) == found
    assert found["duplicates"].numbers["pairs"] == len(digits.validation) // 2


def test_near_duplicates_are_found_in_every_block(digits: SelectionData, monkeypatch: pytest.MonkeyPatch) -> None:
    data = leak(0.01)(digits)
    whole = near_duplicates(data, deadline=NEVER)
    monkeypatch.setattr("hpsearch.checks.duplicates._KNOWN_BLOCK", 50)
    assert near_duplicates(data, deadline=NEVER) == whole


def test_images_in_colour_are_shown_in_grey_with_the_names_of_their_classes(digits: SelectionData) -> None:
    """Images of a number of bytes that is no multiple of four, too."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 3 * 5 * 3), dtype=np.uint8)
    data = SelectionData(
        name="colour",
        train=Split(images=images, labels=np.arange(12) % 2),
        validation=Split(images=images[4:8].copy(), labels=np.arange(4) % 2),
        example_shape=(3, 5, 3),
        num_classes=2,
        checksums={},
        class_names=("cat", "dog"),
    )
    finding = exact_duplicates(data)
    assert finding.numbers["pairs"] == 4
    first, *rows = finding.pictures[0].splitlines()
    assert first == "training image 4 (class cat) and validation image 0 (class cat)"
    assert len(rows) == 5
    lacking = replace(data, train=replace(data.train, labels=np.zeros(12, dtype=np.int64)))
    (balance, _) = check_classes(lacking, study())
    assert balance.found == "no training image of class dog"
