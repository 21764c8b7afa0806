"""What `check` shows: a line per finding as it comes, and a table of all findings at the end."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hpsearch.checks.finding import CheckReport, Finding, Verdict
from hpsearch.console.notice import say
from hpsearch.console.screen import data_console, text_of
from hpsearch.wording import counted, format_seconds

_STYLES = {
    Verdict.PASSED: "green",
    Verdict.SKIPPED: "dim",
    Verdict.WARNING: "bold yellow",
    Verdict.FAILED: "bold red",
}


def tell_finding(finding: Finding) -> None:
    """Say on stderr which check has ended, and how."""
    say(f"{finding.verdict.value}: {finding.check} ({finding.subject})")


def print_checks(report: CheckReport) -> None:
    """Print all findings by subject; those that did not pass with what was expected and what to look at."""
    console = data_console()
    console.print(text_of(f"study {report.study}"))
    for subject in dict.fromkeys(finding.subject for finding in report.findings):
        console.print(text_of(f"\n{subject}"), style="bold")
        console.print(_table([finding for finding in report.findings if finding.subject == subject]))
    console.print()
    for line in summary_lines(report):
        console.print(text_of(line), soft_wrap=True)


def summary_lines(report: CheckReport) -> list[str]:
    """The number of findings of each verdict, and what was not checked."""
    numbers = [
        counted(report.count(verdict), noun) if noun == "warning" else f"{report.count(verdict)} {noun}"
        for verdict, noun in (
            (Verdict.FAILED, "failed"),
            (Verdict.WARNING, "warning"),
            (Verdict.PASSED, "passed"),
            (Verdict.SKIPPED, "skipped"),
        )
        if report.count(verdict)
    ]
    lines = [f"{', '.join(numbers)}, in {format_seconds(report.seconds)}"]
    if report.unchecked:
        lines.append(f"not checked: {'; '.join(report.unchecked)}")
    return lines


def _table(findings: list[Finding]) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for finding in findings:
        verdict = Text(finding.verdict.value, style=_STYLES[finding.verdict])
        grid.add_row(verdict, text_of(finding.check), _details(finding))
    return Padding(grid, (0, 0, 0, 2))


def _details(finding: Finding) -> RenderableType:
    lines = [finding.found]
    if finding.verdict in (Verdict.WARNING, Verdict.FAILED):
        lines += [f"expected: {finding.expected}"] if finding.expected else []
        lines += [f"look at: {cause}" for cause in finding.look_at]
        lines += [f"mend: {finding.mend}"] if finding.mend else []
    pictures = [Text(picture, no_wrap=True, style="dim") for picture in finding.pictures]
    return Group(*map(text_of, lines), *pictures)
