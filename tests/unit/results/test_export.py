"""The exported document: complete, the same in every format, and safe in a shell."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.atomic_file import write_file
from hpsearch.errors import InputError, NothingCompleteError
from hpsearch.results.choice import choose_point
from hpsearch.results.export import (
    ExportFormat,
    choose_format,
    export_point,
    render_export,
)
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary
from hpsearch.store.studies import current_versions
from hpsearch.study.study_file import parse_definition

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
READERS: dict[ExportFormat, Callable[[str], Any]] = {
    ExportFormat.JSON: json.loads,
    ExportFormat.TOML: tomllib.loads,
    ExportFormat.YAML: yaml.safe_load,
}


def test_a_document_holds_the_configuration_and_its_evidence(summary: StudySummary) -> None:
    content = dict(exported(summary, now=NOON))
    definition = summary.study.definition
    settings = content.pop("settings")
    assert parse_definition(content.pop("definition"), source="best.json") == definition
    assert content == {
        "selection": "best",
        "study": "by-hand",
        "trial": 1,
        "point": 1,
        "value": 0.02,
        "best_epoch": 2,
        "epochs": 2,
        "stop_reason": "patience-exhausted",
        "parameters": {"learning_rate": 0.01},
        "seed": 0,
        "dataset": "mnist",
        "dataset_checksums": {"train-images-idx3-ubyte": "ba89" * 16},
        "definition_sha256": definition.sha256,
        "versions": {
            "created": {"hpsearch": "0.1.0", "torch": "2.6.0"},
            "exported": current_versions(),
        },
        "estimate": {"evidence": "search", "metric": "zero-one", "error": 0.02, "units": "images"},
        "test_openings": [],
        "other_test_openings": [],
        "test_intents": [],
        "earlier_test_intents": [],
        "earlier_test_openings": [],
        "checks": "not checked",
        "exported_at": "2026-11-21T12:00:00Z",
    }
    assert settings["model"]["hidden_units"] == 500
    assert settings["training"]["learning_rate"] == 0.01


def test_settings_are_resolved(make_summary: Any, make_trial: Any) -> None:
    """Parameters stand in the place of the study's own values, and initial weights have a seed."""
    trial = make_trial(0, 0.1, {"lambda_2_is_zero": True, "hidden_units": 50}, nll=0.3)
    search = {"strategy": "random", "num_points": 1, "hidden_units": [50, 100]}
    search["lambda_2"] = {"log10": [-2, -4], "zero": True}
    content = exported(_without_distributions(make_summary, trial, search))
    assert content["parameters"] == {"lambda_2": 0.0, "hidden_units": 50}
    assert content["settings"]["model"]["hidden_units"] == 50
    assert content["settings"]["training"]["lambda_2"] == 0.0
    assert content["settings"]["training"]["seed"] == 7
    assert content["validation_nll"] == 0.3


def test_nothing_complete_is_an_error(make_summary: Any) -> None:
    with pytest.raises(NothingCompleteError, match="0 complete"):
        choose_point(make_summary([]), None)


@pytest.mark.parametrize("export_format", READERS)
def test_every_format_reads_back_as_the_same_content(summary: StudySummary, export_format: ExportFormat) -> None:
    document = exported(summary)
    text = render_export(document, export_format)
    assert READERS[export_format](text) == document
    assert text.endswith("\n")


@given(
    value=st.floats(min_value=0, max_value=1),
    text=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    number=st.integers(min_value=-(2**63), max_value=2**63 - 1),
)
def test_values_survive_every_format(value: float, text: str, number: int) -> None:
    content = {"value": value, "parameters": {"text": text, "number": number, "switch": True}}
    for export_format, read in READERS.items():
        assert read(render_export(content, export_format)) == content


def test_a_shell_reads_the_environment_format(summary: StudySummary, tmp_path: Path) -> None:
    document = exported(summary, now=NOON)
    content = {**document, "dataset": 'it\'s $(touch harm) `here`;\n"two" lines'}
    path = tmp_path / "best.env"
    write_file(path, render_export(content, ExportFormat.ENV))
    seen = _variables_of_a_shell_that_reads(path)
    assert seen["HPSEARCH_LEARNING_RATE"] == "0.01"
    assert seen["HPSEARCH_KERNELS"] == "[20,50]"
    assert seen["HPSEARCH_SHUFFLE"] == "false"
    assert seen["HPSEARCH_VALUE"] == "0.02"
    assert seen["HPSEARCH_DATASET"] == content["dataset"]
    assert json.loads(seen["HPSEARCH_DEFINITION"]) == content["definition"]
    assert _names_in(tmp_path) == ["best.env"]


def test_the_environment_format_sets_no_variable_that_hpsearch_itself_reads(summary: StudySummary) -> None:
    text = render_export(exported(summary), ExportFormat.ENV)
    names = {line.partition("=")[0].removeprefix("HPSEARCH_") for line in text.splitlines()}
    assert names.isdisjoint(
        {"STORAGE", "DATA", "HOME", "ARTIFACTS", "LOG_LEVEL", "DEVICE", "WORKERS", "LANES", "REQUIRE_BROWSER"}
    )


@pytest.mark.parametrize(
    ("name", "path", "chosen"),
    [
        (None, None, "json"),
        ("toml", None, "toml"),
        (None, "best.json", "json"),
        (None, "out/best.toml", "toml"),
        (None, "best.yaml", "yaml"),
        (None, "best.yml", "yaml"),
        (None, "best.ENV", "env"),
        (None, ".env", "env"),
        ("yaml", "best.yml", "yaml"),
        ("env", "settings.sh", "env"),
    ],
)
def test_the_format_follows_from_option_or_suffix(name: str | None, path: str | None, chosen: str) -> None:
    assert choose_format(name, path and Path(path)) is ExportFormat(chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "path", "said", "hint"),
    [
        ("xml", None, "unknown format 'xml'", "choose json, toml, yaml, env"),
        (None, "best.xml", "no format has the suffix '.xml'", ".json, .toml, .yaml, .env, .yml"),
        (None, "best", "no format has the suffix 'best'", "--format"),
        ("json", "best.toml", "--format json contradicts -o best.toml", "leave one of them out"),
    ],
)
def test_an_unclear_format_is_an_input_error(name: str | None, path: str | None, said: str, hint: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        choose_format(name, None if path is None else Path(path))
    assert hint in str(caught.value.hint)


def exported(summary: StudySummary, *, now: datetime | None = None) -> dict[str, Any]:
    return export_point(choose_point(summary, None), StudyStatus(summary=summary), now=now)


def _without_distributions(make_summary: Any, trial: Any, search: dict[str, Any]) -> StudySummary:
    """A drawn study's summary: its trial has a switch, which no dimension of a grid is called."""
    summary: StudySummary = make_summary([], search, seed=7)
    return StudySummary(study=summary.study, trials=(trial,))


def _variables_of_a_shell_that_reads(path: Path) -> dict[str, str]:
    printed = subprocess.run(
        ["sh", "-c", 'set -a; . "$1"; env -0', "sh", str(path)],
        cwd=path.parent,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return dict(entry.split("=", 1) for entry in printed.split("\0") if entry)


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
