"""The tables among scikit-learn's data files, and the names of their columns, which the files do not have."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpsearch.study.settings import DataSettings

TARGET: Final = "target"
_CANCER_MEASURES = (
    "radius",
    "texture",
    "perimeter",
    "area",
    "smoothness",
    "compactness",
    "concavity",
    "concave points",
    "symmetry",
    "fractal dimension",
)
_IRIS = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
_WINE = (
    "alcohol",
    "malic_acid",
    "ash",
    "alcalinity_of_ash",
    "magnesium",
    "total_phenols",
    "flavanoids",
    "nonflavanoid_phenols",
    "proanthocyanins",
    "color_intensity",
    "hue",
    "od280/od315_of_diluted_wines",
    "proline",
)
_CANCER = (
    *(f"mean {measure}" for measure in _CANCER_MEASURES),
    *(f"{measure} error" for measure in _CANCER_MEASURES),
    *(f"worst {measure}" for measure in _CANCER_MEASURES),
)


@dataclass(frozen=True, kw_only=True)
class BundledFiles:
    """One table.

    Args:
        file_names: in sklearn/datasets/data: one with a first line of counts and class names, whose last column is the
            class; or two, of features and of targets.
        features: the names of the columns.
    """

    file_names: tuple[str, ...]
    features: tuple[str, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        package = importlib.util.find_spec("sklearn")  # importing scikit-learn would take two seconds
        assert package is not None, "a dependency"
        return tuple(Path(package.origin or "").with_name("datasets") / "data" / name for name in self.file_names)

    def read(self, paths: tuple[Path, ...], settings: DataSettings, kinds: Mapping[str, Any] | None) -> Any:
        """All rows, an `ArrowTable`. Other columns than `TARGET` have numbers."""
        import pyarrow as pa  # here: it is large, and this module has the names of data sets

        from hpsearch.data.tables.arrow_table import ArrowTable

        target: Any
        if len(paths) == 2:
            values, target = np.loadtxt(paths[0]), np.loadtxt(paths[1])
        else:
            with paths[0].open() as lines:
                class_names = np.array(next(lines).strip().split(",")[2:])
                values = np.loadtxt(lines, delimiter=",")
            values, target = values[:, :-1], class_names[values[:, -1].astype(int)]
        columns = {name: values[:, place] for place, name in enumerate(self.features)}
        return ArrowTable(source=paths[0].name, known_target=TARGET, table=pa.table({**columns, TARGET: target}))


BUNDLED: Final[Mapping[str, BundledFiles]] = {
    "breast_cancer": BundledFiles(file_names=("breast_cancer.csv",), features=_CANCER),
    "wine": BundledFiles(file_names=("wine_data.csv",), features=_WINE),
    "iris": BundledFiles(file_names=("iris.csv",), features=_IRIS),
    "diabetes": BundledFiles(
        file_names=("diabetes_data_raw.csv.gz", "diabetes_target.csv.gz"),
        features=("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
    ),
}
