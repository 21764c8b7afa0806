"""CMA-ES as a function of the study's trials: what ends a generation, what counts, and what comes out."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from cmaes import CMA
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from hpsearch.search.samplers import CmaSampler, trial_seed
from hpsearch.search.samplers.cma import _candidates, _fingerprint
from hpsearch.search.samplers.evolution import FIRST_STEP, Candidate, Evolution
from hpsearch.search.samplers.unit_cube import UnitCube

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
POPULATION = 6  # of two parameters


def bowl(trial: optuna.Trial) -> float:
    return (trial.suggest_float("x", 0.0, 1.0) - 0.2) ** 2 + (trial.suggest_float("y", 0.0, 1.0) - 0.9) ** 2


def new_study(**options: Any) -> optuna.Study:
    direction = options.pop("direction", "minimize")
    sampler = CmaSampler(**{"seed": 1, "search_space": SPACE, **options})
    return optuna.create_study(study_name="s", sampler=sampler, direction=direction)


def generations(study: optuna.Study) -> list[int]:
    return [trial.system_attrs["hpsearch:draw:cma"]["generation"] for trial in study.get_trials(deepcopy=False)]


def parents(study: optuna.Study) -> list[int]:
    """Of the last trial."""
    numbers: list[int] = study.get_trials(deepcopy=False)[-1].system_attrs["hpsearch:draw:cma"]["parents"]
    return numbers


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.get_trials(deepcopy=False)]


def ask(study: optuna.Study, number: int = 1) -> list[optuna.Trial]:
    return [study.ask(SPACE) for _ in range(number)]


def tell(study: optuna.Study, trials: list[optuna.Trial], value: float = 1.0) -> None:
    for trial in trials:
        study.tell(trial, value)


def test_one_worker_draws_what_a_kept_optimizer_draws() -> None:
    """The replay loses nothing against an object that lives through the whole search."""
    study = new_study()
    study.optimize(bowl, n_trials=10 * POPULATION)
    optimizer = CMA(mean=np.full(2, 0.5), sigma=FIRST_STEP, bounds=np.array([[0, 1], [0, 1]]), population_size=6)
    for generation in range(10):
        told = []
        for number in range(generation * POPULATION, (generation + 1) * POPULATION):
            optimizer.reseed_rng(trial_seed(1, number))
            place = optimizer.ask()
            assert study.trials[number].params == {"x": place[0], "y": place[1]}
            told.append((place, (place[0] - 0.2) ** 2 + (place[1] - 0.9) ** 2))
        optimizer.tell(told)
    assert generations(study) == [number // POPULATION for number in range(60)]


def test_it_finds_the_bottom_of_a_curved_valley_in_mixed_parameters() -> None:
    space: dict[str, BaseDistribution] = {
        "rate": FloatDistribution(1e-5, 1.0, log=True),
        "units": IntDistribution(8, 512, log=True),
    }

    def valley(trial: optuna.Trial) -> float:
        rate = math.log10(trial.suggest_float("rate", 1e-5, 1.0, log=True)) + 3
        units = math.log2(trial.suggest_int("units", 8, 512, log=True)) - 5
        return (units - rate**2 / 4) ** 2 + 0.1 * rate**2

    study = optuna.create_study(sampler=CmaSampler(seed=2, search_space=space))
    study.optimize(valley, n_trials=150)
    assert study.best_value < 0.003
    assert study.best_params["rate"] == pytest.approx(1e-3, rel=0.5)
    assert all(8 <= drawn["units"] <= 512 for drawn in params(study))


def test_maximizing_is_minimizing_the_opposite() -> None:
    down, up = new_study(), new_study(direction="maximize")
    down.optimize(bowl, n_trials=30)
    up.optimize(lambda trial: -bowl(trial), n_trials=30)
    assert params(down) == params(up)


def test_the_order_in_which_trials_finish_does_not_matter() -> None:
    first, second = new_study(), new_study()
    for study, order in ((first, 1), (second, -1)):
        trials = ask(study, POPULATION)
        for trial in trials[::order]:
            study.tell(trial, trial.params["x"])
        ask(study)
    assert params(first) == params(second)
    assert generations(first)[-1] == 1


def test_whoever_asks_meanwhile_gets_another_candidate_of_the_same_generation() -> None:
    study = new_study()
    trials = ask(study, POPULATION + 4)
    assert generations(study) == [0] * 10
    assert len({trial.params["x"] for trial in trials}) == 10
    tell(study, trials[1:])  # nine have finished, but not the first
    ask(study)
    assert generations(study)[-1] == 0, "those that take long may be the best ones"
    tell(study, trials[:1])
    ask(study)
    assert generations(study)[-1] == 1
    assert parents(study) == [0, 1, 2, 3, 4, 5]


def test_a_failed_trial_is_replaced_by_the_next_candidate() -> None:
    study = new_study()
    trials = ask(study, POPULATION)
    study.tell(trials[2], state=TrialState.FAIL)
    tell(study, trials[:2] + trials[3:])
    tell(study, ask(study))
    assert generations(study)[-1] == 0
    ask(study)
    assert generations(study)[-1] == 1
    assert parents(study) == [0, 1, 3, 4, 5, 6]


def test_a_failed_trial_that_is_run_again_keeps_its_place() -> None:
    """By Optuna's own callback for dead workers' trials, which copies attributes, as ours do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        run_again = optuna.storages.RetryHeartbeatStaleTrialCallback()
    smooth, bumpy = new_study(), new_study()
    for study in (smooth, bumpy):
        for trial in ask(study, POPULATION):
            if study is bumpy and trial.number == 2:
                study.tell(trial, state=TrialState.FAIL)
                run_again(study, study.trials[2])
            else:
                study.tell(trial, 0.5)  # all the same: what differs is their order
    (again,) = ask(bumpy)
    assert again.number == POPULATION
    bumpy.tell(again, 0.5)
    ask(smooth)
    ask(bumpy)
    assert parents(smooth) == parents(bumpy) == [0, 1, 2, 3, 4, 5]
    means = [Evolution(num_dimensions=2, population_size=POPULATION, seed=1) for _ in range(2)]
    for evolution, study in zip(means, (smooth, bumpy), strict=True):
        evolution.replay(_candidates(study, UnitCube(SPACE), _fingerprint(SPACE, POPULATION)))
        assert evolution.generation == 1
    np.testing.assert_array_equal(means[0].ask(7), means[1].ask(7))


def test_a_trial_that_never_ends_holds_nobody_up_for_long() -> None:
    study = new_study()
    ask(study)  # its process is killed
    tell(study, ask(study, 2 * POPULATION - 1))
    ask(study)
    assert generations(study)[-1] == 0
    tell(study, ask(study))
    ask(study)
    assert generations(study)[-1] == 1
    assert parents(study) == [1, 2, 3, 4, 5, 6]


def test_what_finishes_late_changes_nothing_that_was_drawn_from() -> None:
    study = new_study()
    (slow,) = ask(study)
    tell(study, ask(study, 2 * POPULATION))
    ask(study)
    assert parents(study) == [1, 2, 3, 4, 5, 6]
    study.tell(slow, -100.0)
    ask(study)
    assert generations(study)[-2:] == [1, 1]
    assert parents(study) == [1, 2, 3, 4, 5, 6]


def drawn_after(finish: Callable[[optuna.Study, optuna.Trial], None]) -> dict[str, Any]:
    """The first draw of generation 1 if the trial number 3 ends in a certain way and the others with their x."""
    study = new_study()
    for trial in ask(study, POPULATION):
        if trial.number == 3:
            finish(study, trial)
        else:
            study.tell(trial, trial.params["x"])
    ask(study)
    assert generations(study)[-1] == 1
    return params(study)[-1]


def test_a_pruned_trial_counts_with_its_last_value() -> None:
    def prune_at(value: float) -> Callable[[optuna.Study, optuna.Trial], None]:
        def finish(study: optuna.Study, trial: optuna.Trial) -> None:
            trial.report(9.0, step=1)
            trial.report(value, step=2)
            study.tell(trial, state=TrialState.PRUNED)

        return finish

    best, worst = (drawn_after(lambda study, trial, v=v: study.tell(trial, v)) for v in (-1.0, 2.0))
    assert drawn_after(prune_at(-1.0)) == best != worst
    assert drawn_after(prune_at(2.0)) == worst


@pytest.mark.parametrize("value", [None, math.inf])
def test_a_trial_without_a_number_is_the_worst_of_its_generation(value: float | None) -> None:
    """It diverged in its first epoch."""
    worst = drawn_after(lambda study, trial: study.tell(trial, 100.0))
    if value is None:
        assert drawn_after(lambda study, trial: study.tell(trial, state=TrialState.PRUNED)) == worst
    else:
        assert drawn_after(lambda study, trial: study.tell(trial, value)) == worst


def test_a_generation_without_any_number_ends_all_the_same() -> None:
    study = new_study()
    for trial in ask(study, POPULATION):
        study.tell(trial, state=TrialState.PRUNED)
    ask(study)
    assert generations(study)[-1] == 1


def test_a_draw_that_was_interrupted_is_finished_as_it_began() -> None:
    """A second object on the same trial (its process died, or its connection) draws the rest of the same candidate."""
    study, alone = new_study(), new_study()
    first = study.ask()
    x = first.suggest_float("x", 0.0, 1.0)
    tell(study, ask(study, 3 * POPULATION))  # others end a generation in between
    y = optuna.Trial(study, first._trial_id).suggest_float("y", 0.0, 1.0)
    assert ask(alone)[0].params == {"x": x, "y": y}


def test_fixed_parameters_are_no_candidates() -> None:
    study = new_study()
    study.enqueue_trial({"x": 0.25})
    study.optimize(bowl, n_trials=1 + POPULATION)
    assert study.trials[0].params["x"] == 0.25
    ask(study)
    assert parents(study) == [1, 2, 3, 4, 5, 6]


def test_another_search_space_starts_anew() -> None:
    study = new_study()
    study.optimize(bowl, n_trials=2 * POPULATION + 1)
    assert generations(study)[-1] == 2
    wider: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 2.0), "y": FloatDistribution(0.0, 1.0)}
    study.sampler = CmaSampler(seed=1, search_space=wider)
    study.ask(wider)
    assert generations(study)[-1] == 0


def test_without_a_search_space_it_is_that_of_the_finished_trials() -> None:
    study = new_study(search_space=None)
    study.optimize(bowl, n_trials=1 + POPULATION)
    assert "hpsearch:draw:cma" not in study.trials[0].system_attrs
    ask(study)
    assert parents(study) == [1, 2, 3, 4, 5, 6]


def test_categories_are_drawn_at_random_beside_it() -> None:
    study = new_study(search_space={**SPACE, "kind": CategoricalDistribution(("a", "b"))})

    def objective(trial: optuna.Trial) -> float:
        return bowl(trial) + (trial.suggest_categorical("kind", ["a", "b"]) == "a")

    study.optimize(objective, n_trials=40)
    assert {drawn["kind"] for drawn in params(study)[-12:]} == {"a", "b"}
    assert generations(study)[-1] == 6


def test_one_parameter_alone_is_enough() -> None:
    space: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
    study = optuna.create_study(sampler=CmaSampler(seed=1, search_space=space))
    study.optimize(lambda trial: (trial.suggest_float("x", 0.0, 1.0) - 0.3) ** 2, n_trials=60)
    assert study.best_params["x"] == pytest.approx(0.3, abs=0.01)


def test_a_distribution_that_has_shrunk_to_a_point_starts_anew_elsewhere() -> None:
    """3,000 candidates of a sphere: without a new start the numbers underflow."""
    evolution = Evolution(num_dimensions=2, population_size=POPULATION, seed=1)
    candidates: list[Candidate] = []
    spreads = []
    for generation in range(500):
        places = [evolution.ask(trial_seed(1, len(candidates) + i)) for i in range(POPULATION)]
        spreads.append(np.ptp(places, axis=0).max())
        members = [
            Candidate(
                number=len(candidates) + i,
                generation=generation,
                parents=(),
                place=place,
                is_finished=True,
                loss=float(((place - 0.4) ** 2).sum()),
            )
            for i, place in enumerate(places)
        ]
        candidates += members
        evolution.replay(members)
        assert evolution.generation == generation + 1
    assert min(spreads) < 1e-7
    restarts = [i for i in range(1, 500) if spreads[i] > 1e5 * spreads[i - 1]]
    assert restarts
    replayed = Evolution(num_dimensions=2, population_size=POPULATION, seed=1)
    replayed.replay(candidates)
    np.testing.assert_array_equal(replayed.ask(7), evolution.ask(7))


def test_notes_are_short_and_plain_json() -> None:
    study = new_study()
    study.optimize(bowl, n_trials=13)
    note = study.trials[-1].system_attrs["hpsearch:draw:cma"]
    assert set(note) == {"space", "number", "generation", "parents", "params"}
    assert len(json.dumps(note)) < 300


def test_small_populations_and_several_objectives_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^population_size must be >= 4, got 3$"):
        CmaSampler(population_size=3)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=CmaSampler(search_space=SPACE))
    with pytest.raises(ValueError, match="CmaSampler cannot be used"):
        study.ask(SPACE)


def test_a_population_size_of_ones_own() -> None:
    study = new_study(population_size=9)
    study.optimize(bowl, n_trials=10)
    assert generations(study) == [0] * 9 + [1]
