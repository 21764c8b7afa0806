"""Verdicts: on trials with one clear fault, on whatever numbers there are, and on the stored trials."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planted_verdicts import Judged, table
from hpsearch.epoch_report import Diagnosis
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.diagnosis.verdict import Cause, EpochLosses, Verdict, find_verdict

RESULTS = Path(__file__).parents[4] / "benchmarks" / "results" / "planted_verdicts.json"


def judged(
    train: list[float],
    validation: list[float] | None = None,
    *,
    has_diverged: bool = False,
    num_classes: int = 10,
    **signs: Any,
) -> Verdict:
    """The verdict on a trial with these losses, whose diagnoses have these numbers at the beginning and at the end."""
    training = TrainingSettings(batch_size=signs.pop("batch_size", 20))
    usual = {
        "nll": 0.1,
        "gradient_norm": 0.5,
        "gradient_noise": 2.0,
        "penalty_norm": 0.0,
        "saturated": 0.01,
        "dead": None,
        "update_ratios": {"hidden.weight": 1e-3, "output.weight": 2e-3},
    }
    diagnosis = Diagnosis(**{**usual, **signs})
    losses = zip(train, validation or train, strict=True)
    curve = [EpochLosses(epoch, t, v, min(1.0, v / 3)) for epoch, (t, v) in enumerate(losses, start=1)]
    epochs = {1: diagnosis, len(curve): diagnosis} if curve else {}
    settings = TrialSettings(model=ModelSettings(), training=training)
    verdict = find_verdict(settings, num_classes, curve, epochs, has_diverged=has_diverged)
    assert verdict is not None
    return verdict


FLAT = [2.3] * 6
LEARNS = [1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.03]


@pytest.mark.parametrize(
    ("cause", "trial"),
    [
        (Cause.FINE, {"train": LEARNS}),
        (Cause.RATE_TOO_HIGH, {"train": [], "has_diverged": True}),
        (Cause.RATE_TOO_HIGH, {"train": [9.0, 4.0, 3.0, *FLAT]}),
        (Cause.RATE_TOO_HIGH, {"train": [2.4, *FLAT], "dead": 1.0, "saturated": None}),
        (Cause.NOISY, {"train": [2.4, *FLAT], "saturated": 1.0, "batch_size": 1}),
        (Cause.NOISY, {"train": [2.0, 1.2, 1.1, 1.2, 1.1, 1.2], "gradient_noise": 20.0}),
        (Cause.RATE_TOO_LOW, {"train": [2.30, 2.29, 2.28, 2.27, 2.26, 2.25]}),
        (Cause.UNDERFITTING, {"train": [2.0, 1.2, 1.1, 1.1, 1.1, 1.1]}),
        (Cause.UNDERFITTING, {"train": [1.0, 0.5, 0.4, 0.4, 0.4, 0.4], "penalty_norm": 0.4}),
        (Cause.OVERFITTING, {"train": LEARNS, "validation": [1.0, 0.7, 0.6, 0.6, 0.6, 0.7, 0.8]}),
        (Cause.VANISHING, {"train": [2.31, 2.30, 2.31, *FLAT], "gradient_norm": 1e-5, "gradient_noise": 1.0}),
        (Cause.VANISHING, {"train": [2.31, 2.30, 2.31, *FLAT], "gradient_norm": 0.0}),
        (Cause.EXPLODING, {"train": [2.0, 1.9, 1.9], "gradient_norm": 1e4, "has_diverged": True}),
    ],
)
def test_one_clear_fault_is_named_first(cause: Cause, trial: dict[str, Any]) -> None:
    verdict = judged(**trial)
    assert verdict.causes[0] is cause
    assert verdict.detail
    assert 1 <= len(verdict.causes) <= 2


def test_units_that_are_lost_on_the_way_are_the_second_cause() -> None:
    verdict = judged([2.4, *FLAT], saturated=1.0)
    assert verdict.causes == (Cause.RATE_TOO_HIGH, Cause.SATURATED)
    assert verdict.detail.endswith("100 % of a layer saturated")


@pytest.mark.parametrize("train", [[2.1], [2.0, 1.1], [0.9], [1.5, 1.2, 1.0, 0.8, 0.7]])
def test_a_few_epochs_are_judged_only_if_the_case_is_clear(train: list[float]) -> None:
    """They may have been pruned, or are all that the study has."""
    verdict = judged(train, nll=0.5)
    assert verdict.causes == ()
    assert verdict.numbers["gradient_norm"] == 0.5
    assert judged([0.3]).causes == (Cause.FINE,)
    assert judged([9.0, 4.0], saturated=1.0).causes[0] is Cause.RATE_TOO_HIGH
    assert judged([2.3, 2.29], nll=2.28).causes == (Cause.RATE_TOO_LOW,)


def test_two_classes_have_thresholds_of_their_own() -> None:
    losses = {"train": [0.01] * 8, "validation": [0.085] * 8}
    assert judged(**losses, num_classes=2).causes == (Cause.FINE,)
    assert judged(train=[0.3] * 8, num_classes=2).causes == (Cause.FINE,)
    assert judged(train=[0.6] * 8, num_classes=2).causes == (Cause.UNDERFITTING,)


def test_a_trial_that_nobody_looked_at_has_no_verdict() -> None:
    settings = TrialSettings(model=ModelSettings(), training=TrainingSettings())
    assert find_verdict(settings, 10, [EpochLosses(1, 1.0, 1.0, 0.3)], {}, has_diverged=False) is None


NUMBER = st.none() | st.floats(0, 1e6)
LOSS = st.floats(0, 1e6)


@given(
    losses=st.lists(st.tuples(LOSS, LOSS), max_size=12),
    numbers=st.tuples(NUMBER, NUMBER, NUMBER, NUMBER),
    shares=st.tuples(st.none() | st.floats(0, 1), st.none() | st.floats(0, 1)),
    ratios=st.dictionaries(st.sampled_from(["a.weight", "b.weight"]), NUMBER),
    has_diverged=st.booleans(),
    num_classes=st.integers(2, 1000),
    batch_size=st.integers(1, 1000),
)
def test_every_trial_that_was_looked_at_has_a_verdict_that_can_be_stored(
    losses: list[tuple[float, float]],
    numbers: tuple[float | None, ...],
    shares: tuple[float | None, float | None],
    ratios: dict[str, float | None],
    has_diverged: bool,
    num_classes: int,
    batch_size: int,
) -> None:
    nll, norm, noise, penalty = numbers
    diagnosis = Diagnosis(
        nll=nll,
        gradient_norm=norm,
        gradient_noise=noise,
        penalty_norm=penalty,
        saturated=shares[0],
        dead=shares[1],
        update_ratios=ratios,
    )
    curve = [EpochLosses(epoch, t, v, 0.5) for epoch, (t, v) in enumerate(losses, start=1)]
    settings = TrialSettings(model=ModelSettings(), training=TrainingSettings(batch_size=batch_size))
    epochs = dict.fromkeys({1, len(curve)}, diagnosis) if curve else {}
    verdict = find_verdict(settings, num_classes, curve, epochs, has_diverged=has_diverged or not curve)
    assert verdict is not None
    assert len(verdict.causes) <= 2
    assert verdict.causes or 0 < len(curve) < 6
    assert len(set(verdict.causes)) == len(verdict.causes)
    assert (Cause.FINE in verdict.causes) <= (len(verdict.causes) == 1)
    json.dumps([str(verdict), verdict.detail, dict(verdict.numbers)], allow_nan=False)
    assert all(math.isfinite(number) for number in verdict.numbers.values())


def test_the_stored_trials_are_judged_as_the_document_says() -> None:
    """The goals, on digits (by which the thresholds were set) and on MNIST."""
    trials = [Judged.from_json(line) for line in json.loads(RESULTS.read_text())["details"]["trials"]]
    for dataset in ("digits", "mnist"):
        _, _, shares = table([trial for trial in trials if trial.base.startswith(dataset)])
        assert shares["planted cause first"] >= 0.75
        assert shares["planted cause among two"] >= 0.9
        assert shares["fine of healthy"] >= 0.9
        assert shares["fine of faulty"] <= 0.1
        assert shares["diverged and fine"] == 0
