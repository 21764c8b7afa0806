"""A command that is imported when it is called: `--help` and the health check need not wait for torch.

Importing what all commands need takes seconds, `hpsearch health` runs every few seconds in a container.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

from hpsearch.cli.loading import loading
from hpsearch.console.screen import keeps_stdout_for_data


class LazyCommand(TyperCommand):
    """Stands for a command in the list of all; gives way to it when its arguments are parsed.

    Args:
        target: `module:name` of a function in this folder, or of a Typer app with commands of its own.
        summary: shown in the list of all commands; None: the first sentence of the function's docstring.
    """

    def __init__(self, name: str, target: str, summary: str | None = None) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._module, _, self._attribute = target.partition(":")

    def get_short_help_str(self, limit: int = 45) -> str:
        """The summary, read from the source: importing all commands would take longer than all else in `--help`."""
        if self.help is None:
            functions = ast.parse(Path(__file__).with_name(f"{self._module}.py").read_text(encoding="utf-8")).body
            named = (node for node in functions if isinstance(node, ast.FunctionDef) and node.name == self._attribute)
            self.help = ast.get_docstring(next(named))
        return super().get_short_help_str(limit)

    def load(self) -> Any:
        """The command itself, of the class that this version of typer makes of it."""
        with loading():
            target = getattr(importlib.import_module(f"hpsearch.cli.{self._module}"), self._attribute)
        if isinstance(target, typer.Typer):
            return get_group(target)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(self.name)(keeps_stdout_for_data(target))
        return get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)
