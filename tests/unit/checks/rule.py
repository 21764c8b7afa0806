"""What holds for every finding that warns or fails."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition

_LINE = re.compile(r"(?P<line>[^#\n]+?)  # in \[(?P<section>\w+)\]")


def broken_rules(finding: Finding) -> Iterator[str]:
    """The rules that a finding breaks, in words."""
    if finding.verdict not in (Verdict.WARNING, Verdict.FAILED):
        return
    for part in ("found", "expected", "look_at"):
        if not getattr(finding, part):
            yield f"{part} is empty"
    for cause in finding.look_at:
        what, _, remedy = cause.partition(": ")
        if not (what and remedy):
            yield f"{cause!r} does not say what to do, after a colon"
    if finding.fix and _LINE.fullmatch(finding.fix) is None:
        yield f"{finding.fix!r} is no line of a section"


def with_line(definition: StudyDefinition, line: str) -> StudyDefinition:
    """The definition whose study file has this line, in place of one that gives the same key a value.

    Raises:
        InputError: the study file does not accept it.
    """
    match = _LINE.fullmatch(line)
    assert match is not None, line
    document = definition.document()
    document[match["section"]] = {**document[match["section"]], **tomllib.loads(match["line"])}
    return parse_definition(document, source="the mended study file")
