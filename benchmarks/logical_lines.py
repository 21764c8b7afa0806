"""Counts the package's logical lines at one revision, or at two with the difference: `REV [REV]`.

A logical line holds code: blank lines, comments and docstrings do not count. A string of several lines counts as
many, for SQL and templates are code.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

PACKAGE = "hpsearch"
_REPOSITORY = Path(__file__).parents[1]
_NO_FOLDER = "(modules)"
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.logical_lines", description=__doc__)
    parser.add_argument("revisions", metavar="REV", nargs="+", help="one or two revisions that git knows")
    revisions = parser.parse_args(arguments).revisions
    if len(revisions) > 2:
        parser.error("at most two revisions are compared")
    counts = [count_package(revision) for revision in revisions]
    Console(soft_wrap=True).print(_table(revisions, counts))


def count_package(revision: str) -> Counter[str]:
    """Return the logical lines of each top-level folder of the package.

    Raises:
        subprocess.CalledProcessError: git does not know the revision; git has said so on stderr.
    """
    lines: Counter[str] = Counter()
    for path, source in _sources(revision):
        parts = Path(path).parts
        lines[parts[1] if len(parts) > 2 else _NO_FOLDER] += count_lines(source)
    return lines


def count_lines(source: str) -> int:
    """Return how many lines of a module hold code."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for line in _docstring_lines(node)
    }
    code = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(code - docstrings)


def _docstring_lines(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> range:
    if ast.get_docstring(node, clean=False) is None:
        return range(0)
    first = node.body[0]
    return range(first.lineno, (first.end_lineno or first.lineno) + 1)


def _sources(revision: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each module of the package."""
    archive = subprocess.run(
        ["git", "archive", "--format=tar", revision, PACKAGE], cwd=_REPOSITORY, stdout=subprocess.PIPE, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".py") else None
            if file is not None:
                yield member.name, file.read().decode()


def _table(revisions: Sequence[str], counts: Sequence[Counter[str]]) -> Table:
    table = Table("folder", *revisions, title="logical lines")
    for column in table.columns[1:]:
        column.justify = "right"
    if len(counts) == 2:
        table.add_column("difference", justify="right")
    rows = [(folder, [count[folder] for count in counts]) for folder in sorted({*counts[0], *counts[-1]})]
    for folder, lines in rows:
        table.add_row(folder, *_cells(lines))
    table.add_section()
    table.add_row("all", *_cells([count.total() for count in counts]))
    return table


def _cells(lines: Sequence[int]) -> list[str]:
    difference = [f"{lines[1] - lines[0]:+,}"] if len(lines) == 2 else []
    return [*(f"{number:,}" for number in lines), *difference]


if __name__ == "__main__":
    main()
