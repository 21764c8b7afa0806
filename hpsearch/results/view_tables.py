"""The tables of a study's best trials and confirmed configurations, which the terminal and the report both show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hpsearch.metric import Metric
from hpsearch.results.confirmation.compared import Difference
from hpsearch.results.confirmation.outcome import Confirmation, ConfirmedConfiguration
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.results.verdicts import causes_of
from hpsearch.wording import format_seconds, value_label


@dataclass(frozen=True)
class Column:
    """A heading and a cell per row.

    Args:
        is_text: aligned to the left; otherwise to the right, as numbers.
        leaves: order in which a terminal omits columns if there is no room, from 1; None: never omitted.
        is_detail: not shown on a terminal.
    """

    heading: str
    cells: Sequence[str]
    is_text: bool = False
    leaves: int | None = None
    is_detail: bool = False


@dataclass(frozen=True, kw_only=True)
class ViewTable:
    """Columns with equally many cells.

    Args:
        best_row: index of the row to emphasise; None: none.
    """

    columns: Sequence[Column]
    best_row: int | None = None


def trials_table(trials: Sequence[TrialSummary], names: Iterable[str], metric: Metric) -> ViewTable:
    """A row per trial, best first, with the searched keys of these names."""
    seconds = [trial.attributes.get("seconds") for trial in trials]
    ends = [str(trial.attributes.get("stop_reason") or trial.stored_state.name.lower()) for trial in trials]
    columns = [
        _ranks(len(trials)),
        Column(metric.validation_label, [metric.text(trial.value) for trial in trials]),
        *_training_losses(trials, metric),
        Column(f"best {metric.step}", [f"{trial.best_epoch} of {trial.num_epochs}" for trial in trials], leaves=4),
        Column("trial", [str(trial.number) for trial in trials], leaves=5),
        *(Column(name, [value_label(trial.point_parameters.get(name)) for trial in trials]) for name in names),
        Column("time", ["-" if s is None else format_seconds(s) for s in seconds], is_detail=True),
        Column("ended", ends, is_text=True, leaves=3),
    ]
    verdicts = [" + ".join(causes_of(trial)) or "-" for trial in trials]
    if any(map(causes_of, trials)):  # none in a study of an older version
        columns.append(Column("verdict", verdicts, is_text=True, leaves=1))
    return ViewTable(columns=columns, best_row=0)


def _training_losses(trials: Sequence[TrialSummary], metric: Metric) -> Iterator[Column]:
    if metric.training_loss is not None:
        yield Column(metric.training_loss, [_rounded(trial.best_validation_nll, 4) for trial in trials], leaves=2)


def configurations_table(confirmation: Confirmation) -> ViewTable:
    """A row per confirmed configuration, lowest mean error first; the chosen one is emphasised."""
    names, chosen, metric = confirmation.parameter_names, confirmation.chosen, confirmation.metric
    rows = [confirmation.configurations[index] for index in confirmation.order()]
    columns = [
        _ranks(len(rows)),
        *(Column(name, [value_label(row.parameters.get(name)) for row in rows]) for name in names),
        Column("search", [metric.text(row.search_error) for row in rows], leaves=2),
        *_compared_columns(rows, metric),
        *_sizes(rows),
        Column(f"{metric.step}s", [_rounded(row.num_epochs, 1) for row in rows], leaves=1),
        Column("seeds", [f"{len(row.trials)} of {row.num_seeds}" for row in rows], leaves=3),
    ]
    return ViewTable(columns=columns, best_row=None if chosen is None else rows.index(chosen.configuration))


def _compared_columns(configurations: Sequence[ConfirmedConfiguration], metric: Metric) -> Iterator[Column]:
    """The columns that are empty for configurations that are not compared. The first one has the lowest mean."""
    cells = []
    for place, configuration in enumerate(configurations):
        mean, worse = configuration.mean, configuration.difference
        if mean is None or worse is None:
            cells.append(("not compared", "-", "-", "-"))
        else:
            difference = _with_interval(worse, metric) if place else ""
            error = metric.loss_text(mean.mean, mean.deviation)
            interval = "-" if mean.interval is None else metric.interval_text(metric.interval_of(mean.interval))
            cells.append((error, interval, difference, "yes" if configuration.is_tied else "no"))
    means, intervals, differences, tied = zip(*cells, strict=True)
    yield Column("mean +- sd", means)
    yield Column("95 % interval", intervals, leaves=5)
    yield Column("worse by (95 %, all at once)", differences)
    yield Column("tied", tied, is_text=True)


def _with_interval(worse: Difference, metric: Metric) -> str:
    interval = "not known" if worse.interval is None else metric.interval_text(worse.interval)
    return f"{metric.text(worse.value)} ({interval})"


def _sizes(configurations: Sequence[ConfirmedConfiguration]) -> Iterator[Column]:
    sizes = [configuration.num_parameters for configuration in configurations]
    if any(size is not None for size in sizes):  # those of a program are not known
        yield Column("parameters", ["-" if size is None else f"{size:,}" for size in sizes], leaves=4)


def _ranks(number: int) -> Column:
    return Column("", [str(rank) for rank in range(1, number + 1)])


def _rounded(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"
