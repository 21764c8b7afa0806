"""The first number of lanes that the model of the device chooses, against the best one: how much is lost?

    python -m benchmarks.lane_model
    python -m benchmarks.lane_model --rounds 5 --threads 1

Epochs of cohorts of 1, 2, 4 ... lanes are timed on random images, in turns; in each round the fastest epoch of a fifth
of a second counts. `lost` is the time per trial and epoch with the chosen number over the best of the round. The
constants of the model were fitted to cases like the first ones; nothing was fitted to those that are marked as unseen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.contenders import NEVER, random_images
from benchmarks.measurement import RESULTS, Measurement, machine, print_table, run_script, say, write_result
from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.host_memory import keep_freed_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import measure_speed
from hpsearch.training.lanes.lane_times import LaneTimes, numbers_up_to
from hpsearch.training.networks.build import build_network

DEVICE = torch.device("cpu")
TIMED_SECONDS = 0.2
TITLE = "the model's first number of lanes against the best one"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One class of shapes.

    Args:
        side: of the square images, in pixels.
        most_lanes: the largest number that is timed.
        is_unseen: the model's constants were not fitted to cases like this.
    """

    side: int
    num_images: int
    batch_size: int
    family: Literal["mlp", "cnn", "logistic"] = "mlp"
    hidden_units: int = 500
    optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    most_lanes: int = 64
    is_unseen: bool = False

    @property
    def name(self) -> str:
        model = f"MLP {self.hidden_units}" if self.family == "mlp" else self.family
        unseen = ", unseen" if self.is_unseen else ""
        return f"{self.side}x{self.side}, {model}, batch {self.batch_size}, {self.optimizer}{unseen}"

    @property
    def settings(self) -> TrialSettings:
        return TrialSettings(
            model=ModelSettings(family=self.family, hidden_units=self.hidden_units),
            training=TrainingSettings(
                batch_size=self.batch_size, optimizer=self.optimizer, learning_rate=0.01, lambda_2=1e-4
            ),
        )


SMALL, LARGE = 1200, 2000  # images; an epoch also validates a fifth as many
CASES = (
    Case(side=8, num_images=SMALL, hidden_units=20, batch_size=10),
    Case(side=8, num_images=SMALL, hidden_units=20, batch_size=200),
    Case(side=8, num_images=SMALL, hidden_units=100, batch_size=50),
    Case(side=8, num_images=SMALL, hidden_units=100, batch_size=50, optimizer="momentum"),
    Case(side=8, num_images=SMALL, hidden_units=500, batch_size=50),
    Case(side=28, num_images=LARGE, hidden_units=20, batch_size=20),
    Case(side=28, num_images=LARGE, hidden_units=100, batch_size=20, optimizer="momentum"),
    Case(side=28, num_images=LARGE, hidden_units=100, batch_size=500),
    Case(side=28, num_images=LARGE, hidden_units=500, batch_size=20, most_lanes=16),
    Case(side=8, num_images=SMALL, hidden_units=300, batch_size=32, optimizer="adam", is_unseen=True),
    Case(side=16, num_images=LARGE, hidden_units=64, batch_size=64, is_unseen=True),
    Case(side=20, num_images=LARGE, hidden_units=200, batch_size=100, optimizer="momentum", is_unseen=True),
    Case(side=28, num_images=LARGE, hidden_units=300, batch_size=64, optimizer="adam", most_lanes=32, is_unseen=True),
    Case(side=28, num_images=LARGE, hidden_units=50, batch_size=200, is_unseen=True),
    Case(side=28, num_images=LARGE, family="logistic", batch_size=100, is_unseen=True),
    Case(side=8, num_images=SMALL, family="logistic", batch_size=500, optimizer="adam", is_unseen=True),
    Case(side=28, num_images=500, family="cnn", batch_size=100, most_lanes=8, is_unseen=True),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as workers do
    described = machine()
    measurements, rows = [], []
    for case in CASES[:1] if options.tiny else CASES:
        data = ResidentData.place(random_images(case.num_images, side=case.side), DEVICE)
        chosen = choose(case, data)
        numbers = numbers_up_to(case.most_lanes)
        rounds = [{lanes: seconds_per_trial(case, data, lanes) for lanes in numbers} for _ in range(options.rounds)]
        times = {
            lanes: Measurement(
                name=f"{case.name}, {lanes} lanes", unit="s", values=tuple(seconds[lanes] for seconds in rounds)
            )
            for lanes in numbers
        }
        lost = Measurement(
            name=f"{case.name}, lost with {chosen} lanes",
            unit="x",
            values=tuple(seconds[chosen] / min(seconds.values()) for seconds in rounds),
        )
        measurements += [*times.values(), lost]
        best = min(numbers, key=lambda lanes: times[lanes].median)
        shown = [f"{1000 * times[lanes].median:.3g}" for lanes in (1, best)]
        spread = f"{lost.median:.2f} ({min(lost.values):.2f}-{max(lost.values):.2f})"
        rows.append([case.name, shown[0], f"{shown[1]} ({best})", str(chosen), spread])
        say(f"{rows[-1]}")
    print_table(TITLE, ["", "1 lane, ms", "best, ms (lanes)", "chosen", "time / best"], rows)
    output = options.output or (None if options.tiny else RESULTS / "lane_model.json")
    if output is not None:
        settings = {"rounds": options.rounds, "threads": options.threads}
        write_result(output, title=TITLE, machine=described, settings=settings, measurements=measurements)


def choose(case: Case, data: ResidentData) -> int:
    """Measure the device, as a worker's first cohort does, and return the number of lanes that follows."""
    network = build_network(case.settings.model, data.example_shape, data.num_outputs)
    prior = measure_speed(DEVICE).epoch_cost(network, data, case.batch_size, DEVICE)
    return LaneTimes(prior).choose(case.most_lanes)


def seconds_per_trial(case: Case, data: ResidentData, num_lanes: int) -> float:
    """Seconds of the fastest epoch per trial, with one validation at its end."""
    cohort = Cohort(CohortShape.of(case.settings), data, DEVICE, NEVER)
    for lane in range(num_lanes):
        cohort.admit(lane, case.settings)
    cohort.train_epoch()
    fastest, ends_at = float("inf"), time.perf_counter() + TIMED_SECONDS
    while fastest == float("inf") or time.perf_counter() < ends_at:
        started = time.perf_counter()
        cohort.train_epoch()
        fastest = min(fastest, time.perf_counter() - started)
    return fastest / num_lanes


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="one case; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/lane_model.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
