"""The vault's door."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsearch.data.lookup import DataLocations
from hpsearch.errors import InputError
from hpsearch.results.vault import open_test_split
from hpsearch.settings import DataSettings


@pytest.fixture
def locations(tmp_path: Path) -> DataLocations:
    return DataLocations(local=None, cache=tmp_path, allow_download=False)


def test_the_vault_gives_the_test_part_whole(locations: DataLocations) -> None:
    limited = open_test_split(DataSettings(dataset="digits", train_samples=10), locations)
    whole = open_test_split(DataSettings(dataset="digits"), locations)
    assert len(limited) == len(whole) > 10
    assert whole.images.shape[0] == len(whole)


def test_an_unknown_data_set_is_an_input_error(locations: DataLocations) -> None:
    with pytest.raises(InputError, match="unknown data set 'mnits'"):
        open_test_split(DataSettings(dataset="mnits"), locations)
