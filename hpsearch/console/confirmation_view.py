"""The final output of `hpsearch confirm`: a table of the configurations, and the chosen one."""

from __future__ import annotations

from collections.abc import Sequence

from hpsearch.console.fitted_table import FittedTable, TableColumn
from hpsearch.console.screen import data_console, text_of
from hpsearch.console.tables import format_value
from hpsearch.results.confirmation.outcome import Confirmation

# The columns that are left out on a narrow terminal, in this order.
_LEAVES = {"epochs": 1, "search": 2, "seeds": 3, "parameters": 4, "95 % interval": 5}


def print_confirmation(confirmation: Confirmation) -> None:
    """Print a table of the configurations, best first, the notes that qualify it, and the conclusion."""
    console = data_console()
    console.print(text_of(f"study {confirmation.study}, confirmed in {confirmation.companion.name}"))
    console.print(_table(confirmation), crop=False)
    conclusion = confirmation.conclusion()
    lines = [f"note: {note}" for note in confirmation.notes] + ([conclusion] if conclusion else [])
    for line in lines:
        console.print(text_of(line), soft_wrap=True)


def _table(confirmation: Confirmation) -> FittedTable:
    order, chosen = confirmation.order(), confirmation.chosen
    names = confirmation.parameter_names
    rows = [_cells(confirmation, index, number, names) for number, index in enumerate(order, start=1)]
    headings = ("", *names, "search", "mean +- sd", "95 % interval", "worse by (95 %, all at once)", "tied")
    headings += ("parameters", "epochs", "seeds")
    columns = [
        TableColumn(
            heading=heading,
            cells=[row[place] for row in rows],
            justify="left" if heading == "tied" else "right",
            leaves=_LEAVES.get(heading) if place > len(names) else None,  # a searched key may be called `epochs`
        )
        for place, heading in enumerate(headings)
    ]
    is_chosen = [chosen is not None and confirmation.configurations[i] is chosen.configuration for i in order]
    return FittedTable(columns, bold_row=is_chosen.index(True) if any(is_chosen) else None)


def _cells(confirmation: Confirmation, index: int, number: int, names: Sequence[str]) -> list[str]:
    configuration = confirmation.configurations[index]
    mean, difference = confirmation.mean_of(index), confirmation.difference_of(index)
    told = [format_value(configuration.parameters.get(name)) for name in names]
    told.append("-" if configuration.search_error is None else f"{configuration.search_error:.2%}")
    if mean is None or difference is None:
        told += ["-"] * 4
    else:
        told.append(f"{mean.mean:.2%}" + ("" if mean.deviation is None else f" +- {100 * mean.deviation:.2f}"))
        told.append(_interval(mean.interval))
        is_winner = index == confirmation.winner
        told.append("" if is_winner else f"{difference.value:.2%} ({_interval(difference.interval)})")
        told.append("yes" if index in confirmation.tied else "no")
    told.append(f"{configuration.num_parameters:,}")
    told.append("-" if configuration.num_epochs is None else f"{configuration.num_epochs:.1f}")
    told.append(f"{len(configuration.trials)} of {configuration.num_seeds}")
    return [str(number), *told]


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {interval[1]:.2%}"
