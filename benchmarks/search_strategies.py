"""What a search finds for its epochs: coarse to fine against the full fine grid, random search and TPE.

    python -m benchmarks.search_strategies       # planted surfaces with a known optimum, and recorded trials of MNIST
    python -m benchmarks.search_strategies --tiny
    python -m benchmarks.search_strategies --document docs/search.md    # put the stored result's tables there

Planted surfaces (planted_surfaces.py) know the true error of a point; the table shows by how much the chosen point's
lies above the lowest one. All trials of a surface cost the same. Coarse to fine starts from the decades that a user
would write; the fine grid has four values per decade between the same ends; random search and TPE draw between the
same ends, as many trials as a quarter of the fine grid has, and as many as coarse to fine had. They are measured in the
service itself: a worker claims, draws and writes each trial, in a database, and only the training is planted.

Recorded trials: every point of a fine grid was trained on MNIST once per seed, with the correctness of each validation
image after each epoch. A strategy runs on the trials of one seed, asks for cells of the table only (random search and
TPE get the nearest one), and pays for each the epochs until geometric patience stops it. What the chosen cell is worth
is its mean error with the *other* seeds, so that nobody profits from a lucky trial.

Strategies choose the trial with the lowest validation error. Coarse to fine is told by the exact McNemar test on the
validation images which trials differ significantly (two-sided, 5 %).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import optuna

from benchmarks.measurement import RESULTS, machine, mean_and_interval, run_script, say, write_result
from benchmarks.planted_surfaces import SURFACES, PlantedTrials, Surface, bits_differ, dimension_of
from benchmarks.planted_worker import PlantedStudies, curve_of_value, planted_studies
from benchmarks.recorded_trials import RECORDED, RecordedTrials, read_tables, worth
from hpsearch.atomic_file import write_file
from hpsearch.errors import InputError
from hpsearch.search.narrowing.closed_round import Finished, KnownPoint, Round
from hpsearch.search.narrowing.ladder import Narrowing
from hpsearch.study.settings import StoppingSettings, TrainingSettings, TrialSettings
from hpsearch.study.space import Choice, Dimension, LogGrid, ParameterValue, Point, grid_points

FINE_PER_DECADE = 4
FIRST_REPETITION = 1000  # the variant was chosen on placements below 100: these were never looked at before
PART_OF_FINE = 0.25  # the goal: the fine grid's best for so much of its cost
PARTS = (0.2, PART_OF_FINE)  # of the recorded trials' epochs, for random search and TPE
DRAWN = ("random", "tpe")
# Where coarse to fine starts on the recorded trials: the notes' learning rates, one more, and three shifted grids.
USER_GRIDS: Mapping[str, Mapping[str, LogGrid]] = {
    f"from 10^{first:g}": {
        "learning_rate": LogGrid(log10=(first, last)),
        "lambda_2": LogGrid(log10=(-2, -5), zero=True),
    }
    for first, last in ((-1, -4), (0, -4), (-0.75, -3.75), (-0.5, -3.5), (-0.25, -3.25))
}


Run = Callable[[Point], KnownPoint]
CostOf = Callable[[KnownPoint], int]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What one strategy did once: its trials in order."""

    trials: tuple[KnownPoint, ...]
    rounds: int = 1

    @property
    def best(self) -> KnownPoint:
        return min((trial for trial in self.trials if trial.value is not None), key=_rank)


def coarse_to_fine(
    dimensions: Sequence[Dimension], run: Run, is_admissible: Callable[[Point], bool] = lambda point: True
) -> Search:
    narrowing = Narrowing(dimensions, is_admissible=is_admissible)
    known: list[KnownPoint] = []
    step: Round | Finished = narrowing.first_round()
    rounds = 0
    while isinstance(step, Round):
        known += [run(point) for point in step.points]
        rounds += 1
        step = narrowing.next_round(step.state, known, bits_differ)
    return Search(trials=tuple(known), rounds=rounds)


def full_grid(dimensions: Sequence[Dimension], run: Run) -> Search:
    return Search(trials=tuple(run(point) for point in grid_points(tuple(dimensions))))


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """Random search and TPE as `hpsearch run` does them: by a worker in one lane, with a database of its own."""

    studies: PlantedStudies

    def search(
        self,
        strategy: str,
        space: Mapping[str, LogGrid | Choice],
        run: Run,
        *,
        seed: int,
        budget: int,
        cost_of: CostOf = lambda _: 1,
        most: int = 1,
    ) -> Search:
        """One trial after the other; none begins when those before have cost as much as the budget.

        Args:
            most: that a trial may cost.
        """
        trials: list[KnownPoint] = []

        def curve(settings: TrialSettings) -> Sequence[float]:
            trials.append(run({name: _value(settings, name) for name in space}))
            return curve_of_value(trials[-1].value)

        dimensions = {name: _in_a_study_file(shape) for name, shape in space.items()}
        study = self.studies.create(strategy, dimensions, num_points=math.ceil(budget / most), seed=seed)
        while True:
            self.studies.worker(study, curve).run()
            spent = sum(map(cost_of, trials))
            if spent >= budget:
                return Search(trials=tuple(trials))
            study = self.studies.widen(study, len(trials) + math.ceil((budget - spent) / most))


def _value(settings: TrialSettings, name: str) -> ParameterValue:
    section = settings.training if name in TrainingSettings.model_fields else settings.model
    value: ParameterValue = getattr(section, name)
    return value


def _in_a_study_file(shape: LogGrid | Choice) -> Any:
    if isinstance(shape, Choice):
        return list(shape.values)
    return {"log10": list(shape.log10), "per_decade": shape.per_decade, "zero": shape.zero}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one strategy found once.

    Args:
        cost: trials, or trial-epochs.
        excess: planted: the chosen point's true error over the lowest one, less 1; recorded: its error with the
            other seeds.
        part: cost over the fine grid's.
        part_to_fine: the same when its best so far first did not differ significantly from the fine grid's best, or
            was lower; None: never.
    """

    cost: int
    excess: float
    part: float
    part_to_fine: float | None
    rounds: int = 1

    def as_text(self) -> str:
        """One line of numbers, so that the file can keep every repetition."""
        part_to_fine = "-" if self.part_to_fine is None else f"{self.part_to_fine:.4f}"
        return f"{self.cost} {self.excess:.5f} {self.part:.4f} {part_to_fine} {self.rounds}"

    @classmethod
    def of_text(cls, line: str) -> Self:
        """What `as_text` has written."""
        cost, excess, part, part_to_fine, rounds = line.split()
        return cls(
            cost=int(cost),
            excess=float(excess),
            part=float(part),
            part_to_fine=None if part_to_fine == "-" else float(part_to_fine),
            rounds=int(rounds),
        )


Outcomes = dict[str, list[Outcome]]


def planted_outcomes(place: Callable[[np.random.Generator], Surface], repetitions: int, drawer: Drawer) -> Outcomes:
    """All strategies on a surface that is placed anew for each repetition; a trial costs 1."""
    outcomes: Outcomes = {}
    for repetition in range(FIRST_REPETITION, FIRST_REPETITION + repetitions):
        surface = place(np.random.default_rng([repetition, 7]))
        run = PlantedTrials(surface, repetition).run
        fine = full_grid(surface.dimensions(per_decade=FINE_PER_DECADE), run)
        ours = coarse_to_fine(surface.dimensions(), run)
        num_fine, num_ours = len(fine.trials), len(ours.trials)
        num_part = round(PART_OF_FINE * num_fine)
        searches = {"fine grid": fine, "coarse to fine": ours}
        for strategy in DRAWN:
            budget = max(num_ours, num_part)
            search = drawer.search(strategy, surface.search_space, run, seed=repetition, budget=budget)
            searches[f"{strategy}, as many trials"] = Search(trials=search.trials[:num_ours])
            searches[f"{strategy}, a quarter"] = Search(trials=search.trials[:num_part])
        for name, search in searches.items():
            error = surface.error(search.best.point)
            assert error is not None
            outcomes.setdefault(name, []).append(
                _outcome(search, fine, cost_of=lambda _: 1, fine_cost=num_fine, excess=error / surface.lowest - 1)
            )
    return outcomes


def recorded_outcomes(tables: Sequence[RecordedTrials], draws: int, drawer: Drawer) -> Outcomes:
    """All strategies on the recorded trials of each seed; a trial costs its epochs.

    Args:
        draws: how often random search and TPE run on each table, between its ends.
    """
    outcomes: Outcomes = {}
    for table in tables:

        def run(point: Point, table: RecordedTrials = table) -> KnownPoint:
            return table.nearest(point).known

        def cost_of(trial: KnownPoint, table: RecordedTrials = table) -> int:
            return table.nearest(trial.point).epochs

        fine = Search(trials=tuple(cell.known for cell in table.cells.values()))
        fine_cost = sum(cell.epochs for cell in table.cells.values())
        most = max(cell.epochs for cell in table.cells.values())
        searches = [("fine grid", fine)]
        for name, grid in USER_GRIDS.items():
            searches.append((f"coarse to fine, {name}", coarse_to_fine(_dimensions(grid), run, table.has)))
        for strategy, draw, part in itertools.product(DRAWN, range(draws), PARTS):
            seed, budget = 1000 * table.seed + draw, round(part * fine_cost)
            search = drawer.search(strategy, _ends(table), run, seed=seed, budget=budget, cost_of=cost_of, most=most)
            searches.append((f"{strategy}, {part:.0%}", search))
        for name, search in searches:
            excess = worth(search.best.point, tables, without_seed=table.seed)
            outcomes.setdefault(name, []).append(
                _outcome(search, fine, cost_of=cost_of, fine_cost=fine_cost, excess=excess)
            )
    return outcomes


def markdown_table(outcomes: Outcomes, *, is_planted: bool) -> list[str]:
    """One row per strategy."""
    excess = "true error over the lowest, %" if is_planted else "error with other seeds, %"
    lines = [
        f"| strategy | {'trials' if is_planted else 'epochs'} | of the fine grid's | rounds | {excess} "
        "| less the fine grid's | as good as its best at | reached |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    fine = [outcome.excess for outcome in outcomes["fine grid"]]
    for name, ones in outcomes.items():
        # Draws of a strategy on the same table are no independent evidence: only their mean counts.
        times = len(ones) // len(fine)
        means = [100 * statistics.mean(one.excess for one in ones[i : i + times]) for i in range(0, len(ones), times)]
        mean, half = mean_and_interval(means)
        difference, half_difference = mean_and_interval([a - 100 * b for a, b in zip(means, fine, strict=True)])
        reached = [one.part_to_fine for one in ones if one.part_to_fine is not None]
        cells = [
            name,
            f"{statistics.mean(one.cost for one in ones):.0f}",
            f"{statistics.mean(one.part for one in ones):.0%}",
            f"{statistics.mean(one.rounds for one in ones):.1f}" if name.startswith("coarse") else "",
            f"{mean:.2f} +- {half:.2f}",
            "" if name == "fine grid" else f"{difference:+.2f} +- {half_difference:.2f}",
            f"{statistics.mean(reached):.0%}" if reached else "",
            f"{len(reached) / len(ones):.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def with_tables(document: str, details: Mapping[str, Any]) -> str:
    """The document with the tables of these results, each below the line that begins with its name in bold.

    Raises:
        InputError: it has no such line with a table.
    """
    for name, rows in details.items():
        if name == "columns":
            continue
        outcomes = {row: [Outcome.of_text(line) for line in lines] for row, lines in rows.items()}
        table = "\n".join(markdown_table(outcomes, is_planted=name != "recorded"))
        heading = _HEADINGS.get(name, name.capitalize())
        place = re.compile(rf"(^\*\*{heading}\*\*:.*\n\n)((?:\|.*\n)+)", re.MULTILINE)
        document, number = place.subn(lambda found, table=table: f"{found[1]}{table}\n", document)  # type: ignore[misc]
        if number != 1:
            raise InputError(f"there are {number} tables below **{heading}**:, expected 1")
    return document


_HEADINGS = {"noisy plateau": "Plateau", "recorded": "MNIST"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.document is not None:
        details = json.loads(options.output.read_text())["details"]
        write_file(options.document, with_tables(options.document.read_text(), details))
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = machine()
    with planted_studies() as studies:
        details = _compare(options, Drawer(studies=studies))
    if options.tiny:
        return
    write_result(
        options.output,
        title="Error found against cost: coarse to fine, the full fine grid, random search, TPE",
        machine=before,
        settings={"repetitions": options.repetitions, "draws": options.draws, "patience": options.patience},
        details=details,
    )


def _compare(options: argparse.Namespace, drawer: Drawer) -> dict[str, Any]:
    details: dict[str, Any] = {"columns": "cost excess part part_to_fine rounds"}
    for place in SURFACES[:1] if options.tiny else SURFACES:
        name = place(np.random.default_rng(0)).name
        outcomes = planted_outcomes(place, 2 if options.tiny else options.repetitions, drawer)
        details[name] = _report(f"planted: {name}", outcomes, is_planted=True)
    folder = options.table or (None if options.tiny else RECORDED)
    if folder is not None:
        tables = read_tables(folder, StoppingSettings(patience=options.patience), options.minibatches)
        outcomes = recorded_outcomes(tables, options.draws, drawer)
        details["recorded"] = _report(f"recorded: MNIST, {len(tables)} seeds", outcomes, is_planted=False)
    return details


def _report(title: str, outcomes: Outcomes, *, is_planted: bool) -> dict[str, list[str]]:
    print(f"{title}\n", *markdown_table(outcomes, is_planted=is_planted), "", sep="\n", flush=True)
    say(f"done: {title}")
    return {name: [one.as_text() for one in ones] for name, ones in outcomes.items()}


def _outcome(search: Search, fine: Search, *, cost_of: CostOf, fine_cost: int, excess: float) -> Outcome:
    best, cost, cost_to_fine = None, 0, None
    for trial in search.trials:
        cost += cost_of(trial)
        if trial.value is None or (best is not None and _rank(trial) >= _rank(best)):
            continue
        best = trial
        if cost_to_fine is None and (_rank(best) <= _rank(fine.best) or not bits_differ(best, fine.best)):
            cost_to_fine = cost
    return Outcome(
        cost=cost,
        excess=excess,
        part=cost / fine_cost,
        part_to_fine=None if cost_to_fine is None else cost_to_fine / fine_cost,
        rounds=search.rounds,
    )


def _dimensions(grid: Mapping[str, LogGrid]) -> tuple[Dimension, ...]:
    return tuple(dimension_of(name, shape, shape.per_decade) for name, shape in grid.items())


def _ends(table: RecordedTrials) -> dict[str, LogGrid]:
    """The table's own ends, for those that draw."""
    weights = [weight for _, weight in table.cells if weight > 0]
    return {
        "learning_rate": _log_grid(table.learning_rates, has_zero=False),
        "lambda_2": _log_grid(weights, has_zero=True),
    }


def _log_grid(values: Sequence[float], *, has_zero: bool) -> LogGrid:
    low, high = (round(math.log10(value), 6) for value in (min(values), max(values)))
    return LogGrid(log10=(high, low), per_decade=FINE_PER_DECADE, zero=has_zero)


def _rank(trial: KnownPoint) -> tuple[float, float]:
    assert trial.value is not None
    return trial.value, math.inf if trial.nll is None else trial.nll


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100, help="of each planted surface")
    parser.add_argument("--table", type=Path, help=f"a folder of recorded trials, table_SEED.npz (default: {RECORDED})")
    parser.add_argument("--draws", type=int, default=10, help="of random search and TPE on each recorded table")
    parser.add_argument("--patience", type=int, default=StoppingSettings().patience)
    parser.add_argument("--minibatches", type=int, default=1000, help="of an epoch of the recorded trials")
    parser.add_argument("--tiny", action="store_true", help="one surface, twice, and no recorded trials but of --table")
    parser.add_argument("--output", type=Path, default=RESULTS / "search_strategies.json")
    parser.add_argument("--document", type=Path, help="measure nothing: put the tables of --output into this file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
