"""The report: one HTML file with what a study searched, its results and its cost; `SECTIONS` lists them in order.

The file works without a network: it contains plotly.js, styles and numbers, and its content security policy forbids
any external resource. Every text from a study or a worker is escaped: by jinja2 in the page, by `plot_text` in plots.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.artifacts.place import artifact_place
from hpsearch.atomic_file import write_file
from hpsearch.checks.record import describe as describe_checks
from hpsearch.checks.record import read_stored
from hpsearch.metric import ZERO_ONE
from hpsearch.results.failures import failure_of
from hpsearch.results.pictures.overview import PictureOverview, has_pictures, read_overview
from hpsearch.results.program_export import filled_in_line, further_values
from hpsearch.results.report.confirmed_errors import confirmed_errors
from hpsearch.results.report.figures import best_trial_losses, learning_curves, parameter_importance, search_history
from hpsearch.results.report.images import filters_png, image_png
from hpsearch.results.report.plot_style import Plot
from hpsearch.results.report.search_map import search_map
from hpsearch.results.report.update_ratios import update_ratios
from hpsearch.results.status import StudyStatus, describe_other_opening, openings_of_others, read_status
from hpsearch.results.verdicts import describe_verdicts, group_by_verdict
from hpsearch.results.view_tables import configurations_table, trials_table
from hpsearch.safe_text import mask_passwords
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import current_versions
from hpsearch.training.filter_series import evenly_chosen
from hpsearch.wording import counted, format_seconds, format_time, times, value_label

BEST_TABLE_ROWS = 20
FAILED_TABLE_ROWS = 20


@dataclass(frozen=True)
class Section:
    """A section of the report: the text of templates/sections/NAME.html.j2, if there is one, and a plot.

    Args:
        name: unique, valid as an HTML id.
        draw: draws the plot; None: it has none.
        is_shown: whether a report of this study has the section.
    """

    name: str
    title: str
    draw: Callable[[StudyStatus], Plot] | None = None
    is_shown: Callable[[StudyStatus], object] = lambda status: True


def _has_programs(status: StudyStatus) -> bool:
    return status.summary.study.definition.is_program


# In the order of the page. A new section is a function that draws it or a template, and a line here.
SECTIONS = (
    Section("chosen", "Chosen point"),
    Section("confirmation", "Confirmation over fresh seeds", confirmed_errors, lambda status: status.confirmation),
    Section("test_set", "Test set", is_shown=lambda status: status.summary.test_set),
    Section("rounds", "Rounds", is_shown=lambda status: status.summary.rounds),
    Section("map", "Search map", search_map, lambda status: status.summary.study.definition.objective is None),
    Section("curves", "Learning curves", learning_curves),
    Section("losses", "Losses of the search's best trial", best_trial_losses, lambda status: not _has_programs(status)),
    Section(
        "diagnosis", "Diagnosis of the trials", update_ratios, lambda status: describe_verdicts(status.summary.trials)
    ),
    Section("pictures", "Pictures of the best trials", is_shown=lambda status: has_pictures(status.summary)),
    Section("history", "Search history", search_history),
    Section("importance", "Parameter importance", parameter_importance),
    Section("trials", "Best trials of the search"),
    Section("failed", "Failed attempts", is_shown=lambda status: status.summary.failed_attempts),
    Section(
        "checks",
        "Checks of data and networks",
        is_shown=lambda status: status.summary.study.checks or not _has_programs(status),
    ),
    Section("definition", "Definition, data and versions"),
)


def write_report(database: Database, name: str, path: Path, *, artifacts: str | None = None) -> None:
    """Read a study and write its report atomically.

    Args:
        artifacts: the folder or bucket that the workers wrote to, for the pictures; None: the default.
    Raises:
        StudyNotFoundError: no such study.
        NothingCompleteError: no trial is complete yet; says how many points are in which state.
        ArtifactError: the file cannot be written; names it.
    """
    status, pictures = read_status(database, name, with_curves=True), None
    if has_pictures(status.summary):
        pictures = read_overview(status.summary, lambda: open_artifacts(artifact_place(artifacts), is_read_only=True))
    write_file(path, render_report(status, pictures))


def render_report(status: StudyStatus, pictures: PictureOverview | None = None) -> str:
    """The report as an HTML document.

    Args:
        status: read with curves.
        pictures: None: the files of the trials were not read.
    Raises:
        NothingCompleteError: no trial is complete yet.
    """
    summary, confirmation = status.summary, status.confirmation
    best, chosen, definition = summary.require_best(), status.choose(), summary.study.definition
    sections = [section for section in SECTIONS if section.is_shown(status)]
    plots = {section.name: section.draw(status) for section in sections if section.draw}
    searched = summary.searched_names
    template = _environment().get_template("page.html.j2")
    return template.render(
        sections=sections,
        plots=plots,
        figures=_script_json(plots),
        summary=summary,
        definition=definition,
        definition_toml=tomli_w.dumps(definition.document()),
        best=best,
        chosen=chosen,
        estimate=status.estimate(chosen),
        best_is_another=status.best_is_another,
        other_openings=openings_of_others(summary, chosen),
        best_trials=trials_table(summary.complete[:BEST_TABLE_ROWS], searched, summary.metric),
        metric=summary.metric,
        failed=[failure_of(trial) for trial in summary.failed_attempts[:FAILED_TABLE_ROWS]],
        command_line=filled_in_line(chosen),
        further_values=further_values(chosen.trial),
        confirmation=confirmation,
        configurations=confirmation and configurations_table(confirmation),
        exporting_versions=current_versions(trains=not definition.is_program),
        verdicts=group_by_verdict(summary.trials),
        checks=read_stored(summary.study.checks),
        pictures=pictures or PictureOverview(missing=("no pictures: the artifacts were not read",)),
        checks_line=describe_checks(summary.study.checks),
        nonce=secrets.token_urlsafe(16),
        plotly=Markup(get_plotlyjs()),
    )


def _environment() -> Environment:
    """A template environment that escapes every value except the Markup of our own files, and masks passwords.

    An undefined name in the template is an error.
    """
    environment = Environment(
        loader=PackageLoader("hpsearch.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=lambda value: mask_passwords(value) if type(value) is str else value,
    )
    environment.filters |= {
        "counted": counted,
        "capitalised": lambda text: text[:1].upper() + text[1:],
        "duration": lambda seconds: "-" if seconds is None else format_seconds(seconds),
        "evenly_chosen": evenly_chosen,
        "filters_png": filters_png,
        "image_png": image_png,
        "share": ZERO_ONE.text,
        "label": value_label,
        "other_opening": describe_other_opening,
        "time": format_time,
        "times": times,
    }
    return environment


def _script_json(plots: Mapping[str, Plot]) -> Markup:
    """Section name -> plotly figure, as JSON that is safe inside a script element: it contains no "</script>"."""
    figures = {name: json.loads(plot.figure.to_json()) for name, plot in plots.items() if plot.figure}
    # allow_nan=False: NaN is not valid JSON for a browser.
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))
