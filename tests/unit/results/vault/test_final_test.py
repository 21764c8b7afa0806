"""What the vault says, what it refuses, and that it is the only door to the test images."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import hpsearch
from hpsearch.errors import InputError
from hpsearch.results.openings.record import (
    MAX_REASON_CHARACTERS,
    Finding,
    VaultRecord,
    check_reason,
)

PACKAGE = Path(hpsearch.__file__).parent


@pytest.fixture
def record() -> VaultRecord:
    return VaultRecord(
        opening_id=1,
        study_name="by-hand",
        opening=1,
        reason=None,
        opened_at=datetime(2026, 11, 21, 7, 5, tzinfo=UTC),
        opened_by="anna@node7",
        code_commit=None,
        versions={"hpsearch": "0.1.0"},
        definition_sha256="d" * 64,
        test_checksums={"digits": "e" * 64},
        chosen={"selection": "best", "study": "by-hand", "trial": 3, "point": 3, "params": {}, "is_retrained": False},
        parameters_sha256="a" * 64,
        num_images=10_000,
        num_errors=164,
    )


def test_a_record_tells_the_error_with_its_interval(record: VaultRecord) -> None:
    document = record.as_json()
    assert document["test_error"] == 0.0164
    # Wilson's interval by its formula, written down anew.
    z, n, p = 1.959963984540054, 10_000, 0.0164
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert document["test_error_interval"] == pytest.approx([(centre + s * half) / (1 + z * z / n) for s in (-1, 1)])
    assert document["opened_at"] == "2026-11-21T07:05:00Z"
    assert set(Finding.__dataclass_fields__) <= set(document)


@pytest.mark.parametrize("metric", ["auc", "nll", "balanced-error"])
def test_with_groups_an_error_that_does_not_judge_the_study_has_no_interval(record: VaultRecord, metric: str) -> None:
    """Rows of a group are not independent, and how the error varies over groups is not on record."""
    judged = {**record.chosen, "metric": metric, "test_value": 0.1, "test_interval": [0.05, 0.15]}
    assert replace(record, chosen=judged).test_error_interval is not None
    document = replace(record, chosen={**judged, "num_groups": 12}).as_json()
    assert document["test_error_interval"] is None
    assert document["test_value_interval"] == [0.05, 0.15]
    own = {**record.chosen, "num_groups": 12, "test_interval": [0.01, 0.04]}
    assert replace(record, chosen=own).test_error_interval == [0.01, 0.04]


@pytest.mark.parametrize("stored", [None, 3, {"exact": 1, "near": 2}, {"exact": 1, "near": "2", "num_looked_at": 5}])
def test_a_record_of_an_older_version_or_a_damaged_one_tells_no_copies(record: VaultRecord, stored: object) -> None:
    assert record.copies is None
    assert record.describe_copies() is None
    assert replace(record, chosen={**record.chosen, "copies": stored}).describe_copies() is None


def test_copies_are_told_with_what_they_mean(record: VaultRecord) -> None:
    none = {"exact": 0, "near": 0, "num_looked_at": 5000}
    told = "0 of 10,000 test images are also training or validation images, and 0 of 5,000 nearly"
    assert replace(record, chosen={**record.chosen, "copies": none}).describe_copies() == told
    some = replace(record, chosen={**record.chosen, "copies": {**none, "near": 1}}).describe_copies()
    assert some is not None
    assert some.endswith("1 of 5,000 nearly: the error on new images may be higher")


def test_macro_f1_is_in_the_document_and_absent_in_records_of_older_versions(record: VaultRecord) -> None:
    assert record.as_json()["macro_f1"] is None
    assert record.macro_f1_text == "-"
    new = replace(record, chosen={**record.chosen, "macro_f1": 0.91234})
    assert new.as_json()["macro_f1"] == 0.91234
    assert new.macro_f1_text == "0.9123"


def test_people_are_told_who_when_and_the_number(record: VaultRecord, make_summary: Any) -> None:
    second = replace(record, opening=2, reason="a reviewer asked", num_errors=163)
    number = "test error 1.64 % (164 of 10,000 images; 95 % interval 1.41 to 1.91 %)"
    assert record.describe() == f"2026-11-21 07:05:00 UTC by anna@node7: {number} of trial 3 of by-hand (best)"
    summary = make_summary([])
    assert summary.describe_test_set() == []
    assert replace(summary, openings=(record,)).describe_test_set()[0] == "the test set was opened once:"
    lines = replace(summary, openings=(record, second), earlier_openings=(record,)).describe_test_set()
    assert lines[0] == "the test set was opened 2 times:"
    assert lines[2:4] == [f"  2. {second.describe()}", "     again: a reviewer asked"]
    assert lines[4] == "an earlier study of this name, which was deleted, opened the test set:"


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("", "needs a reason"),
        (" \t ", "needs a reason"),
        ("x" * (MAX_REASON_CHARACTERS + 1), "500 characters at most, got 501"),
        ("two\nlines", "one line"),
        ("a bell \x07", "one line"),
        ("backwards \u202e", "one line"),
        ("nothing \x00", "one line"),
        ("no text \udcff", "one line"),
    ],
)
def test_a_reason_that_is_none_is_refused(reason: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_reason(reason)


def test_a_reason_is_taken_as_it_stands_without_the_space_around_it() -> None:
    assert check_reason("  Gutachter 2 fragt: «warum?» ") == "Gutachter 2 fragt: «warum?»"
    assert check_reason("x" * MAX_REASON_CHARACTERS)


def test_only_the_vault_imports_the_reader_of_the_test_images() -> None:
    """import-linter says so, too; this one also looks into functions, and for imports by name."""
    importers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if path.name != "test_split.py" and _mentions_reader(ast.parse(path.read_text()))
    }
    assert importers == {"results/vault/final_test.py"}


def test_only_the_reader_permits_the_forms_of_data_to_read_their_test_part() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"OpeningPermit\(|\.read_test_part", path.read_text())
    }
    assert users == {"data/test_split.py"}


def test_an_import_in_any_form_would_be_noticed() -> None:
    for source in (
        "from hpsearch.data.test_split import load_test_split",
        "import hpsearch.data.test_split as reader",
        "def f():\n    from hpsearch.data import test_split",
        "importlib.import_module('hpsearch.data.test_split')",
    ):
        assert _mentions_reader(ast.parse(source)), source
    assert not _mentions_reader(ast.parse("from hpsearch.data import catalog\n'held out'"))


def _mentions_reader(tree: ast.AST) -> bool:
    named: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                named += [alias.name for alias in aliases]
            case ast.ImportFrom(module=module, names=aliases):
                named += [f"{module}.{alias.name}" for alias in aliases]
            case ast.Call(args=[ast.Constant(value=str(text)), *_]):
                named.append(text)
    return any("data.test_split" in name for name in named)
