"""A command that is imported when it is called: `--help` and the health check need not wait for torch.

Importing what all commands need takes seconds, `hpsearch health` runs every few seconds in a container.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand
from typer.main import get_command, get_group

from hpsearch.console.screen import keeps_stdout_for_data


class LazyCommand(TyperCommand):
    """Stands for a command in the list of all; gives way to it when its arguments are parsed.

    Args:
        target: `module:name` of a function, or of a Typer app with commands of its own.
        summary: the first sentence of its help, shown in the list (a test holds the two equal).
    """

    def __init__(self, name: str, target: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=None)
        self._target = target

    def load(self) -> Any:
        """The command itself, of the class that this version of typer makes of it."""
        module, _, attribute = self._target.partition(":")
        target = getattr(importlib.import_module(module), attribute)
        if isinstance(target, typer.Typer):
            return get_group(target)
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(self.name)(keeps_stdout_for_data(target))
        return get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.load().make_context(info_name, args, parent=parent, **extra)
