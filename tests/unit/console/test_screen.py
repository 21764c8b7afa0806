"""The streams of a command: what is written to stderr may get lost, what is written to stdout may not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

SHOWS = """
import sys
from hpsearch.console.screen import guarded_streams, stderr_console
from rich.table import Table
with guarded_streams():
    table = Table("mean \\xb1 sd")
    table.add_row("9 of 9 \\xb7 7.5 % \\u2026")
    stderr_console().print(table)
    print("9 of 9 \\xb7 7.5 % \\u2026 \\udcff", file=sys.stderr)
    sys.stdout.write("9 of 9 \\xb7 7.5 % \\u2026 \\xb1 \\udcff\\n")
    sys.stdout.flush()
"""
ENCODINGS: list[Mapping[str, str]] = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "iso-8859-2"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.parametrize("environment", ENCODINGS, ids=lambda environment: next(iter(environment.values())))
def test_characters_that_the_encoding_lacks_are_replaced(environment: Mapping[str, str]) -> None:
    environment = {**os.environ, **environment}
    done = subprocess.run([sys.executable, "-c", SHOWS], env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"9 of 9 - 7.5 % ... \\xb1 \xff\n"
    assert done.stderr.endswith(b"9 of 9 - 7.5 % ... \xff\n")


FOREIGN = """
import sys
from hpsearch.console.notice import show_line
from hpsearch.console.screen import guarded_streams, keeps_stdout_for_data, write_document, write_line
@keeps_stdout_for_data
def command():
    print("a network of the user's prints")
    sys.stdout.write("and writes")
    write_line("data")
    write_document("\\xfcn\\xefcode\\n")
    show_line("how things are")
with guarded_streams():
    command()
    print("help")
"""


def test_what_others_print_in_a_command_goes_to_stderr() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", FOREIGN], env=environment, capture_output=True, timeout=240)
    assert done.stdout.decode() == "data\nünïcode\nhow things are\nhelp\n"
    assert done.stderr.decode() == "a network of the user's prints\nand writes"


LIBRARY = """
import sys
from hpsearch.console.notice import say
from hpsearch.console.progress_view import stderr_console
say("a line")
stderr_console().print("a table")
sys.exit(7)
"""


@pytest.mark.parametrize("screen", ["2>/dev/full", "2>&-", "2>&1 | true"])
def test_a_program_that_uses_the_package_loses_lines_and_nothing_else(screen: str) -> None:
    command = f"'{sys.executable}' -c '{LIBRARY}'"
    command = f"set -o pipefail; ({command}) {screen}"
    assert subprocess.run(["bash", "-c", command], timeout=240).returncode == 7


def test_a_closed_descriptor_is_not_given_to_the_next_file() -> None:
    program = """if True:
        import os
        from hpsearch.console.screen import guarded_streams
        with guarded_streams():
            assert os.dup(2) > 2
            os.write(1, b"into nowhere")
    """
    command = f"'{sys.executable}' -c '{program}' <&- >&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
