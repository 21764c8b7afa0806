"""Trials with a known fault: does the verdict on each name it? And what is said of healthy trials?

    python -m benchmarks.planted_verdicts                 # digits, by which the thresholds were set, and MNIST
    python -m benchmarks.planted_verdicts --again         # judge the stored trials again; trains nothing
    python -m benchmarks.planted_verdicts --again --document docs/results/believe.md

All trials run through the service. For each network the healthy rate is looked for first, on half decades.
Healthy trials have a rate within a factor of 3.2 of it and an error near the best. Faults are planted from there: a
rate at least 30 times too high or 100 times too low, a batch of one image, far too much L1 or L2, one to three hidden
units, or a few training images for many epochs. A trial whose error is hardly worse than the best (1.3 times) has no
fault and is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hpsearch
from benchmarks.measurement import RESULTS, machine, print_table, run_script, say, write_result
from benchmarks.notes import write_between
from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch.epoch_report import Diagnosis
from hpsearch.results.summary import read_summary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.connection.database import open_storage
from hpsearch.store.rows.diagnoses import COLUMNS, NUMBERS
from hpsearch.study.settings import TrialSettings
from hpsearch.training.diagnosis.verdict import Cause, EpochLosses, Verdict, find_verdict

TITLE = "verdicts on trials with a known fault"
NUM_CLASSES = 10
RATES = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(-10, 5))  # 1e-5 ... 100
NEAR = 10**0.5 * 1.01
WORSE = 1.3  # times the best error: a fault that costs less than this is none
HEALTHY = 1.15  # times the best error, or
HEALTHY_MORE = 0.004  # this much more
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A network that can be healthy, and what is planted into it.

    Args:
        model, training: sections of the study file.
        few: training images of the trials that overfit.
        penalties: far too large lambdas.
    """

    name: str
    dataset: str
    model: Values
    training: Values
    samples: int | None = None
    few: tuple[int, ...] = (100, 300)
    penalties: tuple[Values, ...] = ({"lambda_2": 0.1}, {"lambda_2": 0.03}, {"lambda_1": 0.01})


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A trial, the fault that was planted in it, and the verdict."""

    base: str
    planted: Cause
    point: Values
    error: float | None
    settings: TrialSettings
    curve: Sequence[EpochLosses]
    diagnoses: Mapping[int, Diagnosis]
    has_diverged: bool

    def verdict(self) -> Verdict | None:
        return find_verdict(self.settings, NUM_CLASSES, self.curve, self.diagnoses, has_diverged=self.has_diverged)

    def as_json(self) -> str:
        """One line, with four digits per number: a result has some two hundred trials."""
        document = {
            "base": self.base,
            "planted": self.planted.value,
            "point": dict(self.point),
            "error": self.error,
            "settings": self.settings.model_dump(mode="json", exclude_defaults=True),
            "curve": [[epoch.epoch, *map(_short, epoch[1:])] for epoch in self.curve],
            "diagnoses": [
                [
                    epoch,
                    *(_short(getattr(d, name)) for name in NUMBERS),
                    {name: _short(value) for name, value in d.update_ratios.items()},
                ]
                for epoch, d in self.diagnoses.items()
            ],
            "has_diverged": self.has_diverged,
        }
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Judged:
        stored = json.loads(line)
        return cls(
            base=stored["base"],
            planted=Cause(stored["planted"]),
            point=stored["point"],
            error=stored["error"],
            settings=TrialSettings.model_validate(stored["settings"]),
            curve=[EpochLosses(*epoch) for epoch in stored["curve"]],
            diagnoses={
                epoch: Diagnosis(**dict(zip(COLUMNS, rest, strict=True))) for epoch, *rest in stored["diagnoses"]
            },
            has_diverged=stored["has_diverged"],
        )


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


MLP = {"family": "mlp", "hidden_units": 100}
SGD, MOMENTUM, ADAM = {"optimizer": "sgd"}, {"optimizer": "momentum"}, {"optimizer": "adam"}
DIGITS = (
    Base(
        name="mlp tanh sgd", dataset="digits", model={**MLP, "activation": "tanh"}, training={**SGD, "batch_size": 20}
    ),
    Base(
        name="mlp relu momentum",
        dataset="digits",
        model={**MLP, "activation": "relu"},
        training={**MOMENTUM, "batch_size": 50},
    ),
    Base(
        name="mlp sigmoid adam",
        dataset="digits",
        model={**MLP, "activation": "sigmoid"},
        training={**ADAM, "batch_size": 20},
    ),
    Base(
        name="mlp relu adam",
        dataset="digits",
        model={**MLP, "activation": "relu"},
        training={**ADAM, "batch_size": 100},
    ),
    Base(
        name="mlp tanh momentum",
        dataset="digits",
        model={**MLP, "activation": "tanh"},
        training={**MOMENTUM, "batch_size": 20},
    ),
    Base(
        name="logistic sgd",
        dataset="digits",
        model={"family": "logistic"},
        training={**SGD, "batch_size": 20},
    ),
    Base(
        name="lenet relu momentum",
        dataset="digits",
        samples=600,
        model={"family": "cnn", "hidden_units": 50, "kernels": [6, 12], "activation": "relu"},
        training={**MOMENTUM, "batch_size": 20},
    ),
)
MNIST = (
    Base(
        name="mlp tanh sgd",
        dataset="mnist",
        samples=10_000,
        model={"family": "mlp", "hidden_units": 200, "activation": "tanh"},
        training={**SGD, "batch_size": 20},
    ),
    Base(
        name="mlp relu adam",
        dataset="mnist",
        samples=10_000,
        model={"family": "mlp", "hidden_units": 200, "activation": "relu"},
        training={**ADAM, "batch_size": 50},
    ),
    Base(
        name="lenet tanh sgd",
        dataset="mnist",
        samples=1_000,
        model={"family": "cnn", "hidden_units": 100, "kernels": [6, 12], "activation": "tanh"},
        training={**SGD, "batch_size": 20},
    ),
)


@dataclass(kw_only=True)
class Trainer:
    """Runs studies of listed points through the service, and reads their trials."""

    storage: str
    folder: Path
    num_epochs: int
    counter: Iterator[int] = field(default_factory=itertools.count)

    def trials(self, base: Base, points: Sequence[Values], *, samples: int | None, epochs: int) -> list[TrialSummary]:
        """One trial per point, in order."""
        name = f"study-{next(self.counter)}"
        document = {
            "name": name,
            "data": {"dataset": base.dataset, **({"train_samples": samples} if samples else {})},
            "model": dict(base.model),
            "training": {**base.training, "max_epochs": epochs},
            "stopping": {"rule": "no-improvement-in-n", "n": 10},
            "search": {"strategy": "listed", "points": [dict(point) for point in points]},
        }
        hpsearch.run(document, storage=self.storage, artifacts=self.folder / "artifacts", progress=False, check=False)
        with open_storage(self.storage) as database:
            summary = read_summary(database, name, with_curves=True)
        self.definition = summary.study.definition
        return sorted((trial for trial in summary.trials if trial.is_current), key=lambda trial: trial.point or 0)

    def judged(self, base: Base, planted: Cause, trial: TrialSummary) -> Judged:
        return Judged(
            base=f"{base.dataset} {base.name}",
            planted=planted,
            point=trial.point_parameters,
            error=trial.value,
            settings=self.definition.resolve(trial.parameters),
            curve=[
                EpochLosses(e.epoch, e.train_nll, e.validation_nll, e.value)
                for e in trial.curve
                if e.train_nll is not None and e.validation_nll is not None
            ],
            diagnoses=trial.diagnoses,
            has_diverged=trial.attributes.get("stop_reason") == "diverged",
        )


def planted(base: Base, trainer: Trainer) -> Iterator[Judged]:
    """The trials of one base: healthy ones, and those with a fault that costs something."""
    rates = [{"learning_rate": rate} for rate in RATES]
    grid = trainer.trials(base, rates, samples=base.samples, epochs=trainer.num_epochs)
    found = [trial for trial in grid if trial.is_complete and trial.value is not None]
    error = min(trial.value for trial in found if trial.value is not None)
    near = [trial for trial in found if (trial.value or 0.0) <= max(HEALTHY * error, error + HEALTHY_MORE)]
    best = min(near, key=lambda trial: trial.best_validation_nll or 0.0)  # a huge rate may have a low error by chance
    rate = float(best.point_parameters["learning_rate"])
    say(f"{base.dataset} {base.name}: best rate {rate:g}, error {error:.4f}")

    def is_good(trial: TrialSummary) -> bool:
        return trial.is_complete and (trial.value or 0.0) <= max(HEALTHY * error, error + HEALTHY_MORE)

    def is_faulty(trial: TrialSummary) -> bool:
        return trial.value is None or not trial.is_complete or trial.value > WORSE * error + HEALTHY_MORE

    for trial in grid:
        its = float(trial.point_parameters["learning_rate"])
        if rate / NEAR <= its <= rate * NEAR and is_good(trial):
            yield trainer.judged(base, Cause.FINE, trial)
        elif is_faulty(trial) and its >= 29 * rate:
            yield trainer.judged(base, Cause.RATE_TOO_HIGH, trial)
        elif is_faulty(trial) and its <= rate / 99:
            yield trainer.judged(base, Cause.RATE_TOO_LOW, trial)
    plants = list(_plants(base, rate))
    trials = trainer.trials(base, [point for _, point in plants], samples=base.samples, epochs=trainer.num_epochs)
    for (cause, _), trial in zip(plants, trials, strict=True):
        if is_good(trial) if cause is Cause.FINE else is_faulty(trial):
            yield trainer.judged(base, cause, trial)
    for few in base.few:
        for trial in trainer.trials(base, [{"learning_rate": rate}], samples=few, epochs=6 * trainer.num_epochs):
            last = trial.curve[-1].train_nll if trial.curve else None
            if is_faulty(trial) and last is not None and last < 0.1:
                yield trainer.judged(base, Cause.OVERFITTING, trial)


def _plants(base: Base, rate: float) -> Iterator[tuple[Cause, Values]]:
    batch_size, width = int(base.training["batch_size"]), int(base.model.get("hidden_units", 0))
    usual = {"learning_rate": rate, "batch_size": batch_size, "lambda_1": 0.0, "lambda_2": 0.0}
    usual |= {"hidden_units": width} if width else {}
    for times in (1.0, 3.0):
        yield Cause.NOISY, {**usual, "batch_size": 1, "learning_rate": rate * times}
    for penalty in base.penalties:
        yield Cause.UNDERFITTING, {**usual, **penalty}
    for change in ({"lambda_2": 1e-5}, {"lambda_1": 1e-6}, {"batch_size": 2 * batch_size}):
        yield Cause.FINE, {**usual, **change}
    if width:
        for few in (1, 2, 3):
            yield Cause.UNDERFITTING, {**usual, "hidden_units": few}
        for number in (2 * width, round(0.7 * width)):
            yield Cause.FINE, {**usual, "hidden_units": number}


def table(trials: Sequence[Judged]) -> tuple[list[str], list[list[str]], dict[str, float]]:
    """The confusion matrix: planted cause against the first cause named; and the shares of the issue."""
    first: Counter[tuple[Cause, str]] = Counter()
    is_first, is_among = [], []
    fine, faulty_fine, diverged_fine = [], [], 0
    for each in trials:
        verdict = each.verdict()
        causes = () if verdict is None else verdict.causes
        first[each.planted, causes[0] if causes else "none"] += 1
        if each.planted is Cause.FINE:
            fine.append(causes[:1] == (Cause.FINE,))
        else:
            is_first.append(causes[:1] == (each.planted,))
            is_among.append(each.planted in causes)
            faulty_fine.append(causes[:1] == (Cause.FINE,))
            diverged_fine += each.has_diverged and causes[:1] == (Cause.FINE,)
    named = [cause for cause in (*Cause, "none") if any(first[planted, cause] for planted in Cause)]
    rows = [
        [planted_cause, *(str(first[planted_cause, cause] or "") for cause in named)]
        for planted_cause in Cause
        if any(first[planted_cause, cause] for cause in named)
    ]
    shares = {
        "planted cause first": _share(is_first),
        "planted cause among two": _share(is_among),
        "fine of healthy": _share(fine),
        "fine of faulty": _share(faulty_fine),
        "diverged and fine": float(diverged_fine),
        "faulty": float(len(is_first)),
        "healthy": float(len(fine)),
    }
    return ["planted", *map(str, named)], rows, shares


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else math.nan


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    output = options.output or RESULTS / "planted_verdicts.json"
    if options.again:
        stored = json.loads(output.read_text())["details"]["trials"]
        trials = [Judged.from_json(each) for each in stored]
    else:
        described, trials = machine(), []
        for its in _trained(options):  # written after each network: all of them take long
            trials += its
            if not options.tiny or options.output is not None:
                details = {"trials": [trial.as_json() for trial in trials]}
                write_result(output, title=TITLE, machine=described, settings={}, details=details)
    lines: list[str] = []
    for dataset in dict.fromkeys(trial.base.split()[0] for trial in trials):
        its = [trial for trial in trials if trial.base.startswith(dataset)]
        headings, rows, shares = table(its)
        print_table(f"{dataset}: planted cause, and the first that the verdict names", headings, rows)
        told = ", ".join(f"{name} {value:.2f}" for name, value in shares.items())
        say(told)
        lines += [f"### {dataset}", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows] + ["", f"{told}.", ""]
        if options.wrong:
            for each in its:
                verdict = each.verdict()
                if verdict is None or verdict.causes[0] is not each.planted:
                    say(
                        f"{each.base} {dict(each.point)} error {each.error}: planted {each.planted}; {verdict}: "
                        f"{verdict.detail if verdict else ''}"
                    )
    if options.document is not None:
        write_between(options.document, "verdicts", "\n".join(lines).rstrip())


def _trained(options: argparse.Namespace) -> Iterator[list[Judged]]:
    bases = [base for base in (*DIGITS, *MNIST) if options.only in f"{base.dataset} {base.name}"]
    with scratch_folder() as folder, scratch_postgres(folder) as postgres:
        trainer = Trainer(storage=postgres.url, folder=folder, num_epochs=2 if options.tiny else 30)
        for base in bases[:1] if options.tiny else bases:
            yield list(planted(base, trainer))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="bases with this in their names, such as mnist")
    parser.add_argument("--again", action="store_true", help="judge the stored trials again")
    parser.add_argument("--wrong", action="store_true", help="list the trials whose planted cause is not named first")
    parser.add_argument("--document", type=Path, help="put the tables into this file")
    parser.add_argument(
        "--tiny", action="store_true", help="one network, two epochs; writes a result only with --output"
    )
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
