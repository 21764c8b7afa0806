"""Learn the preparation of a table from its training rows, with scikit-learn, once, when a study is created."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.tables.columns import CategoryColumn, Columns, Kind, NumberColumn
from hpsearch.data.tables.preparation import (
    Preparation,
    PreparedBoolean,
    PreparedCategory,
    PreparedFeature,
    PreparedNumber,
)
from hpsearch.errors import DataError

FEWEST_ROWS: Final = 5  # training rows of a category; those with fewer share the input "other"
MOST_CATEGORIES: Final = 10_000  # inputs of all columns of text together


def fit_preparation(columns: Columns, source: str = "the table") -> Preparation:
    """Learn medians, means, deviations and categories.

    Args:
        columns: the features' training rows. Each has at least one value.
        source: name of the data in messages.
    Raises:
        DataError: the categories take more than `MOST_CATEGORIES` inputs.
    """
    features = tuple(_fit(name, column) for name, column in columns.items())
    counts = {each.name: len(each.categories) for each in features if isinstance(each, PreparedCategory)}
    if sum(counts.values()) > MOST_CATEGORIES:
        name = max(counts, key=counts.__getitem__)
        raise DataError(
            f"{source}: text takes {sum(counts.values()):,} inputs, more than {MOST_CATEGORIES:,}: most are the "
            f"{counts[name]:,} categories of column {name!r}",
            hint=f'leave it out, data.exclude = ["{name}"], or give it fewer categories',
        )
    return Preparation(features=features)


def _fit(name: str, column: NumberColumn | CategoryColumn) -> PreparedFeature:
    has_indicator = bool(column.is_missing.any())
    if isinstance(column, CategoryColumn):
        return _fit_category(name, column, has_indicator)
    from sklearn.impute import SimpleImputer  # here: scikit-learn takes a second to load
    from sklearn.preprocessing import StandardScaler

    is_boolean = column.kind is Kind.BOOLEAN
    imputer = SimpleImputer(strategy="most_frequent" if is_boolean else "median")
    filled = imputer.fit_transform(column.values[:, np.newaxis])
    fill = float(imputer.statistics_[0])
    if is_boolean:
        return PreparedBoolean(name=name, fill=fill, has_indicator=has_indicator)
    scaler = StandardScaler().fit(filled)
    return PreparedNumber(
        name=name,
        fill=fill,
        mean=float(scaler.mean_[0]),
        scale=float(scaler.scale_[0]),  # 1 where all values are the same
        has_indicator=has_indicator,
    )


def _fit_category(name: str, column: CategoryColumn, has_indicator: bool) -> PreparedCategory:
    from sklearn.preprocessing import OneHotEncoder

    codes: NDArray[Any] = column.codes[~column.is_missing]
    counts = np.bincount(codes, minlength=len(column.names))
    most_frequent = int(np.argmax(counts))  # the first one in the order of names, as scikit-learn's imputer chooses
    filled = np.where(column.is_missing, most_frequent, column.codes)[:, np.newaxis]
    encoder = OneHotEncoder(min_frequency=FEWEST_ROWS, handle_unknown="infrequent_if_exist").fit(filled)
    rare = encoder.infrequent_categories_[0]
    rare_codes = set() if rare is None else set(rare.tolist())
    return PreparedCategory(
        name=name,
        categories=tuple(column.names[code] for code in encoder.categories_[0].tolist() if code not in rare_codes),
        fill=column.names[most_frequent],
        has_other=bool(rare_codes),
        has_indicator=has_indicator,
    )
