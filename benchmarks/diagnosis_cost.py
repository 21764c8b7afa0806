"""What the diagnosis of lanes costs: the time of its calls as a share of the epoch, and whole epochs in turns.

    python -m benchmarks.diagnosis_cost               # about 10 minutes on two cores
    python -m benchmarks.diagnosis_cost --tiny

Every timed epoch is one after which the diagnosis is due. The calls are timed within the epochs. A difference of a few
percent cannot be seen between two epochs of a busy machine: the wall times stand beside, as a ratio within each round.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

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
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import DataSettings, ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.lane_diagnosis import LaneDiagnoser

TITLE = "the diagnosis: time of its calls / time of the epoch, and epoch with it / without"
CPU = torch.device("cpu")
NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    num_lanes: int
    num_images: int | None
    model: Mapping[str, Any]
    training: Mapping[str, Any]
    dataset: str = "mnist"


CASES = (
    Case(name="MLP 784-500-10", num_lanes=8, num_images=None, model={"hidden_units": 500}, training={"batch_size": 20}),
    Case(name="LeNet 20/50", num_lanes=1, num_images=10_000, model={"family": "cnn"}, training={"batch_size": 20}),
    Case(
        name="MLP 784-100-10 on digits",
        num_lanes=16,
        num_images=None,
        model={"hidden_units": 100, "activation": "relu"},
        training={"batch_size": 20, "optimizer": "momentum"},
        dataset="digits",
    ),
)


@dataclass
class Clock:
    """Adds up the seconds of the diagnosis."""

    seconds: float = 0.0
    share: list[float] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        measure = LaneDiagnoser.measure

        def timed(*arguments: Any) -> Tensor:
            started = time.perf_counter()
            found = measure(*arguments)
            self.seconds += time.perf_counter() - started
            return found

        with mock.patch.object(LaneDiagnoser, "measure", timed):
            yield


def measure_case(case: Case, rounds: int) -> list[Measurement]:
    settings = DataSettings(dataset=case.dataset, train_samples=case.num_images)
    data = ResidentData.place(load_selection_data(settings, locations=DataLocations.from_environment()), CPU)
    clock = Clock()

    def epoch_of(*, is_diagnosed: bool) -> Callable[[], float]:
        cohort: Cohort | None = None
        for lane in range(case.num_lanes):
            training = TrainingSettings(learning_rate=0.01, seed=lane, **case.training)
            trial = TrialSettings(model=ModelSettings(**case.model), training=training)
            if cohort is None:
                cohort = Cohort(CohortShape.of(trial), data, CPU, NEVER, is_diagnosed=is_diagnosed)
            cohort.admit(lane, trial)

        def epoch() -> float:
            assert cohort is not None
            clock.seconds, started = 0.0, time.perf_counter()
            cohort.train_epoch()
            seconds = time.perf_counter() - started
            if is_diagnosed:
                clock.share.append(clock.seconds / seconds)
            return seconds

        return epoch

    with clock.running(), mock.patch.object(LaneDiagnoser, "is_due", return_value=True):
        contenders = {"plain": epoch_of(is_diagnosed=False), "diagnosed": epoch_of(is_diagnosed=True)}
        values = interleave(contenders, rounds, on_round=lambda index: say(f"{case.name}: round {index} of {rounds}"))
    return [
        Measurement(name="calls / epoch", unit="x", values=tuple(clock.share[-rounds:])),
        ratio("epoch diagnosed / plain", of=values["diagnosed"], over=values["plain"]),
        Measurement(name="epoch, plain", unit="s", values=tuple(values["plain"])),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="digits, two rounds; writes a result only with --output")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    before, details = machine(), {}
    for case in CASES[-1:] if options.tiny else CASES:
        measurements = measure_case(case, 2 if options.tiny else options.rounds)
        print_measurements(f"{case.name}, {case.num_lanes} lanes", measurements)
        details[case.name] = [one.as_json() for one in measurements]
    output = options.output or (None if options.tiny else RESULTS / "diagnosis_cost.json")
    if output is not None:
        write_result(output, title=TITLE, machine=before, settings={"rounds": options.rounds}, details=details)


if __name__ == "__main__":
    run_script(main)
