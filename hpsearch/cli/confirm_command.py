"""`hpsearch confirm STUDY`: the best points again over fresh seeds, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from hpsearch.cli import options
from hpsearch.console.fitted_table import FittedTable, TableColumn
from hpsearch.console.launch_view import TerminalListener
from hpsearch.console.notice import say
from hpsearch.console.progress_view import download_progress
from hpsearch.console.screen import data_console
from hpsearch.console.tables import format_value, print_json, text_of
from hpsearch.data.catalog import DataLocations
from hpsearch.launch.launcher import LaunchOptions, check_launch, train_study
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.confirmation.plan import ConfirmPlan, plan_confirmation, prepare_confirmation
from hpsearch.results.confirmation.read_outcome import read_confirmation
from hpsearch.results.summary import describe_counts
from hpsearch.store.connection.database import Database
from hpsearch.worker.checkpointer import DEFAULT_CHECKPOINT_SECONDS
from hpsearch.worker.health.watchdog import DEFAULT_STALL_SECONDS

MOST = 10_000  # points, and seeds for each

# What a narrow terminal does without, first to last.
_LEAVES = {"epochs": 1, "search": 2, "seeds": 3, "parameters": 4, "95 % interval": 5}


def confirm(
    study: options.StudyName,
    top: Annotated[
        int, typer.Option(min=1, max=10_000, help="How many of the best points, each set of parameters once.")
    ] = 5,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Fresh seeds for each; called again with more, it adds what is missing."),
    ] = 10,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="STUDY-confirm", help="Of the companion study with these trials."),
    ] = None,
    workers: options.Workers = None,
    device: options.Device = "auto",
    lanes: options.Lanes = "auto",
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
    on: options.On = None,
    wait_for_gpu: options.WaitForGpu = True,
    share_gpu: options.ShareGpu = False,
    checkpoint_seconds: options.CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS,
    stall_seconds: options.StallSeconds = DEFAULT_STALL_SECONDS,
    metrics: options.Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Train the best points again over fresh seeds, compare them, and pick the simplest of those that are tied.

    The trainings are trials of a companion study, which `hpsearch worker STUDY-confirm` joins from anywhere. Ctrl-C
    leaves one that the same command resumes.
    """
    options.parse_lanes(lanes)
    launch = check_launch(
        LaunchOptions(
            storage=storage,
            artifacts=artifacts,
            workers=workers,
            device=device,
            lanes=lanes,
            on=on,
            waits_for_gpu=wait_for_gpu,
            shares_gpu=share_gpu,
            checkpoint_seconds=checkpoint_seconds,
            stall_seconds=stall_seconds,
            metrics=options.parse_metrics(metrics),
        )
    )
    with options.open_storage(storage) as database:
        plan = plan_confirmation(database, study, top=top, num_seeds=seeds, name=name)
        plan = _prepare(database, plan, top)
        became = "created" if plan.is_created else "widened" if plan.num_added else "resumed"
        train_study(database, plan.definition, launch, TerminalListener(found=became))
        confirmation = read_confirmation(database, study)
    assert confirmation is not None, "it has just been prepared"
    try:
        if as_json:
            print_json(confirmation.as_json())
        else:
            print_confirmation(confirmation)
    finally:  # the exit code is that of the work, also where nobody reads the table
        confirmation.companion.require_all_counted()


def print_confirmation(confirmation: Confirmation) -> None:
    """A table of the configurations, best first, with what one must know beside it and the conclusion."""
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


def _prepare(database: Database, plan: ConfirmPlan, top: int) -> ConfirmPlan:
    """Say what will be done, and bring the companion study to what it shall be; returns what was done."""
    points = plan.search.points
    if points.unfinished:
        say(f"the search is not finished: {describe_counts(points)}; its best points may still change")
    if plan.num_configurations < top:
        found = "1 point" if plan.num_configurations == 1 else f"{plan.num_configurations} different points"
        say(f"--top {top}: the search has only {found} that are complete")
    if plan.num_configurations > top:
        say(f"--top {top}: study {plan.definition.name!r} has more points than these already; it keeps them all")
    if not plan.can_seeds_matter:
        say("one seed is enough: logistic regression begins with all weights 0, and nothing is shuffled")
    each = f"{_number(plan.num_configurations, 'point')} with {_number(plan.num_seeds, 'seed')} each"
    say(
        f"confirming study {plan.search.name!r} as {plan.definition.name!r}: {each}, "
        f"{plan.num_added} of {plan.definition.num_points} trainings are new"
    )
    with download_progress() as progress:
        return prepare_confirmation(database, plan, locations=DataLocations.from_environment(), progress=progress)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
