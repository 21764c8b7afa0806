"""Our stopping rules as pruners of plain Optuna studies: they end a trial where the rules do."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.pruners import BasePruner
from optuna.trial import TrialState

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import InputError
from hpsearch.search.pruners import (
    GeometricPatiencePruner,
    NoImprovementPruner,
    SignificancePatiencePruner,
    report_correctness,
)
from hpsearch.search.significance import gain_p_value
from hpsearch.search.stopping import GeometricPatience, NoImprovementInN, StoppingRule

losses_of_trials = st.lists(st.integers(0, 50).map(lambda i: i / 50), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def last_step(pruner: BasePruner, values: dict[int, float], *, study: optuna.Study | None = None) -> int | None:
    """Where a plain objective is told to stop; None: it may take all its steps."""
    study = study or optuna.create_study(pruner=pruner)
    stopped: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        for step, value in values.items():
            trial.report(value, step)
            if trial.should_prune():
                stopped.append(step)
                raise optuna.TrialPruned
        return min(values.values())

    study.optimize(objective, n_trials=1)
    assert study.trials[-1].state is (TrialState.PRUNED if stopped else TrialState.COMPLETE)
    return stopped[0] if stopped else None


def rules_last_step(rule: StoppingRule, values: dict[int, float]) -> int | None:
    for step, value in values.items():
        validation = Validation(iteration=step, loss=value, nll=0.0)
        report = EpochReport(epoch=1, validations=(validation,), train_nll=0.0, learning_rate=0.1, seconds=0.0)
        if rule.observe(report) is not None:
            return step
    return None


def numbered(losses: list[float]) -> dict[int, float]:
    return dict(enumerate(losses, start=1))


@settings(max_examples=60, deadline=None)
@given(
    losses=losses_of_trials,
    patience=st.integers(1, 12),
    increase=st.sampled_from([1.0, 1.5, 2.0]),
    threshold=st.sampled_from([0.9, 0.995, 1.0]),
)
def test_geometric_patience_prunes_where_dlt_stops(
    losses: list[float], patience: int, increase: float, threshold: float
) -> None:
    """DLT's loop with a validation at every step, transcribed."""
    expected, best, left = None, math.inf, float(patience)
    for iter, loss in enumerate(losses):
        if loss < best:
            if loss < best * threshold:
                left = max(left, iter * increase)
            best = loss
        if left <= iter:
            expected = iter + 1
            break
    pruner = GeometricPatiencePruner(patience=patience, increase=increase, threshold=threshold)
    assert last_step(pruner, numbered(losses)) == expected


@settings(max_examples=40, deadline=None)
@given(losses=losses_of_trials, n=st.integers(1, 5))
def test_no_improvement_prunes_where_the_rule_stops(losses: list[float], n: int) -> None:
    assert last_step(NoImprovementPruner(n), numbered(losses)) == rules_last_step(
        NoImprovementInN(n=n), numbered(losses)
    )


def test_steps_may_be_any_as_long_as_they_count_what_was_spent() -> None:
    """Epochs of 2500 minibatches, reported as minibatches: DLT would stop at the 10,001st."""
    values = {2500 * epoch: 0.1 for epoch in range(1, 10)}
    rule = GeometricPatience(patience=10_000.0, increase=2.0, threshold=0.995, validations_every=1)
    stopped = last_step(GeometricPatiencePruner(patience=10_000), values)
    assert stopped == rules_last_step(rule, values) == 12_500


def test_who_goes_on_all_the_same_is_told_again() -> None:
    study = optuna.create_study(pruner=NoImprovementPruner(1))
    trial = study.ask()
    answers = []
    for step, value in numbered([0.5, 0.6, 0.4, 0.3]).items():
        trial.report(value, step)
        answers.append(trial.should_prune())
    assert answers == [False, True, True, True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_ends_the_trial(value: float) -> None:
    assert last_step(GeometricPatiencePruner(patience=100), {1: 0.5, 2: value}) == 2


PRUNERS: list[Callable[[], BasePruner]] = [
    lambda: GeometricPatiencePruner(patience=5),
    lambda: NoImprovementPruner(2),
    lambda: SignificancePatiencePruner(patience=5),
]


@pytest.mark.parametrize("build", PRUNERS)
def test_a_study_that_maximises_is_refused(build: Callable[[], BasePruner]) -> None:
    study = optuna.create_study(study_name="accuracy", direction="maximize", pruner=build())
    trial = study.ask()
    trial.report(0.5, 1)
    with pytest.raises(InputError, match="the study accuracy maximises") as caught:
        trial.should_prune()
    assert caught.value.hint is not None


@pytest.mark.parametrize("build", PRUNERS)
def test_steps_may_be_counted_from_0(build: Callable[[], BasePruner]) -> None:
    ends = []
    for first in (0, 1):
        trial = optuna.create_study(pruner=build()).ask()
        for taken in range(100):
            report_correctness(trial, first + taken, np.arange(100) < 50 + (taken == 1))
            trial.report(0.5 - 0.01 * (taken == 1), first + taken)
            if trial.should_prune():
                break
        ends.append(taken)
    assert ends[0] == ends[1] < 99


@pytest.mark.parametrize("build", PRUNERS)
def test_before_the_first_report_nothing_is_pruned(build: Callable[[], BasePruner]) -> None:
    assert not optuna.create_study(pruner=build()).ask().should_prune()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GeometricPatiencePruner(patience=0), "patience must be more than 0, got 0"),
        (lambda: GeometricPatiencePruner(patience=5, increase=0.5), "increase must be at least 1, got 0.5"),
        (lambda: GeometricPatiencePruner(patience=5, threshold=0.0), r"threshold must be in \(0, 1\], got 0.0"),
        (lambda: NoImprovementPruner(0), "n must be at least 1, got 0"),
        (lambda: SignificancePatiencePruner(patience=0), "patience must be more than 0"),
        (lambda: SignificancePatiencePruner(patience=5, increase=0.5), "increase must be at least 1"),
        (lambda: SignificancePatiencePruner(patience=5, level=1.0), r"level must be in \(0, 1\), got 1.0"),
    ],
)
def test_impossible_numbers_are_refused(build: Callable[[], BasePruner], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


# Significance


def correct(num_right: int, *, first: int = 0, num_images: int = 100) -> np.ndarray:
    """Right on so many neighbouring images from the first on, around the end."""
    return np.isin(np.arange(num_images), (np.arange(num_right) + first) % num_images)


def significance_steps(curve: list[np.ndarray], pruner: BasePruner) -> tuple[list[bool], optuna.trial.FrozenTrial]:
    """What is said at each step, and the trial."""
    study = optuna.create_study(pruner=pruner)
    trial = study.ask()
    answers = []
    for step, right in enumerate(curve, start=1):
        trial.report(1 - right.mean(), step)
        report_correctness(trial, step, right)
        answers.append(trial.should_prune())
    return answers, study.trials[0]


@settings(max_examples=40, deadline=None)
@given(
    curve=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=15),
    patience=st.integers(1, 6),
    level=st.sampled_from([0.5, 0.05]),
)
def test_patience_grows_with_significant_new_bests_only(
    curve: list[tuple[int, int]], patience: int, level: float
) -> None:
    images = [correct(right, first=first, num_images=30) for right, first in curve]
    expected, reference, fewest, left = [], None, math.inf, float(patience)
    for iter, right in enumerate(images):
        wrong = int((~right).sum())
        if wrong < fewest:
            fewest = wrong
            gained = lost = 0
            if reference is not None:
                gained, lost = int((right & ~reference).sum()), int((reference & ~right).sum())
            if reference is None or gain_p_value(gained, lost) <= level:
                left, reference = max(left, iter * 2.0), right
        expected.append(left <= iter or (bool(expected) and expected[-1]))
        if expected[-1]:
            break
    answers, _ = significance_steps(
        images[: len(expected)], SignificancePatiencePruner(patience=patience, increase=2.0, level=level)
    )
    assert answers == expected


def test_only_new_bests_are_stored() -> None:
    curve = [correct(50), correct(40), correct(50, first=20), correct(60), correct(59), correct(70)]
    _, trial = significance_steps(curve, SignificancePatiencePruner(patience=100))
    assert {name for name in trial.user_attrs if name.startswith("correct:")} == {"correct:1", "correct:4", "correct:6"}
    assert trial.user_attrs["correct_images"] == 100
    assert sum(len(str(value)) for value in trial.user_attrs.values()) < 100


def test_a_step_that_is_told_again_changes_nothing() -> None:
    trial = optuna.create_study().ask()
    report_correctness(trial, 1, correct(50))
    before = dict(trial.user_attrs)
    report_correctness(trial, 1, correct(60))
    assert trial.user_attrs == before


def test_reports_without_correctness_are_refused() -> None:
    trial = optuna.create_study(pruner=SignificancePatiencePruner(patience=5)).ask()
    trial.report(0.5, 3)
    with pytest.raises(InputError, match="trial 0 has reported step 3 without its correct images") as caught:
        trial.should_prune()
    assert "report_correctness" in str(caught.value.hint)


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.ones(0)])
def test_correctness_is_one_truth_value_per_image(wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match="one truth value per image"):
        report_correctness(optuna.create_study().ask(), 1, wrong)


def test_another_number_of_images_is_refused() -> None:
    trial = optuna.create_study().ask()
    report_correctness(trial, 1, correct(5))
    with pytest.raises(InputError, match="correct has 7 images at step 2, and had 100 before"):
        report_correctness(trial, 2, np.ones(7))


def test_a_frozen_or_fixed_trial_takes_it_too() -> None:
    """So that an objective can be called outside of a study."""
    fixed = optuna.trial.FixedTrial({"x": 1.0})
    report_correctness(fixed, 1, correct(5))
    assert "correct:1" in fixed.user_attrs
    frozen = optuna.trial.create_trial(value=0.0, params={"x": 0.5}, distributions={"x": FloatDistribution(0, 1)})
    report_correctness(frozen, 1, correct(5))
    assert "correct:1" in frozen.user_attrs
