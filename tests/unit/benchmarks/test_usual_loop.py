"""The usual loop does hpsearch's work: what is compared is the speed and nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.reference_loop import train_trial
from benchmarks.usual_loop import UsualData, build_network, check_settings, train
from benchmarks.usual_optuna import check_exit_codes
from benchmarks.usual_study import StudyResult, load_usual_definition
from benchmarks.whole_study import STUDY_FILE
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.errors import HpsearchError, InputError
from hpsearch.study.settings import DataSettings, ModelSettings, TrainingSettings, TrialSettings
from hpsearch.study.study_file import load_definition
from hpsearch.training.networks.build import build_network as build_own_network

CPU = torch.device("cpu")
DIGITS = load_selection_data(
    DataSettings(dataset="digits", train_samples=400), locations=DataLocations(local=None, cache=Path("not used"))
)
NEVER = 10**9  # validate at the epoch's end only


def settings(**training: float) -> TrialSettings:
    # 400 images in minibatches of 30: the last 10 are left out.
    values = {"batch_size": 30, "max_epochs": 4, "learning_rate": 0.1, **training}
    return TrialSettings(model=ModelSettings(hidden_units=12), training=TrainingSettings.model_validate(values))


def as_in_linear(weight: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """nn.Linear keeps [outputs, inputs]; hpsearch's layout is its own business, and no layer here is square."""
    return weight if weight.shape == layer.weight.shape else weight.T


def layers_of(network: nn.Sequential) -> dict[str, nn.Linear]:
    hidden, _, output = network
    assert isinstance(hidden, nn.Linear)
    assert isinstance(output, nn.Linear)
    return {"hidden": hidden, "output": output}


def with_own_weights(trial: TrialSettings) -> nn.Sequential:
    """The usual network with hpsearch's initial weights."""
    own = build_own_network(trial.model, DIGITS.example_shape, DIGITS.num_outputs)
    parameters = own.initial_parameters(seed=0, dtype=torch.float32, device=CPU)
    network = build_network(trial, UsualData.of(DIGITS))
    with torch.no_grad():
        for name, layer in layers_of(network).items():
            layer.weight.copy_(as_in_linear(parameters[f"{name}.weight"], layer))
            layer.bias.copy_(parameters[f"{name}.bias"])
    return network


@pytest.mark.parametrize("lambda_2", [0.0, 0.01])
def test_from_the_same_weights_it_gives_the_reference_loops_curve(lambda_2: float) -> None:
    trial = settings(lambda_2=lambda_2)
    network = with_own_weights(trial)
    errors = list(train(trial, UsualData.of(DIGITS), network))
    reference = train_trial(
        trial,
        ResidentData.place(DIGITS, CPU),
        device=CPU,
        validations_every=NEVER,
        should_stop=lambda _: False,
    )
    # One of the 256 validation images may fall on the other side by rounding.
    assert errors == pytest.approx([report.best.loss for report in reference.reports], abs=1.01 / 256)
    assert reference.reports[-1].best is reference.best  # so that these are its last parameters
    for name, layer in layers_of(network).items():
        own_weight = as_in_linear(torch.from_numpy(reference.best_parameters[f"{name}.weight"]), layer)
        torch.testing.assert_close(layer.weight.detach(), own_weight, rtol=1e-3, atol=1e-5)


def test_initial_weights_have_the_same_distribution_and_the_same_zeros() -> None:
    layers = layers_of(build_network(settings(), UsualData.of(DIGITS)))
    own = build_own_network(settings().model, DIGITS.example_shape, DIGITS.num_outputs).parameter_shapes
    weights, bound = layers["hidden"].weight.detach(), own["hidden.weight"].bound
    assert 0.99 * bound < float(weights.abs().max()) <= bound
    assert float(weights.std()) == pytest.approx(bound / 3**0.5, rel=0.05)  # uniform
    for zeros in (layers["hidden"].bias, layers["output"].weight, layers["output"].bias):
        assert not zeros.detach().any()
    assert [own[name].bound for name in ("hidden.bias", "output.weight", "output.bias")] == [0.0, 0.0, 0.0]


def test_what_it_cannot_train_is_refused_by_name() -> None:
    adam = settings().model_copy(update={"training": TrainingSettings(optimizer="adam")})
    with pytest.raises(InputError, match=r"training\.optimizer = 'sgd' only, got 'adam'"):
        check_settings(adam)


def test_the_whole_study_can_be_trained_by_it_and_has_sixteen_points() -> None:
    definition = load_usual_definition(argparse.Namespace(study_file=STUDY_FILE, overrides=[]))
    assert definition == load_definition(STUDY_FILE)
    assert definition.num_points == 16


def test_a_stopping_rule_that_only_hpsearch_has_is_refused() -> None:
    options = argparse.Namespace(study_file=STUDY_FILE, overrides=["stopping.rule=geometric-patience"])
    with pytest.raises(InputError, match="stopping rule none"):
        load_usual_definition(options)


def test_a_result_is_the_last_line_of_what_a_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    result = StudyResult(num_points=4, trial_epochs=8, best_error=0.25, best_point={"learning_rate": 0.1})
    print("a library says something first")
    result.print()
    assert StudyResult.parse(capsys.readouterr().out) == result


def test_a_study_of_which_a_process_died_has_no_result() -> None:
    check_exit_codes([0, 0])
    with pytest.raises(HpsearchError, match=r"ended with \[0, -9\]"):
        check_exit_codes([0, -9])
