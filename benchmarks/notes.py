"""The three runs of the deeplearning.net tutorial again: studies/notes/*.toml, their curves, the page and its figure.

Resumable: a study that is finished is not trained again. Writes docs/results/notes-NAME.csv, the figure
docs/images/notes-curves.svg, and what stands between the markers of docs/results/notes.md. Beside it, the tutorial's
own logistic regression in plain torch, with its grey levels and ours: that is where its 7.5 % come from.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import hpsearch
from benchmarks.measurement import run_script, say
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import HpsearchError
from hpsearch.results.summary import read_summary
from hpsearch.results.trial_summary import EpochRecord, TrialSummary
from hpsearch.store.connection.database import open_storage
from hpsearch.study.settings import DataSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "notes.md"
FIGURE = ROOT / "docs" / "images" / "notes-curves.svg"
COLUMNS = ("epoch", "validation_zero_one", "train_nll", "validation_nll", "learning_rate", "seconds")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of the tutorial's runs.

    Args:
        reported: the tutorial's validation error, in percent, and how long it trained.
    """

    name: str
    title: str
    reported: float
    reported_epochs: str

    @property
    def study(self) -> str:
        return f"notes-{self.name}"

    @property
    def csv(self) -> Path:
        return PAGE.parent / f"{self.study}.csv"


RUNS = (
    Run(name="logistic", title="logistic regression, rate 0.13, batch 600", reported=7.5, reported_epochs="74 epochs"),
    Run(
        name="mlp",
        title="MLP 784-500-10 tanh, rate 0.01, L2 0.0001, batch 20",
        reported=1.69,
        reported_epochs="828 epochs",
    ),
    Run(name="lenet", title="LeNet 20/50, rate 0.1, batch 500", reported=0.91, reported_epochs="200 epochs"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-training", action="store_true", help="write from studies that are finished")
    options = parser.parse_args(arguments)
    if not options.no_training:
        for run in RUNS:
            train(run)
    trials = {run: read_trial(run) for run in RUNS}
    for run, trial in trials.items():
        write_curve(run, trial.curve)
    FIGURE.write_text(draw({run: trial.curve for run, trial in trials.items()}))
    write_between(PAGE, "results", results_table(trials))
    write_between(PAGE, "original", original_table())
    say(f"wrote {PAGE.relative_to(ROOT)}, the curves beside it, and {FIGURE.relative_to(ROOT)}")


def train(run: Run) -> None:
    """`hpsearch run` until the study is finished; one thread and one lane, so that the bits repeat."""
    say(f"{run.study}: training")
    command = [sys.executable, "-m", "hpsearch", "run", f"studies/notes/{run.name}.toml"]
    command += ["--workers", "1", "--lanes", "1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if code:
        raise HpsearchError(f"{' '.join(command)} ended with exit code {code}", hint="the same command resumes")


def read_trial(run: Run) -> TrialSummary:
    """The study's one trial with its curve. Raises NothingCompleteError if it is not finished."""
    with open_storage(os.environ.get("HPSEARCH_STORAGE")) as database:
        return read_summary(database, run.study, with_curves=True).require_best()


def write_curve(run: Run, curve: Sequence[EpochRecord]) -> None:
    with run.csv.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for record in curve:
            nlls = f"{record.train_nll:.6f}", f"{record.validation_nll:.6f}"
            row = (record.epoch, f"{record.value:.4f}", *nlls, f"{record.learning_rate:g}", f"{record.seconds:.2f}")
            writer.writerow(row)


def results_table(trials: dict[Run, TrialSummary]) -> str:
    versions = f"hpsearch {hpsearch.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    lines = [
        f"Written on {datetime.now(UTC):%Y-%m-%d} with {versions}, one thread.",
        "",
        "| run | tutorial: validation error | ours | best epoch | epochs | ended by | seconds of training | curve |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, trial in trials.items():
        assert trial.value is not None
        seconds = sum(record.seconds for record in trial.curve)
        lines.append(
            f"| {run.title} | {run.reported:g} % ({run.reported_epochs}) | **{100 * trial.value:.2f} %** "
            f"| {trial.best_epoch} | {trial.num_epochs} | {trial.attributes.get('stop_reason')} | {seconds:,.0f} "
            f"| [csv]({run.csv.name}) |"
        )
    return "\n".join(lines)


def original_table() -> str:
    """The tutorial's logistic regression, as its script has it, with two ways to scale and two validation sets."""
    lines = ["| grey levels | validation images | validation error | best epoch | epochs |", "|---|---|---|---|---|"]
    for divisor, num_images in ((256, 9_600), (256, 10_000), (255, 9_600), (255, 10_000)):
        error, best_epoch, num_epochs = original_logistic(divisor, num_images)
        lines.append(f"| n/{divisor} | {num_images:,} | {100 * error:.2f} % | {best_epoch} | {num_epochs} |")
        say(lines[-1])
    return "\n".join(lines)


def original_logistic(divisor: int, num_validation: int) -> tuple[float, int, int]:
    """DLT's logistic_sgd.py in plain torch: best validation error, its epoch (1-based), and epochs trained.

    Args:
        divisor: pixels are grey levels divided by this; its mnist.pkl.gz has 256.
        num_validation: so many of the validation images; it leaves out what does not fill a batch of 600.
    Source: DLT, "Classifying MNIST digits using Logistic Regression".
    """
    torch.set_num_threads(1)
    data = load_selection_data(DataSettings(dataset="mnist"), locations=DataLocations.from_environment())
    batch_size, rate = 600, 0.13
    images, labels = _scaled(data.train.floats(), divisor), torch.from_numpy(data.train.labels)
    validation = _scaled(data.validation.floats(), divisor)[:num_validation]
    validation_labels = torch.from_numpy(data.validation.labels)[:num_validation]
    targets = torch.nn.functional.one_hot(labels, 10).float()
    num_minibatches = len(images) // batch_size
    weights, biases = torch.zeros(images.shape[1], 10), torch.zeros(10)
    patience, best, best_epoch, epoch = 5_000, 1.0, 0, 0
    while True:
        epoch += 1
        for minibatch in range(num_minibatches):
            rows = slice(minibatch * batch_size, (minibatch + 1) * batch_size)
            deltas = (torch.softmax(images[rows] @ weights + biases, dim=1) - targets[rows]) / batch_size
            weights -= rate * images[rows].T @ deltas
            biases -= rate * deltas.sum(dim=0)
        iteration = epoch * num_minibatches - 1  # of the epoch's last minibatch, 0-based as there
        scores = validation @ weights + biases
        error = float((scores.argmax(dim=1) != validation_labels).double().mean())
        if error < best:
            if error < best * 0.995:
                patience = max(patience, iteration * 2)
            best, best_epoch = error, epoch
        if patience <= iteration:
            return best, best_epoch, epoch


def _scaled(images: np.ndarray, divisor: int) -> Tensor:
    levels = np.rint(images * np.float32(255))
    return torch.from_numpy((levels / np.float32(divisor)).astype(np.float32))


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    before, opening, rest = page.read_text().partition(f"<!-- {name} -->")
    _, closing, after = rest.partition(f"<!-- end of {name} -->")
    if not closing:
        raise HpsearchError(f"{page} has no markers <!-- {name} --> and <!-- end of {name} -->")
    page.write_text(f"{before}{opening}\n{text}\n{closing}{after}")


# The figure

WIDTH, HEIGHT, LEFT, TOP = 360, 300, 50, 40  # of one panel, and the margins in it


def draw(curves: dict[Run, Sequence[EpochRecord]]) -> str:
    """Validation error by epoch, a panel for each run, the tutorial's result as a dashed line; an SVG document."""
    panels = [_panel(run, curve, WIDTH * index) for index, (run, curve) in enumerate(curves.items())]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#1f2933"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(panels) + "\n</svg>\n"


def _panel(run: Run, curve: Sequence[EpochRecord], left: int) -> str:
    percents = [100 * record.value for record in curve]
    low = min([*percents, run.reported])
    high = max(low * 1.05, float(np.percentile(percents, 98)))  # the first epochs would hide the rest
    last = curve[-1].epoch
    plot_width, plot_height = WIDTH - LEFT - 20, HEIGHT - TOP - 40

    def point(epoch: float, percent: float) -> str:
        x = left + LEFT + plot_width * epoch / last
        y = TOP + plot_height * (high - min(percent, high)) / (high - low)
        return f"{x:.1f},{y:.1f}"

    line = " ".join(point(record.epoch, percent) for record, percent in zip(curve, percents, strict=True))
    dashed = f"{point(0, run.reported)} {point(last, run.reported)}"
    bottom, right = TOP + plot_height, left + LEFT + plot_width
    return "\n".join(
        [
            f'<text x="{left + LEFT}" y="24">{run.title.partition(",")[0]}: validation error, %</text>',
            f'<path d="M{left + LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#64707d"/>',
            f'<text x="{left + LEFT - 6}" y="{TOP + 10}" text-anchor="end">{high:.2f}</text>',
            f'<text x="{left + LEFT - 6}" y="{bottom}" text-anchor="end">{low:.2f}</text>',
            f'<text x="{right}" y="{bottom + 18}" text-anchor="end">epoch {last}</text>',
            f'<polyline points="{dashed}" fill="none" stroke="#64707d" stroke-dasharray="5 4"/>',
            f'<polyline points="{line}" fill="none" stroke="#2b6cb0" stroke-width="1.5"/>',
        ]
    )


if __name__ == "__main__":
    run_script(main)
