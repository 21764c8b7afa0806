"""Rules between the sections of a study definition. Each check raises a ValueError that says what to change."""

from __future__ import annotations

from typing import Final

from hpsearch.metric import ZERO_ONE, Metric, PairedTest
from hpsearch.study.program import ObjectiveSettings, ProgramSettings
from hpsearch.study.registry import STRATEGIES, choices_by_key
from hpsearch.study.settings import PruningSettings, StoppingSettings
from hpsearch.study.space import SearchSettings

OWN_KEYS: Final = choices_by_key(STRATEGIES)  # keys of [search] that only some strategies have


def check_stopping(stopping: StoppingSettings, metric: Metric, name: str, group: str | None) -> None:
    """A rule that compares two validations of a trial needs a test for them, and rows that are independent.

    Args:
        name: of the metric in the study file.
        group: `data.group`; None: rows are not grouped, or that is not to be checked.
    """
    if stopping.rule != "significance":
        return
    if metric.test is not PairedTest.MCNEMAR:
        raise ValueError(
            f"stopping.rule significance needs metric {ZERO_ONE.name}: two validations of one trial have no test "
            f"for metric {name}"
        )
    if group is not None:
        raise ValueError(
            "stopping.rule significance takes rows as independent, which rows of one data.group are not: "
            "take geometric-patience or no-improvement-in-n"
        )


def check_own_keys(search: SearchSettings) -> None:
    """Refuse keys of [search] that the strategy does not have."""
    for name, strategies in OWN_KEYS.items():
        value, default = getattr(search, name), SearchSettings.model_fields[name].get_default()
        if search.strategy not in strategies and value != default:
            raise ValueError(
                f"search.{name} belongs to strategy {', '.join(strategies)}, not to {search.strategy}"
                + ("; a grid has all its points" if search.strategy == "grid" and name == "num_points" else "")
            )


def check_program(
    program: ProgramSettings, search: SearchSettings, stopping: StoppingSettings, pruning: PruningSettings
) -> None:
    """Refuse what needs networks of hpsearch's own."""
    if stopping.rule not in ("none", "no-improvement-in-n"):
        raise ValueError(
            f"stopping.rule {stopping.rule} counts minibatches, which a program does not report: take "
            "no-improvement-in-n, which counts reports, or none"
        )
    if pruning.pruner == "hyperband" and program.max_steps is None:
        raise ValueError(f"pruning.pruner hyperband divides trials by their steps: set {program.section}.max_steps")
    if search.budget_epochs is not None:
        raise ValueError("search.budget_epochs counts epochs of hpsearch's own networks: take budget_hours")
    if not isinstance(program, ObjectiveSettings):
        return
    if not search.is_drawn and search.strategy != "listed":
        raise ValueError(
            f"search.strategy {search.strategy} needs the dimensions, which an objective names only when "
            "it is called: take random, qmc, tpe, gp or cmaes, or listed for points of your own"
        )
    if search.dimensions and search.is_drawn:
        name = search.dimensions[0].name
        raise ValueError(f"search.{name}: the space of an objective stands in its own suggest_* calls")


def check_search(search: SearchSettings, *, has_dimensions: bool) -> None:
    """A strategy needs dimensions that it can list or draw from.

    Args:
        has_dimensions: False: an objective names them when it is called.
    """
    for dimension in search.dimensions:
        if not search.is_drawn and dimension.log_grid and dimension.log_grid.zero_share is not None:
            raise ValueError(f"search.{dimension.name}: zero_share belongs to strategies that draw")
    if search.strategy == "grid":
        for dimension in search.dimensions:
            if dimension.is_continuous:
                raise ValueError(
                    f"search.{dimension.name} is a range, which a grid cannot list: "
                    "give values or log10, or take strategy coarse-to-fine or random"
                )
    elif search.is_drawn and search.num_points is None:
        raise ValueError(f"search.num_points is missing: strategy {search.strategy} draws that many")
    elif not search.dimensions and has_dimensions:
        what = "draw from" if search.is_drawn else "look at"
        raise ValueError(f"search has no dimension for strategy {search.strategy} to {what}")


def check_num_points(search: SearchSettings, number: int) -> None:
    """Refuse more points than `search.max_points`, which guards against a slip of the pen."""
    if number > search.max_points:
        raise ValueError(
            f"the {'grid' if search.strategy == 'grid' else 'search'} has {number:,} points, "
            f"more than the limit of {search.max_points:,}: "
            f"raise it with --set search.max_points={number}"
        )
