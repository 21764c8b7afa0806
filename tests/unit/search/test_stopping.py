"""The stopping rules, held against literal transcriptions of their sources."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.search.significance import gain_p_value
from hpsearch.search.stopping import (
    GeometricPatience,
    NeverStops,
    NoImprovementInN,
    SignificancePatience,
    StopDecision,
    StoppingRule,
    StopReason,
    decide,
    rule_from_state,
    stopping_rule,
    validation_interval,
)
from hpsearch.study.settings import StoppingSettings


def make_report(epoch: int, *losses: float, **changes: object) -> EpochReport:
    """An epoch of len(losses) minibatches, each validated."""
    first = (epoch - 1) * len(losses) + 1
    return report_of(epoch, [(first + i, loss) for i, loss in enumerate(losses)], **changes)


def report_of(epoch: int, points: list[tuple[int, float]], **changes: object) -> EpochReport:
    """An epoch with the validations (iteration, zero-one loss); the NLL always falls, to tempt tie-breaks."""
    fields = {
        "epoch": epoch,
        "validations": tuple(Validation(iteration=t, loss=loss, nll=1 / (1 + t)) for t, loss in points),
        "train_nll": 0.5,
        "learning_rate": 0.1,
        "seconds": 1.0,
    }
    return EpochReport(**(fields | changes))  # type: ignore[arg-type]


# Geometric patience against DLT's loop


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial: DLT's names, and losses[iter], what a validation after that minibatch finds."""

    losses: list[float]
    n_epochs: int
    n_train_batches: int
    patience: int
    patience_increase: float
    improvement_threshold: float

    @property
    def validation_frequency(self) -> int:
        return min(self.n_train_batches, self.patience // 2)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    best_loss: float
    best_iter: int | None  # 0-based, as DLT counts
    stopped_at: int | None  # minibatches trained when patience ran out; None: all epochs were trained


def validates_as_dlt(run: Run, iter: int) -> bool:
    return (iter + 1) % run.validation_frequency == 0


def validates_as_we_do(run: Run, iter: int) -> bool:
    minibatch = iter % run.n_train_batches + 1  # of the epoch, from 1
    return minibatch % run.validation_frequency == 0 or minibatch == run.n_train_batches


def dlt_loop(run: Run, validates: Callable[[Run, int], bool]) -> Outcome:
    """DLT's early-stopping loop, transcribed line by line but for its validation test."""
    patience: float = run.patience
    best_validation_loss = math.inf
    best_iter = None
    stopped_at = None
    done_looping = False
    epoch = 0
    while (epoch < run.n_epochs) and (not done_looping):
        epoch += 1
        for minibatch_index in range(run.n_train_batches):
            iter = (epoch - 1) * run.n_train_batches + minibatch_index
            if validates(run, iter):
                this_validation_loss = run.losses[iter]
                if this_validation_loss < best_validation_loss:
                    if this_validation_loss < best_validation_loss * run.improvement_threshold:
                        patience = max(patience, iter * run.patience_increase)
                    best_validation_loss = this_validation_loss
                    best_iter = iter
            if patience <= iter:
                done_looping = True
                stopped_at = iter + 1
                break
    return Outcome(best_loss=best_validation_loss, best_iter=best_iter, stopped_at=stopped_at)


def our_loop(run: Run, rule: StoppingRule) -> tuple[int, StopReason]:
    """Whole epochs, each reported with its validations; returns the last one and why it was."""
    for epoch in range(1, run.n_epochs + 1):
        iters = range((epoch - 1) * run.n_train_batches, epoch * run.n_train_batches)
        points = [(iter + 1, run.losses[iter]) for iter in iters if validates_as_we_do(run, iter)]
        decision = decide(rule, report_of(epoch, points), max_epochs=run.n_epochs)
        if decision is not None:
            return epoch, decision.reason
    raise AssertionError("the last epoch did not end the trial")


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Any settings, and losses that wander downwards with plateaus and ties."""
    n_train_batches = draw(st.integers(1, 12))
    n_epochs = draw(st.integers(1, 12))
    size = n_train_batches * n_epochs
    steps = draw(st.lists(st.integers(-6, 5), min_size=size, max_size=size))
    levels = itertools.accumulate(steps, lambda level, step: min(100, max(0, level + step)), initial=60)
    return Run(
        losses=[level / 100 for level in levels][1:],
        n_epochs=n_epochs,
        n_train_batches=n_train_batches,
        patience=draw(st.integers(2, 60)),
        patience_increase=draw(st.sampled_from([1, 1.5, 2, 2.0, 3])),
        improvement_threshold=draw(st.sampled_from([0.5, 0.9, 0.95, 0.995, 1.0])),
    )


def assert_same_as_dlt(run: Run, dlt: Outcome) -> None:
    stopping = StoppingSettings(
        patience=run.patience,
        patience_increase=run.patience_increase,
        improvement_threshold=run.improvement_threshold,
    )
    assert validation_interval(stopping, run.n_train_batches) == run.validation_frequency
    rule = stopping_rule(stopping, num_minibatches=run.n_train_batches)
    last_epoch, reason = our_loop(run, rule)
    assert rule.best is not None
    assert rule.best.loss == dlt.best_loss
    assert rule.best.iteration - 1 == dlt.best_iter
    if dlt.stopped_at is None:
        assert last_epoch == run.n_epochs
    else:
        # The last epoch in which DLT validates: it may go on into the next one without looking again.
        assert last_epoch == (dlt.stopped_at - run.validation_frequency) // run.n_train_batches + 1
        assert reason is StopReason.PATIENCE_EXHAUSTED


@settings(max_examples=500)
@given(run=runs())
def test_geometric_patience_is_the_dlt_loop_where_the_validation_points_are_the_same(run: Run) -> None:
    assume(run.n_train_batches % run.validation_frequency == 0)
    assert_same_as_dlt(run, dlt_loop(run, validates_as_dlt))


@settings(max_examples=500)
@given(run=runs())
@example(
    run=Run(  # 7 minibatches, validated after 4 and 7: DLT's own points would be 4, 8, 12 ...
        losses=[0.9 - i / 100 for i in range(70)],
        n_epochs=10,
        n_train_batches=7,
        patience=8,
        patience_increase=1.5,
        improvement_threshold=0.995,
    )
)
def test_geometric_patience_is_the_dlt_rule_at_our_validation_points(run: Run) -> None:
    assert_same_as_dlt(run, dlt_loop(run, validates_as_we_do))


def test_patience_that_ends_within_an_epoch_leaves_its_later_validations_out_of_the_best() -> None:
    rule = GeometricPatience(patience=4.0, increase=1.0, threshold=0.995, validations_every=2)
    # DLT stops after its minibatch with iter 4, the fifth: it never sees the sixth, though it is the best.
    decision = rule.observe(report_of(1, [(2, 0.5), (4, 0.6), (6, 0.1)]))
    assert decision is not None
    assert rule.best == Validation(iteration=2, loss=0.5, nll=1 / 3)


@pytest.mark.parametrize(
    ("num_minibatches", "epochs"),
    [
        pytest.param(2500, 4, id="mlp-batch-20"),  # out in epoch 5, before its validation
        pytest.param(100, 100, id="lenet-batch-500"),
    ],
)
def test_a_trial_of_the_notes_that_never_improves_trains_its_10_000_minibatches(
    num_minibatches: int, epochs: int
) -> None:
    stopping = StoppingSettings(patience=10_000)
    assert validation_interval(stopping, num_minibatches) == num_minibatches
    rule = stopping_rule(stopping, num_minibatches=num_minibatches)
    decisions = [rule.observe(report_of(e, [(e * num_minibatches, 0.02 if e == 1 else 0.03)])) for e in range(1, 101)]
    assert [decision is not None for decision in decisions].index(True) + 1 == epochs


def test_a_significant_new_best_doubles_the_minibatches_so_far() -> None:
    rule = GeometricPatience(patience=10_000.0, increase=2.0, threshold=0.995, validations_every=2500)
    for epoch, loss in enumerate([0.05, 0.04, 0.03, 0.02], start=1):
        assert rule.observe(report_of(epoch, [(epoch * 2500, loss)])) is None
    assert rule.patience == (4 * 2500 - 1) * 2  # DLT's iter counts from 0


def test_an_insignificant_new_best_is_kept_but_buys_no_patience() -> None:
    rule = GeometricPatience(patience=10.0, increase=2.0, threshold=0.9, validations_every=5)
    rule.observe(report_of(1, [(5, 0.10)]))
    rule.observe(report_of(2, [(10, 0.095)]))
    assert rule.best is not None
    assert rule.best.iteration == 10
    assert rule.patience == 10.0


def test_running_out_of_patience_says_how_long_it_was_and_what_the_best_is() -> None:
    rule = GeometricPatience(patience=2.0, increase=1.0, threshold=0.995, validations_every=1)
    assert rule.observe(make_report(1, 0.0169)) is None
    assert rule.observe(make_report(2, 0.03)) is None
    assert rule.observe(make_report(3, 0.02)) == StopDecision(
        reason=StopReason.PATIENCE_EXHAUSTED,
        detail="patience ran out after 2 minibatches; best validation loss 0.0169 at minibatch 1",
    )


def test_patience_shorter_than_the_validation_interval_ends_without_a_best() -> None:
    rule = GeometricPatience(patience=1.0, increase=2.0, threshold=0.995, validations_every=100)
    decision = rule.observe(report_of(1, [(100, 0.1)]))
    assert rule.best is None
    assert decision is not None
    assert decision.detail == "patience ran out after 1 minibatches; nothing was validated before"


# Significance

Bits = list[bool]


@st.composite
def curves_of_bits(draw: st.DrawFn) -> list[Bits]:
    """Which of 20 images are right, validation by validation: from few to many and back, image by image."""
    num_right = draw(st.lists(st.integers(0, 20), min_size=1, max_size=25))
    orders = draw(st.lists(st.permutations(range(20)), min_size=len(num_right), max_size=len(num_right)))
    # Half of the images are right in a fixed order, so that there is something to gain without losing as much.
    ranks = [sorted(range(20), key=lambda i, order=order: (i % 2 * 10, order[i])) for order in orders]
    return [[i in rank[:right] for i in range(20)] for rank, right in zip(ranks, num_right, strict=True)]


def significant_validations(curve: list[Bits], level: float) -> list[int]:
    """The wish, literally: new bests that are significantly better, one-sided, than the last such."""
    significant: list[int] = []
    fewest_errors = math.inf
    for index, bits in enumerate(curve):
        if bits.count(False) >= fewest_errors:
            continue
        fewest_errors = bits.count(False)
        if significant:
            reference = curve[significant[-1]]
            gained = sum(now and not then for now, then in zip(bits, reference, strict=True))
            lost = sum(then and not now for now, then in zip(bits, reference, strict=True))
            if gain_p_value(gained, lost) > level:
                continue
        significant.append(index)
    return significant


def compared(curve: list[Bits], significant: list[int]) -> list[Validation]:
    """What whoever validates reports: against the reference as it was before each validation."""
    validations = []
    for index, bits in enumerate(curve):
        earlier = [i for i in significant if i < index]
        reference = curve[earlier[-1]] if earlier else [False] * len(bits)
        validations.append(
            Validation(
                iteration=10 * (index + 1),
                loss=bits.count(False) / len(bits),
                nll=1.0,
                gained=sum(now and not then for now, then in zip(bits, reference, strict=True)),
                lost=sum(then and not now for now, then in zip(bits, reference, strict=True)),
            )
        )
    return validations


@settings(max_examples=200)
@given(curve=curves_of_bits(), level=st.sampled_from([0.5, 0.2, 0.05, 1 / 32]))
def test_patience_grows_where_a_new_best_is_significantly_better_than_the_last_that_was(
    curve: list[Bits], level: float
) -> None:
    significant = significant_validations(curve, level)
    rule = SignificancePatience(patience=1e9, increase=1.0, level=level, validations_every=10)
    for index, validation in enumerate(compared(curve, significant)):
        rule.patience = 1e9
        rule.increase = 1e9  # an increase shows
        assert rule.observe(dataclasses.replace(make_report(index + 1, 0.5), validations=(validation,))) is None
        assert (rule.patience > 1e9) == (index in significant)
        assert rule.reference_iteration == 10 * (max(i for i in significant if i <= index) + 1)
    errors = [bits.count(False) / 20 for bits in curve]
    assert rule.best is not None
    assert (rule.best.loss, rule.best.iteration) == (min(errors), 10 * (errors.index(min(errors)) + 1))


def test_with_every_new_best_significant_it_is_geometric_patience() -> None:
    losses = [0.9, 0.5, 0.6, 0.4, 0.45, 0.46, 0.47, 0.48, 0.3]
    geometric = GeometricPatience(patience=2.0, increase=2.0, threshold=1.0, validations_every=1)
    ours = SignificancePatience(patience=2.0, increase=2.0, level=0.05, validations_every=1)
    for epoch, loss in enumerate(losses, start=1):
        report = make_report(epoch, loss)
        tested = dataclasses.replace(report.best, gained=1000, lost=0)
        expected = geometric.observe(report)
        decision = ours.observe(dataclasses.replace(report, validations=(tested,)))
        assert (decision is None) == (expected is None)
        assert decision is None or decision.reason is StopReason.PATIENCE_EXHAUSTED
        assert ours.patience == geometric.patience
    assert decision is not None


def test_a_gain_that_may_be_chance_is_kept_but_buys_no_patience() -> None:
    rule = SignificancePatience(patience=10.0, increase=2.0, level=0.05, validations_every=5)
    for epoch, (loss, gained, lost) in enumerate([(0.5, 50, 0), (0.4, 30, 20)], start=1):
        validation = Validation(iteration=5 * epoch, loss=loss, nll=1.0, gained=gained, lost=lost)
        rule.observe(dataclasses.replace(make_report(epoch, loss), validations=(validation,)))
    assert rule.best is not None
    assert (rule.best.iteration, rule.reference_iteration) == (10, 5)
    assert rule.patience == 10.0


def test_a_validation_that_was_not_compared_cannot_be_judged() -> None:
    rule = SignificancePatience(patience=10.0, increase=2.0, level=0.05, validations_every=5)
    with pytest.raises(ValueError, match="minibatch 1 was not compared with a reference"):
        rule.observe(make_report(1, 0.5))


# No improvement in n


def kzl_last_epoch(losses: list[float], n: int) -> int | None:
    """The definition: the first epoch at which none of the last n is below all that came before them."""
    for epoch in range(n + 1, len(losses) + 1):
        before, window = losses[: epoch - n], losses[epoch - n : epoch]
        if min(window) >= min(before):
            return epoch
    return None


@given(losses=st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=1, max_size=60), n=st.integers(1, 6))
def test_no_improvement_in_n_stops_where_its_definition_does(losses: list[float], n: int) -> None:
    rule = NoImprovementInN(n=n)
    stopped_at = None
    for epoch, loss in enumerate(losses, start=1):
        if rule.observe(make_report(epoch, loss)) is not None:
            stopped_at = epoch
            break
    assert stopped_at == kzl_last_epoch(losses, n)
    seen = losses[:stopped_at]
    assert rule.best is not None
    assert (rule.best.loss, rule.best.iteration) == (min(seen), seen.index(min(seen)) + 1)


def test_a_tie_is_no_improvement_even_with_a_lower_nll() -> None:
    rule = NoImprovementInN(n=2)
    assert rule.observe(make_report(1, 0.1)) is None
    assert rule.observe(make_report(2, 0.1)) is None
    assert rule.observe(make_report(3, 0.1)) == StopDecision(
        reason=StopReason.NO_IMPROVEMENT,
        detail="no new best in 2 epochs; best validation loss 0.1 at minibatch 1",
    )


# All rules


def test_never_stops_keeps_the_best() -> None:
    rule = NeverStops()
    assert [rule.observe(make_report(e, loss)) for e, loss in enumerate([0.3, 0.1, 0.2], start=1)] == [None] * 3
    assert rule.best is not None
    assert (rule.best.loss, rule.best.iteration) == (0.1, 2)


@pytest.mark.parametrize(
    ("stopping", "rule"),
    [
        (
            StoppingSettings(patience=100, patience_increase=3.0, improvement_threshold=0.9),
            GeometricPatience(patience=100.0, increase=3.0, threshold=0.9, validations_every=50),
        ),
        (
            StoppingSettings(rule="significance", patience=100, patience_increase=3.0, significance_level=0.01),
            SignificancePatience(patience=100.0, increase=3.0, level=0.01, validations_every=50),
        ),
        (StoppingSettings(rule="no-improvement-in-n", n=20), NoImprovementInN(n=20)),
        (StoppingSettings(rule="none"), NeverStops()),
    ],
)
def test_the_settings_make_their_rule(stopping: StoppingSettings, rule: StoppingRule) -> None:
    assert stopping_rule(stopping, num_minibatches=2500) == rule


@pytest.mark.parametrize(
    ("stopping", "num_minibatches", "interval"),
    [
        (StoppingSettings(patience=5000), 2500, 2500),
        (StoppingSettings(patience=5000), 3125, 2500),
        (StoppingSettings(patience=5001), 50_000, 2500),
        (StoppingSettings(rule="significance", patience=5000), 3125, 2500),
        (StoppingSettings(patience=1), 2500, 1),  # 1 // 2 would be 0
        (StoppingSettings(rule="no-improvement-in-n", patience=10), 2500, 2500),
        (StoppingSettings(rule="none", patience=10), 2500, 2500),
    ],
)
def test_validations_come_once_per_epoch_or_twice_per_patience(
    stopping: StoppingSettings, num_minibatches: int, interval: int
) -> None:
    assert validation_interval(stopping, num_minibatches) == interval


@given(
    losses=st.lists(st.integers(0, 20).map(lambda i: i / 20), min_size=1, max_size=30),
    cut=st.integers(0, 30),
    stopping=st.sampled_from(
        [
            StoppingSettings(patience=6, patience_increase=1.5, improvement_threshold=0.95),
            StoppingSettings(rule="significance", patience=6, patience_increase=1.5),
            StoppingSettings(rule="no-improvement-in-n", n=3),
            StoppingSettings(rule="none"),
        ]
    ),
)
def test_a_rule_that_went_through_json_decides_as_if_it_had_not(
    losses: list[float], cut: int, stopping: StoppingSettings
) -> None:
    unbroken = stopping_rule(stopping, num_minibatches=1)
    resumed = stopping_rule(stopping, num_minibatches=1)
    for epoch, loss in enumerate(losses, start=1):
        if epoch == cut:
            resumed = rule_from_state(json.loads(json.dumps(resumed.state())))
        report = make_report(epoch, loss)
        tested = dataclasses.replace(report.best, gained=20 - round(20 * loss), lost=epoch % 3)
        report = dataclasses.replace(report, validations=(tested,))
        assert resumed.observe(report) == unbroken.observe(report)
        assert resumed == unbroken


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({}, "KeyError('rule')"),
        ({"rule": "hope"}, "KeyError('hope')"),
        ({"rule": "none"}, "KeyError('best')"),
        ({"rule": "none", "best": None, "n": 3}, "unexpected keyword argument 'n'"),
        ({"rule": "none", "best": {"iteration": 1}}, "KeyError('zero_one')"),
    ],
)
def test_a_damaged_state_is_refused(state: dict[str, object], found: str) -> None:
    with pytest.raises(ArtifactError, match=r"^the saved state of a trial's stopping rule cannot be read: ") as caught:
        rule_from_state(state)
    assert found in str(caught.value)
    assert caught.value.hint is not None


# The decision


def test_an_ordinary_epoch_goes_on() -> None:
    assert decide(NeverStops(), make_report(1, 0.5), max_epochs=2) is None


@pytest.mark.parametrize(
    "report",
    [
        make_report(3, math.nan),
        make_report(3, 0.9, train_nll=math.inf),
        make_report(3, 0.1, train_nll=math.nan, is_schedule_exhausted=True),
    ],
)
def test_divergence_comes_first_and_leaves_the_best_alone(report: EpochReport) -> None:
    rule = NoImprovementInN(n=1)
    rule.observe(make_report(1, 0.5))
    assert decide(rule, report, max_epochs=3) == StopDecision(
        reason=StopReason.DIVERGED, detail="diverged at epoch 3: a loss is not finite"
    )
    assert rule.best == make_report(1, 0.5).best


def test_the_schedules_end_comes_before_the_rule_and_the_last_epoch_still_counts() -> None:
    rule = NoImprovementInN(n=1)
    rule.observe(make_report(1, 0.5))
    last = make_report(2, 0.5, 0.4, is_schedule_exhausted=True, learning_rate=0.0001)
    assert decide(rule, last, max_epochs=2) == StopDecision(
        reason=StopReason.SCHEDULE_EXHAUSTED, detail="the schedule ended at epoch 2, after the rate 0.0001"
    )
    assert rule.best == last.best


def test_the_rule_comes_before_the_last_epoch() -> None:
    rule = NoImprovementInN(n=1)
    assert decide(rule, make_report(1, 0.5), max_epochs=2) is None
    decision = decide(rule, make_report(2, 0.5), max_epochs=2)
    assert decision is not None
    assert decision.reason is StopReason.NO_IMPROVEMENT


@pytest.mark.parametrize("epoch", [7, 8])
def test_the_last_epoch_ends_a_trial(epoch: int) -> None:
    assert decide(NeverStops(), make_report(epoch, 0.5), max_epochs=7) == StopDecision(
        reason=StopReason.MAX_EPOCHS, detail="all 7 epochs are trained"
    )
