"""A confirmation put together by hand: its report, its plot, and what it says of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from torch import nn

from hpsearch.errors import StorageError
from hpsearch.results.confirmation.companion_study import can_seeds_matter, configurations_of, seeds_of, unique
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.confirmation.plan import companion_definition
from hpsearch.results.confirmation.read_outcome import confirmation_of, parts_of_groups
from hpsearch.results.report.confirmed_errors import confirmed_errors
from hpsearch.results.report.page import render_report
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary
from hpsearch.study.study_file import parse_definition
from hpsearch.training.networks.build import build_network

HOSTILE = "<script>alert(1)</script>"
SEEDS = (11, 12, 13)
ERRORS = {0.01: 0.10, 0.1: 0.12, 0.001: 0.5}  # of the companion's trials, by learning rate
NUM_IMAGES = 400


@pytest.fixture
def confirmation(make_summary: Any, make_trial: Any) -> Confirmation:
    """Two points that are tied, and one that is far worse."""
    return _confirmation(make_summary, make_trial, ERRORS)


def _confirmation(make_summary: Any, make_trial: Any, errors: dict[float, float | None]) -> Confirmation:
    """Errors by learning rate; None: the first seed of it diverged."""
    rates = list(errors)
    search = make_summary(
        [make_trial(i, 0.01 * (i + 1), {"learning_rate": rate}) for i, rate in enumerate(rates)],
        {"learning_rate": rates},
    )
    points = [{"learning_rate": rate, "seed": seed} for seed in SEEDS for rate in rates]
    trials, answers = [], {}
    for number, point in enumerate(points):
        error = errors[point["learning_rate"]]
        if error is None and point["seed"] == SEEDS[0]:
            lost = make_trial(number, 0.9, point, state=TrialState.PRUNED, stop_detail=f"diverged {HOSTILE}")
            trials.append(lost)
            continue
        trials.append(make_trial(number, error or 0.1, point))
        answers[trials[-1].trial_id] = np.random.default_rng(number).random(NUM_IMAGES) >= (error or 0.1)
    trials.sort(key=lambda trial: (trial.state is not TrialState.COMPLETE, trial.value, trial.number))
    companion = make_summary(trials, {"strategy": "listed", "points": points})
    return confirmation_of(search, companion, answers, [1000 + i for i in range(len(rates))])


def test_the_conclusion_is_one_line_with_the_pick_and_its_reason(confirmation: Confirmation) -> None:
    line = confirmation.conclusion()
    assert line is not None
    assert line.startswith("lowest mean error: point 1, ")
    assert "tied with it: 2" in line
    assert "chosen: point " in line
    assert "of the tied points it has the fewest trainable parameters (1,000)" in line


def test_json_holds_every_number(confirmation: Confirmation) -> None:
    content = confirmation.as_json()
    assert content["num_seeds"] == 3
    assert content["seeds"] == list(SEEDS)
    assert content["chosen"]["configuration"] == 0
    assert [point["tied"] for point in content["configurations"]] == [True, True, False]
    for point in content["configurations"]:
        low, high = point["interval"]
        assert low <= point["mean"] <= high
        assert point["deviation"] >= 0
        assert point["search_error"] in (0.01, 0.02, 0.03)
    assert content["corrected_error"] >= min(point["mean"] for point in content["configurations"])


def test_the_chosen_trial_is_the_best_of_the_chosen_points_seeds(confirmation: Confirmation) -> None:
    chosen = confirmation.chosen
    assert chosen is not None
    assert chosen.trial is chosen.configuration.trials[0]
    assert chosen.trial.value == min(trial.value for trial in chosen.configuration.trials)  # type: ignore[type-var]


def test_the_report_tells_of_a_confirmation_and_of_none(make_summary: Any, make_trial: Any) -> None:
    confirmation = _confirmation(make_summary, make_trial, {0.01: 0.1, 0.1: None})
    summary = make_summary([make_trial(0, 0.1)])
    assert "Confirmation over fresh seeds" not in render_report(StudyStatus(summary=summary))
    page = render_report(StudyStatus(summary=summary, confirmation=confirmation))
    assert "Confirmation over fresh seeds" in page
    assert "Left out: learning_rate 0.1: 1 of 3 seeds gave no result" in page
    assert "not compared" in page
    assert HOSTILE not in page


def test_the_plot_has_a_row_for_each_compared_point(confirmation: Confirmation, summary: StudySummary) -> None:
    figure = confirmed_errors(StudyStatus(summary=summary, confirmation=confirmation)).figure
    assert figure is not None
    seeds, means, search = figure.data
    assert list(means.y) == [1, 2, 3]
    assert len(seeds.x) == 9
    assert sorted(search.x) == [1.0, 2.0, 3.0]
    assert list(means.x) == sorted(means.x)


def test_without_a_comparison_there_is_no_plot(make_summary: Any, make_trial: Any) -> None:
    confirmation = _confirmation(make_summary, make_trial, {0.01: None})
    assert confirmation.chosen is None
    panel = confirmed_errors(StudyStatus(summary=make_summary([]), confirmation=confirmation))
    assert panel.figure is None
    assert "nothing to compare" in panel.caption


def test_the_companions_definition_has_the_studys_meaning_and_no_pruner() -> None:
    study = parse_definition(
        {
            "name": "big",
            "seed": 3,
            "keep_every": 5,
            "model": {"family": "cnn", "kernels": [4, 8]},
            "training": {"optimizer": "momentum", "momentum": 0.7},
            "stopping": {"rule": "no-improvement-in-n", "n": 4},
            "pruning": {"pruner": "hyperband"},
            "search": {"learning_rate": {"log10": [-1, -3]}},
        },
        source="test",
    )
    found = companion_definition(study, "big-again", [{"learning_rate": 0.1, "seed": 5}])
    assert found.name == "big-again"
    assert (found.seed, found.data, found.model) == (study.seed, study.data, study.model)
    assert (found.training, found.stopping) == (study.training, study.stopping)
    assert found.pruning.pruner == "none"
    assert found.keeps_all_parameters
    assert found.keep_every is None  # its trials are seeds of the same points: their filters tell nothing new
    assert found.resolve({"learning_rate": 0.1, "seed": 5}).training_seed == 5


def test_points_are_taken_apart_into_configurations_and_seeds() -> None:
    points = [{"a": 1, "seed": 7}, {"a": 2, "seed": 7}, {"a": 1, "seed": 8}, {"a": 1, "seed": 7}]
    assert configurations_of(points) == [{"a": 1}, {"a": 2}]
    assert seeds_of(points) == [7, 8]
    assert unique(points) == points[:3]


def linear(image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    height, width = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width, num_classes))


@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn", f"{__name__}:linear"])
def test_seeds_can_matter_where_they_draw_initial_weights_or_orders(family: str) -> None:
    definition = parse_definition({"name": "a", "model": {"family": family}}, source="test")
    network = build_network(definition.model, (28, 28), 10)
    one, other = (network.initial_parameters(seed=seed) for seed in (1, 2))
    is_drawn = any(not one[name].equal(other[name]) for name in one)
    assert can_seeds_matter(definition, [{}]) == is_drawn
    assert can_seeds_matter(definition, [{}, {"shuffle": True}])


def test_sums_of_groups_become_the_loss_with_each_groups_influence() -> None:
    """If every row has the same loss, large groups have large sums, and no group has an influence."""
    sizes = (1, 2, 6)
    sums = np.array(sizes, dtype=np.float32) * 0.2 / 3
    np.testing.assert_allclose(parts_of_groups(sums, sizes, "a"), 0.2, rtol=1e-6)
    uneven = np.array([0.9, 0.0, 0.3], dtype=np.float32)
    assert parts_of_groups(uneven, sizes, "a").mean() == pytest.approx(0.4)


def test_a_record_of_another_number_of_groups_is_damaged() -> None:
    with pytest.raises(StorageError, match="2 groups, but the data has 3"):
        parts_of_groups(np.zeros(2, dtype=np.float32), (1, 2, 3), "a")
