"""What a sampler is shown at each draw of the service, held against the database and against Optuna in memory.

A sampler that does not see what has ended is random search under another name. So each draw is recorded: the trials
that the sampler was given, and what the database held before and after. The same trials in an in-memory study must
give the same draw: by Optuna's own classes for random search and TPE, by ours driven by `study.ask` for the others.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.planted_worker import PlantedStudies
from hpsearch.search.samplers import CmaSampler, PrunedAwareGPSampler, SobolSampler, explore, trial_seed
from hpsearch.signals import StopSignal
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.history import History
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.worker import drawing as drawing_module
from hpsearch.worker.drawing import Drawing
from hpsearch.worker.lanes import epoch_writer as epoch_writer_module
from hpsearch.worker.lanes.epoch_writer import EpochEntry, EpochWriter

# Three workers are threads here: what `build_sampler` does against this warning serves one thread at a time.
pytestmark = pytest.mark.filterwarnings("ignore:Argument ``group``:optuna.exceptions.ExperimentalWarning")

SEED = 5
MANY = 15  # more than the ten after which samplers learn
SEARCH: dict[str, Any] = {
    "optimizer": ["sgd", "momentum"],
    "learning_rate": {"log10": [-1, -3]},
    "momentum": {"low": 0.5, "high": 0.95},  # beside the optimizer of this name only
    "lambda_2": {"log10": [-3, -5], "zero": True},
    "hidden_units": {"low": 4, "high": 40},
}
LEARNING = ("tpe", "gp", "cmaes")
# Strategy, lanes, workers. A draw of the Gaussian process takes half a second.
STRATEGIES = ("random", "qmc", "tpe", "cmaes", "gp")
CASES = [
    *((strategy, 8, 3) for strategy in STRATEGIES),
    *(
        pytest.param(strategy, *others, marks=pytest.mark.slow)
        for strategy in STRATEGIES
        for others in ((1, 1), (1, 3), (8, 1))
    ),
]


@dataclass(kw_only=True)
class Draw:
    """One draw of the service.

    Args:
        given: what the sampler was shown; None if it was not asked.
        before, after: the trials that had parameters in the database.
    """

    number: int
    point: int
    before: Mapping[int, FrozenTrial]
    given: list[FrozenTrial] | None = None
    after: Mapping[int, FrozenTrial] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


class Recorder(BaseSampler):
    """Notes what the sampler sees, which is what Optuna keeps for it during a draw."""

    def __init__(self, sampler: BaseSampler, note: Callable[[int, list[FrozenTrial]], None]) -> None:
        self._sampler = sampler
        self._note = note
        self.sample_relative = sampler.sample_relative  # type: ignore[method-assign]
        self.sample_independent = sampler.sample_independent  # type: ignore[method-assign]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._note(trial.number, study._get_trials(deepcopy=True, use_cache=True))
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(self, *_: Any) -> Any: ...

    def sample_independent(self, *_: Any) -> Any: ...


class Service:
    """A study whose trials' curves are a function of their settings, and workers on it that note each draw."""

    def __init__(
        self, studies: PlantedStudies, strategy: str, num_points: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.studies = studies
        self.strategy = strategy
        self.study: StoredStudy = studies.create(strategy, SEARCH, num_points=num_points, seed=SEED)
        self.draws: dict[int, Draw] = {}
        self._lock = threading.Lock()
        build, draw, foresee = drawing_module.build_sampler, Drawing.draw, Drawing.foresee
        look = threading.local()  # into the future: not a draw

        def build_recorder(*arguments: Any, **named: Any) -> BaseSampler:
            sampler = build(*arguments, **named)
            return sampler if hasattr(look, "is_ahead") else Recorder(sampler, self._note)

        def foreseen(*arguments: Any) -> Any:
            look.is_ahead = True
            try:
                return foresee(*arguments)
            finally:
                del look.is_ahead

        def recorded(drawing: Drawing, where: Any, claims: Any) -> Any:
            # The others have waited for a cohort of their own: nothing is drawn again.
            new = {
                claim.trial_id: Draw(number=claim.number, point=claim.point, before=self._drawn_trials())
                for claim in claims
                if claim.number not in self.draws
            }
            self.draws |= {one.number: one for one in new.values()}
            drawn = draw(drawing, where, claims)
            for trial_id, one in new.items():
                one.params, one.after = dict(drawn.get(trial_id, {})), self._drawn_trials()
            return drawn

        monkeypatch.setattr(drawing_module, "build_sampler", build_recorder)
        monkeypatch.setattr(Drawing, "draw", recorded)
        monkeypatch.setattr(Drawing, "foresee", foreseen)

    @property
    def definition(self) -> StudyDefinition:
        return self.study.definition

    def run(self, *, lanes: int, workers: int, num_trials: int | None = None) -> None:
        """By so many workers, until the study has ended or so many trials have begun."""
        stops = [StopSignal() for _ in range(workers)]
        begun: list[TrialSettings] = []

        def curve(settings: TrialSettings) -> Sequence[float]:
            with self._lock:
                begun.append(settings)
            if len(begun) == num_trials:
                for stop in stops:
                    stop.set()
            return planted_curve(settings)

        team = [self.studies.worker(self.study, curve, lanes=lanes, stop=stop) for stop in stops]
        threads = [threading.Thread(target=worker.run) for worker in team]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _note(self, number: int, trials: list[FrozenTrial]) -> None:
        self.draws[number].given = trials

    def _drawn_trials(self) -> dict[int, FrozenTrial]:
        """As plain Optuna reads them, without a cache."""
        trials = self.studies.database.storage.get_all_trials(self.study.study_id)
        return {trial._trial_id: trial for trial in trials if trial.params}


def planted_curve(settings: TrialSettings) -> Sequence[float]:
    """One to three epochs; some diverge in the first or the second."""
    rate, chance = settings.training.learning_rate, zlib.crc32(settings.model_dump_json().encode()) % 24
    error = min(0.9, 0.05 + 0.2 * (math.log10(rate) + 1.7) ** 2 + chance / 1000)
    if chance in (0, 1):
        return (math.nan,)
    return (0.9, math.nan) if chance in (2, 3) else (0.9, 0.5, error)[-1 - chance % 3 :]


@pytest.fixture
def studies(database: Database, tmp_path: Path) -> Iterator[PlantedStudies]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield PlantedStudies(database, tmp_path)
    optuna.logging.set_verbosity(level)


@pytest.mark.parametrize(("strategy", "lanes", "workers"), CASES)
def test_each_draw_is_what_optuna_draws_from_all_that_has_ended(
    strategy: str, lanes: int, workers: int, studies: PlantedStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an empty study, then by other workers after a stop."""
    num_points = MANY + 5 + lanes * workers
    service = Service(studies, strategy, num_points, monkeypatch)
    service.run(lanes=lanes, workers=workers, num_trials=num_points // 2)
    num_before_the_stop = len(service.draws)
    service.run(lanes=lanes, workers=workers)
    assert [trial.user_attrs["point"] for trial in studies.trials(service.study)] == list(range(num_points))

    draws = [draw for draw in service.draws.values() if draw.given is not None]
    assert {draw.point for draw in draws} == set(range(num_points))
    assert num_points // 2 <= num_before_the_stop < len(service.draws)
    for draw in draws[:: 4 if strategy == "gp" else 1]:
        assert replayed(draw, service) == draw.params, f"trial {draw.number}"
    if strategy in LEARNING:
        for draw in draws:
            check_given(draw)
        assert max(num_ended(draw) for draw in draws) >= MANY
        assert any(replayed(draw, service, RandomSampler(seed=seed_of(draw))) != draw.params for draw in draws)


def test_a_draw_waits_for_the_endings_of_its_own_worker(
    studies: PlantedStudies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the database is slower than an epoch's patience: the lanes stay empty meanwhile."""
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 0.0)
    service = Service(studies, "tpe", MANY + 5, monkeypatch)
    ended: set[int] = set()
    ended_before: dict[int, set[int]] = {}
    hand_over, draw = EpochWriter.hand_over, Drawing.draw

    def noted_ending(writer: EpochWriter, entry: EpochEntry) -> None:
        ended.update(result.trial_id for result in entry.results)
        hand_over(writer, entry)

    def noted_draw(drawing: Drawing, where: Any, claims: Any) -> Any:
        for claim in claims:
            ended_before.setdefault(claim.number, set(ended))  # a trial that waits for its cohort comes twice
        return draw(drawing, where, claims)

    monkeypatch.setattr(EpochWriter, "hand_over", noted_ending)
    monkeypatch.setattr(Drawing, "draw", noted_draw)
    service.run(lanes=8, workers=1)
    assert len(ended_before) == MANY + 5
    for number, expected in ended_before.items():
        given = {trial._trial_id for trial in service.draws[number].given or () if trial.state.is_finished()}
        assert given == expected


def check_given(draw: Draw) -> None:
    """The sampler has seen every trial as it was while it was asked, and no attempt that had failed."""
    given = {trial._trial_id: trial for trial in draw.given or () if trial.number != draw.number}
    for trial_id, before in draw.before.items():
        after = draw.after[trial_id]
        if before.state is TrialState.FAIL:
            assert trial_id not in given
        elif after.state is not TrialState.FAIL and before.number != draw.number:
            assert trial_id in given, f"{draw.number} was drawn without {before}"
            assert_between(before, given[trial_id], after)
    assert all(trial._trial_id in draw.after for trial in given.values() if trial.params)


def assert_between(before: FrozenTrial, given: FrozenTrial, after: FrozenTrial) -> None:
    """A trial may be claimed and end during one draw, and Optuna reads its state, parameters and value one by one."""
    assert progress(before) <= progress(given) <= progress(after), (before, given, after)
    assert (given.number, given.params) == (after.number, after.params)
    assert given.value == (after.value if given.state.is_finished() else None)


def progress(trial: FrozenTrial) -> int:
    return 2 if trial.state.is_finished() else int(trial.state is TrialState.RUNNING)


def num_ended(draw: Draw) -> int:
    return sum(trial.state.is_finished() for trial in draw.given or ())


def seed_of(draw: Draw) -> int:
    return trial_seed(SEED, draw.number)


def replayed(draw: Draw, service: Service, sampler: BaseSampler | None = None) -> dict[str, Any]:
    """The same draw in memory, from the trials that the service's sampler was given."""
    study = optuna.create_study(sampler=sampler or independent_sampler(service.strategy, draw, service.definition))
    given = {trial.number: trial for trial in draw.given or ()}
    for number in range(max([*given, draw.number]) + 1):
        if number == draw.number:
            study.enqueue_trial({})  # which `ask` takes up
        else:
            study.add_trial(as_given(given.get(number), service.strategy))
    trial = study.ask()
    assert trial.number == draw.number
    service.definition.draw(trial)
    return trial.params


def as_given(trial: FrozenTrial | None, strategy: str) -> FrozenTrial:
    """A trial to add; a failed one, which no sampler looks at, in place of one that was not given."""
    if trial is None or (trial.state is TrialState.WAITING and strategy != "cmaes"):
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        # CMA-ES takes a candidate that waits for one that runs; `ask` would take it up.
        state=TrialState.RUNNING if trial.state is TrialState.WAITING else trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )


def independent_sampler(strategy: str, draw: Draw, definition: StudyDefinition) -> BaseSampler:
    """Random search and TPE as Optuna has them; ours with the arguments that a user would give."""
    space = explore(definition.draw)
    match strategy:
        case "random":
            return RandomSampler(seed=seed_of(draw))
        case "tpe":
            return TPESampler(seed=seed_of(draw), multivariate=True, constant_liar=True, group=True)
        case "qmc":
            return SobolSampler(seed=SEED, search_space=space.all, index=draw.point)
        case "gp":
            return PrunedAwareGPSampler(seed=SEED, search_space=space.always)
    assert strategy == "cmaes"
    return CmaSampler(seed=SEED, search_space=space.always)


def test_a_trial_that_no_longer_counts_is_no_longer_shown_as_ended(
    database: Database, new_study: Callable[..., StoredStudy], execute: Callable[..., Any]
) -> None:
    """Its end was lost in a server's crash; or another program has ended it, or added a trial of its own."""
    study = new_study({"strategy": "tpe", "num_points": 4, "learning_rate": {"log10": [0, -3]}})
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    history, drawing = History(study.study_id), Drawing(study)
    claims = ledger.claim(4)
    for claim in claims:
        drawing.draw(ledger, [claim])
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5) for claim in claims[:3]])
    optuna_study = database.load_study(study.name)
    optuna_study.add_trial(create_trial(value=0.0))
    optuna_study.tell(claims[3].number, 0.0)
    assert [(trial.number, trial.state.name) for trial in history.read(database)] == [
        (number, "COMPLETE") for number in range(3)
    ]
    lost = claims[1].trial_id
    execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = :lost", lost=lost)
    execute("DELETE FROM trial_values WHERE trial_id = :lost", lost=lost)
    execute("UPDATE hpsearch_points SET is_counted = false, owner = 1 WHERE trial_id = :lost", lost=lost)
    shown = [(trial.number, trial.state.name, trial.value) for trial in history.read(database)]
    assert shown == [(0, "COMPLETE", 0.5), (1, "RUNNING", None), (2, "COMPLETE", 0.5)]
    assert execute("SELECT count(*) FROM trials") == [(5,)], "the others are there"


def test_a_draw_for_a_trial_that_was_taken_away_writes_nothing(
    database: Database, new_study: Callable[..., StoredStudy], execute: Callable[..., Any]
) -> None:
    study = new_study({"strategy": "random", "num_points": 1, "learning_rate": {"log10": [0, -3]}})
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    (claim,) = ledger.claim(1)
    another = replace(ledger, owner=2)
    assert Drawing(study).draw(another, [claim]) == {}
    assert execute("SELECT * FROM trial_params") == []
    ledger.release("stopped")
    assert Drawing(study).draw(ledger, [claim]) == {}
    assert execute("SELECT * FROM trial_params") == []
