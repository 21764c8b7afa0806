"""What rounding does to the validation error: the same trials in float32 and in bfloat16, over several seeds.

    HPSEARCH_DATA=... python -m benchmarks.precision_effect

Seeds are lanes of one cohort. A seed draws the initial weights; minibatches are the same for all. The difference is
taken seed by seed, so that what the seeds have in common cancels; its standard error says what could be seen.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measurement import RESULTS, Measurement, machine, print_table, run_script, say, write_result
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import DataSettings, ModelSettings, Precision, TrainingSettings, TrialSettings
from hpsearch.training.host_memory import keep_freed_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

NEVER = 10**9
# Well-known good points; epochs enough for the error to settle within a tenth of a percent or so.
MODELS: dict[str, tuple[str, dict[str, object], int]] = {
    "MLP 500 tanh, batch 20": ("mlp", {"batch_size": 20, "learning_rate": 0.05, "lambda_2": 1e-5}, 10),
    "MLP 500 tanh, batch 100, momentum": (
        "mlp",
        {"batch_size": 100, "learning_rate": 0.05, "optimizer": "momentum"},
        10,
    ),
    "LeNet 20/50, batch 100, momentum": ("cnn", {"batch_size": 100, "learning_rate": 0.02, "optimizer": "momentum"}, 3),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    keep_freed_memory()
    device = torch.device(options.device)
    before = machine(device)
    dataset = "digits" if options.tiny else "mnist"
    selection = load_selection_data(DataSettings(dataset=dataset), locations=DataLocations.from_environment())
    data = ResidentData.place(selection, device)
    num_seeds = 2 if options.tiny else options.seeds
    precisions: tuple[Precision, ...] = (
        ("float32", "bfloat16") if device.type == "cpu" else ("float32", "tf32", "bfloat16")
    )
    rows, measurements, details = [], [], {}
    for name, (family, training, num_epochs) in MODELS.items():
        if options.tiny and family == "cnn":
            continue
        errors = {}
        for precision in precisions:
            say(f"{name}, {precision}")
            epochs = 1 if options.tiny else num_epochs
            errors[precision] = _errors(data, device, family, {**training, "precision": precision}, num_seeds, epochs)
            measurements.append(
                Measurement(name=f"{name}, {precision}", unit="%", values=tuple(100 * e for e in errors[precision]))
            )
        details[name] = errors
        for precision in precisions[1:]:
            differences = [100 * (b - a) for a, b in zip(errors["float32"], errors[precision], strict=True)]
            standard_error = statistics.stdev(differences) / math.sqrt(num_seeds)
            means = [f"{100 * statistics.mean(errors[one]):.3f}" for one in ("float32", precision)]
            difference = f"{statistics.mean(differences):+.3f} +- {standard_error:.3f}"
            rows.append([name, precision, *means, difference, str(num_seeds)])
    print_table(
        "best validation error, %",
        ["", "precision", "float32, mean", "rounded, mean", "difference +- standard error", "n"],
        rows,
    )
    output = options.output or (None if options.tiny else RESULTS / "precision_effect.json")
    if output is not None:
        write_result(
            output,
            title="Best validation error by precision of training",
            machine=before,
            settings={"seeds": num_seeds, "dataset": dataset},
            measurements=measurements,
            details={"best validation zero-one loss by seed": details, "table": rows},
        )


def _errors(
    data: ResidentData, device: torch.device, family: str, training: dict[str, object], num_seeds: int, num_epochs: int
) -> list[float]:
    """Best validation zero-one loss of each seed."""
    trials = [
        TrialSettings(
            model=ModelSettings(family=family),
            training=TrainingSettings.model_validate({**training, "seed": seed}),
        )
        for seed in range(num_seeds)
    ]
    cohort = Cohort(CohortShape.of(trials[0]), data, device, NEVER)
    for seed, settings in enumerate(trials):
        cohort.admit(seed, settings)
    for _ in range(num_epochs):
        cohort.train_epoch()
    bests = [cohort.best(seed) for seed in range(num_seeds)]
    return [best.loss for best in bests if best is not None]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="digits, one epoch")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/precision_effect.json"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
