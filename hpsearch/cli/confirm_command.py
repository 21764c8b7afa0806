"""`hpsearch confirm STUDY`: the best points again over fresh seeds, and which of them to take."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from hpsearch.cli import options
from hpsearch.wording import counted
from hpsearch.worker.options import WorkerOptions

if TYPE_CHECKING:
    from hpsearch.results.confirmation.plan import ConfirmPlan
    from hpsearch.store.connection.database import Database


@options.with_worker_options
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
    storage: options.Storage = None,
    on: options.On = None,
    *,
    worker: WorkerOptions,
    commands: options.Commands = False,
    as_json: options.AsJson = False,
) -> None:
    """Train the best points again over fresh seeds, compare them, and pick the simplest of those that are tied.

    The trainings are trials of a companion study, which `hpsearch worker STUDY-confirm` joins from anywhere. Ctrl-C
    leaves one that the same command resumes.
    """

    from hpsearch.artifacts.best_parameters import open_artifacts
    from hpsearch.artifacts.place import artifact_place
    from hpsearch.console.launch_view import TerminalListener
    from hpsearch.console.tables import print_confirmation, print_json
    from hpsearch.launch.launcher import train_study
    from hpsearch.launch.options import LaunchOptions, check_launch
    from hpsearch.results.confirmation.plan import plan_confirmation
    from hpsearch.results.status import read_status
    from hpsearch.worker.programs.preparation import require_consent

    # Before the database is opened. How many workers the GPUs allow depends on the program, which is known later.
    check_launch(LaunchOptions(storage=storage, on=on, worker=worker))
    open_artifacts(artifact_place(worker.artifacts))  # before the companion study is created
    with options.open_storage(storage) as database:
        plan = plan_confirmation(database, study, top=top, num_seeds=seeds, name=name)
        program = plan.definition.program
        if program is not None:  # unlike that of `run`, it comes from the database
            require_consent(plan.search.study.definition, is_given=commands, command=f"hpsearch confirm {study}")
        wanted = LaunchOptions(
            storage=storage, workers=workers, on=on, worker=worker, checks=False, study=plan.definition
        )
        check_launch(wanted)
        plan = _prepare(database, plan, top)
        launch = check_launch(replace(wanted, study=plan.definition))  # others may have added points
        became = "created" if plan.is_created else "widened" if plan.num_added else "resumed"
        with launch.first_worker(plan.definition.name) as first:
            train_study(database, plan.definition, launch, first, TerminalListener(found=became))
        confirmation = read_status(database, study).confirmation
    assert confirmation is not None, "it has just been prepared"
    try:
        if as_json:
            print_json(confirmation.as_json())
        else:
            print_confirmation(confirmation)
    finally:  # the exit code is that of the work, also where nobody reads the table
        confirmation.companion.require_all_counted()


def _prepare(database: Database, plan: ConfirmPlan, top: int) -> ConfirmPlan:
    """Say what will be done, and bring the companion study to what it shall be; returns what was done."""
    from hpsearch.console.notice import say
    from hpsearch.console.progress_view import download_progress
    from hpsearch.data.files.lookup import DataLocations
    from hpsearch.results.confirmation.plan import prepare_confirmation
    from hpsearch.results.summary import describe_counts

    points = plan.search.points
    if points.unfinished:
        say(f"the search is not finished: {describe_counts(points)}; its best points may still change")
    if plan.num_configurations < top:
        found = "1 point" if plan.num_configurations == 1 else f"{plan.num_configurations} different points"
        say(f"--top {top}: the search has only {found} that are complete")
    if plan.num_configurations > top:
        say(f"--top {top}: study {plan.definition.name!r} has more points than these already; it keeps them all")
    command = plan.definition.command
    if command is not None and not command.takes_seed:
        say(
            "the command has no {seed}: the program must take its seed from hpsearch.trial.seed() or HPSEARCH_SEED, "
            "or all seeds of a point give the same value"
        )
    if plan.definition.objective is not None:
        say("seeds make a difference only if the objective takes its seed from hpsearch.trial.seed()")
    if not plan.can_seeds_matter:
        say("one seed is enough: logistic regression begins with all weights 0, and nothing is shuffled")
    each = f"{counted(plan.num_configurations, 'point')} with {counted(plan.num_seeds, 'seed')} each"
    say(
        f"confirming study {plan.search.name!r} as {plan.definition.name!r}: {each}, "
        f"{plan.num_added} of {plan.definition.num_points} trainings are new"
        + (f", and the others go on to epoch {plan.definition.training.max_epochs}" if plan.has_more_epochs else "")
    )
    with download_progress() as progress:
        return prepare_confirmation(database, plan, locations=DataLocations.from_environment(progress))
