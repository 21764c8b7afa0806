"""The count of logical lines: code alone, whatever the layout of comments and docstrings."""

from __future__ import annotations

import subprocess
from collections import Counter

import pytest

from benchmarks import logical_lines

SOURCE = '''"""A module.

Its docstring has three lines.
"""

from math import (
    pi,  # a comment beside code
)

# A comment of its own.

SQL = """
    SELECT 1
"""


class Nothing:
    """Neither has this."""

    "a string that documents nothing, but stands alone"

    def what(self) -> float:
        """One line."""
        return pi
'''


def test_only_lines_with_code_count() -> None:
    # The import 3, SQL 3, the class 1, the lone string 1, the function 2.
    assert logical_lines.count_lines(SOURCE) == 10
    assert logical_lines.count_lines("") == 0
    assert logical_lines.count_lines("# nothing\n") == 0


def test_two_revisions_are_compared_folder_by_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"before": Counter({"store": 1200, "(modules)": 30}), "after": Counter({"store": 1100, "cli": 5})}
    monkeypatch.setattr(logical_lines, "count_package", counts.__getitem__)
    logical_lines.main(["before", "after"])
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["store", "1,200", "1,100", "-100"] in rows
    assert ["cli", "0", "5", "+5"] in rows
    assert ["all", "1,230", "1,105", "-125"] in rows


def test_the_modules_of_a_revision_are_found_by_their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [("hpsearch/api.py", "a = 1\n"), ("hpsearch/store/rows/points.py", "b = 1\nc = 1\n")]
    monkeypatch.setattr(logical_lines, "_sources", lambda revision: iter(sources))
    assert logical_lines.count_package("HEAD") == {"(modules)": 1, "store": 2}


def test_more_than_two_revisions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        logical_lines.main(["a", "b", "c"])
    assert "at most two revisions" in capsys.readouterr().err


def test_a_revision_that_git_does_not_know_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        logical_lines.count_package("no-such-revision")
