"""Train every point of a fine grid on MNIST, to the last epoch, and record what stopping rules and strategies ask for.

    python -m benchmarks.record_trials --seeds 1 2 3 4 5       # eight minutes a seed on one core; benchmarks/recorded

What is compared on these trials (`search_strategies`, `patience_rules`) looks them up instead of training them again:
any number of strategies, seeds and rules see the very same trials. The form of a file is told in recorded_trials.py.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.recorded_trials import RECORDED
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import DataSettings, ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.evaluation import validate_lanes
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

LEARNING_RATES = [float(f"{10.0 ** (quarter / 4):.12g}") for quarter in range(2, -17, -1)]
LAMBDAS = [0.0, *(float(f"{10.0 ** (half / 2):.12g}") for half in range(-4, -11, -1))]
LANES = 8


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is trained: the points, their network and their length."""

    points: list[tuple[float, float]] = field(default_factory=lambda: list(itertools.product(LEARNING_RATES, LAMBDAS)))
    dataset: DataSettings = field(default_factory=lambda: DataSettings(train_samples=20_000))
    model: ModelSettings = field(default_factory=lambda: ModelSettings(hidden_units=32))
    batch_size: int = 20
    epochs: int = 30

    def settings(self, point: tuple[float, float], seed: int) -> TrialSettings:
        training = TrainingSettings(
            batch_size=self.batch_size, learning_rate=point[0], lambda_2=point[1], seed=seed, max_epochs=self.epochs
        )
        return TrialSettings(model=self.model, training=training)


def record(recording: Recording, seed: int, path: Path) -> None:
    """Train all points with one seed and write their errors, NLLs and correct images, epoch by epoch."""
    data = load_selection_data(recording.dataset, locations=DataLocations.from_environment())
    resident = ResidentData.place(data, torch.device("cpu"))
    num_images = len(resident.validation_labels)
    shape = len(recording.points), recording.epochs
    errors, nlls = np.zeros(shape), np.zeros(shape)
    bits = np.zeros((*shape, -(-num_images // 8)), np.uint8)
    for first in range(0, len(recording.points), LANES):
        chosen = range(first, min(first + LANES, len(recording.points)))
        for epoch, trial, zero_one, nll, correct in _train(recording, resident, chosen, seed):
            errors[trial, epoch], nlls[trial, epoch], bits[trial, epoch] = zero_one, nll, np.packbits(correct)
        print(f"seed {seed}: {chosen.stop} of {len(recording.points)} points", file=sys.stderr)
    np.savez_compressed(
        path,
        err=errors,
        nll=nlls,
        bits=bits,
        lrs=list(dict.fromkeys(rate for rate, _ in recording.points)),
        l2s=list(dict.fromkeys(factor for _, factor in recording.points)),
    )


def _train(
    recording: Recording, data: ResidentData, chosen: range, seed: int
) -> Iterator[tuple[int, int, float, float, np.ndarray]]:
    """(epoch from 0, point, error, NLL, correct [N]) of some points side by side."""
    settings = {trial: recording.settings(recording.points[trial], seed) for trial in chosen}
    every = data.num_minibatches(recording.batch_size)
    cohort = Cohort(CohortShape.of(settings[chosen.start]), data, torch.device("cpu"), every)
    for trial, each in settings.items():
        cohort.admit(trial, each)
    for epoch in range(recording.epochs):
        cohort.train_epoch()
        # A cohort tells the images of the best epoch only, to others.
        loss, nll, correct = validate_lanes(cohort._network, cohort._stack.parameters, data, cohort._judge)
        for lane, trial in enumerate(settings):  # in the order of their admission
            yield epoch, trial, float(loss[lane]), float(nll[lane]), correct[lane].numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--folder", type=Path, default=RECORDED)
    parser.add_argument("--tiny", action="store_true", help="two points of digits, two epochs")
    options = parser.parse_args(arguments)
    recording = Recording()
    if options.tiny:
        recording = Recording(points=[(0.1, 0.0), (0.1, 0.001)], dataset=DataSettings(dataset="digits"), epochs=2)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for seed in options.seeds:
        record(recording, seed, options.folder / f"table_{seed}.npz")


if __name__ == "__main__":
    main()
