"""The `hpsearch` command: parses, calls, prints. stdout is data; logs and progress go to stderr.

Exit codes: 0 done, 1 the work failed, 2 bad input, 3 the surroundings (database, data files, device), 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import threading
from types import FrameType
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.text import Text
from typer.main import get_group

import hpsearch
from hpsearch import environment
from hpsearch.cli.lazy_command import LazyCommand
from hpsearch.console.notice import say
from hpsearch.console.screen import guarded_streams, stderr_console, write_line
from hpsearch.errors import HpsearchError, InputError, ReaderGoneError
from hpsearch.logs import LogFormat, configure_logging, get_logger, is_json_logging, log_final_error, show_no_password
from hpsearch.safe_text import for_terminal, remember_password, remember_passwords
from hpsearch.signals import on_end

_log = get_logger("cli")
_SECRET_VARIABLES = ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

# The base of "no such option", "missing argument" and the like. Typer has brought its own copy of click since 0.26, so
# it is reached through a class that typer exports.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__base__)

COMMANDS = (
    LazyCommand("run", "run_commands:run"),
    LazyCommand("create", "run_commands:create"),
    LazyCommand("check", "check_command:check"),
    LazyCommand("worker", "run_commands:worker"),
    LazyCommand("status", "view_commands:status"),
    LazyCommand("confirm", "confirm_command:confirm"),
    LazyCommand("test", "test_command:open_test_set"),
    LazyCommand("report", "view_commands:report"),
    LazyCommand("export", "view_commands:export"),
    LazyCommand("dashboard", "view_commands:dashboard"),
    LazyCommand("data", "data_commands:app", "Fetch, verify and describe data sets."),
    LazyCommand("health", "health_command:health"),
)

app = typer.Typer(
    name="hpsearch",
    help="Search hyper-parameters: describe a study in one TOML file, run it on any number of workers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        write_line(f"hpsearch {hpsearch.__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="More log lines on stderr.")] = False,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            envvar=environment.LOG_FORMAT, help="Of the lines on stderr; json: an object each, for collectors."
        ),
    ] = LogFormat.TEXT,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command's name."""
    if log_format is not LogFormat.TEXT:
        os.environ[environment.LOG_FORMAT] = log_format.value  # for the workers that it starts
    configure_logging(verbose=verbose, log_format=log_format)
    if threading.current_thread() is threading.main_thread():  # others cannot handle signals
        on_end(_end_like_ctrl_c)


def build_command() -> Any:
    """The whole command line, of the class that this version of typer makes of it."""
    group = get_group(app)
    for command in COMMANDS:
        group.add_command(command)
    return group


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors become one line and a hint."""
    show_no_password()
    code = run_command_line(sys.argv[1:] if arguments is None else arguments)
    gc.freeze()  # Python collects garbage once more as it ends: it need not traverse all imported modules, 0.1 s
    sys.exit(code)


def run_command_line(arguments: list[str]) -> int:
    """Run one command line and return its exit code."""
    for name, value in list(os.environ.items()):
        if name.startswith(environment.PREFIX) and not value.strip():
            del os.environ[name]
    for text in (*arguments, os.environ.get(environment.STORAGE, "")):
        remember_passwords(text)
    for name in _SECRET_VARIABLES:
        remember_password(os.environ.get(name, ""))
    with guarded_streams():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        code = build_command().main(args=arguments, prog_name="hpsearch", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except ReaderGoneError as error:
        return error.exit_code
    except HpsearchError as error:
        _report(error)
        return error.exit_code
    except UsageError as error:
        if is_json_logging():
            log_final_error(InputError(error.format_message()))
        else:
            usage = io.StringIO()
            error.show(file=usage)
            typer.echo(for_terminal(usage.getvalue()), err=True, nl=False)
        return InputError.exit_code
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted")
        return 130
    except Exception:
        if not is_json_logging():
            raise  # a bug of ours: Python shows where
        _log.critical("unexpected error", exc_info=True)
        return HpsearchError.exit_code


def _end_like_ctrl_c(number: int, frame: FrameType | None) -> NoReturn:
    """Workers first, then an embedded database, whatever asks for the end."""
    if number == signal.SIGHUP:  # a terminal that is closed sends several; a second Ctrl-C would mean: at once
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _report(error: HpsearchError) -> None:
    if is_json_logging():
        log_final_error(error)
        return
    console = stderr_console(soft_wrap=True, highlight=False)
    console.print(Text.assemble(("error:", "bold red"), " ", for_terminal(str(error))))
    if error.hint:
        console.print(Text.assemble(("hint:", "bold"), " ", for_terminal(error.hint)))
