"""Lanes against one trial after the other: seconds per trial and epoch of training and validation, on random
images.

    python benchmarks/lanes_micro.py
    python benchmarks/lanes_micro.py --family cnn --batch-size 500 --lanes 4 --images 2000

Both sides are trained in turns (so that a change of the machine's load meets both) and the ratios of
neighbouring turns are what counts; seconds depend on the machine, and are scaled to 50,000 training images.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable

import numpy as np
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.epoch_report import EpochReport
from hpsearch.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes import Cohort, CohortShape
from hpsearch.training.reference import train_trial

NOTES_IMAGES = 50_000  # the notes' training set
NEVER = 10**9  # validate at the epoch's end only


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    data = ResidentData.place(_random_images(options.images), device)
    settings = [_trial(options, lane) for lane in range(options.lanes)]

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"device {device} ({name}), torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{settings[0].model} {options.optimizer}, batch {options.batch_size}, {options.images} images")

    cohort = Cohort(CohortShape.of(settings[0]), data, device, NEVER)
    for lane, one in enumerate(settings):
        cohort.admit(lane, one)
    alone = _single_trial(settings[0], data, device)
    lanes = _one_lane_of(cohort)
    alone(), lanes()  # warm up
    pairs = [(alone(), lanes()) for _ in range(options.rounds)]

    scale = NOTES_IMAGES / options.images
    _print(f"one trial, eager ({NOTES_IMAGES} images), s", [scale * one for one, _ in pairs])
    _print(f"{options.lanes} lanes, per trial, s", [scale * lane for _, lane in pairs])
    _print("one trial / lanes", [one / lane for one, lane in pairs])


def _single_trial(settings: TrialSettings, data: ResidentData, device: torch.device) -> Callable[[], float]:
    def stop(report: EpochReport) -> bool:
        return True

    def seconds() -> float:
        result = train_trial(settings, data, device=device, validations_every=NEVER, should_stop=stop)
        return result.reports[0].seconds

    return seconds


def _one_lane_of(cohort: Cohort) -> Callable[[], float]:
    """Reports share an epoch's seconds out among the lanes; reading the losses has waited for the device."""
    return lambda: next(iter(cohort.train_epoch().values())).seconds


def _trial(options: argparse.Namespace, lane: int) -> TrialSettings:
    return TrialSettings(
        model=ModelSettings(family=options.family, hidden_units=options.hidden_units),
        training=TrainingSettings(
            batch_size=options.batch_size,
            optimizer=options.optimizer,
            learning_rate=0.001 * (lane + 1),
            lambda_2=options.lambda_2,
        ),
    )


def _random_images(num_train: int) -> SelectionData:
    generator = np.random.default_rng(0)

    def split(num_images: int) -> Split:
        images = generator.random((num_images, 784), dtype=np.float32)
        return Split(images=images, labels=generator.integers(0, 10, num_images))

    return SelectionData(
        name="random",
        train=split(num_train),
        validation=split(num_train // 5),  # the notes' proportion
        image_shape=(28, 28),
        num_classes=10,
        checksums={},
    )


def _print(what: str, values: list[float]) -> None:
    print(
        f"{what:42s} median {statistics.median(values):7.3f}  "
        f"min {min(values):7.3f}  max {max(values):7.3f}  n {len(values)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["logistic", "mlp", "cnn"], default="mlp")
    parser.add_argument("--hidden-units", type=int, default=500)
    parser.add_argument("--optimizer", choices=["sgd", "momentum", "adam"], default="sgd")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--lambda-2", type=float, default=1e-4)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
