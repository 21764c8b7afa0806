"""Results on stdout: tables for people, a JSON document for scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hpsearch.console.fitted_table import FittedTable, TableColumn
from hpsearch.console.screen import data_console, text_of, write_line
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.status import StudyStatus, describe_point
from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.safe_text import masked
from hpsearch.study.space import ParameterValue

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
    values = ", ".join(f"{name} {format_value(value)}" for name, value in chosen["params"].items())
    rows = [
        ("test error", record.describe_number()),
        ("validation error", f"{100 * chosen['validation_error']:.2f} %, on the images that the point was selected on"),
        ("point", f"{values or 'the only one'} (trial {chosen['trial']}: {_choice(chosen)})"),
        ("opened", f"{record.opened_at:%Y-%m-%d %H:%M:%S} UTC by {record.opened_by} on {chosen['device']}"),
        ("commit", record.code_commit or "not known"),
        ("parameters", f"SHA-256 {record.parameters_sha256}"),
    ]
    if record.machine_openings:
        rows.append(("same files", f"opened {record.machine_openings} times before, for other studies on this machine"))
    grid = Table.grid(padding=(0, 2))
    for heading, told in rows:
        grid.add_row(heading, text_of(told))
    summary = status.summary
    is_only_one = len(summary.openings) == 1  # it is printed already
    lines = (replace(summary, openings=()) if is_only_one else summary).describe_test_set()
    if status.chosen is not None and not status.chosen.is_of(record):
        lines.insert(0, f"this is not the chosen point, which is {describe_point(status.chosen)}")
    data_console().print(Group(text_of(f"study {record.study_name}"), grid, *map(text_of, lines)))


def print_studies(summaries: list[StudySummary]) -> None:
    """Print a line per study."""
    data_console().print(studies_view(summaries), crop=False)


def status_view(status: StudyStatus) -> RenderableType:
    """The state of a study and its best trials, for printing or for a live display."""
    summary = status.summary
    confirmation = status.confirmation.brief() if status.confirmation else []
    openings = summary.describe_test_set()
    progress = [_headline(summary), *_round_lines(summary)]
    progress += [*_given_up_lines(summary), *_foreign_lines(summary), *_running_lines(summary)]
    return Group(*map(text_of, [*progress, *status.answer(), *confirmation, *openings]), _trials_table(summary))


def studies_view(summaries: list[StudySummary]) -> RenderableType:
    """A line per study."""
    points = [summary.points for summary in summaries]
    best = [f"{summary.best.value:.2%}" if summary.best is not None else "-" for summary in summaries]
    columns = [
        TableColumn(heading="study", cells=[summary.name for summary in summaries], justify="left"),
        TableColumn(heading="points", cells=[str(count.total) for count in points]),
        TableColumn(heading="waiting", cells=[str(count.waiting) for count in points], leaves=2),
        TableColumn(heading="running", cells=[str(count.running) for count in points], leaves=3),
        TableColumn(heading="complete", cells=[str(count.complete) for count in points]),
        TableColumn(heading="pruned", cells=[str(count.pruned) for count in points], leaves=1),
        TableColumn(heading="failed", cells=[str(count.failed) for count in points]),
        TableColumn(heading="best error", cells=best),
    ]
    return FittedTable(columns)


def format_value(value: ParameterValue | None) -> str:
    """A parameter for a table cell: `0.001`, `tanh`, `500`."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _headline(summary: StudySummary) -> str:
    points = summary.points
    parts = [f"study {summary.name}: {points.counted} of {points.total} points done"]
    parts.append(f"{points.complete} complete, {points.pruned} pruned")
    if points.unfinished:
        parts.append(f"{points.running} running, {points.waiting} waiting")
    if points.failed:
        parts.append(f"{points.failed} FAILED")
    parts.append(f"{summary.num_epochs:,} epochs on {summary.study.definition.data.dataset}")
    return " · ".join(parts)


def _round_lines(summary: StudySummary) -> list[str]:
    """The last round of a search in rounds: `round 2, 4 points: learning_rate: 0.0316 and 0.316 beside 0.1`."""
    if not summary.rounds:
        return []
    last = summary.rounds[-1]
    lines = [f"round {last.number}, {last.num_points} {'point' if last.num_points == 1 else 'points'}: {last.reason}"]
    if summary.search_ended is not None:
        lines.append(f"the search ended after round {last.number}: {summary.search_ended}")
    return lines


def _given_up_lines(summary: StudySummary) -> list[str]:
    """Why points were given up: `given up, 2 points: its worker failed: ValueError: boom (mine.py:10)`."""
    reasons = list(summary.reasons_of_given_up.items())
    lines = [f"given up, {number} {'point' if number == 1 else 'points'}: {reason}" for reason, number in reasons]
    more = len(reasons) - _MOST_REASONS
    return [*lines[:_MOST_REASONS], *([f"given up for {more} other reasons: see the report"] if more > 0 else [])]


def _foreign_lines(summary: StudySummary) -> list[str]:
    """Changes of the study by other programs: `by other programs: 2 trials added (ignored), 1 trial ended ...`."""
    ended, added, lost = summary.num_ended_outside, summary.num_foreign, summary.num_lost_points
    told = [f"{added} {_trials(added)} added (ignored)"] if added else []
    told += [f"{ended} {_trials(ended)} ended (value ignored, point trained again)"] if ended else []
    told += [f"{lost} {_trials(lost)} deleted"] if lost else []
    return [f"by other programs: {', '.join(told)}"] if told else []


def _trials(number: int) -> str:
    return "trial" if number == 1 else "trials"


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
        lines.append(f"{worker} on {device}: {_trials(len(trials))} {named}{more}")
    return lines


def _choice(chosen: Mapping[str, Any]) -> str:
    what = {"best": "the best of the search", "confirmed": "confirmed over fresh seeds"}[chosen["selection"]]
    return f"{what}, trained again" if chosen["is_retrained"] else what


def _trials_table(summary: StudySummary) -> RenderableType:
    trials = [trial for trial in summary.trials if trial.value is not None and trial.is_current]
    if not trials:
        return Text("no trial has ended yet")
    best = trials[:MOST_TRIALS]
    table = FittedTable(_trial_columns(best, _searched_keys(summary)), bold_row=0)
    if len(trials) > MOST_TRIALS:
        return Group(table, Text(f"and {len(trials) - MOST_TRIALS} more"))
    return table


def _searched_keys(summary: StudySummary) -> list[str]:
    return [dimension.name for dimension in summary.study.definition.search.dimensions]


def _trial_columns(trials: list[TrialSummary], names: list[str]) -> list[TableColumn]:
    errors = [f"{trial.value:.2%}" if trial.value is not None else "-" for trial in trials]
    nlls = [f"{trial.best_validation_nll:.4f}" if trial.best_validation_nll is not None else "-" for trial in trials]
    ends = [str(trial.attributes.get("stop_reason", trial.state.name.lower())) for trial in trials]
    return [
        TableColumn(heading="", cells=[str(rank) for rank, _ in enumerate(trials, start=1)]),
        TableColumn(heading="validation error", cells=errors),
        TableColumn(heading="NLL", cells=nlls, leaves=1),
        TableColumn(heading="best epoch", cells=[f"{t.best_epoch} of {t.num_epochs}" for t in trials], leaves=3),
        TableColumn(heading="trial", cells=[str(trial.number) for trial in trials], leaves=4),
        *(TableColumn(heading=n, cells=[format_value(t.point_parameters.get(n)) for t in trials]) for n in names),
        TableColumn(heading="ended", cells=ends, justify="left", leaves=2),
    ]
