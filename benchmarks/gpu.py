"""Everything that only a GPU can tell, in one call of under nine minutes; results go to benchmarks/results/gpu.json.

    HPSEARCH_DATA=... python -m benchmarks.gpu
    python -m benchmarks.gpu --tiny        on a CPU, in a minute: does the script still run?

1. Lanes against the readable reference, for all families, optimizers and shuffling: the same curves, the same images
   right at the best, and the same gains and losses in the test of significance.
2. Limits of the device: memory bandwidth, and the rates of large products in float32, TF32 and bfloat16.
3. Trial-epochs per second with 1 to 256 lanes, MLP (batch 20 and 500) and LeNet (batch 500), against one trial after
   the other in eager mode on resident data and against the DataLoader loop, and the share of the limits reached.
4. A complete study of 64 points through `hpsearch run`, and the notes' 36 points to the end of their patience.

The result is written after each part. Parts are skipped, and say so, once the time is up (`--minutes`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from numpy.typing import NDArray

from benchmarks.contenders import NEVER, NOTES_IMAGES, Contender, build, gemm_rate, random_images
from benchmarks.measurement import RESULTS, Measurement, machine, print_measurements, print_table, run_script, say
from benchmarks.measurement import write_result as write
from benchmarks.reference_loop import train_trial
from benchmarks.training_speed import arithmetic
from hpsearch.data.resident import ResidentData
from hpsearch.device.devices import use_full_float32
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import SurroundingsError
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import ModelSettings, Precision, TrainingSettings, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
# Trial-epochs/s of the MLP at batch 20 with the best number of lanes, and over the eager loop (the goals).
GOAL_RATE = 300.0
GOAL_OVER_EAGER = 100.0


@dataclass(kw_only=True)
class Run:
    """The options, what has been found, and how much time is left."""

    device: torch.device
    is_tiny: bool
    ends_at: float
    measurements: list[Measurement] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def has_time(self, what: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, the result says what was left out."""
        if time.monotonic() + seconds <= self.ends_at:
            return True
        self.details.setdefault("left out for lack of time", []).append(what)
        say(f"no time left for: {what}")
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    device = CPU if options.tiny else torch.device("cuda")
    if not options.tiny and not torch.cuda.is_available():
        raise SurroundingsError("there is no CUDA device here", hint="--tiny tries the script on a CPU")
    use_full_float32()
    run = Run(device=device, is_tiny=options.tiny, ends_at=time.monotonic() + 60 * options.minutes)
    before = machine(device)
    output = options.output or (None if options.tiny else RESULTS / "gpu.json")
    for part in (check_correctness, measure_limits, measure_rates, time_studies):
        say(f"{part.__name__}, {max(0.0, run.ends_at - time.monotonic()):.0f} s left")
        try:
            part(run)
        except Exception as error:  # what one part finds must not be lost by another
            run.details.setdefault("errors", []).append(f"{part.__name__}: {type(error).__name__}: {error}")
            say(f"{part.__name__} failed: {error}")
        if output is not None:
            write(
                output,
                title="Lanes on a GPU",
                machine=before,
                settings={name: str(value) for name, value in vars(options).items()},
                measurements=run.measurements,
                details=run.details,
            )
    print_measurements("GPU", run.measurements)


# 1. Correctness


def check_correctness(run: Run) -> None:
    """Lanes with a refill and a drain, on the device, against single trials of the reference on the CPU.

    With enough units for blocks of minibatches; in float64, where only an error shows.
    """
    data = random_images(600 if run.is_tiny else 2000)
    on_device, on_host = ResidentData.place(data, run.device), ResidentData.place(data, CPU)
    families = ["mlp"] if run.is_tiny else ["logistic", "mlp", "cnn"]
    for family in families:
        for optimizer in ("sgd", "momentum", "adam"):
            for shuffle in (False, True):
                name = f"{family} {optimizer}{' shuffled' if shuffle else ''}"
                if not run.has_time(name, 10):
                    return
                trials = _trials(family, optimizer, shuffle)
                difference, num_images = _differences(trials, on_device, on_host, run.device)
                shown = difference if math.isfinite(difference) else "not finite"
                run.details.setdefault("relative difference of NLL", {})[name] = shown
                run.details.setdefault("images that differ", {})[name] = num_images
                # Adam divides a gradient by its own size: rounding of one near 0 becomes as large as a step.
                is_adam = optimizer == "adam"
                if not difference < (1e-4 if is_adam else 1e-6) or num_images > (2 if is_adam else 0):
                    what = f"lanes differ by {difference} and on {num_images} images"
                    run.details.setdefault("errors", []).append(f"{name}: {what}")
    images = run.details["images that differ"]
    print_table(
        "lanes on the device against the reference on the CPU, float64",
        ["trial", "largest relative difference of NLL", "images that differ"],
        [
            [name, value if isinstance(value, str) else f"{value:.1e}", str(images[name])]
            for name, value in run.details["relative difference of NLL"].items()
        ],
    )


def _trials(family: str, optimizer: str, shuffle: bool) -> list[TrialSettings]:
    own = [
        {"learning_rate": 0.05, "lambda_2": 1e-3},
        {"learning_rate": 0.01, "lambda_1": 1e-4},
        {"learning_rate": 0.02},
    ]
    model = ModelSettings.model_validate({"family": family, "hidden_units": 500, "kernels": (4, 6)})
    common = {"batch_size": 20, "optimizer": optimizer, "shuffle": shuffle}
    return [TrialSettings(model=model, training=TrainingSettings.model_validate(common | one)) for one in own]


def _differences(
    trials: list[TrialSettings], on_device: ResidentData, on_host: ResidentData, device: torch.device
) -> tuple[float, int]:
    """The largest relative difference of NLLs, and the most images by which bits, gains or losses differ."""
    test = _reference_test(on_host)
    cohort = Cohort(CohortShape.of(trials[0]), on_device, device, NEVER, test, dtype=torch.float64)
    curves: dict[int, list[EpochReport]] = {0: [], 1: [], 2: []}
    correct: dict[int, NDArray[np.bool_]] = {}
    cohort.admit(0, trials[0])
    cohort.admit(1, trials[1])
    for epoch in range(5):
        if epoch == 2:
            cohort.release(0)
            cohort.admit(2, trials[2])  # into the same memory
        if epoch == 3:
            cohort.release(1)  # fewer lanes: captured anew
        for key, report in cohort.train_epoch().items():
            curves[int(str(key))].append(report)
            if all(math.isfinite(value) for value in _nlls(report)):
                correct[int(str(key))] = cohort.best_record(key).astype(bool)
    worst, most = 0.0, 0
    for index, settings in enumerate(trials):
        num_epochs = len(curves[index])
        result = train_trial(
            settings,
            on_host,
            device=CPU,
            validations_every=NEVER,
            should_stop=lambda report, last=num_epochs: report.epoch >= last,  # type: ignore[misc]
            reference_test=test,
            dtype=torch.float64,
        )
        pairs = list(zip(curves[index], result.reports, strict=True))
        worst = max(
            [
                worst,
                *(_relative(a, b) for one, other in pairs for a, b in zip(_nlls(one), _nlls(other), strict=True)),
            ]
        )
        counts = [abs(a - b) for one, other in pairs for a, b in zip(_gains(one), _gains(other), strict=True)]
        if index in correct:
            counts.append(int((correct[index] != result.best_correct).sum()))
        most = max([most, *counts])
    return worst, most


def _relative(value: float, expected: float) -> float:
    """The relative difference, infinite if one of the two is not finite: max() would pass over NaN."""
    if not (math.isfinite(value) and math.isfinite(expected)):
        return math.inf
    return abs(value - expected) / abs(expected)


def _reference_test(data: ResidentData) -> ReferenceTest:
    num_images, level = len(data.validation_labels), 0.05
    return ReferenceTest(level=level, critical_gains=critical_gains(num_images, level))


def _nlls(report: EpochReport) -> tuple[float, float]:
    return report.train_nll, report.validations[-1].nll


def _gains(report: EpochReport) -> tuple[int, int]:
    last = report.validations[-1]
    return last.gained or 0, last.lost or 0


# 2. Limits


def measure_limits(run: Run) -> None:
    size = 1024 if run.is_tiny else 8192
    for precision in PRECISIONS:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        rates = tuple(gemm_rate(run.device, precision, size) for _ in range(3))
        run.measurements.append(Measurement(name=f"product, {precision}", unit="GFLOP/s", values=rates))
    torch.backends.cuda.matmul.allow_tf32 = False
    run.measurements.append(Measurement(name="copy", unit="GB/s", values=tuple(_copy_rate(run) for _ in range(3))))


def _copy_rate(run: Run) -> float:
    num_floats = 2**20 if run.is_tiny else 2**28
    one, other = torch.zeros(num_floats, device=run.device), torch.zeros(num_floats, device=run.device)
    seconds = []
    for _ in range(5):
        started = _time(run.device)
        other.copy_(one)
        seconds.append(_time(run.device) - started)
    return 2 * one.nbytes / min(seconds) / 1e9  # read and written


# 3. Rates


def measure_rates(run: Run) -> None:
    num_images = 400 if run.is_tiny else NOTES_IMAGES
    base = Contender(kind="lanes", device=run.device.type, num_images=num_images, threads=torch.get_num_threads())
    shapes = {
        "MLP, batch 20": replace(base, batch_size=20),
        "MLP, batch 500": replace(base, batch_size=500 if not run.is_tiny else 100),
        "LeNet, batch 500": replace(base, family="cnn", batch_size=500 if not run.is_tiny else 100),
    }
    rows = []
    for name, shape in shapes.items():
        usual = {kind: _usual_rate(run, shape, kind, name) for kind in ("eager", "loader")}
        for precision in PRECISIONS[:1] if run.is_tiny else PRECISIONS:
            rates = _lane_rates(run, replace(shape, precision=precision), f"{name}, {precision}")
            rows += [[f"{name}, {precision}", str(lanes), f"{rate:.1f}"] for lanes, rate in rates.items()]
            _add_goals(run, f"{name}, {precision}", shape, rates, usual)
    print_table("trial-epochs per second", ["", "lanes", "trial-epochs/s"], rows)


def _usual_rate(run: Run, shape: Contender, kind: Any, name: str) -> float | None:
    """Trial-epochs/s of one trial, eager; from a tenth of an epoch where it takes long."""
    label = f"{name}, one trial, {kind}"
    if not run.has_time(label, 20):
        return None
    train = build(replace(shape, kind=kind, num_images=max(shape.num_images // 10, shape.batch_size)))
    train()
    rates = tuple(1 / train() for _ in range(3))
    run.measurements.append(Measurement(name=label, unit="trial-epochs/s", values=rates))
    return statistics.median(rates)


def _lane_rates(run: Run, shape: Contender, name: str) -> dict[int, float]:
    found: dict[int, float] = {}
    least_seconds = 25.0
    for lanes in (1, 4) if run.is_tiny else (1, 4, 16, 64, 256):
        if not run.has_time(f"{name}, {lanes} lanes", least_seconds):
            break
        train = None  # its lanes make room for the next ones
        try:
            train = build(replace(shape, num_lanes=lanes))
            train()  # warms up, captures
            # One short epoch decides how many are worth waiting for.
            first = train()
            num_more = 2 if first * lanes * shape.num_images / NOTES_IMAGES < 5 else 0
            seconds = [first, *(train() for _ in range(num_more))]
            least_seconds = max(25.0, 3 * 4 * first * lanes)  # three epochs of four times as many lanes, at this rate
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            run.details.setdefault("out of memory", []).append(f"{name}, {lanes} lanes")
            break
        finally:
            train = None
            if run.device.type == "cuda":
                torch.cuda.empty_cache()
        values = tuple(1 / one for one in seconds)
        run.measurements.append(Measurement(name=f"{name}, {lanes} lanes", unit="trial-epochs/s", values=values))
        found[lanes] = statistics.median(values)
    return found


def _add_goals(run: Run, name: str, shape: Contender, rates: dict[int, float], usual: dict[str, float | None]) -> None:
    if not rates:
        return
    best = max(rates.values())
    is_main = name == "MLP, batch 20, float32"
    goal = GOAL_RATE if is_main else None
    run.measurements.append(Measurement(name=f"{name}, best", unit="trial-epochs/s", values=(best,), at_least=goal))
    for kind, rate in usual.items():
        if rate is not None:
            at_least = GOAL_OVER_EAGER if is_main and kind == "eager" else None
            values = (best / rate,)
            label = f"{name}, best over one trial, {kind}"
            run.measurements.append(Measurement(name=label, unit="x", values=values, at_least=at_least))
    precision = name.rpartition(", ")[2]
    product = next((one.median for one in run.measurements if one.name == f"product, {precision}"), None)
    if product is not None:
        share = best * arithmetic(shape)["share of the GEMM rate"] / product
        run.measurements.append(Measurement(name=f"{name}, share of the product rate", unit="x", values=(share,)))


# 4. Studies


def time_studies(run: Run) -> None:
    """Whole studies as a user starts them: a process, the embedded PostgreSQL, all of it."""
    steps = range(2) if run.is_tiny else range(8)
    definition = {
        "name": "gpu",
        "data": {"dataset": "digits" if run.is_tiny else "mnist"},
        "model": {"family": "mlp", "hidden_units": 20 if run.is_tiny else 500},
        "training": {"batch_size": 20, "max_epochs": 2 if run.is_tiny else 20},
        "search": {
            "strategy": "grid",
            "learning_rate": [0.1 / 2**step for step in steps],
            "lambda_2": [1e-3 / 3**step for step in steps],
        },
    }
    with tempfile.TemporaryDirectory(prefix="hpsearch-gpu-") as folder:
        path = Path(folder) / "gpu.toml"
        path.write_text(tomli_w.dumps(definition))
        _time_study(run, f"a study of {len(steps) ** 2} points, wall", path, folder, 120)
    if not run.is_tiny:
        with tempfile.TemporaryDirectory(prefix="hpsearch-gpu-") as folder:
            path = ROOT / "studies" / "mlp.toml"
            _time_study(run, "the notes' 36 points to the end of their patience, wall", path, folder, 60)


def _time_study(run: Run, name: str, path: Path, folder: str, least_seconds: float) -> None:
    if not run.is_tiny and not run.has_time(name, least_seconds):
        return
    home = Path(folder) / "home"
    home.mkdir()
    Path(folder).chmod(0o755)
    environment = os.environ | {"HPSEARCH_HOME": str(home)}
    command = [sys.executable, "-m", "hpsearch", "run", str(path), "--device", run.device.type, "--json"]
    limit = max(least_seconds, run.ends_at - time.monotonic() - 5)
    started = time.perf_counter()
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        run.details.setdefault("left out for lack of time", []).append(f"{name}: stopped after {limit:.0f} s")
        return
    seconds = time.perf_counter() - started
    if ended.returncode != 0:
        raise RuntimeError(f"hpsearch run ended with {ended.returncode}: {ended.stderr[-500:]}")
    run.details[name] = json.loads(ended.stdout)
    run.measurements.append(Measurement(name=name, unit="s", values=(seconds,)))


def _time(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with numbers that mean nothing")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/gpu.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
