"""Commands that are imported when they are called: the list of all says what each says of itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from hpsearch.cli.lazy_command import LazyCommand
from hpsearch.cli.main import COMMANDS, run_command_line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_list_of_commands_says_what_each_says_of_itself(command: LazyCommand) -> None:
    own = command.load()
    assert own.get_short_help_str(50) == command.get_short_help_str(50) != ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["health", "--help"], ["health"], ["wrker"]])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str]) -> None:
    program = (
        "import sys; from hpsearch.cli.main import run_command_line; "
        "run_command_line(sys.argv[1:]); "
        "heavy = {'torch', 'optuna', 'sqlalchemy', 'numpy', 'prometheus_client'} & sys.modules.keys(); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_help_of_a_command_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["health", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Usage: hpsearch health [OPTIONS]" in said
    assert "HPSEARCH_LIFE_SIGN_MAX_AGE" in said


def test_help_of_a_group_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["data", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Usage: hpsearch data [OPTIONS] COMMAND [ARGS]" in said
    assert "verify" in said
    assert "completion" not in said


def test_a_slip_of_the_pen_is_helped(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command_line(["wrker"]) == 2
    assert "Did you mean 'worker'?" in capsys.readouterr().err


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those that a command installs are gone afterwards; that the tests run under nohup is forgotten meanwhile."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_the_first_hang_up_is_a_ctrl_c_and_those_that_follow_are_nothing() -> None:
    """A terminal that is closed sends several."""
    assert run_command_line(["data", "verify", "digits"]) == 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_a_command_can_be_called_in_a_thread() -> None:
    """Which cannot handle signals."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run_command_line, ["data", "verify", "digits"]).result() == 0
