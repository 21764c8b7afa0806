"""What `benchmarks.own_data` compares: four tasks on tables of three data sets, and images.

A task has the study that hpsearch runs, and the space that the contender searches: the same widths and minibatch sizes,
learning rates over the same two decades, and for each program's own L2 factor four to six decades.
docs/results/own-data.md tells what was changed after a trial run.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

NUM_POINTS: Final = 40
_STUDIES = Path(__file__).parents[1] / "studies"
_RATES = (-2, -4)  # powers of ten; log-uniform for both, whose optimizer is Adam
_WIDTHS = (16, 256)  # log-uniform for both


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set and one metric.

    Args:
        file_name: of a CSV in the folder of data sets; None: the breast cancer data of scikit-learn.
        data: keys of [data] but for `dataset` and `split_seed`.
        columns: the features; hpsearch finds the same ones.
        max_epochs: of each trial, on both sides.
        early_stopping: values of scikit-learn's argument among which the contender chooses.
    """

    name: str
    title: str
    metric: str
    file_name: str | None
    target: str
    data: Mapping[str, Any]
    columns: Sequence[str] | None
    batch_sizes: Sequence[int]
    max_epochs: int = 200
    early_stopping: Sequence[bool] = (True, False)

    @property
    def is_regression(self) -> bool:
        return self.metric == "rmse"

    def study(self, split: int, num_points: int) -> dict[str, Any]:
        """The study file of one split, as a user would write it."""
        target = {} if self.file_name is None else {"target": self.target}
        return {
            "name": f"{self.name}-{split}",
            "seed": split,
            "metric": self.metric,
            "data": {"dataset": self.file_name or "sklearn:breast_cancer", **target, **self.data, "split_seed": split},
            "model": {"family": "mlp", "activation": "relu"},
            "training": {"optimizer": "adam", "shuffle": True, "max_epochs": self.max_epochs},
            "search": {
                "strategy": "tpe",
                "num_points": num_points,
                "learning_rate": {"log10": list(_RATES)},
                "lambda_2": {"log10": [-2, -6], "zero": True},
                "hidden_units": {"low": _WIDTHS[0], "high": _WIDTHS[1], "log": True},
                "batch_size": list(self.batch_sizes),
            },
            "stopping": {"rule": "no-improvement-in-n", "n": 10},
        }

    def space(self) -> dict[str, Any]:
        """What the contender searches: arguments of MLPClassifier or MLPRegressor."""
        return {
            "hidden_units": list(_WIDTHS),
            "learning_rate_init": [10.0 ** _RATES[1], 10.0 ** _RATES[0]],
            "alpha": [1e-5, 10.0],
            "batch_size": list(self.batch_sizes),
            "early_stopping": list(self.early_stopping),
            "max_iter": self.max_epochs,
        }

    def checksum(self, num_points: int) -> str:
        """Marks results of other settings, which are not mixed with those of these."""
        document = self.study(0, num_points), self.space(), self.columns
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


_TITANIC: Final[Mapping[str, Any]] = {
    "file_name": "titanic.csv",
    "target": "Survived",
    "data": {"group": "Ticket", "validation": 0.2, "test": 0.3},
    "columns": ("Pclass", "Sex", "Age", "SibSp", "Parch", "Fare", "Embarked"),
    "batch_sizes": (32, 64, 128),
}

TASKS: Final[Sequence[Task]] = (
    Task(
        name="housing",
        title="housing, RMSE in dollars",
        metric="rmse",
        file_name="housing.csv",
        target="median_house_value",
        data={"train_samples": 4000},  # of 14,745: all of them, and 200 epochs, take five times as long
        columns=(
            "longitude",
            "latitude",
            "housing_median_age",
            "total_rooms",
            "total_bedrooms",
            "population",
            "households",
            "median_income",
            "ocean_proximity",
        ),
        batch_sizes=(64, 128, 256),
        max_epochs=100,
        early_stopping=(True,),  # with thousands of rows nobody trains without it
    ),
    Task(name="titanic", title="titanic, zero-one error", metric="zero-one", **_TITANIC),
    Task(name="titanic-auc", title="titanic, 1 - AUC", metric="auc", **_TITANIC),
    Task(
        name="cancer",
        title="breast cancer, zero-one error",
        metric="zero-one",
        file_name=None,
        target="target",
        data={"validation": 0.2, "test": 0.3},
        columns=None,
        batch_sizes=(32, 64, 128),
    ),
)


def images_study(folder: str, train_samples: int, *, max_epochs: int | None = None) -> dict[str, Any]:
    """The shipped study of LeNet on CIFAR-10, 20 points of 10 epochs, on the first images of the training part."""
    document = tomllib.loads((_STUDIES / "cifar10.toml").read_text(encoding="utf-8"))
    document["data"] |= {"dataset": folder, "train_samples": train_samples}
    if max_epochs is not None:
        document["training"]["max_epochs"] = max_epochs
    return document
