"""A study's trials and learning curves as pandas DataFrames. Needs the optional extra `pandas`.

The columns are stable (docs/python-api.md); new columns may be added.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TRIAL_VALUES, EpochRecord

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
    "lanes": "object",
    "is_counted": "bool",
}
CURVE_COLUMNS = {"number": "int64", "point": "Int64", "epoch": "int64"} | {
    name: "float64" for name in EpochRecord._fields if name != "epoch"
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
    columns = {}
    for name, kind in TRIAL_COLUMNS.items():
        value = TRIAL_VALUES["trial" if name == "number" else name]
        columns[name] = pandas.Series(map(value, summary.trials), dtype=kind)
    frame = pandas.DataFrame(columns)
    place = frame.columns.get_loc(_KEYS_STAND_AFTER) + 1
    for offset, dimension in enumerate(summary.study.definition.search.dimensions):
        values = [trial.point_parameters.get(dimension.name) for trial in summary.trials]
        frame.insert(place + offset, dimension.name, pandas.Series(values, dtype=_type_of(values)))
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
    rows = [(trial.number, trial.point, *record) for trial in summary.trials for record in trial.curve]
    return _require_pandas().DataFrame(rows, columns=list(CURVE_COLUMNS)).astype(CURVE_COLUMNS)


def _type_of(values: Sequence[Any]) -> str:
    """A searched key's type: numeric if all present values are numbers (missing ones are NaN), otherwise object."""
    there = [value for value in values if value is not None]
    if not there or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in there):
        return "object"
    is_whole = len(there) == len(values) and all(isinstance(value, int) for value in there)
    return "int64" if is_whole else "float64"


def _require_pandas() -> ModuleType:
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("DataFrames need pandas: pip install 'hpsearch[pandas]'") from error
