"""Results on stdout: tables for people, a JSON document for scripts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpsearch.checks.record import describe as describe_checks
from hpsearch.console.fitted_table import FittedTable
from hpsearch.console.screen import data_console, text_of, write_line
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.failures import Failure, failure_of
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.selection import Selection
from hpsearch.results.status import StudyStatus, describe_point
from hpsearch.results.summary import StudySummary
from hpsearch.results.verdicts import describe_verdicts
from hpsearch.results.view_tables import Column, ViewTable, configurations_table, trials_table
from hpsearch.safe_text import masked
from hpsearch.store.rows.trial_state import DIVERGED_REASON, STOP_REASON_ATTRIBUTE, STOPPED_REASON
from hpsearch.wording import counted, parameters_label, times

MOST_TRIALS = 10
_MOST_RUNNING = 8  # running trials shown per worker
_MOST_REASONS = 3  # reasons shown why points were given up


def print_json(document: Any) -> None:
    """Print one JSON document. NaN cannot occur: values that are not finite are never stored."""
    write_line(json.dumps(masked(document), indent=2, allow_nan=False))


def print_status(status: StudyStatus) -> None:
    """Print the state of a study and its best trials."""
    data_console().print(status_view(status), crop=False)


def print_opening(record: VaultRecord, status: StudyStatus) -> None:
    """Print the number of an opening of the test set, with its circumstances and other openings on record."""
    chosen = record.chosen
    retrained = ", retrained" if chosen["is_retrained"] else ""
    choice = f"trial {chosen['trial']}: {Selection(chosen['selection']).label}{retrained}"
    metric = record.metric
    shown = metric.text(chosen["validation_error"])
    rows = [
        (metric.test_label, record.describe_number()),
        (metric.validation_label, f"{shown}, on the {record.examples} of the selection"),
        ("point", f"{parameters_label(chosen['params'])} ({choice})"),
        ("opened", f"{record.opened_at:%Y-%m-%d %H:%M:%S} UTC by {record.opened_by} on {chosen['device']}"),
        ("commit", record.code_commit or "not known"),
        ("parameters", f"SHA-256 {record.parameters_sha256}"),
    ]
    if record.macro_f1 is not None:
        rows.insert(1, ("test macro-F1", record.macro_f1_text))
    if record.machine_openings:
        opened = f"opened {times(record.machine_openings)} before, for other studies on this machine"
        rows.append(("same files", opened))
    if (copies := record.describe_copies()) is not None:
        rows.append(("copies", copies))
    grid = Table.grid(padding=(0, 2))
    for heading, told in rows:
        grid.add_row(heading, text_of(told))
    summary = status.summary
    is_only_one = len(summary.openings) == 1  # it is printed already
    lines = (replace(summary, openings=()) if is_only_one else summary).describe_test_set()
    if status.chosen is not None and not status.chosen.is_of(record):
        lines.insert(0, f"this is not the chosen point; the chosen point is {describe_point(status.chosen)}")
    data_console().print(Group(text_of(f"study {record.study_name}"), grid, *map(text_of, lines)))


def print_confirmation(confirmation: Confirmation) -> None:
    """Print a table of the configurations, best first, the notes that qualify it, and the conclusion."""
    console = data_console()
    console.print(text_of(f"study {confirmation.study}, confirmed in {confirmation.companion.name}"))
    console.print(FittedTable(configurations_table(confirmation)), crop=False)
    for line in [*(f"note: {note}" for note in confirmation.notes), confirmation.conclusion()]:
        if line:
            console.print(text_of(line), soft_wrap=True)


def status_view(status: StudyStatus) -> RenderableType:
    """The state of a study and its best trials, for printing or for a live display."""
    summary = status.summary
    confirmation = status.confirmation.brief() if status.confirmation else []
    openings = summary.describe_test_set()
    progress = [_headline(summary), *_round_lines(summary)]
    progress += _setup_lines(summary)
    progress += [line for line in (describe_verdicts(summary.trials), summary.describe_small_budget()) if line]
    progress += [
        *_given_up_lines(summary),
        *_tried_again_lines(summary),
        *_foreign_lines(summary),
        *_running_lines(summary),
    ]
    return Group(*map(text_of, [*progress, *status.answer(), *confirmation, *openings]), _trials(summary))


def studies_view(summaries: list[StudySummary]) -> RenderableType:
    """A line per study."""
    points = [summary.points for summary in summaries]
    states = {"waiting": 2, "running": 3, "complete": None, "pruned": 1, "failed": None}  # and when they leave
    columns = [
        Column("study", [summary.name for summary in summaries], is_text=True),
        Column("points", [str(count.total) for count in points]),
        *(Column(state, [str(getattr(count, state)) for count in points], leaves=n) for state, n in states.items()),
        Column("best value", [s.metric.text(s.best.value if s.best else None) for s in summaries]),
    ]
    return FittedTable(ViewTable(columns=columns))


def _headline(summary: StudySummary) -> str:
    points = summary.points
    parts = [f"study {summary.name}: {points.counted} of {points.total} points done"]
    parts.append(f"{points.complete} complete, {points.pruned} pruned")
    if points.unfinished:
        parts.append(f"{points.running} running, {points.waiting} waiting")
    if points.failed:
        parts.append(f"{points.failed} FAILED")
    dataset = summary.study.definition.dataset
    parts.append(f"{summary.num_epochs:,} {summary.metric.step}s" + (f" on {dataset}" if dataset else ""))
    return " · ".join(parts)


def _setup_lines(summary: StudySummary) -> list[str]:
    """The program that trials run, if they are programs, and the last checks."""
    program, checks = summary.study.definition.program, summary.study.checks
    lines = [] if program is None else [f"{program.section}: {program.line}"]
    return lines if program is not None and checks is None else [*lines, describe_checks(checks)]


def _round_lines(summary: StudySummary) -> list[str]:
    """The last round of a search in rounds: `round 2, 4 points: learning_rate: 0.0316 and 0.316 beside 0.1`."""
    if not summary.rounds:
        return []
    last = summary.rounds[-1]
    lines = [f"round {last.number}, {counted(last.num_points, 'point')}: {last.reason}"]
    if summary.search_ended is not None:
        lines.append(f"the search ended after round {last.number}: {summary.search_ended}")
    return lines


def _given_up_lines(summary: StudySummary) -> list[str]:
    """Why points were given up: `given up, 2 points: its worker failed: ValueError: boom (mine.py:10)`."""
    reasons = list(summary.reasons_of_given_up.values())
    lines = []
    for failures in reasons[:_MOST_REASONS]:
        lines += _failure_lines(f"given up, {counted(len(failures), 'point')}", failures[-1])
    more = len(reasons) - _MOST_REASONS
    return [*lines, *([f"given up for {counted(more, 'other reason')}: see the report"] if more > 0 else [])]


def _tried_again_lines(summary: StudySummary) -> list[str]:
    """The last failure of a program whose point is, or was, tried again; its last lines while the study runs."""
    lost = {trial.point for trial in summary.given_up}
    own = [trial for trial in summary.failed_attempts if not trial.is_current and trial.point not in lost]
    again = [trial for trial in own if failure_of(trial).reason != STOPPED_REASON]
    if not again or not summary.study.definition.is_program:
        return []
    if summary.is_finished:
        return [f"{counted(len(again), 'attempt')} failed before; the last one: {failure_of(again[-1]).reason}"]
    return _failure_lines(f"tried again, {counted(len(again), 'failed attempt')}", failure_of(again[-1]))


def _failure_lines(heading: str, failure: Failure) -> list[str]:
    lines = [f"{heading}: {failure.reason}"]
    if failure.last_lines:
        lines[0] += f"; the last lines of trial {failure.trial.number}:"
    return [*lines, *(f"    {line}" for line in failure.last_lines)]


def _foreign_lines(summary: StudySummary) -> list[str]:
    """Changes of the study by other programs: `by other programs: 2 trials added (ignored), 1 trial ended ...`."""
    ended, added, lost = summary.num_ended_outside, summary.num_foreign, summary.num_lost_points
    told = [f"{counted(added, 'trial')} added (ignored)"] if added else []
    told += [f"{counted(ended, 'trial')} ended (value ignored, point trained again)"] if ended else []
    told += [f"{counted(lost, 'trial')} deleted"] if lost else []
    return [f"by other programs: {', '.join(told)}"] if told else []


def _running_lines(summary: StudySummary) -> list[str]:
    """The running trials by worker and device: `node7:4711 on cuda:0 (...): trials 3, 5`."""
    numbers: dict[tuple[str, str], list[str]] = {}
    for trial in summary.running:
        where = str(trial.attributes.get("worker", "a worker")), str(trial.attributes.get("device", "its device"))
        numbers.setdefault(where, []).append(str(trial.number))
    lines = []
    for (worker, device), trials in sorted(numbers.items()):
        more = f" and {len(trials) - _MOST_RUNNING} more" if len(trials) > _MOST_RUNNING else ""
        named = ", ".join(trials[:_MOST_RUNNING])
        lines.append(f"{worker} on {device}: {'trial' if len(trials) == 1 else 'trials'} {named}{more}")
    return lines


def _trials(summary: StudySummary) -> RenderableType:
    trials = [trial for trial in summary.trials if trial.value is not None and trial.is_listed]
    if not trials:
        has_ended = summary.points.counted + summary.points.failed > 0
        ends = [trial.attributes.get(STOP_REASON_ATTRIBUTE) for trial in summary.trials]
        diverged = ends.count(DIVERGED_REASON)
        told = f": {counted(diverged, 'trial')} diverged (a value was not finite)" if diverged else ""
        return Text(f"no trial has a value{told}" if has_ended else "no trial has ended yet")
    table = FittedTable(trials_table(trials[:MOST_TRIALS], summary.searched_names, summary.metric))
    more = len(trials) - MOST_TRIALS
    return Group(table, Text(f"and {more} more")) if more > 0 else table
