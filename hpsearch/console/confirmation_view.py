"""The final output of `hpsearch confirm`: a table of the configurations, and the chosen one."""

from __future__ import annotations

from hpsearch.console.fitted_table import FittedTable
from hpsearch.console.screen import data_console, text_of
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.view_tables import configurations_table


def print_confirmation(confirmation: Confirmation) -> None:
    """Print a table of the configurations, best first, the notes that qualify it, and the conclusion."""
    console = data_console()
    console.print(text_of(f"study {confirmation.study}, confirmed in {confirmation.companion.name}"))
    console.print(FittedTable(configurations_table(confirmation)), crop=False)
    for line in [*(f"note: {note}" for note in confirmation.notes), confirmation.conclusion()]:
        if line:
            console.print(text_of(line), soft_wrap=True)
