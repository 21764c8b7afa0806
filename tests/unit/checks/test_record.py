"""The outcome of the checks is kept by definition and data, and told in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import hpsearch
from hpsearch.checks.finding import DATA, CheckReport, Finding, Verdict
from hpsearch.checks.record import describe, read_report, recall, remember, require_possible
from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition

Define = Callable[..., StudyDefinition]
CHECKSUMS = {"images": "1" * 64}


def report(*findings: Finding, version: str = hpsearch.__version__, has_networks: bool = True) -> CheckReport:
    return CheckReport(
        study="checked",
        date="2026-11-29T12:00:00Z",
        version=version,
        checksums=CHECKSUMS,
        findings=findings,
        unchecked=("mlp",),
        has_networks=has_networks,
        seconds=1.5,
    )


def finding(verdict: Verdict = Verdict.PASSED, subject: str = DATA) -> Finding:
    return Finding(
        check="order",
        subject=subject,
        verdict=verdict,
        found="found it",
        expected="nothing",
        look_at=("a cause",),
        fix="shuffle = true",
        numbers={"one": 1, "half": 0.5, "none": float("nan"), "word": "a"},
        pictures=("##",),
    )


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_report_survives_json() -> None:
    written = report(finding(), finding(Verdict.FAILED, "mlp"))
    document = json.loads(json.dumps(written.as_json(), allow_nan=False))
    assert document["verdict"] == "failed"
    assert read_report(document).as_json() == written.as_json()


def test_a_report_is_found_again_under_another_name_but_not_for_other_data(define: Define) -> None:
    remember(report(finding()), define())
    assert recall(define(name="another"), CHECKSUMS) is not None
    assert recall(define(), {"images": "2" * 64}) is None
    assert recall(define(training={"batch_size": 10}), CHECKSUMS) is None


def test_a_report_of_another_version_does_not_count(define: Define) -> None:
    remember(report(finding(), version="0.0.1"), define())
    assert recall(define(), CHECKSUMS) is None


def test_a_damaged_file_counts_as_none(define: Define, home: Path) -> None:
    remember(report(finding()), define())
    (path,) = (home / "checks").iterdir()
    for content in ("", "{", "[]", "{}", path.read_text()[:-2]):
        path.write_text(content)
        assert recall(define(), CHECKSUMS) is None


def test_a_folder_that_cannot_be_written_is_only_warned_about(
    define: Define, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("a file")
    remember(report(finding()), define())
    assert "cannot be kept" in caplog.text


def test_only_data_that_cannot_be_right_stops_a_study(caplog: pytest.LogCaptureFixture) -> None:
    passing = report(finding(Verdict.PASSED), finding(Verdict.WARNING), finding(Verdict.FAILED, "mlp"))
    require_possible(passing, is_new=True)
    assert caplog.messages == [
        f"check of {subject}: order: found it (a cause); hpsearch check STUDY.toml says more"
        for subject in (DATA, "mlp")
    ]
    impossible = report(replace(finding(Verdict.FAILED), check="values"))
    with pytest.raises(InputError, match=r"the data cannot be right: values: found it \(a cause\)") as caught:
        require_possible(impossible, is_new=True)
    assert "--no-check" in str(caught.value.hint)
    require_possible(impossible, is_new=False)
    require_possible(report(replace(finding(Verdict.FAILED), check="near duplicates")), is_new=True)


def test_a_stored_report_is_told_in_one_line() -> None:
    every = report(finding(Verdict.WARNING), finding(Verdict.WARNING), finding(), finding(Verdict.SKIPPED))
    version = hpsearch.__version__
    told = f"checked, 2026-11-29T12:00:00Z (hpsearch {version}): 2 warnings, 1 passed, 1 skipped"
    assert describe(every.as_json()) == told
    assert describe(report(finding(), has_networks=False).as_json()).startswith("only the data was checked, 2026")
    assert describe(None) == "not checked"
    assert "another version" in describe({"findings": 3})


def test_a_report_with_more_finished_checks_is_kept(define: Define) -> None:
    remember(report(finding(), finding()), define())
    remember(report(finding(), finding(Verdict.SKIPPED)), define())  # with a short --seconds
    kept = recall(define(), CHECKSUMS)
    assert kept is not None
    assert kept.count(Verdict.SKIPPED) == 0


def test_a_network_whose_code_has_changed_was_not_checked(
    define: Define, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = define(model={"family": "own.nets:Net"})
    (tmp_path / "own").mkdir()
    code = tmp_path / "own/nets.py"
    code.write_text("Net = 1")
    remember(report(finding()), study)
    assert recall(study, CHECKSUMS) is not None
    code.write_text("Net = 2")
    assert recall(study, CHECKSUMS) is None
