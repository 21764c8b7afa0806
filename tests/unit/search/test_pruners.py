"""The pruners: each setting reaches Optuna with the meaning that the study file gives it."""

from __future__ import annotations

import optuna
import pytest
from optuna.pruners import BasePruner
from optuna.trial import TrialState, create_trial

from hpsearch.errors import InputError
from hpsearch.search.pruners import build_pruner, is_competitive
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.study.registry import PRUNERS
from hpsearch.study.settings import PruningSettings


def frozen(
    number: int, curve: list[float], state: TrialState = TrialState.COMPLETE, **system_attrs: float
) -> optuna.trial.FrozenTrial:
    """A trial with one value per epoch; its id is its number plus 100."""
    trial = create_trial(
        state=state,
        value=min(curve) if state is TrialState.COMPLETE else None,
        intermediate_values=dict(enumerate(curve, start=1)),
        system_attrs=dict(system_attrs),
    )
    trial.number, trial._trial_id = number, 100 + number
    return trial


def prunes(pruner: BasePruner, others: list[list[float]], curve: list[float]) -> bool:
    """Whether the pruner gives up a trial with this curve, after COMPLETE ones with those."""
    snapshot = StudySnapshot(study_name="study", pruner=pruner)
    trials = [frozen(number, other) for number, other in enumerate(others)]
    snapshot.replace_trials([*trials, frozen(len(others), curve, TrialState.RUNNING)])
    return snapshot.should_prune(100 + len(others))


@pytest.mark.parametrize("name", PRUNERS)
def test_only_none_keeps_trials_from_competing(name: str) -> None:
    settings = PruningSettings(pruner=name)
    assert is_competitive(settings) is (name != "none")
    assert isinstance(build_pruner(settings, max_epochs=9), optuna.pruners.NopPruner) is (name == "none")


def test_median_prunes_what_is_worse_than_the_median_of_the_complete_trials_at_that_epoch() -> None:
    pruner = build_pruner(PruningSettings(pruner="median", startup_trials=3), max_epochs=9)
    others = [[0.3, 0.1], [0.4, 0.2], [0.5, 0.9]]
    assert prunes(pruner, others, [0.41])
    assert not prunes(pruner, others, [0.4])
    assert not prunes(pruner, others, [0.2, 0.8]), "its best so far is what counts"


def test_percentile_keeps_the_top_so_many_percent() -> None:
    pruner = build_pruner(PruningSettings(pruner="percentile", percentile=25.0), max_epochs=9)
    others = [[0.1], [0.2], [0.3], [0.4], [0.5]]
    assert not prunes(pruner, others, [0.2])
    assert prunes(pruner, others, [0.21])


@pytest.mark.parametrize("name", ["median", "percentile"])
def test_nothing_is_pruned_before_the_startup_trials_are_complete(name: str) -> None:
    pruner = build_pruner(PruningSettings(pruner=name, startup_trials=3), max_epochs=9)
    assert not prunes(pruner, [[0.1]] * 2, [0.9])
    assert prunes(pruner, [[0.1]] * 3, [0.9])


@pytest.mark.parametrize("name", ["median", "percentile"])
@pytest.mark.parametrize("warmup_epochs", [0, 1, 3])
def test_no_trial_is_pruned_in_its_warmup_epochs(name: str, warmup_epochs: int) -> None:
    pruner = build_pruner(PruningSettings(pruner=name, warmup_epochs=warmup_epochs), max_epochs=9)
    others = [[0.1] * 9] * 5
    verdicts = [prunes(pruner, others, [0.9] * epoch) for epoch in range(1, 6)]
    assert verdicts == [epoch > warmup_epochs for epoch in range(1, 6)]


def test_successive_halving_judges_at_min_epochs_and_its_multiples_by_the_factor() -> None:
    pruner = build_pruner(PruningSettings(pruner="successive-halving", min_epochs=2, reduction_factor=3), max_epochs=20)
    rivals = {"completed_rung_0": 0.1, "completed_rung_1": 0.1, "completed_rung_2": 0.1}
    others = [frozen(number, [0.1], TrialState.PRUNED, **rivals) for number in range(2)]

    def should_prune(epoch: int, **passed: float) -> bool:
        snapshot = StudySnapshot(study_name="study", pruner=pruner)
        snapshot.replace_trials([*others, frozen(2, [0.9] * epoch, TrialState.RUNNING, **passed)])
        return snapshot.should_prune(102)

    assert [epoch for epoch in range(1, 20) if should_prune(epoch)] == list(range(2, 20))
    assert not should_prune(5, completed_rung_0=0.1)
    assert should_prune(6, completed_rung_0=0.1)
    assert not should_prune(17, completed_rung_0=0.1, completed_rung_1=0.1)
    assert should_prune(18, completed_rung_0=0.1, completed_rung_1=0.1)


@pytest.mark.parametrize(
    ("min_epochs", "max_epochs", "first_rungs"),
    [(1, 27, {1, 3, 9, 27}), (1, 8, {1, 3}), (4, 40, {4, 12, 36}), (5, 5, {5})],
)
def test_hyperbands_brackets_fill_the_range_from_min_epochs_to_max_epochs(
    min_epochs: int, max_epochs: int, first_rungs: set[int]
) -> None:
    settings = PruningSettings(pruner="hyperband", min_epochs=min_epochs, reduction_factor=3)
    snapshot = StudySnapshot(study_name="study", pruner=build_pruner(settings, max_epochs))
    numbers = range(100)
    rung_of_trial: dict[int, int] = {}
    for epoch in range(1, max_epochs + 1):
        snapshot.replace_trials([frozen(n, [0.5] * epoch, TrialState.RUNNING) for n in numbers])
        for number in numbers:
            snapshot.should_prune(100 + number)
        for trial_id, _, _ in snapshot.drain_system_attrs():
            rung_of_trial.setdefault(trial_id, epoch)
    assert len(rung_of_trial) == len(numbers)
    assert set(rung_of_trial.values()) == first_rungs


@pytest.mark.parametrize("name", ["successive-halving", "hyperband"])
def test_a_first_rung_behind_the_last_epoch_is_refused(name: str) -> None:
    settings = PruningSettings(pruner=name, min_epochs=4)
    build_pruner(settings, max_epochs=4)
    with pytest.raises(InputError) as caught:
        build_pruner(settings, max_epochs=3)
    assert str(caught.value) == (
        f"pruning.min_epochs must be at most training.max_epochs (3) with the pruner {name}, got 4"
    )
    assert caught.value.hint is not None
    assert caught.value.exit_code == 2
