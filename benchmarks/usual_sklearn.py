"""What people do today with a table: scikit-learn's MLP in a pipeline, searched by plain Optuna. No part of hpsearch.

`own_data.py` starts it as a process, with the rows of each part:

    python -m benchmarks.usual_sklearn REQUEST.json              # search, then judge the best trial on the test rows
    python -m benchmarks.usual_sklearn REQUEST.json --boosting   # HistGradientBoosting at its defaults

The last line on stdout is JSON. Each trial is fitted on the training rows and judged on the validation rows; the best
one predicts the test rows, once.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a data set, in the order of their file.

    Args:
        y: classes from 0, or numbers.
        rows: part -> row numbers.
    """

    x: pd.DataFrame = field(repr=False)
    y: NDArray[Any] = field(repr=False)
    rows: Mapping[str, NDArray[np.int64]] = field(repr=False)
    metric: str

    @classmethod
    def read(cls, request: Mapping[str, Any]) -> Table:
        """The table that `own_data.request` names."""
        rows = {part: np.array(numbers) for part, numbers in request["rows"].items()}
        if request["file"] is None:
            x, y = load_breast_cancer(return_X_y=True, as_frame=True)
            return cls(x=x, y=y.to_numpy(), rows=rows, metric=request["metric"])
        frame = pd.read_csv(request["file"])
        y = frame[request["target"]].to_numpy(dtype=np.float64 if request["metric"] == "rmse" else np.int64)
        return cls(x=frame[list(request["columns"])], y=y, rows=rows, metric=request["metric"])

    def part(self, name: str) -> tuple[pd.DataFrame, NDArray[Any]]:
        return self.x.iloc[self.rows[name]], self.y[self.rows[name]]

    def loss(self, name: str, model: Callable[[pd.DataFrame], NDArray[Any]]) -> float:
        """A loss of the metric on one part: lower is better (1 - AUC).

        Args:
            model: gives values in the target's unit, classes, or for the AUC scores of class 1.
        """
        x, y = self.part(name)
        predicted = model(x)
        if self.metric == "rmse":
            return float(np.sqrt(np.mean((predicted - y) ** 2)))
        if self.metric == "auc":
            return 1.0 - float(roc_auc_score(y, predicted))
        return float(np.mean(predicted != y))


def preparation(x: pd.DataFrame) -> ColumnTransformer:
    """Median and standardisation for numbers, most frequent value and one-hot for text."""
    numbers = [str(name) for name in x.select_dtypes("number").columns]
    texts = [str(name) for name in x.columns if name not in numbers]
    of_numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    of_texts = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    )
    return ColumnTransformer([("numbers", of_numbers, numbers), ("texts", of_texts, texts)])


def suggest(trial: optuna.Trial, space: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of MLPClassifier or MLPRegressor; others stay at their defaults (Adam, relu)."""
    chosen: dict[str, Any] = {
        "hidden_layer_sizes": (trial.suggest_int("hidden_units", *space["hidden_units"], log=True),),
        "alpha": trial.suggest_float("alpha", *space["alpha"], log=True),
        "learning_rate_init": trial.suggest_float("learning_rate_init", *space["learning_rate_init"], log=True),
        "batch_size": trial.suggest_categorical("batch_size", space["batch_size"]),
    }
    if len(space["early_stopping"]) > 1:
        chosen["early_stopping"] = trial.suggest_categorical("early_stopping", space["early_stopping"])
    else:
        chosen["early_stopping"] = space["early_stopping"][0]
    return {**chosen, "max_iter": space["max_iter"]}


def search(table: Table, space: Mapping[str, Any], *, num_trials: int, seed: int) -> dict[str, Any]:
    """Search with TPE, select on the validation rows, and judge the selected model on the test rows."""
    x, y = table.part("train")
    # Once for all trials: the preparation has no hyper-parameters.
    prepared = preparation(x).fit(x)
    inputs = prepared.transform(x)
    is_regression = table.metric == "rmse"
    mean, deviation = (y.mean(), y.std()) if is_regression else (0.0, 1.0)
    models: dict[int, tuple[float, Any]] = {}

    def predict(network: Any, rows: pd.DataFrame) -> NDArray[Any]:
        values: NDArray[Any]
        if table.metric == "auc":
            values = network.predict_proba(prepared.transform(rows))[:, 1]
        else:
            values = network.predict(prepared.transform(rows))
        return values * deviation + mean if is_regression else values

    def objective(trial: optuna.Trial) -> float:
        network = (MLPRegressor if is_regression else MLPClassifier)(**suggest(trial, space), random_state=seed)
        network.fit(inputs, (y - mean) / deviation if is_regression else y)
        loss = table.loss("validation", lambda rows: predict(network, rows))
        models[trial.number] = loss, network
        return loss

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.optimize(objective, n_trials=num_trials)
    best = study.best_trial
    return {
        "validation": best.value,
        "test": table.loss("test", lambda rows: predict(models[best.number][1], rows)),
        "params": best.params,
        "epochs": sum(network.n_iter_ for _, network in models.values()),
    }


def boost(table: Table, *, seed: int) -> dict[str, Any]:
    """HistGradientBoosting at its defaults on the training rows; it takes text and missing values as they are."""
    texts = {name: "category" for name in table.x.columns if name not in table.x.select_dtypes("number").columns}
    typed = Table(x=table.x.astype(texts), y=table.y, rows=table.rows, metric=table.metric)
    if table.metric == "rmse":
        model: Any = HistGradientBoostingRegressor(random_state=seed)
    else:
        model = HistGradientBoostingClassifier(random_state=seed)
    model.fit(*typed.part("train"))
    score = (lambda rows: model.predict_proba(rows)[:, 1]) if table.metric == "auc" else model.predict
    return {"test": typed.loss("test", score)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("request", type=Path)
    parser.add_argument("--boosting", action="store_true")
    options = parser.parse_args()
    request = json.loads(options.request.read_text())
    warnings.simplefilter("ignore", ConvergenceWarning)  # max_iter ended a trial: a result like any other
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = Table.read(request)
    if options.boosting:
        result = boost(table, seed=request["seed"])
    else:
        result = search(table, request["space"], num_trials=request["num_trials"], seed=request["seed"])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
