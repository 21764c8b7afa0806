"""What `check` shows: a line per finding as it comes, and a table of all findings at the end."""

from __future__ import annotations

import textwrap

from rich.text import Text

from hpsearch.checks.finding import CheckReport, Finding, Verdict
from hpsearch.console.notice import say
from hpsearch.console.screen import data_console, text_of
from hpsearch.safe_text import for_terminal
from hpsearch.wording import format_seconds

_STYLES = {
    Verdict.PASSED: "green",
    Verdict.SKIPPED: "dim",
    Verdict.WARNING: "bold yellow",
    Verdict.FAILED: "bold red",
}
_NARROWEST = 20  # characters of the details' column


def tell_finding(finding: Finding) -> None:
    """Say on stderr which check has ended, and how."""
    say(f"{finding.verdict.value}: {finding.check} ({finding.subject})")


def print_checks(report: CheckReport) -> None:
    """Print all findings by subject; those that did not pass with what was expected and what to look at."""
    console = data_console()
    console.print(text_of(f"study {report.study}"))
    verdict_width = max(len(verdict.value) for verdict in Verdict)
    check_width = max((len(finding.check) for finding in report.findings), default=0)
    for subject in dict.fromkeys(finding.subject for finding in report.findings):
        console.print(text_of(f"\n{subject}"), style="bold", soft_wrap=True)
        for finding in report.findings:
            if finding.subject == subject:
                name = f"  {finding.check:<{check_width}}  "
                verdict = Text(f"  {finding.verdict.value:<{verdict_width}}", style=_STYLES[finding.verdict])
                indent = len(verdict) + len(name)
                first, *others = _details(finding, console.width - indent)
                console.print(Text.assemble(verdict, name, first), soft_wrap=True)
                for line in others:
                    console.print(Text(" " * indent + line), soft_wrap=True)
    console.print()
    for line in summary_lines(report):
        console.print(text_of(line), soft_wrap=True)


def summary_lines(report: CheckReport) -> list[str]:
    """The number of findings of each verdict, and what was not checked."""
    lines = [f"{report.describe_counts()}, in {format_seconds(report.seconds)}"]
    if report.unchecked:
        lines.append(f"not checked: {'; '.join(report.unchecked)}")
    return lines


def _details(finding: Finding, width: int) -> list[str]:
    """What was found; if the check did not pass also what was expected, the likely causes, and the remedy."""
    lines = [finding.found]
    if finding.verdict in (Verdict.WARNING, Verdict.FAILED):
        lines += [f"expected: {finding.expected}"] if finding.expected else []
        lines += [f"look at: {cause}" for cause in finding.look_at]
        lines += [f"fix: {finding.fix}"] if finding.fix else []
    wrapped = [part for line in lines for part in textwrap.wrap(for_terminal(line), max(width, _NARROWEST)) or [""]]
    return [*wrapped, *(row for picture in finding.pictures for row in picture.splitlines())]
