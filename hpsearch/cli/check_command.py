"""The command that looks at a set-up before hours are spent on it: check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hpsearch
from hpsearch.checks.finding import DEFAULT_SECONDS, CheckReport, Finding, Verdict
from hpsearch.cli import options
from hpsearch.cli.loading import loading
from hpsearch.cli.seconds import MOST_SECONDS, check_seconds
from hpsearch.data.dataset_path import load_study_file
from hpsearch.errors import HpsearchError
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import format_seconds

Seconds = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=1.0,
        max=MOST_SECONDS,
        callback=check_seconds,
        help="Checks that have not ended by then are skipped.",
    ),
]


def check(
    study_file: options.StudyFile,
    overrides: options.Overrides = None,
    seconds: Seconds = DEFAULT_SECONDS,
    as_json: options.AsJson = False,
) -> None:
    """Check a study's data and networks before the search: gradients, losses, learning rates, duplicates, cost.

    Ends with exit code 1 if a check fails. The test set is not read. The outcome is stored with the study once it is
    created or resumed on this machine. Of a study with [command], the command is run until its first report;
    that of a study with [objective] is imported.
    """
    definition = load_study_file(study_file, overrides or ())
    if definition.is_program:
        _check_program(definition, seconds, as_json=as_json)
        return

    with loading():
        from hpsearch.checks.record import remember
        from hpsearch.checks.suite import check_study
        from hpsearch.console.check_view import print_checks, tell_finding
        from hpsearch.console.progress_view import download_progress
        from hpsearch.console.tables import print_json
        from hpsearch.data.catalog import load_selection_data
        from hpsearch.data.files.lookup import DataLocations
        from hpsearch.data.registry import with_absolute_dataset

    definition = with_absolute_dataset(definition)
    with download_progress() as progress:
        report = check_study(
            definition,
            lambda: load_selection_data(definition.data, locations=DataLocations.from_environment(progress)),
            version=hpsearch.__version__,
            seconds=seconds,
            on_finding=tell_finding,
        )
    try:
        if as_json:
            print_json(report.as_json())
        else:
            print_checks(report)
    finally:  # the exit code is that of the checks, also where nobody reads the table
        remember(report, definition)
        _require_passed(report)


def _check_program(definition: StudyDefinition, seconds: float, *, as_json: bool) -> None:
    from hpsearch.console.check_view import print_checks, tell_finding
    from hpsearch.console.notice import say
    from hpsearch.console.tables import print_json
    from hpsearch.worker.programs.command_check import COMMAND_LINES, check_command_study, check_objective_study

    place, version = Path.cwd(), hpsearch.__version__
    check_study = check_command_study if definition.objective is None else check_objective_study

    def tell(finding: Finding) -> None:
        tell_finding(finding)
        if finding.check == COMMAND_LINES:
            say(f"the first command line runs until its first report, for {format_seconds(seconds)} at most")

    report = check_study(definition, place, version=version, seconds=seconds, on_finding=tell)
    try:
        if as_json:
            print_json(report.as_json())
        else:
            print_checks(report)
    finally:
        _require_passed(report)


def _require_passed(report: CheckReport) -> None:
    failed = [finding for finding in report.findings if finding.verdict is Verdict.FAILED]
    if failed:
        names = ", ".join(dict.fromkeys(finding.check for finding in failed))
        raise HpsearchError(
            f"study {report.study!r} has failed {len(failed)} of its checks: {names}",
            hint="each failed check says above what to look at",
        )
