"""The snapshot: it decides as Optuna does on a storage of its own, and changes nothing but what it says.

Optuna's InMemoryStorage is the yardstick here; hpsearch itself keeps its studies in PostgreSQL only.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpsearch.search.pruners import build_pruner
from hpsearch.search.samplers import build_sampler
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.study.settings import PruningSettings

ID_OFFSET = 1000  # our ids differ from the yardstick's, and from the numbers
MAX_EPOCHS = 9


@pytest.fixture(autouse=True, scope="module")
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


def make_trial(number: int, state: TrialState = TrialState.RUNNING, **fields: Any) -> FrozenTrial:
    """A trial whose id is its number plus ID_OFFSET."""
    trial = create_trial(state=state, **fields)
    trial.number, trial._trial_id = number, number + ID_OFFSET
    return trial


# Pruners: side by side with Optuna


class Ledger:
    """Stands for the database: trials as rows, changed only by what a worker writes."""

    def __init__(self) -> None:
        self.trials: list[FrozenTrial] = []

    def start(self) -> None:
        self.trials.append(make_trial(len(self.trials)))

    def report(self, number: int, epoch: int, value: float) -> None:
        self.trials[number].intermediate_values[epoch] = value

    def finish(self, number: int, state: TrialState, value: float | None) -> None:
        self.trials[number].state = state
        self.trials[number].value = value

    def write(self, system_attrs: list[tuple[int, str, Any]]) -> None:
        for trial_id, key, value in system_attrs:
            self.trials[trial_id - ID_OFFSET].system_attrs[key] = value

    def read(self) -> list[FrozenTrial]:
        return copy.deepcopy(self.trials)


class SideBySide:
    """A study with several lanes, run once in Optuna's own storage and once through ledger and snapshot."""

    def __init__(self, pruning: PruningSettings, study_name: str) -> None:
        self.optuna_study = optuna.create_study(
            study_name=study_name, storage=InMemoryStorage(), pruner=build_pruner(pruning, MAX_EPOCHS)
        )
        self.snapshot = StudySnapshot(study_name=study_name, pruner=build_pruner(pruning, MAX_EPOCHS))
        self.ledger = Ledger()
        self.lanes: list[optuna.Trial] = []
        self.verdicts: list[bool] = []

    def start(self) -> None:
        self.lanes.append(self.optuna_study.ask())
        self.ledger.start()

    def report(self, trial: optuna.Trial, value: float) -> None:
        epoch = len(self.ledger.trials[trial.number].intermediate_values) + 1
        trial.report(value, step=epoch)
        self.ledger.report(trial.number, epoch, value)

    def judge(self, trial: optuna.Trial) -> None:
        """Ask both; a pruned trial ends at once."""
        verdict = self.snapshot.should_prune(trial.number + ID_OFFSET)
        assert isinstance(verdict, bool)
        assert verdict == trial.should_prune()
        self.verdicts.append(verdict)
        self.ledger.write(self.snapshot.drain_system_attrs())
        if verdict:
            last = list(self.ledger.trials[trial.number].intermediate_values.values())[-1]
            self.finish(trial, TrialState.PRUNED, last)

    def finish(self, trial: optuna.Trial, state: TrialState, value: float | None = None) -> None:
        self.optuna_study.tell(trial, value if state is TrialState.COMPLETE else None, state=state)
        self.ledger.finish(trial.number, state, value)
        self.lanes.remove(trial)

    def end_of_epoch(self, trial: optuna.Trial, fate: float) -> None:
        """Some trials fail, some end by themselves early, the rest at the last epoch."""
        values = self.ledger.trials[trial.number].intermediate_values
        if fate < 0.03:
            self.finish(trial, TrialState.FAIL)
        elif fate < 0.15 or len(values) == MAX_EPOCHS:
            self.finish(trial, TrialState.COMPLETE, min(values.values()))

    def assert_same_marks(self) -> None:
        """What the pruners wrote down is the same."""
        theirs = [trial.system_attrs for trial in self.optuna_study.get_trials(deepcopy=False)]
        assert [trial.system_attrs for trial in self.ledger.trials] == theirs


def run_all_lanes_at_once(study: SideBySide, rng: random.Random, num_trials: int, num_lanes: int) -> None:
    """As a worker does: all lanes report, the study is read once, then each is judged."""
    while len(study.ledger.trials) < num_trials or study.lanes:
        while len(study.lanes) < num_lanes and len(study.ledger.trials) < num_trials:
            study.start()
        for trial in study.lanes:
            study.report(trial, rng.randrange(12) / 12)
        study.snapshot.replace_trials(study.ledger.read())
        for trial in list(study.lanes):
            # Optuna sees at once that the lane before was pruned, the snapshot does not: it must not matter.
            study.judge(trial)
        for trial in list(study.lanes):
            study.end_of_epoch(trial, rng.random())


def run_interleaved(study: SideBySide, rng: random.Random, num_trials: int, num_lanes: int) -> None:
    """As several workers do: lanes run at their own pace; each report is followed by its verdict."""
    while len(study.ledger.trials) < num_trials or study.lanes:
        while len(study.lanes) < num_lanes and len(study.ledger.trials) < num_trials:
            study.start()
        trial = rng.choice(study.lanes)
        study.report(trial, rng.randrange(12) / 12)
        study.snapshot.replace_trials(study.ledger.read())
        study.judge(trial)
        if trial in study.lanes:
            study.end_of_epoch(trial, rng.random())


COMPETITIVE = [
    PruningSettings(pruner="median", startup_trials=2),
    PruningSettings(pruner="median", startup_trials=0, warmup_epochs=2),
    PruningSettings(pruner="percentile", startup_trials=2, percentile=40.0),
    PruningSettings(pruner="successive-halving", min_epochs=1, reduction_factor=2),
    PruningSettings(pruner="successive-halving", min_epochs=2, reduction_factor=3),
    PruningSettings(pruner="hyperband", min_epochs=1, reduction_factor=2),
    PruningSettings(pruner="hyperband", min_epochs=2, reduction_factor=3),
]
Pace = Callable[[SideBySide, random.Random, int, int], None]


@pytest.mark.parametrize("pace", [run_all_lanes_at_once, run_interleaved])
@pytest.mark.parametrize("pruning", COMPETITIVE, ids=lambda p: f"{p.pruner}-{p.min_epochs}-{p.warmup_epochs}")
def test_a_real_study_of_many_trials_is_pruned_exactly_as_by_optuna(pruning: PruningSettings, pace: Pace) -> None:
    study = SideBySide(pruning, "many-trials")
    pace(study, random.Random(1), 60, 5)
    study.assert_same_marks()
    assert {True, False} == set(study.verdicts), "the pruner must have had something to decide"


@settings(max_examples=250)
@given(
    pruning=st.sampled_from(COMPETITIVE),
    pace=st.sampled_from([run_all_lanes_at_once, run_interleaved]),
    study_name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
    num_trials=st.integers(1, 12),
    num_lanes=st.integers(1, 4),
)
def test_any_study_is_pruned_exactly_as_by_optuna(
    pruning: PruningSettings, pace: Pace, study_name: str, seed: int, num_trials: int, num_lanes: int
) -> None:
    study = SideBySide(pruning, study_name)
    pace(study, random.Random(seed), num_trials, num_lanes)
    study.assert_same_marks()


# Samplers


SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "lambda_2": FloatDistribution(1e-6, 1e-2, log=True),
}


@pytest.mark.parametrize("strategy", ["random", "tpe"])
@pytest.mark.parametrize("num_finished", [0, 30])
def test_a_sampler_draws_from_a_snapshot_what_it_draws_in_optuna(strategy: str, num_finished: int) -> None:
    rng = random.Random(5)
    study = optuna.create_study(study_name="draws", storage=InMemoryStorage())
    for number in range(num_finished):
        params = {"learning_rate": 10 ** rng.uniform(-4, -1), "lambda_2": 10 ** rng.uniform(-6, -2)}
        state = TrialState.PRUNED if number % 4 == 0 else TrialState.COMPLETE
        study.add_trial(
            create_trial(
                state=state,
                params=params,
                distributions=SPACE,
                value=rng.random(),
                intermediate_values={1: rng.random()},
            )
        )
    number = num_finished
    trials = [copy.deepcopy(trial) for trial in study.get_trials()]
    for trial in trials:
        trial._trial_id += ID_OFFSET
    snapshot = StudySnapshot(study_name="draws", pruner=optuna.pruners.NopPruner())
    snapshot.replace_trials([*trials, make_trial(number)])

    study.sampler = build_sampler(strategy, study_seed=3, trial_number=number)
    expected = study.ask(SPACE)

    sampler = build_sampler(strategy, study_seed=3, trial_number=number)
    view, trial = snapshot.study, make_trial(number)
    drawn = sampler.sample_relative(view, trial, sampler.infer_relative_search_space(view, trial))
    for name, distribution in SPACE.items():
        if name not in drawn:
            drawn[name] = sampler.sample_independent(view, trial, name, distribution)

    assert drawn == expected.params
    notes = {key: value for _, key, value in snapshot.drain_system_attrs()}
    assert notes == study.get_trials()[number].system_attrs
    assert bool(notes) is (strategy == "tpe" and num_finished > 0), "TPE tells other workers what it drew"


# What it holds


def make_snapshot(*trials: FrozenTrial, pruner: PruningSettings | None = None) -> StudySnapshot:
    snapshot = StudySnapshot(
        study_name="held",
        study_id=7,
        pruner=build_pruner(pruner or PruningSettings(pruner="successive-halving"), MAX_EPOCHS),
    )
    snapshot.replace_trials(trials)
    return snapshot


def test_it_is_a_study_that_optuna_can_read() -> None:
    snapshot = make_snapshot(
        make_trial(2, TrialState.COMPLETE, value=0.1),
        make_trial(0, TrialState.COMPLETE, value=0.3),
        make_trial(1),
    )
    study = snapshot.study
    assert study.study_name == "held"
    assert study.direction is StudyDirection.MINIMIZE
    assert (study.user_attrs, study.metric_names) == ({}, None)
    assert [trial.number for trial in study.trials] == [0, 1, 2]
    assert study.best_trial.number == 2
    assert [trial.number for trial in study.get_trials(states=(TrialState.RUNNING,))] == [1]


def test_storage_reads_answer_for_the_one_study() -> None:
    storage = make_snapshot(make_trial(4), make_trial(2, TrialState.PRUNED, value=0.2)).study._storage
    assert storage.get_study_id_from_name("held") == 7
    assert storage.get_study_name_from_id(7) == "held"
    assert storage.get_study_system_attrs(7) == {}
    assert [(study.study_name, study._study_id) for study in storage.get_all_studies()] == [("held", 7)]
    assert storage.get_n_trials(7) == 2
    assert storage.get_n_trials(7, TrialState.PRUNED) == 1
    # A number is no index: trials 0, 1 and 3 are not in this snapshot.
    assert storage.get_trial_id_from_study_id_trial_number(7, 4) == 4 + ID_OFFSET
    assert storage.get_trial_number_from_id(4 + ID_OFFSET) == 4


@pytest.mark.parametrize(
    "read",
    [
        lambda storage: storage.get_study_id_from_name("other"),
        lambda storage: storage.get_study_name_from_id(8),
        lambda storage: storage.get_study_directions(8),
        lambda storage: storage.get_study_user_attrs(8),
        lambda storage: storage.get_study_system_attrs(8),
        lambda storage: storage.get_all_trials(8),
        lambda storage: storage.get_trial(ID_OFFSET + 1),
        lambda storage: storage.set_trial_system_attr(ID_OFFSET + 1, "key", 1),
        lambda storage: storage.get_trial_id_from_study_id_trial_number(7, 1),
    ],
)
def test_other_studies_and_trials_are_unknown(read: Callable[[optuna.storages.BaseStorage], object]) -> None:
    with pytest.raises(KeyError):
        read(make_snapshot(make_trial(0)).study._storage)


@pytest.mark.parametrize(
    "write",
    [
        lambda storage: storage.create_new_study([StudyDirection.MINIMIZE]),
        lambda storage: storage.delete_study(7),
        lambda storage: storage.set_study_user_attr(7, "key", 1),
        lambda storage: storage.set_study_system_attr(7, "key", 1),
        lambda storage: storage.create_new_trial(7),
        lambda storage: storage.set_trial_state_values(ID_OFFSET, TrialState.COMPLETE, [0.1]),
        lambda storage: storage.set_trial_intermediate_value(ID_OFFSET, 1, 0.1),
        lambda storage: storage.set_trial_user_attr(ID_OFFSET, "key", 1),
    ],
)
def test_every_other_write_is_refused_and_changes_nothing(
    write: Callable[[optuna.storages.BaseStorage], object],
) -> None:
    held = make_trial(0)
    snapshot = make_snapshot(copy.deepcopy(held))
    with pytest.raises(RuntimeError, match="call it on the study's own storage"):
        write(snapshot.study._storage)
    assert snapshot.study.trials == [held]
    assert snapshot.drain_system_attrs() == []


def test_parameters_are_held_by_a_copy_of_their_trial() -> None:
    held = make_trial(0)
    storage = make_snapshot(held).study._storage
    storage.set_trial_param(ID_OFFSET, "x", 1.0, FloatDistribution(0, 2))
    changed = storage.get_trial(ID_OFFSET)
    assert (changed.params, changed.distributions) == ({"x": 1.0}, {"x": FloatDistribution(0, 2)})
    assert (held.params, held.distributions) == ({}, {})


def test_parameters_of_a_finished_trial_are_refused() -> None:
    storage = make_snapshot(make_trial(0, TrialState.PRUNED)).study._storage
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_param(ID_OFFSET, "x", 1.0, FloatDistribution(0, 2))


def test_two_trials_with_one_id_are_refused_and_the_old_ones_stay() -> None:
    held = make_trial(0)
    snapshot = make_snapshot(held)
    with pytest.raises(ValueError, match="2 trials have only 1 different ids"):
        snapshot.replace_trials([make_trial(1), make_trial(1)])
    assert snapshot.study.trials == [held]


# What a pruner writes


def test_what_a_pruner_writes_is_seen_by_the_next_lane_and_drained_once() -> None:
    first = make_trial(0, intermediate_values={1: 0.2})
    snapshot = make_snapshot(first, make_trial(1, intermediate_values={1: 0.3}))
    assert not snapshot.should_prune(ID_OFFSET), "alone at its rung"
    assert snapshot.should_prune(ID_OFFSET + 1), "worse than the first, whose mark is not in the database yet"
    assert snapshot.drain_system_attrs() == [
        (ID_OFFSET, "completed_rung_0", 0.2),
        (ID_OFFSET + 1, "completed_rung_0", 0.3),
    ]
    assert snapshot.drain_system_attrs() == []
    assert first.system_attrs == {}, "the caller's own objects stay as they are"


def test_marks_that_were_not_drained_outlive_a_new_read_and_drained_ones_do_not() -> None:
    snapshot = make_snapshot(make_trial(0, intermediate_values={1: 0.2}))
    snapshot.should_prune(ID_OFFSET)
    snapshot.replace_trials([make_trial(0, intermediate_values={1: 0.2})])
    assert snapshot.study.trials[0].system_attrs == {"completed_rung_0": 0.2}
    snapshot.replace_trials([make_trial(1)])  # the trial is not in every read
    assert snapshot.drain_system_attrs() == [(ID_OFFSET, "completed_rung_0", 0.2)]
    snapshot.replace_trials([make_trial(0, intermediate_values={1: 0.2})])
    assert snapshot.study.trials[0].system_attrs == {}


def test_reads_that_were_handed_out_do_not_change_with_a_write() -> None:
    snapshot = make_snapshot(make_trial(0, intermediate_values={1: 0.2}))
    before = snapshot.study.get_trials(deepcopy=False)
    snapshot.should_prune(ID_OFFSET)
    assert before[0].system_attrs == {}
    deep = snapshot.study.get_trials(deepcopy=True)
    deep[0].system_attrs["mine"] = 1
    assert "mine" not in snapshot.study.trials[0].system_attrs


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
@pytest.mark.parametrize("pruner", ["none", "median", "successive-halving"])
def test_a_trial_that_has_finished_cannot_be_judged(state: TrialState, pruner: str) -> None:
    value = 0.2 if state is TrialState.COMPLETE else None
    finished = make_trial(0, state, value=value, intermediate_values={1: 0.2})
    snapshot = make_snapshot(finished, pruner=PruningSettings(pruner=pruner))
    with pytest.raises(UpdateFinishedTrialError):
        snapshot.should_prune(ID_OFFSET)
    assert snapshot.drain_system_attrs() == []


def test_it_tells_a_worker_which_of_its_trials_it_still_has() -> None:
    snapshot = make_snapshot(make_trial(0), make_trial(1, TrialState.FAIL), make_trial(2, TrialState.WAITING))
    assert [snapshot.is_running(number + ID_OFFSET) for number in range(4)] == [True, False, False, False]


def test_a_trial_that_is_not_there_cannot_be_judged() -> None:
    with pytest.raises(KeyError, match="no trial with the id 3"):
        make_snapshot(make_trial(0)).should_prune(3)


def test_a_trial_without_a_report_is_not_pruned() -> None:
    for name in ("none", "median", "percentile", "successive-halving", "hyperband"):
        assert not make_snapshot(make_trial(0), pruner=PruningSettings(pruner=name)).should_prune(ID_OFFSET)


def test_a_study_taken_after_a_new_read_shows_samplers_the_new_trials() -> None:
    snapshot = make_snapshot(make_trial(0))
    sampler, trial = TPESampler(seed=0), make_trial(1)
    assert sampler.infer_relative_search_space(snapshot.study, trial) == {}
    params = {"learning_rate": 0.01, "lambda_2": 1e-4}
    done = make_trial(0, TrialState.COMPLETE, value=0.1, params=params, distributions=SPACE)
    snapshot.replace_trials([done, trial])
    assert sampler.infer_relative_search_space(snapshot.study, trial).keys() == SPACE.keys()
