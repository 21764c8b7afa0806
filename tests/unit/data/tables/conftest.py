"""Small tables on disk, and how to load them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.study.settings import DataSettings

NUM_ROWS = 140
Load = Callable[..., SelectionData]


def written(path: Path, columns: dict[str, Any], separator: str = ",") -> Path:
    """A text file of these columns; None is an empty value."""
    lines = [separator.join(columns)]
    lines += [separator.join("" if v is None else str(v) for v in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def people(num_rows: int = NUM_ROWS) -> dict[str, Any]:
    """Columns of all kinds. `age` and `city` have missing values; `paid` is true for people above 40."""
    generator = np.random.default_rng(1)
    age = generator.uniform(18, 80, num_rows).round(1)
    return {
        "id": list(range(1, num_rows + 1)),
        "age": [None if row % 9 == 0 else value for row, value in enumerate(age.tolist())],
        "city": [None if row % 20 == 7 else ["Aachen", "Bonn", "Celle"][row % 3] for row in range(num_rows)],
        "member": [["true", "false"][row % 2] for row in range(num_rows)],
        "name": [f"person {row}" for row in range(num_rows)],
        "family": [f"f{row // 2}" for row in range(num_rows)],
        "paid": ["yes" if value > 40 else "no" for value in age],
    }


@pytest.fixture
def people_csv(tmp_path: Path) -> Path:
    return written(tmp_path / "people.csv", people())


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a data set as a new study does, or (stored) as a worker."""
    locations = DataLocations(local=None, cache=tmp_path / "cache")

    def load(dataset: Path | str, *, stored: Any = None, **keys: Any) -> SelectionData:
        return load_selection_data(DataSettings(dataset=str(dataset), **keys), locations=locations, stored=stored)

    return load


@pytest.fixture
def load_test(tmp_path: Path) -> Callable[..., HeldOutSplit]:
    """Read the test part as the vault does."""
    locations = DataLocations(local=None, cache=tmp_path / "cache")

    def load_test(dataset: Path | str, *, stored: Any, **keys: Any) -> HeldOutSplit:
        return load_test_split(DataSettings(dataset=str(dataset), **keys), locations, lambda: True, stored)

    return load_test
