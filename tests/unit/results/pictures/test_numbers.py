"""The numbers behind the pictures, on arrays made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from hpsearch.data.splits import Split
from hpsearch.results.pictures.judgement import Judgement
from hpsearch.results.pictures.kept_filters import KeptFilters, roughness_of
from hpsearch.results.report.notebook_figures import confusion_figure, wrong_images_figure

ROWS, COLUMNS = np.mgrid[:28, :28]


def test_noise_is_rough_and_a_slope_is_smooth() -> None:
    noise = np.random.default_rng(0).normal(size=(200, 28, 28))
    assert roughness_of(noise).mean() == pytest.approx(1.0, abs=0.01)
    assert roughness_of(np.sin(ROWS / 9) * np.cos(COLUMNS / 9)) < 0.05
    assert roughness_of((-1.0) ** (ROWS + COLUMNS)) == pytest.approx(2.0, abs=0.01)
    assert np.isnan(roughness_of(np.ones((28, 28))))


@given(
    scale=st.floats(0.01, 100.0),
    shift=st.floats(-5.0, 5.0),
    shape=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    seed=st.integers(0, 99),
)
def test_roughness_depends_neither_on_scale_nor_on_mean_nor_on_sign(
    scale: float, shift: float, shape: tuple[int, int], seed: int
) -> None:
    filters = np.random.default_rng(seed).normal(size=(3, *shape))
    expected = roughness_of(filters)
    assert roughness_of(shift - scale * filters) == pytest.approx(expected, rel=1e-6)
    assert expected.shape == (3,)


def test_a_moments_roughness_is_that_of_its_filters_which_are_not_constant() -> None:
    noise = np.random.default_rng(0).normal(size=(28, 28))
    weights = np.stack([np.stack([noise, np.zeros((28, 28))]), np.zeros((2, 28, 28))]).astype(np.float32)
    units, relative = np.arange(2, dtype=np.int32), weights.astype(np.int8)
    filters = KeptFilters(trial=0, epochs=(1, 2), units=units, weights=weights, relative=relative)
    assert filters.roughness[0] == pytest.approx(roughness_of(noise), rel=1e-5)
    assert np.isnan(filters.roughness[1])
    assert filters.caption(0) == ("epoch 1", f"roughness {filters.roughness[0]:.2f}")
    assert filters.caption(1) == ("epoch 2", "roughness -")


@given(seed=st.integers(0, 999), number=st.integers(1, 60), num_classes=st.integers(2, 10))
def test_a_confusion_matrix_counts_every_image_once_and_wrong_images_are_wrong(
    seed: int, number: int, num_classes: int
) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.random((number, num_classes))
    labels = generator.integers(0, num_classes, number)
    images = generator.random((number, 3, 4), dtype=np.float32)
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    part = Split(images=images.reshape(number, -1), labels=labels)
    judgement = Judgement(trial=0, part=part, example_shape=(3, 4), probabilities=probabilities)
    confusion = judgement.confusion
    assert confusion.shape == (num_classes, num_classes)
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=num_classes))
    num_wrong = number - int(np.trace(confusion))
    wrong = judgement.most_wrong(number)
    assert len(wrong) == num_wrong
    assert (wrong.labels != wrong.predicted).all()
    assert (np.diff(wrong.probabilities) <= 0).all()
    np.testing.assert_array_equal(wrong.labels, labels[wrong.indexes])
    np.testing.assert_array_equal(wrong.images, images[wrong.indexes])
    np.testing.assert_array_equal(wrong.probabilities, probabilities[wrong.indexes, wrong.predicted])
    assert list(judgement.most_wrong(1).indexes) == list(wrong.indexes[:1])
    for label, error in enumerate(judgement.class_errors):
        its = labels == label
        assert (error is None) == (not its.any())
        assert error is None or error == pytest.approx(np.mean(judgement.predicted[its] != label))
    expected = f1_score(labels, judgement.predicted, average="macro", zero_division=0)
    assert judgement.macro_f1 == pytest.approx(expected, rel=1e-12)
    for place, (what, probability) in enumerate(wrong.captions):
        assert what == f"{wrong.labels[place]}, taken for {wrong.predicted[place]}"
        assert probability == f"{100 * wrong.probabilities[place]:.1f} %"


def test_wrong_images_in_colour_have_their_channels_last_and_classes_their_names() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    part = Split(images=levels.reshape(2, -1), labels=np.array([0, 1]))
    names = ("cat", "dog")
    judgement = Judgement(
        trial=0,
        part=part,
        example_shape=(3, 4, 5),
        probabilities=np.array([[0.1, 0.9], [0.2, 0.8]]),
        class_names=names,
    )
    wrong = judgement.most_wrong(5)
    np.testing.assert_array_equal(wrong.images, levels[:1].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(255))
    assert (wrong.name_of(wrong.labels[0]), wrong.name_of(wrong.predicted[0])) == names
    assert tuple(confusion_figure(judgement).data[0].x) == tuple(confusion_figure(judgement).data[0].y) == names
    assert wrong_images_figure(wrong).layout.annotations[0].text == "cat, taken for dog<br>90.0 %"
