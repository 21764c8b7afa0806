"""What is kept of a run of the checks: on this machine until the study is created, and then with the study.

`hpsearch check` remembers its report in the home folder, by definition, data and the code of a custom network. The next
`run` or `create` of the study on this machine stores it with the study. Without a report, they check the data, which is
loaded anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

import hpsearch
from hpsearch.atomic_file import write_file
from hpsearch.checks.finding import DATA, CheckReport, Finding, Verdict
from hpsearch.errors import HpsearchError, InputError
from hpsearch.home import check_folder, make_folder
from hpsearch.logs import get_logger
from hpsearch.stored_json import parse_stored_object
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import is_custom_family
from hpsearch.wording import first_line

_log = get_logger("checks")
CHECKS_THAT_STOP: Final = ("classes", "values", "duplicates")
_REPORT: Final = TypeAdapter(CheckReport)
_FIELDS: Final = tuple(each.name for each in fields(CheckReport))


def remember(report: CheckReport, definition: StudyDefinition) -> None:
    """Keep a report on this machine, unless an earlier one has more finished checks.

    A folder that cannot be written is only warned about.
    """
    before = recall(definition, report.checksums)
    if before is not None and before.count(Verdict.SKIPPED) < report.count(Verdict.SKIPPED):
        return
    try:
        path = _place(definition, report.checksums)
        make_folder(path.parent)
        write_file(path, json.dumps(report.as_json()))
    except (OSError, HpsearchError) as error:
        _log.warning("the outcome of the checks cannot be kept on this machine: %s", first_line(error))


def recall(definition: StudyDefinition, checksums: Mapping[str, str]) -> CheckReport | None:
    """The report about this definition and data by this version of hpsearch; None if there is none."""
    try:
        path = _place(definition, checksums)
        report = read_report(parse_stored_object(path.read_text(encoding="utf-8"), "the outcome", str(path)))
    except (OSError, ValueError, HpsearchError):
        return None
    return report if report.version == hpsearch.__version__ else None


def read_report(document: Mapping[str, Any]) -> CheckReport:
    """A report from its JSON document. Raises ValidationError, a ValueError."""
    return _REPORT.validate_python({name: document[name] for name in _FIELDS if name in document})


def require_possible(report: CheckReport, *, is_new: bool) -> None:
    """Refuse to create a study on data with which no trial can be right; warn of everything else that did not pass.

    Args:
        is_new: the study does not exist yet. One that exists goes on.
    Raises:
        InputError: one of the checks in CHECKS_THAT_STOP has failed.
    """
    for finding in report.findings:
        is_impossible = finding.verdict is Verdict.FAILED and finding.check in CHECKS_THAT_STOP
        if is_new and is_impossible and finding.subject == DATA:
            raise InputError(
                f"the data cannot be right: {_told(finding)}",
                hint="hpsearch check STUDY.toml says more; --no-check trains all the same",
            )
    for finding in report.findings:
        if finding.verdict in (Verdict.WARNING, Verdict.FAILED):
            _log.warning("check of %s: %s; hpsearch check STUDY.toml says more", finding.subject, _told(finding))


def read_stored(document: Mapping[str, Any] | None) -> CheckReport | None:
    """The report that is stored with a study; None if there is none, or another version wrote it in another form."""
    try:
        return None if document is None else read_report(document)
    except ValidationError:
        return None


def describe(document: Mapping[str, Any] | None) -> str:
    """One line about a stored report: `checked, 2026-11-29T12:00:00Z (hpsearch 0.3): 1 warning, 13 passed`."""
    if document is None:
        return "not checked"
    report = read_stored(document)
    if report is None:
        return "checked by another version of hpsearch, whose report this version cannot read"
    what = "checked" if report.has_networks else "only the data was checked"
    return f"{what}, {report.date} (hpsearch {report.version}): {report.describe_counts()}"


def _told(finding: Finding) -> str:
    causes = f" ({finding.look_at[0]})" if finding.look_at else ""
    return f"{finding.check}: {finding.found}{causes}"


def _place(definition: StudyDefinition, checksums: Mapping[str, str]) -> Path:
    code = _code_of(definition.model.family) if is_custom_family(definition.model.family) else ""
    meaning = definition.model_copy(update={"name": "checked"}).sha256, dict(checksums), code
    return check_folder() / f"{hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()}.json"


def _code_of(family: str) -> str:
    """SHA-256 of the file that "package.module:name" names; "" if it is not found. The code is not imported."""
    file = Path(*family.partition(":")[0].split(".")).with_suffix(".py")
    for folder in (Path.cwd(), *map(Path, sys.path)):
        with contextlib.suppress(OSError):
            return hashlib.sha256((folder / file).read_bytes()).hexdigest()
    return ""
