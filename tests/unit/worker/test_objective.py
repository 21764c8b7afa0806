"""A study as a plain Optuna objective: what it draws, reports, prunes, returns and notes."""

from __future__ import annotations

import pickle
from typing import Any

import optuna
import pytest
from optuna.pruners import BasePruner, NopPruner
from optuna.trial import TrialState

from hpsearch.device.devices import VisibleDevices
from hpsearch.errors import DeviceError, InputError
from hpsearch.study.study_file import parse_definition
from hpsearch.worker import objective as objective_module
from hpsearch.worker.objective import Objective

SECTIONS: dict[str, Any] = {
    "data": {"dataset": "digits"},
    "model": {"hidden_units": 8},
    "training": {"batch_size": 100, "max_epochs": 3},
    "search": {"learning_rate": {"log10": [-1, -2]}},
    "stopping": {"rule": "none"},
}


def make_objective(**sections: dict[str, Any]) -> Objective:
    document = {"name": "plain", **{key: {**SECTIONS[key], **sections.get(key, {})} for key in SECTIONS}}
    if "search" in sections:
        document["search"] = sections["search"]
    return Objective(parse_definition(document, source="test"), device="cpu")


def optimize(
    objective: Objective, points: list[dict[str, Any]], pruner: BasePruner | None = None, **options: Any
) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(pruner=pruner or NopPruner())
    for point in points:
        study.enqueue_trial(point)
    study.optimize(objective, n_trials=len(points), **options)
    return study.trials


def curve(trial: optuna.trial.FrozenTrial) -> dict[int, float]:
    return trial.intermediate_values


class PrunesAtTwo(BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step == 2


def test_a_trial_reports_every_epoch_and_returns_its_best() -> None:
    (trial,) = optimize(make_objective(), [{"learning_rate": 0.1}])
    assert trial.state is TrialState.COMPLETE
    assert list(curve(trial)) == [1, 2, 3]
    assert trial.value == min(curve(trial).values())
    attributes = trial.user_attrs
    assert attributes["stop_reason"] == "max-epochs"
    assert attributes["epochs"] == 3
    assert curve(trial)[attributes["best_epoch"]] == trial.value == attributes["best_validation_zero_one"]
    assert attributes["best_validation_nll"] > 0
    assert attributes["device"] == "cpu"


def test_the_definitions_own_stopping_rule_ends_a_trial_as_complete() -> None:
    objective = make_objective(stopping={"rule": "no-improvement-in-n", "n": 1}, training={"max_epochs": 50})
    (trial,) = optimize(objective, [{"learning_rate": 0.02}])
    assert trial.state is TrialState.COMPLETE
    assert trial.user_attrs["stop_reason"] == "no-improvement"
    assert len(curve(trial)) < 50


def test_significance_may_decide_when_a_trial_ends() -> None:
    stopping = {"rule": "significance", "patience": 20, "significance_level": 0.01}
    (trial,) = optimize(make_objective(stopping=stopping, training={"max_epochs": 200}), [{"learning_rate": 0.1}])
    assert trial.user_attrs["stop_reason"] == "patience-exhausted"


def test_the_studys_pruner_decides_about_a_trial() -> None:
    (trial,) = optimize(make_objective(), [{"learning_rate": 0.1}], PrunesAtTwo())
    assert trial.state is TrialState.PRUNED
    assert list(curve(trial)) == [1, 2]
    assert trial.value == curve(trial)[2]
    assert trial.user_attrs["stop_reason"] == "pruned"
    assert "PrunesAtTwo" in trial.user_attrs["stop_detail"]


def test_a_trial_that_diverges_is_pruned_without_a_number() -> None:
    objective = make_objective(training={"lambda_2": 1.0}, search={"learning_rate": [1e9, 0.1]})
    diverged, other = optimize(objective, [{"learning_rate": 1e9}, {"learning_rate": 0.1}])
    assert (diverged.state, other.state) == (TrialState.PRUNED, TrialState.COMPLETE)
    assert diverged.value is None
    assert curve(diverged) == {}
    assert diverged.user_attrs["stop_reason"] == "diverged"


def test_conditional_parameters_are_drawn_only_where_they_have_an_effect() -> None:
    search = {"optimizer": ["sgd", "momentum"], "momentum": [0.5, 0.9], "learning_rate": [0.05]}
    plain, heavy = optimize(
        make_objective(search=search), [{"optimizer": "sgd"}, {"optimizer": "momentum", "momentum": 0.9}]
    )
    assert set(plain.params) == {"optimizer", "learning_rate"}
    assert set(heavy.params) == {"optimizer", "momentum", "learning_rate"}
    assert curve(plain) != curve(heavy)


def test_threads_share_one_reading_of_the_data_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shuffled epochs and chunks go through buffers: two threads with the same ones would spoil each other's."""
    readings = []
    load = objective_module.load_selection_data
    monkeypatch.setattr(
        objective_module, "load_selection_data", lambda *args, **named: readings.append(1) or load(*args, **named)
    )
    objective = make_objective(training={"shuffle": True}, data={"max_resident_bytes": 700_000})
    points = [{"learning_rate": rate} for rate in (0.1, 0.05, 0.02, 0.01)]
    alone = optimize(objective, points)
    together = optimize(objective, points, n_jobs=2)
    of_rate = {trial.params["learning_rate"]: trial for trial in together}
    assert [curve(of_rate[trial.params["learning_rate"]]) for trial in alone] == [curve(trial) for trial in alone]
    assert len(readings) == 1


def test_what_cannot_be_trained_is_refused_before_the_first_trial() -> None:
    with pytest.raises(InputError, match=r"training\.batch_size must be in 1\.\.1\d{3}"):
        make_objective(training={"batch_size": 100_000})


def test_a_gpu_that_is_not_there_is_an_error_and_never_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = VisibleDevices(gpus=(), has_cuda_build=True)
    monkeypatch.setattr(VisibleDevices, "detect", classmethod(lambda cls: nothing))
    definition = parse_definition({"name": "plain", **SECTIONS}, source="test")
    assert Objective(definition, device="auto").device.type == "cpu"
    with pytest.raises(DeviceError, match="cuda:0 does not exist"):
        Objective(definition, device="cuda:0")


def test_an_objective_is_pickled_for_other_processes_and_takes_a_fixed_trial() -> None:
    objective = make_objective()
    trial = optuna.trial.FixedTrial({"learning_rate": 0.1})
    assert pickle.loads(pickle.dumps(objective))(trial) == objective(trial)
    assert trial.user_attrs["epochs"] == 3
