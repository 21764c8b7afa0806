"""Data of one's own: hpsearch against scikit-learn's MLP searched by plain Optuna, on the same rows.

    python -m benchmarks.own_data                                      # hours; goes on where it was stopped
    python -m benchmarks.own_data --only titanic --only titanic-auc    # some of it
    python -m benchmarks.own_data --report                             # no training: result and tables of what is there
    python -m benchmarks.own_data --tiny

HPSEARCH_DATASETS names a folder with housing.csv and titanic.csv (github.com/ageron/handson-ml2, datasets/) and
cifar10-jpeg.tar.gz, the CIFAR-10 images as train/CLASS/*.jpg and test/CLASS/*.jpg. Each split draws the rows of
training, validation and test anew. Both sides search 40 points with TPE, select on the validation rows, and predict the
test rows once; hpsearch does so through `hpsearch test`. They run one after the other, the first one in turns, as
processes with one thread. The result of each split is appended to FILE.jsonl; splits that are there are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.measurement import RESULTS, Measurement, machine, ratio, run_script, say, write_result
from benchmarks.notes import write_between
from benchmarks.own_data_cases import NUM_POINTS, TASKS, Task
from benchmarks.own_data_images import run_images
from benchmarks.own_data_splits import SIDES, run_split
from benchmarks.paired import MARGIN, PairedDifference
from hpsearch.errors import DataError, InputError
from hpsearch.metric import METRICS

TITLE = "Data of one's own: hpsearch, and scikit-learn's MLP searched by plain Optuna"
DOCUMENT = Path(__file__).parents[1] / "docs" / "results" / "own-data.md"
IMAGES: Final = "cifar10"
SLOW_SECONDS: Final = 60.0  # of processor time; times are compared where plain Optuna needs longer
NUM_SPLITS: Final = 20
TRAIN_SAMPLES: Final = 5_000
Line = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    names = options.only or [task.name for task in TASKS] + ([] if options.tiny else [IMAGES])
    output = options.output or RESULTS / "own_data.json"
    kept = output.with_suffix(".jsonl")
    described = machine()
    if not options.report:
        _run(names, options, kept)
    lines = read_lines(kept)
    print("\n".join(tables(lines, options)))
    if options.tiny and options.output is None:
        kept.unlink(missing_ok=True)
        return
    _write(output, described, lines, options)
    if options.output is None:
        write_between(DOCUMENT, "tables", "\n".join(tables(lines, options)))


def _run(names: Sequence[str], options: argparse.Namespace, kept: Path) -> None:
    """Whatever is missing, split after split, so that all tasks have as many if it is stopped."""
    datasets = _datasets(names)
    done = {(line["task"], line["split"], line["settings"]) for line in read_lines(kept)}
    for split in range(options.splits):
        for task in TASKS:
            if task.name in names and (task.name, split, task.checksum(options.points)) not in done:
                found = run_split(task, split, datasets, num_points=options.points)
                _keep(kept, {"task": task.name, "split": split, "settings": task.checksum(options.points), **found})
    settings = f"train_samples={options.train_samples}"
    if IMAGES in names and (IMAGES, 0, settings) not in done:
        found = run_images(datasets, options.train_samples, max_epochs=1 if options.tiny else None)
        _keep(kept, {"task": IMAGES, "split": 0, "settings": settings, **found})


def _keep(kept: Path, line: Line) -> None:
    with kept.open("a", encoding="utf-8") as stream:  # one write, so that two processes may share the file
        stream.write(json.dumps(line) + "\n")
    both = ", ".join(f"{side} {line[side]['test']:.5g} in {line[side]['seconds']:.0f} s" for side in SIDES)
    say(f"{line['task']}, split {line['split']}: {both}")


def read_lines(kept: Path) -> list[Line]:
    if not kept.is_file():
        return []
    return [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines() if line]


def of_task(lines: Sequence[Line], task: Task, num_points: int) -> list[Line]:
    """The results of a task with its present settings, by split."""
    own = [line for line in lines if (line["task"], line["settings"]) == (task.name, task.checksum(num_points))]
    return sorted(own, key=lambda line: int(line["split"]))


def losses(lines: Sequence[Line], task: Task, side: str) -> list[float]:
    """Test losses, lower is better: hpsearch's value as a loss, 1 - AUC; the others are losses already."""
    values = [float(line[side]["test"]) for line in lines]
    return [METRICS[task.metric].loss_of(value) for value in values] if side == "hpsearch" else values


def tables(lines: Sequence[Line], options: argparse.Namespace) -> list[str]:
    """The tables of the document, in Markdown."""
    found = [(task, own) for task in TASKS if (own := of_task(lines, task, options.points))]
    text = [
        "Means over the splits +- their standard deviation.",
        "",
        "| data and loss | splits | hpsearch | MLP, plain Optuna | HistGradientBoosting |",
        "|---|---:|---:|---:|---:|",
    ]
    for task, own in found:
        cells = [_mean(task, losses(own, task, side)) for side in (*SIDES, "boosting")]
        text.append(f"| {task.title} | {len(own)} | " + " | ".join(cells) + " |")
    text += [
        "",
        "Differences split by split, with the 95 % interval of their mean (Student's t), as parts of the contender's",
        "mean loss; below 0 hpsearch is better.",
        "",
        f"| data and loss | less plain Optuna's MLP | ends below +{100 * MARGIN:.0f} % | verdict "
        "| less HistGradientBoosting | verdict |",
        "|---|---:|---|---|---:|---|",
    ]
    for task, own in found:
        ours = losses(own, task, "hpsearch")
        contender, boosting = (PairedDifference.of(ours, losses(own, task, side)) for side in ("contender", "boosting"))
        yes = "yes" if contender.is_no_worse else "no"
        text.append(
            f"| {task.title} | {_interval(contender)} | {yes} | {contender.verdict} "
            f"| {_interval(boosting)} | {boosting.verdict} |"
        )
    text += [
        "",
        "Seconds of a whole search, from the start of the process to its end: medians over the splits; and the median",
        "(range) of plain Optuna / hpsearch within each split. Processor time is without the database server's; wall",
        f"time depends on what else the machine does. Where plain Optuna needs less than {SLOW_SECONDS:.0f} s of "
        "processor time",
        "there is no ratio.",
        "",
        "| data | hpsearch: epochs | processor | wall | plain Optuna: epochs | processor | wall | processor ratio "
        "| wall ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for task, own in found:
        cells = [_median(own, side, key) for side in SIDES for key in ("epochs", "cpu_seconds", "seconds")]
        is_slow = statistics.median(line["contender"]["cpu_seconds"] for line in own) > SLOW_SECONDS
        cells += [_ratios(own, key) if is_slow else "" for key in ("cpu_seconds", "seconds")]
        text.append(f"| {task.name} | {' | '.join(cells)} |")
    return [*text, *_images_table(lines)]


def _images_table(lines: Sequence[Line]) -> list[str]:
    own = [line for line in lines if line["task"] == IMAGES]
    if not own:
        return []
    text = [
        "",
        "CIFAR-10, test error on 10,000 images.",
        "",
        "| training images | LeNet, hpsearch | trials | epochs | processor | MLPClassifier | epochs | processor |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for line in own:
        ours, theirs = (line[side] for side in SIDES)
        points = ours["points"]
        text.append(
            f"| {line['train_samples']:,} | {100 * ours['test']:.2f} % | {points['complete']} complete, "
            f"{points['pruned']} pruned | {ours['epochs']} | {ours['cpu_seconds']:,.0f} s "
            f"| {100 * theirs['test']:.2f} % | {theirs['epochs']} | {theirs['cpu_seconds']:,.0f} s |"
        )
    return text


def _write(output: Path, described: Mapping[str, Any], lines: Sequence[Line], options: argparse.Namespace) -> None:
    measurements, details = [], {}
    for task in TASKS:
        own = of_task(lines, task, options.points)
        if not own:
            continue
        unit = "dollars" if task.is_regression else "loss"
        for side in (*SIDES, "boosting"):
            values = tuple(losses(own, task, side))
            measurements.append(Measurement(name=f"{task.name}, {side}", unit=unit, values=values))
        for key, what in (("seconds", "wall"), ("cpu_seconds", "processor")):
            theirs, ours = ([float(line[side][key]) for line in own] for side in reversed(SIDES))
            measurements.append(ratio(f"{task.name}, plain Optuna / hpsearch, {what}", of=theirs, over=ours))
        ours = losses(own, task, "hpsearch")
        details[task.name] = {
            "splits": [line["split"] for line in own],
            "study": task.study(0, options.points),
            "contender's space": task.space(),
            **{
                f"less {side}": PairedDifference.of(ours, losses(own, task, side)).as_json()
                for side in ("contender", "boosting")
            },
        }
    images = [line for line in lines if line["task"] == IMAGES]
    write_result(
        output,
        title=TITLE,
        machine=described,
        settings={"splits": options.splits, "points": options.points, "margin": MARGIN},
        measurements=measurements,
        details={**details, IMAGES: images},
    )


def _mean(task: Task, values: Sequence[float]) -> str:
    shown = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    if task.metric == "zero-one":
        return " +- ".join(f"{100 * value:.2f}" for value in shown) + " %"
    return " +- ".join(f"{value:,.0f}" if task.is_regression else f"{value:.4f}" for value in shown)


def _interval(difference: PairedDifference) -> str:
    mean, low, high = (100 * value for value in difference.relative)
    if difference.num_splits < 2:
        return f"{mean:+.1f} %"
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f}) %"


def _median(lines: Sequence[Line], side: str, key: str) -> str:
    return f"{statistics.median(line[side][key] for line in lines):,.0f}"


def _ratios(lines: Sequence[Line], key: str) -> str:
    """The contender's over hpsearch's, split by split."""
    values = [line["contender"][key] / line["hpsearch"][key] for line in lines]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _datasets(names: Sequence[str]) -> Path:
    """HPSEARCH_DATASETS; any folder where nothing is read from one."""
    if not any(task.file_name for task in TASKS if task.name in names) and IMAGES not in names:
        return RESULTS
    folder = os.environ.get("HPSEARCH_DATASETS")
    if not folder:
        raise InputError("HPSEARCH_DATASETS is not set", hint="set it to the folder with housing.csv and titanic.csv")
    if not Path(folder).is_dir():
        raise DataError(f"HPSEARCH_DATASETS: no folder {folder}", hint="set it to the folder with housing.csv")
    return Path(folder)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*(task.name for task in TASKS), IMAGES]
    parser.add_argument("--only", action="append", choices=names, help="some of it; may be repeated")
    parser.add_argument("--splits", type=int, default=NUM_SPLITS)
    parser.add_argument("--points", type=int, default=NUM_POINTS, help="of each search")
    parser.add_argument("--train-samples", type=int, default=TRAIN_SAMPLES, help="of CIFAR-10, on both sides")
    parser.add_argument("--report", action="store_true", help="train nothing: result and tables of what is there")
    parser.add_argument("--tiny", action="store_true", help="one split, two points; a result only with --output")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/own_data.json")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.splits, options.points, options.train_samples = 1, 2, 200
    return options


if __name__ == "__main__":
    run_script(main)
