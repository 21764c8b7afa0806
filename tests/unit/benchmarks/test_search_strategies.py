"""The comparison of strategies: planted surfaces know their best, recorded trials cost what they would have cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.measurement import RESULTS, mean_and_interval
from benchmarks.planted_surfaces import NUM_IMAGES, SURFACES, PlantedTrials, Surface, bits_differ, categorical
from benchmarks.recorded_trials import RecordedTrials, read_tables, worth
from benchmarks.search_strategies import coarse_to_fine, main, with_tables
from hpsearch.errors import InputError
from hpsearch.search.narrowing.closed_round import KnownPoint
from hpsearch.study.settings import StoppingSettings
from hpsearch.study.space import grid_points

RATES = tuple(10.0 ** (step / 4) for step in range(2, -17, -1))
LAMBDAS = (0.0, *(10.0 ** (step / 2) for step in range(-4, -11, -1)))
NUM_EPOCHS = 12
IMAGES = 800


@pytest.fixture(autouse=True)
def _loud_optuna_again() -> Iterator[None]:
    """The benchmark turns Optuna's log down."""
    level = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(level)


@pytest.fixture(params=SURFACES, ids=lambda place: place.__name__)
def surface(request: pytest.FixtureRequest) -> Surface:
    return request.param(np.random.default_rng(3))


def test_no_point_lies_below_the_lowest_error_and_the_fine_grid_comes_near_it(surface: Surface) -> None:
    errors = [surface.error(point) for point in grid_points(surface.dimensions(per_decade=16))]
    lowest = min(error for error in errors if error is not None)
    assert lowest >= surface.lowest
    if surface.name != "edge":
        assert lowest < surface.lowest * 1.01


def test_a_trial_is_the_same_whenever_it_is_run_and_as_wrong_as_the_surface_says(surface: Surface) -> None:
    points = [point for point in grid_points(surface.dimensions()) if surface.error(point) is not None]
    for repetition, point in enumerate(points[:5]):
        first, again = (PlantedTrials(surface, repetition).run(point) for _ in range(2))
        assert (first.value, first.key) == (again.value, again.key)
        error = surface.error(point)
        assert error is not None
        assert first.value == pytest.approx(
            error, abs=6 * math.sqrt(error / NUM_IMAGES) + 4 * surface.seed_noise * error
        )


def test_paired_trials_differ_where_the_true_errors_do() -> None:
    def error(point: object) -> float:
        return {0: 0.02, 1: 0.0205, 2: 0.026}[dict(point)["x"]]  # type: ignore[call-overload]

    trials = PlantedTrials(Surface(name="", search_space={}, error=error, lowest=0.02, seed_noise=0.0), 1)
    best, near, far = (trials.run({"x": x}) for x in range(3))
    assert bits_differ(best, far)
    assert bits_differ(far, best)
    assert not bits_differ(best, near)


def write_table(folder: Path, seed: int) -> None:
    """A bowl around 0.1 and 1e-3; half of the error goes with each epoch, the first rate diverges in the third."""
    generator = np.random.default_rng(seed)
    shape = (len(RATES) * len(LAMBDAS), NUM_EPOCHS)
    errors, bits = np.zeros(shape), np.zeros((*shape, IMAGES // 8), np.uint8)
    for index, (rate, weight) in enumerate((rate, weight) for rate in RATES for weight in LAMBDAS):
        x, y = math.log10(rate) + 1, math.log10(max(weight, 1e-7)) + 3
        floor = min(0.8, 0.03 * math.exp(0.6 * x * x + 0.1 * y * y))
        for epoch in range(NUM_EPOCHS):
            is_right = generator.random(IMAGES) >= floor + 0.1 * 0.5**epoch
            errors[index, epoch], bits[index, epoch] = 1 - is_right.mean(), np.packbits(is_right)
    nlls = 3 * errors
    nlls[: len(LAMBDAS), 2:] = np.nan
    np.savez_compressed(folder / f"table_{seed}.npz", err=errors, nll=nlls, bits=bits, lrs=RATES, l2s=LAMBDAS)


@pytest.fixture(scope="module")
def tables_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for seed in (1, 2):
        write_table(folder, seed)
    return folder


@pytest.fixture(scope="module")
def tables(tables_folder: Path) -> list[RecordedTrials]:
    return read_tables(tables_folder, StoppingSettings(patience=400), num_minibatches=100)


def test_a_recorded_trial_costs_the_epochs_until_its_rule_stops_it(tables: list[RecordedTrials]) -> None:
    diverged = tables[0].nearest({"learning_rate": 10**0.5, "lambda_2": 0.0})
    assert diverged.known.value is None
    assert diverged.epochs == 3
    trained = tables[0].nearest({"learning_rate": 0.1, "lambda_2": 0.001})
    assert 4 <= trained.epochs <= NUM_EPOCHS
    assert isinstance(trained.known.key, bytes)
    right = np.unpackbits(np.frombuffer(trained.known.key, np.uint8)).sum()
    assert trained.known.value == pytest.approx(1 - right / IMAGES)


def test_patience_decides_what_a_recorded_trial_costs(tables: list[RecordedTrials], tables_folder: Path) -> None:
    patient = read_tables(tables_folder, StoppingSettings(patience=2000), num_minibatches=100)
    assert {cell.epochs for cell in patient[0].cells.values()} == {3, NUM_EPOCHS}
    assert any(3 < cell.epochs < NUM_EPOCHS for cell in tables[0].cells.values())


def test_a_point_off_the_table_is_its_nearest_cell(tables: list[RecordedTrials]) -> None:
    table = tables[0]
    assert table.nearest({"learning_rate": 0.11, "lambda_2": 2e-3}) is table.nearest(
        {"learning_rate": 0.1, "lambda_2": 10**-2.5}
    )
    assert table.nearest({"learning_rate": 100.0, "lambda_2": 1e-9}).known.point == pytest.approx(
        {"learning_rate": 10**0.5, "lambda_2": 1e-5}
    )
    assert table.nearest({"learning_rate": 0.1, "lambda_2": 0}).known.point["lambda_2"] == 0.0
    assert not table.has({"learning_rate": 0.11, "lambda_2": 0.0})


def test_a_choice_is_worth_what_it_is_with_the_other_seeds(tables: list[RecordedTrials]) -> None:
    cell = {"learning_rate": 0.1, "lambda_2": 0.001}
    assert worth(cell, tables, without_seed=1) == tables[1].nearest(cell).known.value
    assert worth({"learning_rate": 10**0.5, "lambda_2": 0.0}, tables, without_seed=1) == 0.9


def test_one_table_is_too_few(tmp_path: Path) -> None:
    write_table(tmp_path, 1)
    with pytest.raises(InputError, match=r"has 1 files table_SEED\.npz, expected at least 2"):
        read_tables(tmp_path, StoppingSettings(), 100)


def test_coarse_to_fine_counts_its_rounds() -> None:
    surface = SURFACES[0](np.random.default_rng(1))

    def run(point: object) -> KnownPoint:
        return PlantedTrials(surface, 1).run(point)  # type: ignore[arg-type]

    search = coarse_to_fine(surface.dimensions(), run)
    assert search.rounds > 1
    assert search.best.value == min(trial.value for trial in search.trials if trial.value is not None)


def test_means_have_intervals() -> None:
    mean, half = mean_and_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.303 / math.sqrt(3), rel=1e-3))
    assert mean_and_interval([1.0]) == (1.0, 0.0)


@pytest.mark.slow
def test_tiny_prints_tables_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tables_folder: Path, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    main(["--tiny", "--table", str(tables_folder), "--draws", "2", "--minibatches", "100", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "planted: bowl" in printed
    assert "recorded: MNIST, 2 seeds" in printed
    assert len([line for line in printed.splitlines() if line.startswith("| coarse to fine")]) == 6
    assert not output.exists()


@pytest.mark.slow
def test_the_result_keeps_every_repetition(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tables_folder: Path
) -> None:
    """What is recorded in the repository is read where no other table is named."""
    monkeypatch.setattr("benchmarks.search_strategies.SURFACES", [categorical])
    monkeypatch.setattr("benchmarks.search_strategies.RECORDED", tables_folder)
    main(
        [
            "--repetitions",
            "3",
            "--draws",
            "1",
            "--minibatches",
            "100",
            "--output",
            str(tmp_path / "search_strategies.json"),
        ]
    )
    details = json.loads((tmp_path / "search_strategies.json").read_text())["details"]
    assert details["columns"] == "cost excess part part_to_fine rounds"
    assert [len(ones) for ones in details["categorical"].values()] == [3] * 6
    assert details["categorical"]["fine grid"][0].split()[0] == "51"
    assert len(details["recorded"]["fine grid"]) == 2


def test_the_tables_of_the_document_are_those_of_the_stored_result() -> None:
    details = json.loads((RESULTS / "search_strategies.json").read_text())["details"]
    document = (Path(__file__).parents[3] / "docs" / "search.md").read_text()
    assert with_tables(document, details) == document


def test_a_document_without_the_table_is_refused() -> None:
    with pytest.raises(InputError, match=r"there are 0 tables below \*\*Bowl\*\*:, expected 1"):
        with_tables("nothing", {"bowl": {"fine grid": ["306 0.01000 1.0000 0.5 1"]}})
