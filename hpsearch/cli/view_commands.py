"""Commands that look at studies and take results out: status, report, export, dashboard."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpsearch import environment
from hpsearch.cli import options
from hpsearch.cli.loading import loading
from hpsearch.console.notice import say, show_line
from hpsearch.console.screen import data_console, write_document, write_line
from hpsearch.dashboard.hosts import canonical_host, is_loopback
from hpsearch.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hpsearch.store.connection.database import Database

_WATCH_SECONDS = 2.0
STDOUT = Path("-")
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", show_default="stdout", help="Output file; - is stdout.")
]


def status(
    study: options.OptionalStudyName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Update the display until everything is finished.")] = False,
    seconds: Annotated[str | None, typer.Option(hidden=True)] = None,
    as_json: options.AsJson = False,
    storage: options.Storage = None,
) -> None:
    """Show the progress of a study and its best trials, or a line per study."""
    if watch and as_json:
        raise InputError("--watch and --json exclude each other", hint="run status --json repeatedly")
    if seconds is not None:  # accepted until version 0.3
        say(f"--seconds has no effect any more: --watch looks every {_WATCH_SECONDS:g} seconds")

    with loading():
        from hpsearch.console.tables import print_json
        from hpsearch.results.status import read_status
        from hpsearch.store.studies import copied_study_names, study_names

    with options.open_storage(storage) as database:
        names = study_names(database) if study is None else [study]
        if as_json:
            documents = [read_status(database, name).as_json() for name in names]
            print_json(documents if study is None else documents[0])
        elif watch:
            _watch(database, study)
        elif names:
            data_console().print(_look(database, study)[0], crop=False)
        else:
            say("there is no study yet: hpsearch run STUDY.toml")
        if study is None and not watch:
            for name in copied_study_names(database):
                say(f"study {name!r} is not shown: it is a copy without points, made by another program")


def report(
    study: options.StudyName,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.html")] = Path("report.html"),
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
) -> None:
    """Write one self-contained HTML file: search history, learning curves, heat map, importance, pictures."""
    refuse_stdout("--output", output)

    from hpsearch.results.report.page import write_report

    with options.open_storage(storage) as database:
        write_report(database, study, output, artifacts=artifacts)
    say(f"wrote {output}")


def refuse_stdout(option: str, path: Path) -> None:
    """Raises InputError for "-", which would become a file of that name."""
    if path == STDOUT:
        raise InputError(f"{option} -: this cannot be written to stdout", hint="name a file")


def export(
    study: options.StudyName,
    output: Output = None,
    format_name: Annotated[
        str | None, typer.Option("--format", metavar="json|toml|yaml|env", show_default="by FILE's suffix, or json")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE.safetensors", help="Also write the trained parameters of the point."),
    ] = None,
    point: options.Point = None,
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
) -> None:
    """Write the chosen point with everything that reproduces it: settings, value, data, versions, seed."""
    if model is not None:
        refuse_stdout("--model", model)
    to_stdout = output == STDOUT
    if to_stdout:
        output = None

    from hpsearch.artifacts.best_parameters import open_artifacts
    from hpsearch.artifacts.place import artifact_place
    from hpsearch.atomic_file import write_file
    from hpsearch.results.export import choose_format, export_model, export_point, render_export, require_model
    from hpsearch.results.selection import Selection
    from hpsearch.results.status import read_status

    export_format = choose_format(format_name, output)
    with options.open_storage(storage) as database:
        status = read_status(database, study)
        chosen = status.choose(point)
        if model is not None:
            require_model(chosen, model)  # before anything is written
        if status.best_is_another:
            is_best = chosen.selection is Selection.BEST
            which, other = ("best", "confirmed") if is_best else ("confirmed", "best")
            say(f"this is the {which} point; --point {other} selects the {other} point, which is another one")
        if status.confirmation is not None and not status.confirmation.is_finished:
            for line in status.confirmation.brief():
                say(line)
        document = render_export(export_point(chosen, status), export_format)
        if output is not None:
            write_file(output, document)
            say(f"wrote {output}")
        elif to_stdout or model is None or format_name is not None:
            write_document(document)
        if model is not None:
            kept = open_artifacts(artifact_place(artifacts), is_read_only=True)
            export_model(chosen, kept, model)
            say(f"wrote {model}")


def dashboard(
    host: Annotated[str, typer.Option(help="Host name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8080,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Allow pages to delete studies and change trials.")
    ] = False,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            envvar=environment.ALLOWED_HOSTS,
            help="Another host name or address for requests, such as that of a proxy; may be repeated.",
        ),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar=environment.DASHBOARD_PASSWORD_FILE,
            show_default="no login",
            help="Require the password in the first line of this file; any user name is accepted.",
        ),
    ] = None,
    behind_proxy: Annotated[
        bool, typer.Option("--behind-proxy", help="Allow other machines to connect: a proxy in front checks the login.")
    ] = False,
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
) -> None:
    """Serve optuna-dashboard for this storage until Ctrl-C. It changes no study without --allow-changes."""
    if not behind_proxy and password_file is None and not is_loopback(canonical_host(host)):
        raise InputError(
            f"--host {host} would admit other machines, and the dashboard has no login",
            hint="keep 127.0.0.1 and use a tunnel, --password-file, or an authenticating proxy and --behind-proxy",
        )
    from hpsearch.dashboard.gate import Access
    from hpsearch.store.connection.address import read_password

    hint = "--password-file names a file whose first line is the password"
    access = Access(
        hosts=options.parse_hosts(allowed_host or ()),
        password=None if password_file is None else read_password(password_file.expanduser(), hint),
        allows_changes=allow_changes,
    )

    from hpsearch.artifacts.best_parameters import open_artifacts
    from hpsearch.artifacts.place import artifact_place
    from hpsearch.dashboard.server import serve_dashboard

    kept = open_artifacts(artifact_place(artifacts))
    with options.open_storage(storage) as database:
        serve_dashboard(database.storage, kept, host, port, access, on_ready=show_line)


def _watch(database: Database, study: str | None) -> None:
    """Show it until every study shown is finished: redrawn on a terminal, otherwise printed whenever it has changed."""
    from rich.live import Live

    console = data_console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    shown = ""
    with live or contextlib.nullcontext():
        while True:
            view, is_finished = _look(database, study)
            if live:
                live.update(view, refresh=True)
            else:
                with console.capture() as capture:
                    console.print(view, crop=False)
                if shown != (shown := capture.get()):
                    write_line(shown.rstrip("\n"))
            if is_finished:
                return
            time.sleep(_WATCH_SECONDS)


def _look(database: Database, study: str | None) -> tuple[RenderableType, bool]:
    """The study, or a line per study, and whether all of it is finished."""
    from hpsearch.console.tables import status_view, studies_view
    from hpsearch.results.status import read_status
    from hpsearch.results.summary import read_summary
    from hpsearch.store.studies import study_names

    if study is not None:
        status = read_status(database, study)
        return status_view(status), status.summary.is_finished
    summaries = [read_summary(database, name) for name in study_names(database)]
    return studies_view(summaries), all(summary.is_finished for summary in summaries)
