"""The benchmarks still run, and write what docs and readers rely on: each in its tiny mode, as a person starts it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import patience_rules, record_trials, simulated_workers
from benchmarks.recorded_trials import RECORDED, read_tables
from benchmarks.simulated_workers import Load, Share, run_share
from hpsearch.errors import HpsearchError
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import StoppingSettings

ROOT = Path(__file__).parents[2]
# Ray alone comes with the tests; what its Tune needs besides, with the extra `bench`.
HAS_RAY = all(importlib.util.find_spec(name) for name in ("ray", "pandas", "pyarrow", "tensorboardX"))


def result_of(module: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """What the tiny mode writes, and its table."""
    output = folder / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--tiny", "--output", str(output), *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    assert result["benchmark"] == module
    assert result["machine"]["versions"]["hpsearch"]
    return result, ended.stdout


@pytest.mark.slow
def test_a_whole_study_is_timed_against_plain_optuna(tmp_path: Path) -> None:
    result, table = result_of("whole_study", tmp_path, "--contenders", "hpsearch,optuna-parallel")
    for name in ("hpsearch", "optuna-parallel"):
        (run,) = result["details"][name]["runs"]
        assert run["num_points"] == 4
        assert run["trial_epochs"] == 8
        assert run["best_error"] < 0.5
        assert run["best_point"].keys() == {"learning_rate", "lambda_2"}
    measured = {one["name"]: one["median"] for one in result["measurements"]}
    ratio = measured["optuna-parallel / hpsearch, wall"]
    assert ratio == measured["optuna-parallel, wall"] / measured["hpsearch, wall"]
    assert "optuna-parallel / hpsearch, wall" in table


@pytest.mark.slow
def test_a_search_over_a_script_loses_no_point_when_its_worker_is_killed(tmp_path: Path) -> None:
    result, table = result_of("own_script_search", tmp_path, "--contenders", "hpsearch,Optuna")
    runs = result["details"]["runs"]
    assert runs["hpsearch"][0]["counted"] == runs["hpsearch, a worker killed"][0]["counted"] == 16
    assert runs["hpsearch"][0]["starts"] == 16
    assert result["details"]["lines"].keys() == {"hpsearch", "Optuna"}
    assert "points lost" in table


@pytest.mark.slow
def test_the_choice_of_lanes_is_compared_with_fixed_numbers(tmp_path: Path) -> None:
    result, table = result_of("lane_choice", tmp_path)
    assert set(result["details"]["trial-epochs"]["10-own-module"].values()) == {30}
    measured = {one["name"].rpartition(", ")[2].partition(" (")[0]: one["median"] for one in result["measurements"]}
    ratios = {"auto / best fixed", "auto again / best fixed", "rate of auto"}
    assert measured.keys() == {"auto", "auto again", "1", "8"} | ratios
    assert measured["auto / best fixed"] == measured["auto"] / min(measured["1"], measured["8"])
    assert "auto again" in table


@pytest.mark.slow
def test_a_filled_database_is_compared_with_a_new_one(tmp_path: Path) -> None:
    result, table = result_of("filled_database", tmp_path)
    measured = {one["name"]: one["median"] for one in result["measurements"]}
    assert measured["filled / new"] == measured["filled"] / measured["new"] > 0
    assert "20 points of one epoch, after 1 other run of it" in table


@pytest.mark.slow
def test_the_models_number_of_lanes_is_compared_with_the_best_one(tmp_path: Path) -> None:
    result, table = result_of("lane_model", tmp_path, "--rounds", "1")
    measured = {one["name"].rpartition(", ")[2]: one["median"] for one in result["measurements"]}
    ((chosen, lost),) = ((name.split()[2], value) for name, value in measured.items() if name.startswith("lost"))
    times = {
        name.split()[0]: value for name, value in measured.items() if name.endswith(" lanes") and name[0].isdigit()
    }
    assert times.keys() == {"1", "2", "4", "8", "16", "32", "64"}
    assert lost == times[chosen] / min(times.values()) >= 1
    assert "time / best" in table


@pytest.mark.slow
def test_planted_faults_are_noticed_and_named(tmp_path: Path) -> None:
    result, table = result_of("planted_faults", tmp_path)
    first, second = result["details"]["faults"]
    assert (first["name"], first["is_named"]) == ("training labels shuffled", True)
    assert second["findings"]
    assert "labels warning" in table


@pytest.mark.slow
def test_the_diagnosis_is_timed_within_the_epochs(tmp_path: Path) -> None:
    result, table = result_of("diagnosis_cost", tmp_path)
    (measurements,) = result["details"].values()
    share, *_ = measurements
    assert 0 < share["median"] < 1
    assert "epoch diagnosed / plain" in table


@pytest.mark.slow
def test_images_of_ones_own_are_timed(tmp_path: Path) -> None:
    result, table = result_of("own_images", tmp_path)
    assert [[one["name"] for one in case] for case in result["details"].values()] == [
        ["ready the first time", "ready afterwards"],
        ["epoch on levels", "epoch on floats", "levels / floats"],
    ]
    assert "a folder of 40 images" in table


@pytest.mark.slow
def test_a_split_of_ones_own_data_is_compared_with_plain_optuna(tmp_path: Path) -> None:
    result, table = result_of("own_data", tmp_path, "--only", "cancer")
    measured = {one["name"]: one["median"] for one in result["measurements"]}
    assert all(0 <= measured[f"cancer, {side}"] < 0.3 for side in ("hpsearch", "contender", "boosting"))
    (line,) = (tmp_path / "own_data.jsonl").read_text().splitlines()
    assert json.loads(line)["hpsearch"]["rows"] == 171  # what `hpsearch test` judged
    assert "breast cancer, zero-one error" in table


@pytest.mark.slow
def test_planted_trials_are_judged(tmp_path: Path) -> None:
    result, table = result_of("planted_verdicts", tmp_path)
    trials = [json.loads(line) for line in result["details"]["trials"]]
    planted = {trial["planted"] for trial in trials}
    assert {"learning rate too high", "learning rate too low", "underfitting"} <= planted
    assert all(trial["diagnoses"] or trial["has_diverged"] for trial in trials)
    assert "learning rate too low" in table


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RAY, reason="Ray Tune is not installed: pip install --editable '.[bench]'")
def test_a_whole_study_is_timed_with_ray_tune(tmp_path: Path) -> None:
    result, _ = result_of("whole_study", tmp_path, "--contenders", "ray")
    (run,) = result["details"]["ray"]["runs"]
    assert (run["num_points"], run["trial_epochs"]) == (4, 8)
    assert run["best_error"] < 0.5


@pytest.mark.slow
def test_the_number_of_statements_does_not_depend_on_the_lanes(tmp_path: Path) -> None:
    result, table = result_of("sql_statements", tmp_path)
    studies = {(study["pruner"], study["lanes"]): study for study in result["details"]["studies"]}
    assert studies.keys() == {("none", 1), ("none", 4), ("median", 1), ("median", 4)}
    assert result["details"]["is_flat"] == {"none": True, "median": True}
    assert "flat" in table
    for (pruner, _), study in studies.items():
        assert study["trials"] == 4
        # One statement records all lanes, another reads the curves that a pruner compares.
        assert study["statements_per_quiet_epoch"] == (1 if pruner == "none" else 2)
    assert result["details"]["plain_optuna_statements_per_trial_and_epoch"] > 2


@pytest.mark.slow
def test_the_start_of_each_command_is_timed(tmp_path: Path) -> None:
    result, table = result_of("start_up", tmp_path)
    assert len(result["measurements"]) == 8
    assert all(0.05 < measurement["median"] < 120 for measurement in result["measurements"])
    assert "worker, until it joins" in table


@pytest.mark.slow
def test_reports_of_simulated_workers_are_counted(tmp_path: Path) -> None:
    result, table = result_of("report_rate", tmp_path)
    full_speed, paced, with_curves = result["details"]["steps"]
    assert (full_speed["kind"], full_speed["workers"]) == ("full speed", 1)
    assert full_speed["calls"] > 0
    assert full_speed["reports_per_second"] == pytest.approx(8 * full_speed["calls"] / full_speed["seconds"])
    assert 0 < full_speed["latencies_ms"][0] <= full_speed["latencies_ms"][2]
    assert full_speed["server_cores"] > 0
    assert (paced["kind"], paced["workers"]) == ("paced", 3)
    assert paced["calls"] <= 3  # one epoch per second at most
    assert with_curves["calls"] > 0
    assert "reports/s" in table


@pytest.mark.slow
def test_an_objective_that_does_nothing_is_timed(tmp_path: Path) -> None:
    result, table = result_of("objective_rate", tmp_path)
    ours, plain = result["details"]["rates"]
    assert (ours["name"], ours["trials"], plain["trials"]) == ("hpsearch, tpe", 3, 3)
    assert ours["trials_per_second"] > 0.01
    assert 0 < ours["later_ms"] < 10_000
    assert "trials/s" in table


def test_a_simulated_worker_that_lost_its_trials_is_an_error_and_not_a_fast_one(
    database: Database, new_study: Callable[..., StoredStudy], tables_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulated_workers, "_barrier", threading.Barrier(1))
    study_id = new_study(points=1).study_id
    (claim,) = Ledger(database=database, study_id=study_id, owner=1).claim(1)
    load = Load(period_seconds=None, reads_curves=False, first_epoch=1, seconds=0.0)
    for owner in (1, 2):
        share = Share(url=tables_url, study_id=study_id, trials_of={owner: [claim.trial_id]}, load=load)
        if owner == 1:
            assert run_share(share).latencies == []  # no time to report anything
        else:
            with pytest.raises(HpsearchError, match="worker 2 holds 0 trials and not 1"):
                run_share(share)


@pytest.mark.slow
def test_training_speed_is_measured_against_the_usual_loops(tmp_path: Path) -> None:
    result, table = result_of("training_speed", tmp_path, "--case", "mlp-50")

    measured = {one["name"]: one["median"] for one in result["details"]["mlp-50"]["measurements"]}
    assert measured.keys() >= {"eager", "DataLoader", "lanes", "GEMM", "lanes over eager", "share of the GEMM rate"}
    assert measured["lanes over eager"] == pytest.approx(measured["eager"] / measured["lanes"])  # one round
    assert 0 < measured["share of the GEMM rate"] < 1
    assert "at least 4" in table


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu_in_its_tiny_mode(tmp_path: Path) -> None:
    result, table = result_of("gpu", tmp_path)

    assert "errors" not in result["details"]
    assert result["details"]["relative difference of NLL"]["mlp sgd shuffled"] < 1e-6
    measured = {one["name"]: one["median"] for one in result["measurements"]}
    for shape in ("MLP, batch 20, float32", "MLP, batch 500, float32", "LeNet, batch 500, float32"):
        assert measured[f"{shape}, best"] == max(measured[f"{shape}, {lanes} lanes"] for lanes in (1, 4))
    assert measured["a study of 4 points, wall"] > 0
    assert "at least 300" in table


def test_without_a_gpu_the_gpu_script_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)

    assert ended.returncode == 3
    assert ended.stderr.splitlines() == [
        "error: there is no CUDA device here",
        "hint: --tiny tries the script on a CPU",
    ]


@pytest.mark.slow
def test_recorded_trials_are_what_strategies_and_rules_are_replayed_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: a Python with torch takes seconds."""
    record_trials.main(["--tiny", "--seeds", "1", "2", "--folder", str(tmp_path)])
    for seed in (1, 2):
        with np.load(tmp_path / f"table_{seed}.npz") as table:
            assert table["err"].shape == table["nll"].shape == (2, 2)
            right = np.unpackbits(table["bits"], axis=-1, count=256)
            np.testing.assert_allclose(1 - right.mean(axis=-1), table["err"])
            lowest = table["err"].min(axis=1)
        read = read_tables(tmp_path, StoppingSettings(patience=1000), num_minibatches=72)[seed - 1]
        assert (read.seed, read.cells.keys()) == (seed, {(0.1, 0.0), (0.1, 0.001)})
        assert [trial.known.value for trial in read.cells.values()] == lowest.tolist()
    written = tmp_path / "patience_rules.json"
    patience_rules.main([*map(str, sorted(tmp_path.glob("*.npz"))), "--output", str(written)])
    assert "2 points, 2 seeds" in capsys.readouterr().out
    assert json.loads(written.read_text())["settings"]["epochs"] == 2


def test_the_trials_that_the_repository_has_are_those_that_are_recorded() -> None:
    paths = sorted(RECORDED.glob("table_*.npz"))
    assert len(paths) == 5
    with np.load(paths[0]) as table:
        assert table["lrs"].tolist() == record_trials.LEARNING_RATES
        assert table["l2s"].tolist() == record_trials.LAMBDAS


@pytest.mark.slow
def test_the_effect_of_precision_is_measured_seed_by_seed(tmp_path: Path) -> None:
    result, table = result_of("precision_effect", tmp_path)

    for errors in result["details"]["best validation zero-one loss by seed"].values():
        assert errors.keys() == {"float32", "bfloat16"}
        assert all(len(values) == 2 and all(0 < value < 1 for value in values) for values in errors.values())
    assert "+-" in table


def test_a_table_is_prepared_and_opened_in_the_tiny_mode(tmp_path: Path) -> None:
    result, table = result_of("own_tables", tmp_path)
    measured = {one["name"]: one["median"] for one in result["measurements"]}
    assert 0 < measured["opened"] < measured["prepared"]
    # 20 numbers and 10 texts of 20 values, each with an indicator of missing values.
    assert result["details"]["inputs"] == 20 * 2 + 10 * 21
    assert "peak memory" in table
