"""The `hpsearch` command: parses, calls, prints. stdout is data; logs and progress go to stderr.

Exit codes: 0 done, 1 the work failed, 2 bad input, 3 the surroundings (database, data files, device), 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.markup import escape

import hpsearch
from hpsearch.cli import data_commands, run_commands, view_commands
from hpsearch.errors import HpsearchError, InputError
from hpsearch.logs import configure_logging

# The base of "no such option", "missing argument" and the like. Typer has brought its own copy of click since 0.26, so
# it is reached through a class that typer exports.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

app = typer.Typer(
    name="hpsearch",
    help="Search hyper-parameters: describe a study in one TOML file, run it on any number of workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    run_commands.run,
    run_commands.create,
    run_commands.worker,
    view_commands.status,
    view_commands.report,
    view_commands.export,
    view_commands.dashboard,
):
    app.command()(command)
app.add_typer(data_commands.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hpsearch {hpsearch.__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command's name."""
    configure_logging(verbose=verbose)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors become one line and a hint."""
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        code = app(args=arguments, prog_name="hpsearch", standalone_mode=False)
        return int(code or 0)
    except HpsearchError as error:
        stderr.print(f"[bold red]error:[/] {escape(str(error))}")
        if error.hint:
            stderr.print(f"[bold]hint:[/] {escape(error.hint)}")
        return error.exit_code
    except UsageError as error:
        error.show()
        return InputError.exit_code
    except (typer.Abort, KeyboardInterrupt):
        stderr.print("interrupted")
        return 130
    except BrokenPipeError:  # `hpsearch status | head`
        sys.stderr.close()
        return 0
