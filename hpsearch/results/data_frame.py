"""A study's trials and learning curves as pandas DataFrames. Needs the optional extra `pandas`.

The columns are stable (docs/python-api.md); new columns may be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from optuna.trial import TrialState

from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TrialSummary

# The columns other than the searched keys, with their pandas types. Times are UTC; missing values are <NA>, NaN or NaT.
TRIAL_COLUMNS = {
    "number": "int64",
    "point": "Int64",
    "state": "object",
    "value": "float64",
    "best_epoch": "Int64",
    "epochs": "int64",
    "validation_nll": "float64",
    "stop_reason": "object",
    "seconds": "float64",
    "started_at": "datetime64[ns, UTC]",
    "ended_at": "datetime64[ns, UTC]",
    "worker": "object",
    "device": "object",
    "is_counted": "bool",
}
CURVE_COLUMNS = {
    "number": "int64",
    "point": "Int64",
    "epoch": "int64",
    "zero_one": "float64",
    "train_nll": "float64",
    "validation_nll": "float64",
    "learning_rate": "float64",
    "seconds": "float64",
}
_KEYS_STAND_AFTER = "value"


def trials_frame(summary: StudySummary) -> Any:
    """One row per trial, best first, including failed attempts: `TRIAL_COLUMNS`, and one column per searched key.

    Returns:
        A pandas.DataFrame.
    Raises:
        ImportError: pandas is not installed.
    """
    pandas = _require_pandas()
    keys = [dimension.name for dimension in summary.study.definition.search.dimensions]
    frame = _frame(pandas, [_trial_row(trial) for trial in summary.trials], TRIAL_COLUMNS)
    place = frame.columns.get_loc(_KEYS_STAND_AFTER) + 1
    for offset, key in enumerate(keys):
        frame.insert(
            place + offset, key, _values(pandas, [trial.point_parameters.get(key) for trial in summary.trials])
        )
    return frame


def curves_frame(summary: StudySummary) -> Any:
    """One row per trial and epoch, trials best first: `CURVE_COLUMNS`.

    Args:
        summary: read with its curves.
    Returns:
        A pandas.DataFrame.
    Raises:
        ImportError: pandas is not installed.
    """
    rows = [
        (
            trial.number,
            trial.point,
            record.epoch,
            record.zero_one,
            record.train_nll,
            record.validation_nll,
            record.learning_rate,
            record.seconds,
        )
        for trial in summary.trials
        for record in trial.curve
    ]
    return _frame(_require_pandas(), rows, CURVE_COLUMNS)


def _trial_row(trial: TrialSummary) -> tuple[Any, ...]:
    attributes = trial.attributes
    return (
        trial.number,
        trial.point,
        trial.state.name,
        trial.value,
        trial.best_epoch,
        trial.num_epochs,
        trial.best_validation_nll,
        attributes.get("stop_reason"),
        attributes.get("seconds"),
        trial.started_at,
        trial.ended_at,
        attributes.get("worker"),
        attributes.get("device"),
        trial.is_current and trial.state in (TrialState.COMPLETE, TrialState.PRUNED),
    )


def _frame(pandas: ModuleType, rows: Sequence[tuple[Any, ...]], types: dict[str, str]) -> Any:
    columns = list(zip(*rows, strict=True)) or [()] * len(types)
    series = {
        name: pandas.Series(list(column), dtype=kind)
        for (name, kind), column in zip(types.items(), columns, strict=True)
    }
    return pandas.DataFrame(series)


def _values(pandas: ModuleType, values: Sequence[Any]) -> Any:
    """A searched key's values: numeric if all present values are numbers (missing ones are NaN), otherwise objects."""
    there = [value for value in values if value is not None]
    is_numeric = bool(there) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in there)
    if not is_numeric:
        return pandas.Series(list(values), dtype="object")
    if len(there) == len(values) and all(isinstance(value, int) for value in there):
        return pandas.Series(list(values), dtype="int64")
    return pandas.Series(list(values), dtype="float64")


def _require_pandas() -> ModuleType:
    try:
        import pandas
    except ImportError as error:
        raise ImportError("DataFrames need pandas: pip install 'hpsearch[pandas]'") from error
    module: ModuleType = pandas
    return module
