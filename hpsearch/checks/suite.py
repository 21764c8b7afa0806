"""All checks of a study, in the order of their cost. Findings are yielded as they come.

The data is checked in the calling process, which needs no torch. Networks may run a user's code, and are checked in a
process of their own (`isolation`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from hpsearch.checks import isolation
from hpsearch.checks.batch_sizes import check_batch_sizes
from hpsearch.checks.duplicates import exact_duplicates, near_duplicates
from hpsearch.checks.finding import DEFAULT_SECONDS, CheckReport, Finding
from hpsearch.checks.images import check_classes, check_labels, check_values
from hpsearch.checks.models import checked_models
from hpsearch.checks.rows import check_row_values, check_targets, row_duplicates, said_of_rows
from hpsearch.data.example_shape import is_image
from hpsearch.data.splits import SelectionData
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import format_time

MOST_UNCHECKED: Final = 20  # that are named
NEAR_SHARE: Final = 0.2  # of the time, at most, for near duplicates


def check_study(
    definition: StudyDefinition,
    load: Callable[[], SelectionData],
    *,
    version: str,
    seconds: float = DEFAULT_SECONDS,
    on_finding: Callable[[Finding], object] = lambda finding: None,
) -> CheckReport:
    """Run all checks.

    Args:
        definition: with an absolute path to its data.
        load: loads the data; it may be downloaded. Checks of networks load it again, from this machine.
        seconds: checks that have not ended by then are skipped.
        on_finding: called with each finding as it comes.
    Raises:
        InputError, DataError: the data cannot be loaded.
    """
    started, moment = time.monotonic(), datetime.now(UTC)
    models, unchecked = checked_models(definition)
    findings: list[Finding] = []
    with isolation.ModelProcess(definition, models) as process:  # loads torch meanwhile
        data = load()
        deadline = time.monotonic() + seconds
        for finding in _all_findings(definition, data, process, deadline=deadline, seconds=seconds):
            findings.append(finding)
            on_finding(finding)
    return CheckReport(
        study=definition.name,
        date=format_time(moment),
        version=version,
        checksums=data.checksums,
        findings=tuple(findings),
        unchecked=_shortened(unchecked),
        seconds=round(time.monotonic() - started, 1),
    )


def check_data_only(definition: StudyDefinition, data: SelectionData, *, version: str) -> CheckReport:
    """A report of the checks that read what is loaded anyway."""
    started, moment = time.monotonic(), datetime.now(UTC)
    findings = tuple(check_data(definition, data))
    return CheckReport(
        study=definition.name,
        date=format_time(moment),
        version=version,
        checksums=data.checksums,
        findings=findings,
        has_networks=False,
        seconds=round(time.monotonic() - started, 2),
    )


def check_data(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    """The checks that read what is loaded anyway, in about a tenth of a second for MNIST."""
    if not is_image(data.example_shape):
        yield from _check_rows(definition, data)
        return
    if data.num_classes:
        yield from check_classes(data, definition)
    yield from check_values(data)
    yield exact_duplicates(data)


def _check_rows(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    """The same for a table."""
    if data.num_classes:
        yield from map(said_of_rows, check_classes(data, definition))
    else:
        yield check_targets(data)
    yield from check_row_values(data)
    yield row_duplicates(data, definition.data.group)


def _shortened(names: list[str]) -> tuple[str, ...]:
    more = len(names) - MOST_UNCHECKED
    return (*names[:MOST_UNCHECKED], *([f"and {more} more"] if more > 0 else []))


def _all_findings(
    definition: StudyDefinition,
    data: SelectionData,
    process: isolation.ModelProcess,
    *,
    deadline: float,
    seconds: float,
) -> Iterator[Finding]:
    batch_sizes = check_batch_sizes(definition, data)
    yield batch_sizes if is_image(data.example_shape) else said_of_rows(batch_sizes)
    yield from check_data(definition, data)
    if data.num_classes:
        labels = check_labels(data)
        yield labels if is_image(data.example_shape) else said_of_rows(labels)
    if is_image(data.example_shape):
        yield near_duplicates(data, deadline=min(deadline, time.monotonic() + NEAR_SHARE * seconds))
        yield from process.findings(deadline)
    else:
        yield from map(said_of_rows, process.findings(deadline))
