"""Seconds per trial and epoch: lanes against one trial after the other, and against the machine's arithmetic.

    python -m benchmarks.training_speed
    python -m benchmarks.training_speed --case mlp-500 --lanes 16 --rounds 11

Times are of training on 50,000 images and validating on 10,000, scaled up from fewer. Contenders run in processes of
their own, in turns; all ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.contenders import NOTES_IMAGES, Contender, running
from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_measurements,
    ratio,
    run_script,
    say,
    write_result,
)

# Multiplications and additions per image, forward: LeNet's convolutions have 24 x 24 x 20 outputs of 25 inputs,
# and 8 x 8 x 50 of 500.
CONV_1 = 2 * 24 * 24 * 20 * 25
CONV_2 = 2 * 8 * 8 * 50 * 500
LENET_DENSE = 2 * (800 * 500 + 500 * 10)

KEPT = "eager, freed memory kept"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Contenders that are compared with each other.

    Args:
        goals: name of a ratio -> what it should reach at least (on a CPU).
    """

    name: str
    contenders: dict[str, Contender]
    goals: dict[str, float]


def cases(*, num_lanes: int, threads: int, num_images: int) -> list[Case]:
    """The issue's items 1 to 3."""
    base = Contender(kind="lanes", num_lanes=num_lanes, threads=threads, num_images=num_images)
    gemm = {"GEMM": replace(base, kind="gemm")}

    def mlp(hidden_units: int, goals: dict[str, float], *, batch_size: int = 20, bfloat16: bool = False) -> Case:
        lanes = replace(base, hidden_units=hidden_units, batch_size=batch_size)
        contenders = {
            "eager": replace(lanes, kind="eager"),
            KEPT: replace(lanes, kind="eager", keeps_memory=True),
            "DataLoader": replace(lanes, kind="loader"),
            "lanes": lanes,
        }
        if bfloat16:
            contenders["lanes bfloat16"] = replace(lanes, precision="bfloat16")
        name = f"mlp-{hidden_units}" if batch_size == 20 else f"mlp-{hidden_units}-batch-{batch_size}"
        return Case(name=name, contenders=contenders | gemm, goals=goals)

    lenet = replace(
        base, family="cnn", batch_size=500, num_images=max(num_images // 2, 500), num_lanes=num_lanes // 4 or 1
    )
    return [
        mlp(500, {"lanes over eager": 2.5, "lanes over DataLoader": 3.5, "share of the GEMM rate": 0.65}),
        mlp(200, {"lanes over eager": 2.5}),
        mlp(50, {"lanes over eager": 4.0}),
        mlp(500, {}, batch_size=500, bfloat16=True),
        Case(
            name="lenet",
            contenders={
                "eager": replace(lenet, kind="eager"),
                KEPT: replace(lenet, kind="eager", keeps_memory=True),
                "lanes": lenet,
                "lanes bfloat16": replace(lenet, precision="bfloat16"),
            }
            | gemm,
            goals={
                "lanes over eager": 1.8,
                "lanes bfloat16 over eager": 2.8,
                "share of the convolutions' GEMM rate": 0.7,
            },
        ),
    ]


def arithmetic(contender: Contender) -> dict[str, float]:
    """GFLOP of one trial-epoch, training and validation, by what it is called in the table."""
    train, validation = NOTES_IMAGES, NOTES_IMAGES // 5
    if contender.family == "cnn":
        # The first layer's inputs need no gradient: 2 products, else 3.
        convolutions = train * (2 * CONV_1 + 3 * CONV_2) + validation * (CONV_1 + CONV_2)
        dense = (3 * train + validation) * LENET_DENSE
        return {
            "share of the GEMM rate": (convolutions + dense) / 1e9,
            "share of the convolutions' GEMM rate": convolutions / 1e9,
        }
    first, second = 2 * 784 * contender.hidden_units, 2 * contender.hidden_units * 10
    return {"share of the GEMM rate": (train * (2 * first + 3 * second) + validation * (first + second)) / 1e9}


def measure(case: Case, rounds: int) -> list[Measurement]:
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(running(one)) for name, one in case.contenders.items()}
        values = interleave(runs, rounds, on_round=lambda index: say(f"{case.name}: round {index} of {rounds}"))
    measurements = [
        Measurement(name=name, unit="GFLOP/s" if name == "GEMM" else "s", values=tuple(seconds))
        for name, seconds in values.items()
    ]
    for name in ("lanes", "lanes bfloat16"):
        for base in ("eager", KEPT, "DataLoader"):
            if name in values and base in values:
                label = f"{name} over {base}"
                measurements.append(ratio(label, of=values[base], over=values[name], at_least=case.goals.get(label)))
    for label, gflop in arithmetic(case.contenders["lanes"]).items():
        limit = [gflop / rate for rate in values["GEMM"]]
        measurements.append(ratio(label, of=limit, over=values["lanes"], at_least=case.goals.get(label)))
    return measurements


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.tiny:
        options.rounds, options.images, options.lanes = 1, 500, 4
    found = cases(num_lanes=options.lanes, threads=options.threads, num_images=options.images)
    chosen = [case for case in found if options.case in ("all", case.name)]
    before = machine()
    details = {}
    for case in chosen:
        measurements = measure(case, options.rounds)
        lanes = case.contenders["lanes"].num_lanes
        print_measurements(f"{case.name}, {lanes} lanes, {options.threads} threads", measurements)
        details[case.name] = {"lanes": lanes, "measurements": [one.as_json() for one in measurements]}
    output = options.output or (None if options.tiny else RESULTS / "training_speed.json")
    if output is not None:
        write_result(
            output,
            title="Seconds per trial and epoch of training (50,000 images) and validation (10,000)",
            machine=before,
            settings={name: str(value) for name, value in vars(options).items()},
            details=details,
        )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in cases(num_lanes=8, threads=2, num_images=5000)]
    parser.add_argument("--case", choices=["all", *names], default="all")
    parser.add_argument("--lanes", type=int, default=8, help="LeNet has a quarter of them")
    parser.add_argument("--images", type=int, default=5000, help="training images of a timed epoch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tiny", action="store_true", help="seconds, and numbers that mean nothing")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/training_speed.json"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
