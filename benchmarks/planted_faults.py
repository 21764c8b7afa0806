"""Planted faults: does a check notice them, and does it name the cause? And what do healthy set-ups set off?

    python -m benchmarks.planted_faults
    python -m benchmarks.planted_faults --only softmax,sorted
    python -m benchmarks.planted_faults --document docs/results/believe.md    # put the stored result's tables there

Each fault is planted from outside: into the arrays of a data set, a network of one's own (planted_modules.py), the
settings, or a function of hpsearch. A fault is noticed if a check fails or warns, and named if one of the first two
causes that are told, in the order of the report (data before networks), has the words that belong to it. The list was
committed before any threshold was tuned.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.measurement import RESULTS, machine, print_table, run_script, say, write_result
from benchmarks.notes import write_between
from hpsearch.checks.duplicates import near_duplicates
from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.images import check_labels
from hpsearch.checks.models import checked_models
from hpsearch.checks.network_checks import check_networks
from hpsearch.checks.suite import check_data
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData, Split
from hpsearch.errors import DataError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition, parse_definition
from hpsearch.training import losses
from hpsearch.training.lanes import steps
from hpsearch.training.networks import custom

TITLE = "planted faults and healthy set-ups: what the checks say"
SECONDS = 300.0
MODULES = "benchmarks.planted_modules"
Change = Callable[[SelectionData], SelectionData]
Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """A study with or without a fault.

    Args:
        cause: a regular expression for the words that name the fault; empty for a healthy set-up.
        settings: keys of the study file, as `section.key`.
        data: plants a fault into the data.
        code: plants a fault into hpsearch.
    """

    name: str
    cause: str = ""
    settings: Values = field(default_factory=dict)
    data: Change = lambda data: data
    code: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


def _changed(data: SelectionData, part: str, **arrays: Any) -> SelectionData:
    return replace(data, **{part: replace(getattr(data, part), **arrays)})


def _on_both(change: Callable[[Split], Split]) -> Change:
    return lambda data: replace(data, train=change(data.train), validation=change(data.validation))


def _shuffled(data: SelectionData) -> SelectionData:
    return _changed(data, "train", labels=np.random.default_rng(1).permutation(data.train.labels))


def _validation_in_training(noise: float) -> Change:
    def change(data: SelectionData) -> SelectionData:
        random = np.random.default_rng(1)
        half = len(data.validation) // 2
        images = data.train.images.copy()
        rows = random.permutation(len(data.train))[:half]
        images[rows] = data.validation.images[:half] + noise * random.standard_normal((half, images.shape[1]))
        labels = data.train.labels.copy()
        labels[rows] = data.validation.labels[:half]
        return _changed(data, "train", images=images.astype(np.float32), labels=labels)

    return change


def _transposed(data: SelectionData) -> SelectionData:
    images = data.validation.images.reshape(-1, *data.example_shape).transpose(0, 2, 1)
    return _changed(data, "validation", images=np.ascontiguousarray(images.reshape(len(images), -1)))


def _sorted(data: SelectionData) -> SelectionData:
    """The training images in the order of their classes; the validation images stay as they are."""
    order = np.argsort(data.train.labels, kind="stable")
    return _changed(data, "train", images=data.train.images[order], labels=data.train.labels[order])


def _sorted_before_the_split(data: SelectionData) -> SelectionData:
    images = np.concatenate([data.train.images, data.validation.images])
    labels = np.concatenate([data.train.labels, data.validation.labels])
    order, number = np.argsort(labels, kind="stable"), len(data.train)
    parts = [Split(images=images[rows], labels=labels[rows]) for rows in (order[:number], order[number:])]
    return replace(data, train=parts[0], validation=parts[1])


def _with_nan(data: SelectionData) -> SelectionData:
    images = data.train.images.copy()
    images[3, 5] = np.nan
    return _changed(data, "train", images=images)


def _shifted(part: Split) -> Split:
    return replace(part, labels=np.roll(part.labels, 1))


def _regularised_biases() -> AbstractContextManager[Any]:
    return mock.patch.object(custom, "weight_names", list)


def _summed_loss() -> AbstractContextManager[Any]:
    mean = losses.mean_loss
    return mock.patch.object(steps, "mean_loss", lambda logits, labels: mean(logits, labels) * labels.shape[-1])


def _module(name: str, **settings: Any) -> dict[str, Any]:
    return {"model.family": f"{MODULES}:{name}", **settings}


FAULTS = (
    SetUp(name="training labels shuffled", cause="labels.*shuffled", data=_shuffled),
    SetUp(name="labels shifted by one row", cause="labels.*shifted", data=_on_both(_shifted)),
    SetUp(
        name="validation labels shifted by one row",
        cause="validation labels.*shifted",
        data=lambda data: replace(data, validation=_shifted(data.validation)),
    ),
    SetUp(name="softmax twice", cause="softmax.* already", settings=_module("softmax_twice")),
    SetUp(name="a wrong sign in a backward pass", cause="backward pass of its own", settings=_module("wrong_sign")),
    SetUp(name="a detached branch", cause="detached", settings=_module("detached")),
    SetUp(name="a parameter without a gradient", cause="remove it|no influence", settings=_module("unused_parameter")),
    SetUp(name="loss summed for mean", cause="the loss", settings=_module("healthy"), code=_summed_loss),
    SetUp(
        name="regularised biases",
        cause="regularisation of .*bias",
        settings=_module("healthy"),
        code=_regularised_biases,
    ),
    SetUp(
        name="inputs of 0 to 255",
        cause="not scaled",
        data=_on_both(lambda part: replace(part, images=255 * part.floats())),
    ),
    SetUp(
        name="inputs divided by 255 twice",
        cause="scaled twice",
        data=_on_both(lambda part: replace(part, images=part.floats() / np.float32(255))),
    ),
    SetUp(name="validation images transposed", cause="transposed", data=_transposed),
    SetUp(
        name="validation images inverted",
        cause="inverted|scaled in another way",
        data=lambda data: _changed(data, "validation", images=1 - data.validation.floats()),
    ),
    SetUp(name="validation rows in training", cause="how the parts were split", data=_validation_in_training(0.0)),
    SetUp(
        name="noisy validation rows in training", cause="how the parts were split", data=_validation_in_training(0.01)
    ),
    SetUp(name="data sorted by class", cause="sorted by class", data=_sorted),
    SetUp(name="data sorted before the split", cause="sorted by class", data=_sorted_before_the_split),
    SetUp(name="a NaN among the inputs", cause="missing values", data=_with_nan),
    SetUp(
        name="the same image everywhere",
        cause="the loader",
        data=_on_both(lambda part: replace(part, images=np.repeat(part.floats(slice(0, 1)), len(part), axis=0))),
    ),
    SetUp(name="dead relu units at the start", cause="dead unit", settings=_module("dead_units")),
    SetUp(name="saturated sigmoids at the start", cause="saturated units", settings=_module("saturated")),
    SetUp(name="too large initial weights", cause="initial weights", settings=_module("large_weights")),
    SetUp(name="a constant output", cause="do not depend on the image", settings=_module("constant_output")),
    SetUp(name="one hidden unit", cause="too small a network", settings=_module("bottleneck")),
    SetUp(
        name="bfloat16 where it breaks",
        cause="bfloat16",
        settings=_module("needs_digits", **{"training.precision": "bfloat16"}),
    ),
    SetUp(name="a learning rate far too high", cause="too high", settings={"search.learning_rate": [300.0, 1000.0]}),
    SetUp(name="a learning rate far too low", cause="too low", settings={"search.learning_rate": [1e-6, 1e-7]}),
    SetUp(name="an L2 factor far too large", cause="lambda", settings={"training.lambda_2": 30.0}),
)


def healthy_set_ups() -> Iterator[SetUp]:
    """Fifty: built-in networks and modules on digits, with usual settings, and the shipped studies."""
    rates = {"sgd": 0.1, "momentum": 0.02, "adam": 0.003}
    for optimizer, rate in rates.items():
        for activation in ("tanh", "relu", "sigmoid"):
            for width in (20, 200):
                yield SetUp(
                    name=f"mlp {width} {activation} {optimizer}",
                    settings={
                        "model.hidden_units": width,
                        "model.activation": activation,
                        "training.optimizer": optimizer,
                        "search.learning_rate": [rate, rate / 10],
                    },
                )
        for batch_size in (10, 100):
            yield SetUp(
                name=f"logistic batch {batch_size} {optimizer}",
                settings={
                    "model.family": "logistic",
                    "training.batch_size": batch_size,
                    "training.optimizer": optimizer,
                    "search.learning_rate": [rate, rate / 10],
                },
            )
    for kind in ("tanh", "relu", "sigmoid", "gelu"):
        for depth in (1, 2):
            for width in (16, 64):
                options = {"kind": kind, "depth": depth, "width": width}
                yield SetUp(
                    name=f"own {kind} depth {depth} width {width}",
                    settings=_module("healthy", **{"model.options": options, "training.optimizer": "momentum"}),
                )
    for maps in (4, 8):
        yield SetUp(
            name=f"own convolutional {maps}", settings=_module("convolutional", **{"model.options": {"maps": maps}})
        )
    yield SetUp(name="bfloat16", settings={"training.precision": "bfloat16"})
    yield SetUp(name="shuffled and sorted", settings={"training.shuffle": True}, data=_sorted)


def definition_of(settings: Values) -> StudyDefinition:
    document: dict[str, Any] = {
        "name": "planted",
        "data": {"dataset": "digits"},
        "model": {"hidden_units": 50},
        "training": {"batch_size": 20, "max_epochs": 20},
        "search": {"learning_rate": [0.1, 0.01]},
    }
    if not str(settings.get("model.family", "mlp")).startswith(("mlp", "cnn")):
        document["model"] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        document[section][name] = value
    return parse_definition(document, source="planted_faults")


def findings_of(set_up: SetUp, definition: StudyDefinition, data: SelectionData) -> list[Finding]:
    """All findings about a set-up, as `hpsearch check` has them, but in this process."""
    deadline = time.monotonic() + SECONDS
    planted = set_up.data(_on_both(lambda part: replace(part, images=part.floats()))(data))
    findings = [*check_data(definition, planted), check_labels(planted), near_duplicates(planted, deadline=deadline)]
    models, _ = checked_models(definition)
    with set_up.code():
        messages = check_networks(definition, planted, models, deadline=deadline)
        return findings + [message for message in messages if isinstance(message, Finding)]


def raised(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that failed or warned, in the order of the report."""
    return [finding for finding in findings if finding.verdict in (Verdict.FAILED, Verdict.WARNING)]


def is_named(cause: str, findings: Sequence[Finding]) -> bool:
    """Whether one of the first two causes has these words."""
    causes = [words for finding in findings for words in (finding.look_at or (finding.found,))]
    return any(re.search(cause, words, re.IGNORECASE) for words in causes[:2])


def fill_document(page: Path, details: Mapping[str, Any]) -> None:
    """Put the tables of a stored result between their markers on this page."""
    faults, healthy = details["faults"], details["healthy"]
    lines = ["| fault | what failed or warned | first causes | noticed | named |", "|---|---|---|---|---|"]
    for fault in faults:
        findings = fault["findings"]
        told = ", ".join(dict.fromkeys(f"{each['check']} {each['verdict']}" for each in findings)) or "-"
        causes = [words for each in findings for words in (each["look_at"] or [each["found"]])][:2]
        marks = ["yes" if findings else "**no**", "yes" if fault["is_named"] else "**no**"]
        lines.append(f"| {fault['name']} | {told} | {'; '.join(causes) or '-'} | {' | '.join(marks)} |")
    noticed, named = sum(bool(f["findings"]) for f in faults), sum(f["is_named"] for f in faults)
    summary = f"{len(faults)} faults: {noticed} noticed, {named} with the cause among the first two that are told."
    write_between(page, "faults", "\n".join([summary, "", *lines]))
    verdicts = [each["verdict"] for one in healthy for each in one["findings"]]
    summary = (
        f"{len(healthy)} healthy set-ups: {verdicts.count('failed')} failures, {verdicts.count('warning')} warnings."
    )
    remarks = [f"- {one['name']}: {each['check']}: {each['found']}" for one in healthy for each in one["findings"]]
    write_between(page, "healthy", "\n".join([summary, "", *remarks]).rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.document is not None:
        stored = options.output or RESULTS / "planted_faults.json"
        fill_document(options.document, json.loads(stored.read_text())["details"])
        say(f"wrote {options.document}")
        return
    described = machine()
    chosen = [
        fault for fault in FAULTS if not options.only or any(word in fault.name for word in options.only.split(","))
    ]
    faults = chosen[:2] if options.tiny else chosen
    digits = load_selection_data(definition_of({}).data, locations=DataLocations.from_environment())
    rows, details = [], []
    for fault in faults:
        findings = raised(findings_of(fault, definition_of(fault.settings), digits))
        named = is_named(fault.cause, findings)
        told = ", ".join(dict.fromkeys(f"{finding.check} {finding.verdict.value}" for finding in findings))
        rows.append([fault.name, told or "-", "yes" if findings else "NO", "yes" if named else "NO"])
        details.append(_detail(fault.name, findings, is_named=named))
        say(" | ".join(rows[-1]))
    print_table("planted faults", ["fault", "what failed or warned", "noticed", "named"], rows)
    healthy = [] if options.tiny or options.only else [*_healthy(digits)]
    rows = [
        [name, str(len(found)), "; ".join(f"{f.check}: {f.found}" for f in found)] for name, found in healthy if found
    ]
    print_table(f"{len(healthy)} healthy set-ups: findings that failed or warned", ["set-up", "n", "findings"], rows)
    output = options.output or (None if options.tiny or options.only else RESULTS / "planted_faults.json")
    if output is not None:
        write_result(
            output,
            title=TITLE,
            machine=described,
            settings={},
            details={"faults": details, "healthy": [_detail(name, found) for name, found in healthy]},
        )


def _healthy(digits: SelectionData) -> Iterator[tuple[str, list[Finding]]]:
    for set_up in healthy_set_ups():
        found = raised(findings_of(set_up, definition_of(set_up.settings), digits))
        say(f"{set_up.name}: {[finding.check for finding in found]}")
        yield set_up.name, found
    folder = Path(__file__).parents[1]
    locations = DataLocations.from_environment()
    for path in sorted([*folder.glob("studies/*.toml"), *folder.glob("examples/*.toml")]):
        definition = load_definition(path)
        try:
            data = load_selection_data(definition.data, locations=locations)
        except (DataError, InputError):  # data that its user brings
            say(f"{path.stem}: left out, its data is not here")
            continue
        found = raised(findings_of(SetUp(name=path.stem), definition, data))
        say(f"{path.stem}: {[finding.check for finding in found]}")
        yield path.stem, found


def _detail(name: str, findings: Sequence[Finding], **more: Any) -> dict[str, Any]:
    told = [{"check": f.check, "verdict": f.verdict.value, "found": f.found, "look_at": f.look_at} for f in findings]
    return {"name": name, "findings": told, **more}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="WORDS", help="faults whose name has one of these words; writes no result")
    parser.add_argument("--document", type=Path, help="measure nothing: put the tables of --output into this file")
    parser.add_argument("--tiny", action="store_true", help="two faults; writes no result")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/planted_faults.json"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
