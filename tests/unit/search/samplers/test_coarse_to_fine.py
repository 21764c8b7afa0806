"""Coarse to fine on plain Optuna studies with real objectives."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.proportions import proportions_differ
from hpsearch.search.samplers.coarse_to_fine import (
    COARSE_POINT_ATTRIBUTE,
    ROUND_ATTRIBUTE,
    CoarseToFineSampler,
)
from hpsearch.study.space import LogGrid, Point, Range

RATES = LogGrid(log10=(-1, -4))


@pytest.fixture(autouse=True, scope="module")
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def bowl(trial: optuna.Trial) -> float:
    """Best at 3, beyond the grid's edge."""
    rate = trial.suggest_float("lr", 1e-6, 10, log=True)
    return 0.02 + 0.02 * (math.log10(rate) - math.log10(3)) ** 2


def values(study: optuna.Study, name: str = "lr") -> list[float]:
    return [trial.params[name] for trial in study.trials]


def test_a_plain_study_narrows_grows_and_ends() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    study.optimize(bowl, n_trials=1000)
    assert len(study.trials) < 30
    assert values(study)[:8] == pytest.approx([0.1, 0.01, 0.001, 0.0001, 1.0, 10.0, 10**-0.5, 10**0.5])
    assert study.best_params["lr"] == pytest.approx(3, rel=0.08)
    assert study.trials[4].system_attrs[ROUND_ATTRIBUTE] == [2, "lr: best 0.1 on the edge, grown to 1"]


def test_it_stays_within_what_the_objective_suggests() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    study.optimize(lambda trial: -trial.suggest_float("lr", 1e-4, 0.3), n_trials=1000)
    assert max(values(study)) == pytest.approx(0.274, rel=0.01)


def test_values_are_maximised_where_the_study_says_so() -> None:
    study = optuna.create_study(direction="maximize", sampler=CoarseToFineSampler({"lr": RATES}))
    study.optimize(lambda trial: -bowl(trial), n_trials=1000)
    assert study.best_params["lr"] == pytest.approx(3, rel=0.08)


def test_with_a_number_of_images_it_ends_when_nothing_differs_significantly() -> None:
    counts = []
    for num_validation in (100, 10_000, None):
        sampler = CoarseToFineSampler({"lr": RATES}, num_validation=num_validation)
        study = optuna.create_study(sampler=sampler)
        study.optimize(bowl, n_trials=1000)
        counts.append(len(study.trials))
    assert counts == sorted(counts)
    assert len(set(counts)) == 3


def test_a_callable_says_what_differs() -> None:
    def by_attribute(a: FrozenTrial, b: FrozenTrial) -> bool:
        return bool(a.user_attrs["rounded"] != b.user_attrs["rounded"])

    def objective(trial: optuna.Trial) -> float:
        value = bowl(trial)
        trial.set_user_attr("rounded", round(value))
        return value

    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}, is_significant=by_attribute))
    study.optimize(objective, n_trials=1000)
    assert values(study) == [0.1, 0.01, 0.001, 0.0001, 1.0, 10.0]


def test_one_round_is_the_grid() -> None:
    space = {"lr": RATES, "activation": ["tanh", "relu"]}
    study = optuna.create_study(sampler=CoarseToFineSampler(space, max_rounds=1))

    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("activation", ["tanh", "relu"])
        return bowl(trial)

    study.optimize(objective, n_trials=1000)
    points = [(trial.params["lr"], trial.params["activation"]) for trial in study.trials]
    assert points == [(rate, name) for rate in (0.1, 0.01, 0.001, 0.0001) for name in ("tanh", "relu")]


def test_whole_numbers_and_conditional_parameters() -> None:
    def reduce(point: Point) -> Point:
        return {name: value for name, value in point.items() if name != "momentum" or point["optimizer"] == "momentum"}

    def objective(trial: optuna.Trial) -> float:
        units = trial.suggest_int("units", 1, 1000, log=True)
        error = (math.log10(units) - math.log10(40)) ** 2
        if trial.suggest_categorical("optimizer", ["sgd", "momentum"]) == "momentum":
            return error + abs(trial.suggest_float("momentum", 0.5, 0.99) - 0.9)
        return error + 0.3

    space = {
        "units": LogGrid(log10=(1, 3)),
        "optimizer": ["sgd", "momentum"],
        "momentum": Range(low=0.5, high=0.99),
    }
    study = optuna.create_study(sampler=CoarseToFineSampler(space, whole_numbers=["units"], reduce=reduce))
    study.optimize(objective, n_trials=1000)
    assert len(study.trials) < 100
    assert study.best_params["optimizer"] == "momentum"
    assert study.best_params["momentum"] == pytest.approx(0.9, abs=0.02)
    assert 36 <= study.best_params["units"] <= 44
    points = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert len(set(points)) == len(points)


def test_a_study_in_a_database_goes_on_in_another_process(tmp_path: Path) -> None:
    alone = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    alone.optimize(bowl, n_trials=1000)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in range(3):
        storage = RDBStorage(url)
        sampler = CoarseToFineSampler({"lr": RATES})
        study = optuna.create_study(study_name="s", storage=storage, sampler=sampler, load_if_exists=True)
        study.optimize(bowl, n_trials=len(alone.trials) // 2)
        storage.remove_session()
        storage.engine.dispose()
    # A study that has ended gives the best point once more before it notices.
    assert values(study)[: len(alone.trials)] == values(alone)
    assert set(values(study)) == set(values(alone))


def test_threads_share_a_round() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    study.optimize(bowl, n_trials=200, n_jobs=4)
    alone = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    alone.optimize(bowl, n_trials=200)
    assert set(values(study)) == set(values(alone))


def test_who_asks_when_all_points_are_being_run_gets_the_oldest_again() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    for _ in range(6):
        study.ask()
    assert [trial.system_attrs[COARSE_POINT_ATTRIBUTE]["lr"] for trial in study.trials] == [
        0.1,
        0.01,
        0.001,
        0.0001,
        0.1,
        0.01,
    ]


def test_of_a_point_that_was_run_twice_the_first_result_counts() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    first, *others, repeated = [study.ask() for _ in range(5)]
    for trial in others:
        study.tell(trial, bowl(trial))
    study.tell(repeated, 0.9)
    following = study.ask()
    assert bowl(first) < 0.9
    study.tell(first, bowl(first))
    study.tell(following, bowl(following))
    later = study.ask()
    # 0.1 stays the worst: both lie beside 0.01.
    bowl(later)
    assert sorted([following.params["lr"], later.params["lr"]]) == pytest.approx([10**-2.5, 10**-1.5])


def test_failed_and_pruned_trials_are_worse_than_all_others() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("lr", 1e-6, 10, log=True)
        if rate > 0.5:
            raise RuntimeError("diverged")
        if rate > 0.05:
            raise optuna.TrialPruned
        return -rate

    study.optimize(objective, n_trials=1000, catch=RuntimeError)
    assert {trial.state for trial in study.trials} >= {TrialState.COMPLETE, TrialState.PRUNED}
    assert 0.04 < study.best_params["lr"] <= 0.05


def test_a_users_own_trial_counts_as_known() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    study.enqueue_trial({"lr": 0.01})
    study.optimize(bowl, n_trials=1000)
    assert sorted(values(study)[:4]) == [0.0001, 0.001, 0.01, 0.1]
    assert len(set(values(study))) == len(study.trials)


def test_after_the_end_asking_gives_the_best_point_again() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    study.optimize(bowl, n_trials=1000)
    trial = study.ask()
    assert trial.suggest_float("lr", 1e-6, 10, log=True) == study.best_params["lr"]
    study.tell(trial, 0.02)  # outside of optimize there is nothing to end


def test_a_parameter_that_is_not_searched_is_an_error() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    with pytest.raises(ValueError, match=r"no parameter 'momentum', only \['lr'\]"):
        study.ask().suggest_float("momentum", 0, 1)


def test_a_grid_outside_of_what_is_suggested_is_an_error() -> None:
    study = optuna.create_study(sampler=CoarseToFineSampler({"lr": RATES}))
    with pytest.raises(ValueError, match=r"lr = 0\.1 is outside"):
        study.ask().suggest_float("lr", 1e-6, 1e-2)


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=CoarseToFineSampler({"lr": RATES}))
    with pytest.raises(ValueError, match="several objectives"):
        study.ask()


def test_fractions_for_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="exponents >= 0"):
        CoarseToFineSampler({"units": RATES}, whole_numbers=["units"])


def test_a_sampler_can_be_pickled() -> None:
    study = optuna.create_study(sampler=pickle.loads(pickle.dumps(CoarseToFineSampler({"lr": RATES}))))
    study.optimize(bowl, n_trials=1000)
    assert study.best_params["lr"] == pytest.approx(3, rel=0.08)


def test_two_proportions_differ_beyond_two_standard_errors() -> None:
    # 2 % of 10,000: the difference's standard error is 0.2 %.
    assert proportions_differ(0.020, 0.0245, 10_000)
    assert not proportions_differ(0.020, 0.0235, 10_000)
    assert proportions_differ(0.0235, 0.020, 100_000)
    assert not proportions_differ(0.0, 0.0, 10_000)
    assert not proportions_differ(1.0, 1.0, 10_000)
