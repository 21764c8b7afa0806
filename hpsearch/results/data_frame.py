"""A study's trials and learning curves as pandas DataFrames. Needs the optional extra `pandas`.

The columns are stable (docs/python-api.md); new columns may be added.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from hpsearch.epoch_report import Diagnosis
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
    "verdict": "object",
    "verdict_detail": "object",
    "update_ratio": "float64",
    "gradient_norm": "float64",
    "generalization_gap": "float64",
    "is_counted": "bool",
    "continues_trial": "Int64",
}
# Those of the diagnosis are NaN after epochs in which the network was not looked at.
_DIAGNOSED = ("nll", "gradient_norm", "gradient_noise", "penalty_norm", "saturated", "dead", "update_ratio")
CURVE_COLUMNS = {"number": "int64", "point": "Int64", "epoch": "int64"} | {
    name: "float64"
    for name in (*EpochRecord._fields, *("batch_nll" if name == "nll" else name for name in _DIAGNOSED))
    if name != "epoch"
}
_KEYS_STAND_AFTER = "value"


def trials_frame(summary: StudySummary) -> Any:
    """One row per trial, best first, including failed attempts: `TRIAL_COLUMNS`, and one column per searched key.

    A key of a program that has the name of another column gets the prefix `params_`, twice if
    another key has that name.

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
    taken = set(summary.searched_names)
    place = frame.columns.get_loc(_KEYS_STAND_AFTER) + 1
    for offset, searched in enumerate(summary.searched_names):
        values = [trial.point_parameters.get(searched) for trial in summary.trials]
        name = searched
        while name in TRIAL_COLUMNS or (name != searched and name in taken):
            name = f"params_{name}"
        taken.add(name)
        frame.insert(place + offset, name, pandas.Series(values, dtype=_type_of(values)))
    return frame


def curves_frame(summary: StudySummary) -> Any:
    """One row per trial and epoch, trials best first: `CURVE_COLUMNS`, and `update_ratio:WEIGHT` for each weight.

    The column of the value has the name of the study's metric: `zero_one`, `rmse` ...; that of a program is `value`.

    Args:
        summary: read with its curves.
    Returns:
        A pandas.DataFrame.
    Raises:
        ImportError: pandas is not installed.
    """
    looked_at = [diagnosis for trial in summary.trials for diagnosis in trial.diagnoses.values()]
    weights = dict.fromkeys(name for diagnosis in looked_at for name in diagnosis.update_ratios)
    rows = [
        (trial.number, trial.point, *record, *_diagnosed(trial.diagnoses.get(record.epoch), weights))
        for trial in summary.trials
        for record in trial.curve
    ]
    value = "value" if summary.metric.is_reported else summary.metric.name.replace("-", "_")
    columns = {value if name == "value" else name: kind for name, kind in CURVE_COLUMNS.items()}
    columns |= {f"update_ratio:{name}": "float64" for name in weights}
    return _require_pandas().DataFrame(rows, columns=list(columns)).astype(columns)


def _diagnosed(diagnosis: Diagnosis | None, weights: Iterable[str]) -> tuple[float | None, ...]:
    numbers = (getattr(diagnosis, name, None) for name in _DIAGNOSED)
    ratios = {} if diagnosis is None else diagnosis.update_ratios
    return (*numbers, *(ratios.get(name) for name in weights))


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
