"""Examples in groups: tests and intervals that take rows as independent are wrong there, those of groups are not."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from hpsearch.results.confirmation.comparison import compare, compare_losses
from hpsearch.search.proportions import SIGNIFICANCE_LEVEL, grouped_interval, wilson_interval
from hpsearch.search.significance import discordant, mcnemar_p_value, sign_flip_p_value
from hpsearch.training.evaluation import normal_interval
from hpsearch.training.judge import Judge, judge_of

NUM_GROUPS, NUM_STUDIES = 40, 300
CPU = torch.device("cpu")


def drawn_groups(random: np.random.Generator) -> torch.Tensor:
    """Groups of 5 to 45 rows."""
    return torch.from_numpy(np.repeat(np.arange(NUM_GROUPS), random.integers(5, 46, NUM_GROUPS)))


def equally_good(random: np.random.Generator, groups: torch.Tensor, num_models: int) -> torch.Tensor:
    """Which rows models classify correctly, [models, rows]: each has its own groups in which it is mostly wrong."""
    rates = random.choice([0.02, 0.9], size=(num_models, NUM_GROUPS), p=[0.8, 0.2])
    return torch.from_numpy(random.random((num_models, len(groups))) >= rates[:, groups.numpy()])


def judge_with(groups: torch.Tensor) -> Judge:
    return judge_of("zero-one", torch.zeros(len(groups), dtype=torch.int64), num_classes=2, groups=groups)


def test_a_test_of_rows_finds_differences_that_are_none_and_a_test_of_groups_does_not() -> None:
    random = np.random.default_rng(0)
    found = {"rows": 0, "groups": 0}
    for _ in range(NUM_STUDIES):
        groups = drawn_groups(random)
        correct, judge = equally_good(random, groups, 2), judge_with(groups)
        one, other = (np.packbits(each).tobytes() for each in correct.numpy())
        found["rows"] += mcnemar_p_value(*discordant(one, other)) < SIGNIFICANCE_LEVEL
        sums = judge.record(correct, judge.loss(correct)).numpy().astype(np.float64)
        found["groups"] += sign_flip_p_value(sums[0] - sums[1]) < SIGNIFICANCE_LEVEL
    assert found["rows"] > 0.5 * NUM_STUDIES
    assert found["groups"] < 0.08 * NUM_STUDIES  # 5 %, and two standard errors of this simulation


def test_the_interval_over_groups_holds_the_rate_and_wilsons_over_rows_does_not() -> None:
    random, rate = np.random.default_rng(1), 0.8 * 0.02 + 0.2 * 0.9
    inside = {"rows": 0, "groups": 0}
    for _ in range(NUM_STUDIES):
        groups = drawn_groups(random)
        correct, judge = equally_good(random, groups, 1), judge_with(groups)
        loss = judge.loss(correct)
        units = judge.units(correct, loss)
        variance = float(units.var()) / NUM_GROUPS
        low, high = grouped_interval(float(loss), variance, num_groups=NUM_GROUPS, num_rows=len(groups))
        inside["groups"] += low <= rate <= high
        low, high = wilson_interval(int((~correct).sum()), len(groups))
        inside["rows"] += low <= rate <= high
    assert inside["groups"] > 0.90 * NUM_STUDIES
    assert inside["rows"] < 0.5 * NUM_STUDIES


def test_confirmed_points_that_are_equally_good_differ_by_rows_and_not_by_groups() -> None:
    random, num_studies = np.random.default_rng(2), 100
    found = {"rows": 0, "groups": 0}
    for _ in range(num_studies):
        groups = drawn_groups(random)
        judge = judge_with(groups)
        # Of each point the same groups are hard with every seed.
        rates = random.choice([0.02, 0.9], size=(3, 1, NUM_GROUPS), p=[0.8, 0.2])
        correct = random.random((3, 4, len(groups))) >= rates[:, :, groups.numpy()]
        found["rows"] += any(each.is_significant for each in compare(correct).from_winner)
        flat = torch.from_numpy(correct.reshape(12, -1))
        units = judge.units(flat, judge.loss(flat)).numpy().reshape(3, 4, -1)
        found["groups"] += any(
            each.is_significant for each in compare_losses(units, is_share=True, are_groups=True).from_winner
        )
    assert found["rows"] > 0.5 * num_studies
    assert found["groups"] < 0.11 * num_studies


@pytest.mark.parametrize("metric", ["zero-one", "balanced-error", "nll", "auc"])
def test_sums_and_units_of_groups_have_the_loss_as_their_mean(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels, groups = torch.randint(2, (90,), generator=generator), torch.arange(90) % 7
    judge = judge_of(metric, labels, num_classes=2, groups=groups)
    outputs = torch.randn(3, 90, 2, generator=generator)
    examples = judge.examples(outputs, labels)
    loss = judge.loss(examples)
    record, units = judge.record(examples, loss), judge.units(examples, loss)
    assert record.shape == units.shape == (3, judge.num_recorded) == (3, 7)
    assert record.dtype == judge.record_type == torch.float32
    torch.testing.assert_close(record.double().mean(dim=1), loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(units.mean(dim=1), loss)
    own = judge.parts(examples, loss)[:, groups == 3].sum(dim=1) * 7 / 90
    torch.testing.assert_close(record[:, 3].double(), own, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("is_mixed", [False, True], ids=["groups of one class", "groups of both"])
def test_which_classes_a_group_has_is_no_variance_of_the_balanced_error(is_mixed: bool) -> None:
    """20 of 30 groups are of the frequent class, with 2 % of errors, 10 of the rare one, with 50 %."""
    random, num_cases = np.random.default_rng(6), 300
    inside, widths, losses = 0, [], []
    for _ in range(num_cases):
        groups = np.repeat(np.arange(30), 30)
        labels = groups % 3 == 0 if not is_mixed else random.random(len(groups)) < 1 / 3
        rates = np.clip(np.where(labels, 0.5, 0.02) * random.uniform(0.5, 1.5, 30)[groups], 0, 1)
        judge = judge_of(
            "balanced-error",
            torch.from_numpy(labels.astype(np.int64)),
            num_classes=2,
            groups=torch.from_numpy(groups),
        )
        is_wrong = torch.from_numpy(random.random(len(groups)) < rates).unsqueeze(0)
        examples = is_wrong.double() * judge._weights[judge.labels]  # type: ignore[attr-defined]
        loss = judge.loss(examples)
        units = judge.units(examples, loss)
        torch.testing.assert_close(units.mean(dim=1), loss)
        low, high = normal_interval(units, are_groups=True) or (0.0, 0.0)
        inside += low <= 0.26 <= high
        widths.append((high - low) / 2)
        losses.append(float(loss))
    assert inside > 0.9 * num_cases
    assert np.mean(widths) == pytest.approx(2.045 * np.std(losses), rel=0.15)


def test_a_class_in_a_single_group_widens_the_interval() -> None:
    labels, groups = torch.tensor([0] * 20 + [1] * 5), torch.tensor([0] * 10 + [1] * 10 + [2] * 5)
    judge = judge_of("balanced-error", labels, num_classes=2, groups=groups)
    outputs = torch.randn(1, 25, 2, generator=torch.Generator().manual_seed(0))
    examples = judge.examples(outputs, labels)
    loss = judge.loss(examples)
    torch.testing.assert_close(judge.units(examples, loss), Judge.units(judge, examples, loss))


def test_the_record_of_balanced_errors_keeps_differences_that_have_either_sign_by_chance() -> None:
    """Class-centred sums would hide the one group of a rare class, and find its difference in all others."""
    labels, groups = torch.tensor([0] * 90 + [1] * 10), torch.arange(100) // 10
    judge = judge_of("balanced-error", labels, num_classes=2, groups=groups)
    right = torch.nn.functional.one_hot(labels, 2).float()
    wrong = torch.where((labels == 1).unsqueeze(-1), 1 - right, right)
    examples = judge.examples(torch.stack([right, wrong]), labels)
    record = judge.record(examples, judge.loss(examples)).double().numpy()
    assert sign_flip_p_value(record[1] - record[0]) == 1.0


def test_groups_of_one_row_are_the_rows() -> None:
    labels = torch.randint(2, (50,), generator=torch.Generator().manual_seed(0))
    outputs = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(1))
    alone, grouped = (judge_of("nll", labels, num_classes=2, groups=groups) for groups in (None, torch.arange(50)))
    examples = alone.examples(outputs, labels)
    loss = alone.loss(examples)
    torch.testing.assert_close(alone.record(examples, loss), grouped.record(examples, loss))
    torch.testing.assert_close(alone.units(examples, loss), grouped.units(examples, loss))


def test_a_rate_that_says_less_than_one_image_does_is_still_that_rate() -> None:
    """The variance of a few groups of very different sizes can exceed that of a single image."""
    low, high = grouped_interval(0.5, 0.5, num_groups=3, num_rows=90)
    assert low == pytest.approx(1 - high)
    assert grouped_interval(0.5, 0.5, num_groups=3, num_rows=90) == grouped_interval(
        0.5, 0.25, num_groups=3, num_rows=90
    )


def test_without_an_error_each_group_counts_as_one_example() -> None:
    assert grouped_interval(0.0, 0.0, num_groups=30, num_rows=900) == wilson_interval(0, 30)
    assert grouped_interval(0.1, float("nan"), num_groups=30, num_rows=900) == wilson_interval(3, 30)
    t = scipy.stats.t.ppf(0.975, 29)
    assert grouped_interval(0.1, 1e-9, num_groups=30, num_rows=900) == pytest.approx(
        wilson_interval(90, 900, critical=t)
    )


@pytest.mark.parametrize("num_groups", [3, 5, 8])
def test_intervals_of_few_groups_hold_the_loss(num_groups: int) -> None:
    """With the normal distribution's quantile they hold it in 80, 86 and 90 % of cases."""
    random, num_cases = np.random.default_rng(num_groups), 500
    inside = {"numbers": 0, "as if there were many": 0, "errors": 0}
    for _ in range(num_cases):
        groups = torch.from_numpy(np.repeat(np.arange(num_groups), random.integers(20, 61, num_groups)))
        of_groups, noise = random.normal(3, 1, num_groups), random.normal(size=len(groups))
        losses = torch.from_numpy(of_groups[groups.numpy()] + noise).unsqueeze(0)
        judge = judge_of("nll", torch.zeros(len(groups), dtype=torch.int64), num_classes=2, groups=groups)
        units = judge.units(losses, judge.loss(losses))
        for name, are_groups in (("numbers", True), ("as if there were many", False)):
            low, high = normal_interval(units, are_groups=are_groups) or (0.0, 0.0)
            inside[name] += low <= 3 <= high
        judge, rates = judge_with(groups), random.beta(2, 8, num_groups)
        correct = torch.from_numpy(random.random((1, len(groups))) >= rates[groups.numpy()])
        loss = judge.loss(correct)
        variance = float(judge.units(correct, loss).var()) / num_groups
        low, high = grouped_interval(float(loss), variance, num_groups=num_groups, num_rows=len(groups))
        inside["errors"] += low <= 0.2 <= high
    assert inside["numbers"] > 0.93 * num_cases  # 95 %, less two standard errors of this simulation
    assert inside["errors"] > 0.93 * num_cases
    assert inside["as if there were many"] < 0.93 * num_cases


@pytest.mark.parametrize(("num_points", "num_seeds"), [(2, 1), (5, 1), (5, 4)])
@pytest.mark.parametrize("num_groups", [3, 5, 8])
def test_equally_good_points_are_seldom_told_apart_by_few_groups(
    num_groups: int, num_points: int, num_seeds: int
) -> None:
    random, num_cases = np.random.default_rng(num_groups), 200
    found = {True: 0, False: 0}
    for _ in range(num_cases):
        groups = torch.from_numpy(np.repeat(np.arange(num_groups), random.integers(20, 61, num_groups)))
        judge = judge_with(groups)
        rates = random.beta(2, 8, num_groups) + random.normal(0, 0.08, (num_points, 1, num_groups))
        correct = random.random((num_points, num_seeds, len(groups))) >= rates[:, :, groups.numpy()]
        flat = torch.from_numpy(correct.reshape(num_points * num_seeds, -1))
        units = judge.units(flat, judge.loss(flat)).numpy().reshape(num_points, num_seeds, -1)
        for are_groups in found:
            compared = compare_losses(units, is_share=True, are_groups=are_groups)
            found[are_groups] += any(each.is_significant for row in compared.differences for each in row)
    assert found[True] <= 0.08 * num_cases  # 5 %, and two standard errors of this simulation
    assert found[True] < found[False]


def test_a_difference_that_is_the_same_in_all_groups_is_a_tie() -> None:
    """Three groups of five rows, one more of which is wrong in each: that can well be chance."""
    losses = np.array([[[0.2, 0.4, 0.2]], [[0.4, 0.6, 0.4]]], dtype=np.float32)
    found = compare_losses(losses, is_share=True, are_groups=True)
    assert found.differences[1][0].interval is None
    assert found.tied == (0, 1)
    assert compare_losses(losses, is_share=True).tied == (0,)


def test_a_rate_that_is_the_same_in_all_groups_counts_each_as_one_example() -> None:
    found = compare_losses(np.full((1, 1, 5), 0.2, dtype=np.float32), is_share=True, are_groups=True)
    assert found.means[0].interval == pytest.approx(wilson_interval(1, 5), abs=0.005)
