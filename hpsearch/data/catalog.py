"""The catalogue of data sets: load the training and validation data of a study, fetch and verify the files.

`registry.FORMS` lists the forms in which data sets come. Of the functions here only `fetch_dataset` and
`verify_dataset` open test files, and only to compute their checksums.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpsearch.data.files.file_check import FileCheck
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.forms.form import DataRequest
from hpsearch.data.registry import form_of, named_form
from hpsearch.data.splits import SelectionData
from hpsearch.study.settings import DataSettings


def load_selection_data(
    settings: DataSettings, *, locations: DataLocations, stored: Mapping[str, Any] | None = None
) -> SelectionData:
    """Load the training and validation parts of a data set. Test files are never opened.

    Args:
        stored: as in `DataRequest`.
    Raises:
        InputError: no such data set, a key that has no effect on it, or `train_samples` exceeds the number of training
            images.
        DataError: files are missing, damaged, or do not match their checksums.
    """
    request = DataRequest(settings=settings, locations=locations, stored=stored or None)
    return form_of(settings, locations.local).load_selection(request)


def fetch_dataset(name: str, locations: DataLocations) -> tuple[Path, ...]:
    """Verify all files of a published set, and download the missing ones.

    Downloads go into the cache, where a wrong file is replaced. Repeated calls, and concurrent calls by several
    processes, are safe.

    Returns:
        The files' paths; empty for sets that come with scikit-learn.
    Raises:
        InputError: the catalogue has no such set.
        DataError: a file cannot be downloaded, or a user's own file (in HPSEARCH_DATA) is wrong.
    """
    return named_form(name).fetch(locations)


def verify_dataset(name: str, locations: DataLocations) -> tuple[FileCheck, ...]:
    """Verify all files of a published set in the folders that `load_selection_data` uses. Never downloads.

    Raises:
        InputError: the catalogue has no such set.
        DataError: HPSEARCH_DATA is not a folder.
    """
    return named_form(name).verify(DataRequest(settings=DataSettings(dataset=name), locations=locations))
