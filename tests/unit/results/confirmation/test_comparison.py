"""The comparison of configurations: its level under equal ones, its power, its intervals, and the rule."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from hpsearch.results.confirmation import comparison
from hpsearch.results.confirmation.compared import Comparison, Difference, MeanError, simplest_of
from hpsearch.results.confirmation.comparison import compare, compare_losses, compare_values
from hpsearch.results.confirmation.critical_values import critical_values

ERROR = 0.02
Bits = NDArray[np.bool_]


def simulated(
    generator: np.random.Generator,
    *,
    configurations: int,
    seeds: int,
    images: int,
    seed_deviation: float = 0.001,
    own_images: float = 0.0,
    last_is_worse_by: float = 0.0,
) -> Bits:
    """Right and wrong answers at an error of 2 %: most images are always right, few are hard.

    Args:
        seed_deviation: of the error, from seed to seed.
        own_images: share of images whose difficulty is each configuration's own, equally hard on average.
    """

    def difficulties() -> NDArray[np.float64]:
        return generator.beta(0.08, 0.08 * (1 - ERROR) / ERROR, images)

    common = difficulties()
    correct = np.empty((configurations, seeds, images), dtype=bool)
    for configuration in range(configurations):
        own = np.where(generator.random(images) < own_images, difficulties(), common) if own_images else common
        factors = 1 + seed_deviation / ERROR * generator.standard_normal(seeds)
        if configuration == configurations - 1:
            factors += last_is_worse_by / ERROR
        correct[configuration] = generator.random((seeds, images)) >= own * factors[:, None]
    return correct


def share_with_a_difference(cases: int, judge: Callable[[Bits], bool], seed: int, **layout: float) -> float:
    generator = np.random.default_rng(seed)
    return sum(judge(simulated(generator, **layout)) for _ in range(cases)) / cases  # type: ignore[arg-type]


def any_difference(correct: Bits) -> bool:
    return any(difference.is_significant for row in compare(correct).differences for difference in row)


def any_difference_to(critical: float, *, only_seeds: bool = False) -> Callable[[Bits], bool]:
    """What one would do without the corrections: pairs, each by itself, against a fixed value."""

    def judge(correct: Bits) -> bool:
        layout = comparison._CrossedLayout.of(~correct)
        source = layout.of_seeds if only_seeds else layout.covariance
        variances = np.diag(source)[:, None] + np.diag(source)[None, :] - 2 * source
        differences = np.abs(layout.means[:, None] - layout.means[None, :])
        return bool((differences > critical * np.sqrt(np.maximum(variances, 0)) + 1e-12).any())

    return judge


REGIMES = {
    "seeds": {"seed_deviation": 0.003},
    "images": {"seed_deviation": 0.0, "own_images": 1.0},
    "both": {"seed_deviation": 0.001, "own_images": 0.3},
}


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("configurations", "seeds"), [(2, 3), (2, 10), (5, 5), (10, 3)])
def test_equal_configurations_are_told_apart_in_at_most_five_percent(
    regime: str, configurations: int, seeds: int
) -> None:
    layout = {"configurations": configurations, "seeds": seeds, "images": 1000, **REGIMES[regime]}
    assert share_with_a_difference(200, any_difference, seed=seeds, **layout) <= 0.05


def test_without_a_correction_for_many_pairs_equal_configurations_would_be_told_apart() -> None:
    layout = {"configurations": 5, "seeds": 10, "images": 1000, **REGIMES["seeds"]}
    assert share_with_a_difference(200, any_difference_to(1.96), seed=1, **layout) > 0.2
    assert share_with_a_difference(200, any_difference, seed=1, **layout) <= 0.05


def test_without_the_images_variation_equal_configurations_would_be_told_apart() -> None:
    """Fresh seeds alone know nothing of other images."""
    layout = {"configurations": 2, "seeds": 10, "images": 1000, **REGIMES["images"]}
    t = critical_values(2, 10).seeds
    assert share_with_a_difference(200, any_difference_to(t, only_seeds=True), seed=1, **layout) > 0.15
    assert share_with_a_difference(200, any_difference, seed=1, **layout) <= 0.05


def test_without_t_for_few_seeds_equal_configurations_would_be_told_apart() -> None:
    layout = {"configurations": 2, "seeds": 3, "images": 1000, **REGIMES["seeds"]}
    assert share_with_a_difference(200, any_difference_to(1.96, only_seeds=True), seed=1, **layout) > 0.1
    assert share_with_a_difference(200, any_difference, seed=1, **layout) <= 0.05


def test_a_truly_worse_configuration_is_mostly_told_apart() -> None:
    """0.3 % worse at an error of 2 %, ten seeds, MNIST's 10,000 validation images, five configurations."""
    generator = np.random.default_rng(5)
    told = 0
    for _ in range(40):
        correct = simulated(generator, configurations=5, seeds=10, images=10_000, last_is_worse_by=0.003)
        told += 4 not in compare(correct).tied
    assert told >= 32


def test_the_winners_error_is_corrected_for_having_been_picked() -> None:
    """Of equal configurations the lowest looks better than it is; corrected, it does not."""
    generator = np.random.default_rng(7)
    picked, corrected = [], []
    for _ in range(150):
        found = compare(simulated(generator, configurations=10, seeds=5, images=2000, seed_deviation=0.002))
        picked.append(found.means[found.winner].mean)
        corrected.append(found.corrected_error)
        assert found.corrected_error >= found.means[found.winner].mean
    assert np.mean(picked) < ERROR - 0.001
    assert abs(np.mean(corrected) - ERROR) < 0.4 * (ERROR - np.mean(picked))


def test_a_clear_winner_needs_no_correction() -> None:
    generator = np.random.default_rng(8)
    found = compare(
        simulated(generator, configurations=2, seeds=10, images=10_000, seed_deviation=0.0, last_is_worse_by=0.02)
    )
    assert found.winner == 0
    assert found.tied == (0,)
    assert found.corrected_error == pytest.approx(found.means[0].mean, abs=1e-6)


def test_intervals_of_means_hold_the_true_error() -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(200):
        low, high = compare(simulated(generator, configurations=1, seeds=5, images=2000)).means[0].interval
        held += low <= ERROR <= high
    assert held >= 0.93 * 200


def test_means_deviations_and_differences_are_those_of_the_errors() -> None:
    correct = np.array([[[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 0, 0, 0], [1, 1, 0, 0]]], dtype=bool)
    found = compare(correct)
    assert [mean.mean for mean in found.means] == [0.375, 0.625]
    assert found.means[0].deviation == pytest.approx(np.std([0.5, 0.25], ddof=1))
    assert found.winner == 0
    assert [difference.value for difference in found.from_winner] == [0.0, 0.25]
    assert found.differences[0][1].value == -0.25
    assert (found.num_seeds, found.num_images) == (2, 4)
    assert found.seeds_matter
    assert not found.from_winner[1].is_significant


def test_the_crossed_layout_has_the_variances_of_its_three_sources() -> None:
    """Against their definition, term by term."""
    generator = np.random.default_rng(3)
    wrong = generator.random((2, 4, 50)) < 0.3
    layout = comparison._CrossedLayout.of(wrong)
    x = wrong[0].astype(float) - wrong[1]
    by_seed, by_image = x.mean(axis=1), x.mean(axis=0)
    rest = x - by_seed[:, None] - by_image[None, :] + x.mean()

    def of_difference(covariance: NDArray[np.float64]) -> float:
        return float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])

    assert of_difference(layout.of_seeds) == pytest.approx(by_seed.var(ddof=1) / 4)
    assert of_difference(layout.of_images) == pytest.approx(by_image.var(ddof=1) / 50)
    assert of_difference(layout.of_rest) == pytest.approx((rest**2).sum() / (3 * 49) / (4 * 50))


def test_the_very_same_answers_are_tied_and_nothing_is_corrected() -> None:
    answers = np.random.default_rng(1).random((1, 3, 200)) > 0.1
    found = compare(np.repeat(answers, 3, axis=0))
    assert found.winner == 0
    assert found.tied == (0, 1, 2)
    assert all(difference == Difference(value=0.0, interval=(0.0, 0.0)) for difference in found.from_winner)
    assert found.corrected_error == pytest.approx(found.means[0].mean, abs=1e-9)


def test_seeds_that_make_no_difference_leave_the_images_variation() -> None:
    """A softmax layer starts at zero, whatever the seed: ten seeds are then one model."""
    answers = np.random.default_rng(1).random((2, 1, 1000)) > [[[0.1]], [[0.3]]]
    found = compare(np.repeat(answers, 10, axis=1))
    alone = compare(answers)
    assert not found.seeds_matter
    assert found.means[0].deviation == 0.0
    assert found.means[0].interval == pytest.approx(alone.means[0].interval)
    assert found.tied == (0,)


def test_with_one_seed_the_images_alone_count_and_there_is_no_deviation() -> None:
    found = compare(np.random.default_rng(1).random((2, 1, 1000)) > [[[0.1]], [[0.3]]])
    assert found.means[0].deviation is None
    low, high = found.means[0].interval
    p = found.means[0].mean
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 999), rel=0.01)


def test_one_configuration_is_compared_with_nothing() -> None:
    found = compare(np.random.default_rng(1).random((1, 3, 100)) > 0.1)
    assert found.tied == (0,)
    assert found.corrected_error == pytest.approx(found.means[0].mean)


def test_the_same_answers_give_the_same_numbers() -> None:
    correct = simulated(np.random.default_rng(2), configurations=4, seeds=4, images=500)
    first = compare(correct)
    critical_values.cache_clear()
    assert compare(correct) == first


@pytest.mark.parametrize("shape", [(3, 4), (0, 2, 10), (2, 0, 10), (2, 2, 0)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \[configurations, seeds, images\]"):
        compare(np.ones(shape, dtype=bool))


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_single_image_says_nothing_about_others_and_all_are_tied(seeds: int) -> None:
    losses = np.array([[[0.1]], [[0.4]]], dtype=np.float32) + np.linspace(0, 0.01, seeds)[None, :, None]
    found = compare_losses(losses)
    assert found.tied == (0, 1)
    assert [mean.interval for mean in found.means] == [None, None]
    assert found.from_winner[1].value == pytest.approx(0.3)
    assert found.corrected_error == pytest.approx(found.means[0].mean)
    assert found.winner == 0


@pytest.mark.parametrize(
    ("configurations", "seeds", "expected"),
    [
        # Student's t, from tables: 5 % for a mean, 4 % for the difference of two.
        (1, 10, (2.262, 1.960)),
        (1, 1, (0.0, 1.960)),
        (2, 5, (2.999, 2.054)),
    ],
)
def test_critical_values_are_those_of_the_tables(
    configurations: int, seeds: int, expected: tuple[float, float]
) -> None:
    found = critical_values(configurations, seeds)
    assert (found.seeds, found.images) == pytest.approx(expected, rel=0.008)


def test_of_groups_they_are_students_and_bonferronis() -> None:
    assert critical_values(1, 4, 5).images == pytest.approx(2.7764, rel=1e-4)
    assert critical_values(2, 4, 3).images == pytest.approx(4.8487, rel=1e-4)  # 4 %
    assert critical_values(5, 1, 10_000).images == pytest.approx(2.878, rel=1e-3)  # 0.4 %
    assert critical_values(5, 4, 8).seeds == critical_values(5, 4).seeds


def test_critical_values_grow_with_pairs_and_shrink_with_seeds() -> None:
    assert critical_values(10, 5).seeds > critical_values(5, 5).seeds > critical_values(5, 10).seeds
    # With many seeds, what is left is Tukey's range.
    assert critical_values(5, 200).seeds == pytest.approx(critical_values(5, 200).images, rel=0.03)


def test_one_restless_configuration_does_not_blur_the_others() -> None:
    """Seeds that move one configuration by 2 % leave the differences of the others as sharp as they are."""
    generator = np.random.default_rng(11)
    calm = simulated(generator, configurations=4, seeds=10, images=10_000, last_is_worse_by=0.004)
    restless = simulated(generator, configurations=1, seeds=10, images=10_000, seed_deviation=0.02)
    found = compare(np.concatenate([restless, calm]))
    of_calm, of_restless = found.differences[1][2].interval, found.differences[0][1].interval
    assert found.differences[4][2].is_significant
    assert of_restless[1] - of_restless[0] > 4 * (of_calm[1] - of_calm[0])


def answers_at(errors: NDArray[np.float64], images: int) -> Bits:
    """Exactly these errors, [configurations, seeds], each with the same images as those below it: only seeds differ."""
    return np.arange(images) >= errors[:, :, None] * images


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize("configurations", [3, 5, 10])
def test_one_restless_configuration_is_told_apart_in_at_most_five_percent(configurations: int, seeds: int) -> None:
    """Seeds move one of equal configurations a thousandfold as much as the others: its pairs get no help from these."""
    generator = np.random.default_rng(13)
    told = 0
    for _ in range(400):
        errors = 0.3 + 0.0001 * generator.standard_normal((configurations, seeds))
        errors[0] = 0.3 + 0.1 * generator.standard_normal(seeds)
        told += any_difference(answers_at(errors, 1000))
    assert told <= 0.05 * 400


def test_no_error_at_all_is_no_proof_of_perfection() -> None:
    """Wilson's interval: with 256 images and no error up to 1.5 % are likely enough."""
    for seeds in (1, 5):
        perfect, hopeless = compare(np.array([[[True] * 256] * seeds, [[False] * 256] * seeds])).means
        assert perfect.interval == pytest.approx((0.0, 0.01478), abs=1e-4)
        assert hopeless.interval == pytest.approx((1 - 0.01478, 1.0), abs=1e-4)


@pytest.mark.parametrize("seeds", [1, 10])
def test_intervals_of_means_hold_the_true_error_with_few_images_too(seeds: int) -> None:
    """256 images of which 5 are wrong: symmetric intervals held it in 88 % of cases."""
    generator = np.random.default_rng(14)
    held = 0
    for _ in range(400):
        answers = np.repeat(generator.random((1, 1, 256)) >= ERROR, seeds, axis=1)
        low, high = compare(answers).means[0].interval
        held += low <= ERROR <= high
    assert held >= 0.94 * 400


def tied_at(means: list[float], tied: list[int]) -> Comparison:
    """A comparison by hand: the given ones are not told apart from the first."""
    near, far = Difference(value=0.001, interval=(-0.001, 0.003)), Difference(value=0.1, interval=(0.05, 0.15))
    return Comparison(
        means=tuple(MeanError(mean=mean, deviation=0.001, interval=(mean, mean)) for mean in means),
        winner=0,
        differences=tuple((near if i in tied else far,) * len(means) for i in range(len(means))),
        corrected_error=means[0],
        num_seeds=3,
        num_images=100,
        seeds_matter=True,
    )


@pytest.mark.parametrize(
    ("tied", "complexities", "picked", "reason"),
    [
        ([0], [9, 1, 1], 0, "no other point is tied with it"),
        ([0, 1], [9, 8, 1], 1, r"fewest trainable parameters \(8\)"),
        ([0, 1, 2], [9, 8, 8], 1, "lowest mean error"),
    ],
)
def test_the_simplest_of_the_tied_is_picked(tied: list[int], complexities: list[int], picked: int, reason: str) -> None:
    index, said = simplest_of(tied_at([0.02, 0.021, 0.022], tied), complexities)
    assert index == picked
    assert re.search(reason, said)


def test_equal_in_all_that_counts_the_first_is_picked() -> None:
    index, said = simplest_of(tied_at([0.02, 0.02], [0, 1]), [5, 5])
    assert index == 0
    assert "it is the first" in said


def test_one_seed_tells_as_much_as_many_that_make_no_difference() -> None:
    one = simulated(np.random.default_rng(3), configurations=3, seeds=1, images=500, own_images=0.02)
    many = compare(np.repeat(one, 6, axis=1))
    alone = compare(one)
    for mean, mean_of_many in zip(alone.means, many.means, strict=True):
        assert mean.mean == pytest.approx(mean_of_many.mean)
        assert mean.interval == pytest.approx(mean_of_many.interval)
    for difference, of_many in zip(alone.from_winner, many.from_winner, strict=True):
        assert difference.interval == pytest.approx(of_many.interval)
    assert alone.corrected_error == pytest.approx(many.corrected_error)


def test_values_alone_are_compared_as_by_a_paired_t_test_over_the_seeds() -> None:
    generator = np.random.default_rng(3)
    losses = generator.standard_normal((2, 8))
    found = compare_values(losses)
    differences = losses[1] - losses[0]
    half = critical_values(2, 8).seeds * differences.std(ddof=1) / np.sqrt(8)
    assert found.differences[1][0].value == pytest.approx(differences.mean())
    assert found.differences[1][0].interval == pytest.approx((differences.mean() - half, differences.mean() + half))


def test_values_alone_have_students_interval_of_a_mean() -> None:
    losses = np.array([[-1.0, -2.0, -4.0, -3.0]])
    interval = compare_values(losses).means[0].interval
    half = 3.182 * losses.std(ddof=1) / 2  # t with 3 degrees of freedom, 97.5 %
    assert interval == pytest.approx((-2.5 - half, -2.5 + half), abs=0.03)


@pytest.mark.parametrize(("configurations", "seeds"), [(2, 5), (5, 10), (10, 3)])
def test_equal_values_are_found_to_differ_in_at_most_5_percent(configurations: int, seeds: int) -> None:
    generator = np.random.default_rng(5)
    cases = [compare_values(generator.standard_normal((configurations, seeds))) for _ in range(400)]
    false = sum(any(each.is_significant for row in case.differences for each in row) for case in cases)
    assert false / 400 <= 0.05 + 0.022  # two standard errors


@pytest.mark.parametrize("losses", [[[1.0], [2.0]], [[1.0, 1.0], [2.0, 2.0]]], ids=["one seed", "no effect"])
def test_values_without_a_variance_have_no_intervals_and_are_tied(losses: list[list[float]]) -> None:
    found = compare_values(np.array(losses))
    assert found.tied == (0, 1)
    assert found.winner == 0
    assert {mean.interval for mean in found.means} == {None}
    assert found.differences[1][0] == Difference(value=1.0, interval=None)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_what_does_not_vary_has_no_interval_whatever_else_does(scale: float) -> None:
    noise = np.random.default_rng(1).standard_normal((2, 6))
    constant_pair = scale * np.array([noise[0], noise[0] + 5])
    found = compare_values(constant_pair)
    assert found.tied == (0, 1)
    assert found.differences[1][0].interval is None
    assert None not in {mean.interval for mean in found.means}
    varying_pair = scale * np.array([noise[0], noise[1] + 15])
    assert compare_values(varying_pair).tied == (0,)
    still = compare_values(scale * np.array([np.full(6, 0.1), 5 + noise[0]]))
    assert still.means[0].interval is None
    assert still.means[1].interval is not None
    assert still.tied == (0,)


def test_of_three_points_the_pair_that_does_not_vary_is_as_uncertain_as_the_others() -> None:
    """A few seeds say little of a single pair: its variance is at least the median of all."""
    noise = np.random.default_rng(1).standard_normal((2, 6))
    found = compare_values(np.array([noise[0], noise[0] + 0.01, noise[1]]))
    assert found.differences[1][0].interval is not None
    assert found.tied == (0, 1, 2)


def test_values_must_have_two_axes() -> None:
    with pytest.raises(ValueError, match=re.escape("at least [1, 1], got [3]")):
        compare_values(np.zeros(3))


def test_of_tied_points_of_unknown_size_the_best_mean_is_picked() -> None:
    found = compare_values(np.array([[2.0, 1.0], [1.0, 1.5]]))
    assert simplest_of(found, [None, None]) == (1, "of the tied points it has the best mean")
