"""The report: one HTML file with what a study searched, its results and its cost.

The file works without a network: it contains plotly.js, styles and numbers, and its content security policy forbids
any external resource. Every text from a study or a worker is escaped: by jinja2 in the page, by `plot_text` in plots.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import tomli_w
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpsearch.atomic_file import write_file
from hpsearch.results.openings.intents import VaultIntent
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.report.candidates_panel import confirmation_panel
from hpsearch.results.report.figures import (
    Panel,
    best_trial_losses,
    learning_curves,
    optuna_study,
    parameter_importance,
    search_history,
)
from hpsearch.results.report.plot_style import percent
from hpsearch.results.report.search_map import search_map
from hpsearch.results.status import StudyStatus, openings_of_others, read_status
from hpsearch.results.summary import StudySummary, format_time
from hpsearch.safe_text import mask_passwords
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import current_versions
from hpsearch.wording import value_label

BEST_TABLE_ROWS = 20
FAILED_TABLE_ROWS = 20


def write_report(database: Database, name: str, path: Path) -> None:
    """Read a study and write its report atomically.

    Raises:
        StudyNotFoundError: no such study.
        NothingCompleteError: no trial is complete yet; says how many points are in which state.
        ArtifactError: the file cannot be written; names it.
    """
    write_file(path, render_report(read_status(database, name, with_curves=True)))


def render_report(status: StudyStatus) -> str:
    """The report as an HTML document.

    Args:
        status: read with curves.
    Raises:
        NothingCompleteError: no trial is complete yet.
    """
    summary, confirmation = status.summary, status.confirmation
    best, chosen = summary.require_best(), status.choose()
    study = optuna_study(summary)
    confirmed = confirmation and confirmation_panel(confirmation)
    panels = [
        search_map(summary),
        learning_curves(summary),
        best_trial_losses(best),
        search_history(summary, study),
        parameter_importance(summary, study),
    ]
    return (
        _environment()
        .from_string(_asset("report.html.j2"))
        .render(
            summary=summary,
            definition=summary.study.definition,
            definition_toml=tomli_w.dumps(summary.study.definition.document()),
            best=best,
            chosen=chosen,
            estimate=status.estimate(chosen),
            best_is_another=status.best_is_another,
            other_openings=openings_of_others(summary, chosen),
            best_trials=summary.complete[:BEST_TABLE_ROWS],
            dimensions=[dimension.name for dimension in summary.study.definition.search.dimensions],
            failed=summary.failed_attempts[:FAILED_TABLE_ROWS],
            vault_tables=_vault_tables(summary),
            unfinished_openings=_unfinished_openings(summary),
            confirmation=confirmation,
            confirmed=confirmed,
            panels=panels,
            plots=_script_json([confirmed, *panels] if confirmed else panels),
            exporting_versions=current_versions(),
            nonce=secrets.token_urlsafe(16),
            style=Markup(_asset("report.css")),
            script=Markup(_asset("report.js")),
            plotly=Markup(get_plotlyjs()),
        )
    )


def _vault_tables(summary: StudySummary) -> list[tuple[str, Sequence[VaultRecord]]]:
    """Tables of openings of the test set, each with a heading."""
    tables: list[tuple[str, Sequence[VaultRecord]]] = []
    if summary.openings:
        number = len(summary.openings)
        tables.append((f"The test set was opened {'once' if number == 1 else f'{number} times'}.", summary.openings))
    if summary.earlier_openings:
        heading = "An earlier study of this name, which was deleted, opened the test set."
        tables.append((heading, summary.earlier_openings))
    return tables


def _unfinished_openings(summary: StudySummary) -> list[tuple[str, Sequence[VaultIntent]]]:
    """Lists of openings without a number, each with a heading."""
    told = [
        ("The test set was opened without a number on record.", summary.intents),
        (
            "An earlier study of this name, which was deleted, opened the test set without a number on record.",
            summary.earlier_intents,
        ),
    ]
    return [(heading, intents) for heading, intents in told if intents]


def _environment() -> Environment:
    """A template environment that escapes every value except the Markup of our own files, and masks passwords.

    An undefined name in the template is an error.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=lambda value: mask_passwords(value) if type(value) is str else value,
    )
    environment.filters["label"] = value_label
    environment.filters["percent"] = _percent_label
    environment.filters["number"] = _number_label
    environment.filters["duration"] = _duration_label
    environment.filters["time"] = format_time
    return environment


def _asset(name: str) -> str:
    return files("hpsearch.results.report").joinpath(name).read_text(encoding="utf-8")


def _script_json(panels: Iterable[Panel]) -> Markup:
    """Panel name -> plotly figure, as JSON that is safe inside a script element: it contains no "</script>"."""
    figures = {panel.name: json.loads(panel.figure.to_json()) for panel in panels if panel.figure}
    # allow_nan=False: NaN is not valid JSON for a browser.
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _percent_label(fraction: float | None) -> str:
    return "none" if fraction is None else f"{percent(fraction):.2f}"


def _number_label(number: float | None, digits: int = 4) -> str:
    return "none" if number is None else f"{number:.{digits}f}"


def _duration_label(seconds: float | None) -> str:
    """A duration as text: 3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds is None:
        return "none"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"
