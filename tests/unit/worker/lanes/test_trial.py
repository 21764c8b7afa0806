"""A lane's history survives a checkpoint, exactly, and a damaged one is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from hpsearch.epoch_report import Diagnosis, EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.search.stopping import GeometricPatience, StopDecision, StopReason
from hpsearch.store.claims.claim import Claim
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.worker.lanes.trial import TrialInTraining

SETTINGS = TrialSettings(model=ModelSettings(), training=TrainingSettings(max_epochs=9))

DIAGNOSIS = Diagnosis(
    nll=0.1,
    gradient_norm=0.5,
    gradient_noise=2.0,
    penalty_norm=0.0,
    saturated=0.0,
    dead=None,
    update_ratios={"hidden.weight": 0.1 + 0.2, "output.weight": None},
)


def fresh(number: int = 7) -> TrialInTraining:
    claim = Claim(trial_id=number, number=number, point=0, attempt=1, parameters={})
    rule = GeometricPatience(patience=1000.0, increase=2.0, threshold=0.995, validations_every=10)
    return TrialInTraining(claim=claim, settings=SETTINGS, rule=rule, num_classes=10)


def trained(*zero_ones: float) -> TrialInTraining:
    lane = fresh()
    for epoch, zero_one in enumerate(zero_ones, start=1):
        validation = Validation(iteration=10 * epoch, loss=zero_one, nll=zero_one / 3)
        report = EpochReport(
            epoch=epoch,
            validations=(validation,),
            train_nll=0.1,
            learning_rate=0.1,
            seconds=0.1,
            diagnosis=DIAGNOSIS if epoch != 3 else None,
        )
        lane.take_in(report, num_lanes=8 if epoch < 3 else 16)
    lane.rungs["completed_rung_0"] = 0.1 + 0.2
    return lane


@pytest.mark.parametrize("zero_ones", [(), (0.1 + 0.2,), (0.5, 0.25, 0.25, 0.75)])
def test_a_restored_lane_equals_the_one_that_was_saved(zero_ones: tuple[float, ...]) -> None:
    lane = trained(*zero_ones)
    restored = fresh(number=8).resumed(json.loads(json.dumps(lane.state(), allow_nan=False)))
    assert restored.state() == lane.state()
    assert restored.rule == lane.rule
    assert restored.claim.number == 8


def test_a_trial_tells_its_numbers_of_lanes_in_their_order() -> None:
    lane = trained(0.5, 0.5, 0.5, 0.5)
    assert lane.result(StopDecision(StopReason.MAX_EPOCHS, ""), {}).attributes["lanes"] == [8, 16]
    assert fresh().resumed({**lane.state(), "lanes": [1]}).lanes == [1]


def test_a_checkpoint_of_an_older_version_names_no_lanes_and_leads_to_no_verdict() -> None:
    assert fresh().resumed(without("lanes")).lanes == []
    end = StopDecision(StopReason.MAX_EPOCHS, "")
    assert "verdict" in trained(0.5, 0.4).result(end, {}).attributes
    assert "verdict" not in fresh().resumed(without("curve")).result(end, {}).attributes
    assert "verdict" not in fresh().resumed(without("diagnoses")).result(end, {}).attributes


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in trained(0.5).state().items() if name != key}


@pytest.mark.parametrize(
    "state",
    [
        {},
        *(without(key) for key in ("rule", "best", "best_epoch", "num_epochs", "seconds", "last_value", "rungs")),
        {**trained(0.5).state(), "rule": {"rule": "unknown"}},
        {**trained(0.5).state(), "rule": None},
        {**trained(0.5).state(), "curve": [[1]]},
        {**trained(0.5).state(), "diagnoses": [[1, {"nll": 0.1}]]},
        {**trained(0.5).state(), "best": {"iteration": 1}},
        {**trained(0.5).state(), "best": {"iteration": 10, "zero_one": 0.5, "nll": math.inf}},
        {**trained(0.5).state(), "best": {"iteration": 10, "zero_one": -5.0, "nll": 0.1}},
        {**trained(0.5).state(), "best_epoch": 2},
        {**trained(0.5).state(), "seconds": math.inf},
        {**trained(0.5).state(), "last_value": 7.0},
        {**trained(0.5).state(), "num_epochs": "1"},
    ],
)
def test_a_damaged_history_is_refused_and_changes_nothing(state: dict[str, Any]) -> None:
    lane = fresh()
    with pytest.raises(ArtifactError):
        lane.resumed(state)
    assert lane == fresh()
