"""Own images: how long a folder of JPEGs takes to be ready, and what levels of 8 bits on the device cost in an epoch.

    python -m benchmarks.own_images --images FOLDER   # about 3 minutes on two cores
    python -m benchmarks.own_images --tiny

FOLDER has train/CLASS/*.jpg, such as the CIFAR-10 images of HPSEARCH_DATASETS, unpacked. It is read once before the
first measurement, so the files are in the page cache. "Ready" is a whole `load_selection_data` in a process that has
imported it. Epochs are those of the lanes, in turns: MNIST as float32 and as uint8 on the device.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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

TITLE = "a folder of JPEGs until it is ready, and an epoch on levels of 8 bits / on floats"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    num_lanes: int
    num_images: int | None
    model: Mapping[str, Any]
    training: Mapping[str, Any]


CASES = (
    Case(
        name="MLP 784-500-10, batch 20",
        num_lanes=4,
        num_images=10_000,
        model={"hidden_units": 500},
        training={"batch_size": 20},
    ),
    Case(
        name="MLP 784-500-10, batch 20, shuffled",
        num_lanes=4,
        num_images=10_000,
        model={"hidden_units": 500},
        training={"batch_size": 20, "shuffle": True},
    ),
    Case(
        name="MLP 784-500-10, batch 20, one lane",
        num_lanes=1,
        num_images=10_000,
        model={"hidden_units": 500},
        training={"batch_size": 20},
    ),
    Case(
        name="logistic, batch 600, one lane",
        num_lanes=1,
        num_images=None,
        model={"family": "logistic"},
        training={"batch_size": 600},
    ),
    Case(
        name="logistic, batch 600, one lane, shuffled",
        num_lanes=1,
        num_images=None,
        model={"family": "logistic"},
        training={"batch_size": 600, "shuffle": True},
    ),
)


def measure_epochs(case: Case, rounds: int, dataset: str) -> list[Measurement]:
    """Epochs on levels and on floats, and their ratio."""
    locations = DataLocations.from_environment()
    num_images = case.num_images if dataset == "mnist" else None
    data = load_selection_data(DataSettings(dataset=dataset, train_samples=num_images), locations=locations)
    contenders = {}
    for name, keeps_levels in (("levels", True), ("floats", False)):
        resident = ResidentData.place(data, CPU, keeps_levels=keeps_levels)
        contenders[name] = _epochs(case, resident)
    seconds = interleave(contenders, rounds)
    return [
        *(Measurement(name=f"epoch on {name}", unit="s", values=tuple(values)) for name, values in seconds.items()),
        ratio("levels / floats", of=seconds["levels"], over=seconds["floats"]),
    ]


def _epochs(case: Case, data: ResidentData) -> Callable[[], float]:
    settings = TrialSettings(
        model=ModelSettings(**case.model), training=TrainingSettings(learning_rate=0.01, **case.training), seed=0
    )
    cohort = Cohort(CohortShape.of(settings), data, CPU, 10**9)
    for lane in range(case.num_lanes):
        cohort.admit(lane, settings)

    def epoch() -> float:
        started = time.perf_counter()
        cohort.train_epoch()
        return time.perf_counter() - started

    return epoch


def measure_folder(folder: Path, rounds: int) -> list[Measurement]:
    """Seconds until the images are ready, from an empty cache and afterwards."""
    settings, first, again = DataSettings(dataset=str(folder)), list[float](), list[float]()
    for _ in range(rounds):
        cache = Path(tempfile.mkdtemp(prefix="hpsearch-own-images-"))
        try:
            locations = DataLocations(local=None, cache=cache)
            for seconds in (first, again):
                started = time.perf_counter()
                load_selection_data(settings, locations=locations)
                seconds.append(time.perf_counter() - started)
        finally:
            shutil.rmtree(cache)
    return [
        Measurement(name="ready the first time", unit="s", values=tuple(first)),
        Measurement(name="ready afterwards", unit="s", values=tuple(again)),
    ]


def _write_images(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "train" / name / f"{number}.jpg")
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="a folder of JPEGs by class")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="digits and 40 images; writes a result only with --output")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    before, details, rounds = machine(), {}, 2 if options.tiny else options.rounds
    with tempfile.TemporaryDirectory() as temporary:
        folder = _write_images(Path(temporary)) if options.tiny else options.images
        if folder is None:
            say("without --images FOLDER only epochs are measured")
        else:
            num_images = sum(1 for _ in folder.glob("train/*/*"))
            measurements = measure_folder(folder, min(rounds, 3))
            name = f"a folder of {num_images:,} images"
            print_measurements(name, measurements)
            details[name] = [one.as_json() for one in measurements]
    for case in CASES[:1] if options.tiny else CASES:
        dataset = "digits" if options.tiny else "mnist"
        measurements = measure_epochs(case, rounds, dataset)
        print_measurements(f"{case.name}, {case.num_lanes} lanes", measurements)
        details[case.name] = [one.as_json() for one in measurements]
    output = options.output or (None if options.tiny else RESULTS / "own_images.json")
    if output is not None:
        write_result(output, title=TITLE, machine=before, settings={"rounds": rounds}, details=details)


if __name__ == "__main__":
    run_script(main)
