"""Export the chosen configuration with its evidence, and the chosen model's parameters.

A document contains everything that is needed to train the same network again, or to check the result: the point, all
settings, the study's definition and hash, the data's checksums, the versions and the seed. All four formats have the
same content.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.atomic_file import replaced_file
from hpsearch.checks.record import describe as describe_checks
from hpsearch.errors import InputError
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.program_export import program_content, program_variables
from hpsearch.results.status import StudyStatus, openings_of_others
from hpsearch.results.stored_parameters import read_parameters
from hpsearch.results.trial_summary import values_of
from hpsearch.store.studies import current_versions
from hpsearch.study.own_networks import require_own_networks
from hpsearch.wording import format_time

ENVIRONMENT_PREFIX = "HPSEARCH_"
MODEL_SUFFIX = ".safetensors"


class ExportFormat(StrEnum):
    """File formats of an export document."""

    JSON = "json"
    TOML = "toml"
    YAML = "yaml"
    ENV = "env"


_FORMAT_OF_SUFFIX = {**{f".{each}": each for each in ExportFormat}, ".yml": ExportFormat.YAML}


def export_point(chosen: ChosenPoint, status: StudyStatus, *, now: datetime | None = None) -> dict[str, Any]:
    """Make the export document of the chosen trial.

    Args:
        status: of the searched study.
        now: the export time, timezone-aware; None: the current time.
    Returns:
        Plain values without null (TOML has none): absent keys have their defaults. The keys:
        selection           best (of the search) or confirmed (over fresh seeds)
        study, trial (number), point: for a confirmed point those of the companion study
        value               of the study's metric, on the validation examples
        validation_nll      nats, at the same validation
        best_epoch, epochs, stop_reason
        parameters          the searched keys with their values; for a confirmed point also its seed
        settings            model and training, resolved; they include the parameters; absent for programs, which have
                            the keys of `program_content` instead
        seed                seed of the study
        dataset, dataset_checksums (file name -> SHA-256 of the unpacked content)
        target              name, task and, in regression, mean and deviation; absent without a record
        classes             the classes in the order of the model's outputs; absent in regression and without a record
        preparation         how columns become inputs (docs/data-tables.md); absent if there is nothing to tell
        definition_sha256, definition (the whole study, as in a study file)
        versions            created: of the programs that created the study; exported: of the exporting programs
        estimate            the least biased estimate of this point's error (`Estimate.as_json`)
        test_openings       openings of the test set for this trial's model (`VaultRecord.as_json`)
        other_test_openings openings for models of other points, which `chosen` of each names
        earlier_test_openings   openings by deleted studies of this name
        test_intents, earlier_test_intents   openings that were begun and have no number (`VaultIntent.as_json`)
        confirmation        the confirmation (`Confirmation.as_json`); absent if there is none
        checks              one line: when data and networks were checked, and with which outcome; or "not checked";
                            absent for programs that were not checked
        exported_at         UTC
    """
    trial, summary, confirmation = chosen.trial, status.summary, status.confirmation
    others = openings_of_others(summary, chosen)
    definition = chosen.study.definition
    program, checks = definition.program, summary.study.checks
    # torch.__version__ is a subclass of str, which yaml.safe_dump refuses.
    exporting_versions = {name: str(version) for name, version in current_versions(trains=program is None).items()}
    content = {
        **chosen.values("trial", "point", "value", "validation_nll"),
        "estimate": status.estimate(chosen).as_json(),
        **values_of(trial, "best_epoch", "epochs", "stop_reason"),
        "parameters": trial.point_parameters,
        **({"settings": _settings(chosen)} if program is None else program_content(program, chosen)),
        "seed": definition.seed,
        "dataset": definition.dataset,
        **({} if program else {"dataset_checksums": dict(chosen.study.dataset_checksums)}),
        **_data_record(chosen.study.data_record),
        "definition_sha256": definition.sha256,
        "definition": definition.document(),
        "versions": {"created": dict(chosen.study.versions), "exported": exporting_versions},
        **({} if program else _test_set(status, others)),
        "confirmation": confirmation and confirmation.as_json(),
        "checks": None if program is not None and checks is None else describe_checks(checks),
        "exported_at": format_time(now or datetime.now(UTC)),
    }
    document: dict[str, Any] = _without_nulls(content)
    return document


def _test_set(status: StudyStatus, others: Sequence[VaultRecord]) -> dict[str, Any]:
    openings = [record.as_json() for record in status.summary.openings if record not in others]
    found = {"test_openings": openings, "other_test_openings": [record.as_json() for record in others]}
    return {**status.summary.test_set_as_json(), **found}


def _settings(chosen: ChosenPoint) -> dict[str, Any]:
    settings = chosen.trial.settings(chosen.study.definition)
    training = {**settings.training.model_dump(mode="json"), "seed": settings.training_seed}
    return {"model": settings.model.model_dump(mode="json"), "training": training}


def render_export(document: dict[str, Any], export_format: ExportFormat) -> str:
    """The document as text that ends with a newline."""
    return _RENDERERS[export_format](document)


def choose_format(name: str | None, path: Path | None) -> ExportFormat:
    """The format that the option names, otherwise the format of the file's suffix; JSON if neither is given.

    Raises:
        InputError: the format or suffix is unknown, or the two contradict each other.
    """
    choices = f"choose {', '.join(ExportFormat)}"
    if name is not None and name not in list(ExportFormat):
        raise InputError(f"--format: unknown format {name!r}", hint=choices)
    by_name = None if name is None else ExportFormat(name)
    if path is None:
        return by_name or ExportFormat.JSON
    suffix = path.suffix or path.name  # pathlib finds no suffix in ".env"
    by_suffix = _FORMAT_OF_SUFFIX.get(suffix.lower())
    if by_name and by_suffix and by_name is not by_suffix:
        raise InputError(f"--format {by_name} contradicts -o {path}", hint="leave one of them out")
    chosen = by_name or by_suffix
    if chosen is None:
        raise InputError(
            f"-o {path}: no format has the suffix {suffix!r}",
            hint=f"name the format with --format, or use a name that ends in {', '.join(_FORMAT_OF_SUFFIX)}",
        )
    return chosen


def require_model(chosen: ChosenPoint, path: Path) -> None:
    """Raises InputError: hpsearch has no model of this point that it could write to the path."""
    require_own_networks(
        chosen.study.definition,
        f"{path}: there is no model to write",
        "let the program save it in hpsearch.trial.folder(): the folder of the best point is kept",
    )


def export_model(chosen: ChosenPoint, artifacts: Artifacts, path: Path) -> None:
    """Copy the chosen trial's parameters from the artifacts to a file, atomically.

    The file's metadata names the study, its hash, the trial and all settings.

    Raises:
        InputError: the file's name does not end in .safetensors, or the study's trials are programs.
        ArtifactError: the parameters are missing or damaged, or the file cannot be written.
    """
    require_model(chosen, path)
    if path.suffix.lower() != MODEL_SUFFIX:
        raise InputError(
            f"--model {path}: unknown model format {path.suffix or path.name!r}",
            hint=f"choose a name that ends in {MODEL_SUFFIX}",
        )
    content = read_parameters(chosen.study, chosen.trial, artifacts)
    with replaced_file(path) as file:
        file.write(content)


def _data_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a program needs to feed the model, from how the study's data was prepared."""
    target = dict(record.get("target") or {})
    classes = target.pop("classes", None) or record.get("classes")
    found = {"target": target, "classes": classes, "preparation": record.get("preparation")}
    return {key: value for key, value in found.items() if value}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(inner) for inner in value]
    return value


def _as_environment(content: dict[str, Any]) -> str:
    """One assignment per line, for a POSIX shell to read with `.` (or `set -a; . best.env`)."""
    variables = {} if "settings" in content else program_variables(content)
    variables |= {f"{ENVIRONMENT_PREFIX}{name.upper()}": _as_word(value) for name, value in _environment(content)}
    lines = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join(lines) + "\n"


def _environment(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings under their own names, then the other keys."""
    if "settings" not in content:
        yield from _of_program(content)
        return
    yield from content["settings"]["model"].items()
    for name, value in content["settings"]["training"].items():
        # "seed" without a prefix is the study's seed.
        yield ("training_seed" if name == "seed" else name), value
    for name, value in content.items():
        if name not in ("settings", "parameters"):  # the settings include the parameters
            yield name, value


def _of_program(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the variables of the program (`program_variables`) do not have: they keep their meaning for the program."""
    for name, value in content.items():
        if name == "command":
            yield "command_line", value["line"]
        elif name == "seed":
            yield "study_seed", value
        elif name not in ("parameters", "seed_of_point", "trial"):
            yield name, value


def _as_word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


_RENDERERS: dict[ExportFormat, Callable[[dict[str, Any]], str]] = {
    ExportFormat.JSON: lambda document: json.dumps(document, indent=2, allow_nan=False) + "\n",
    ExportFormat.TOML: tomli_w.dumps,
    ExportFormat.YAML: lambda document: str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True)),
    ExportFormat.ENV: _as_environment,
}
