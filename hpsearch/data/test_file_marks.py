"""Marks by which test files are recognised later, without opening them. Only test_split.py reads test files."""

from __future__ import annotations

from collections.abc import Mapping

from hpsearch.data.files.named_path import local_folder
from hpsearch.data.registry import form_of
from hpsearch.data.splits import is_of_examples
from hpsearch.study.settings import DataSettings


def marks_of_test_files(settings: DataSettings, dataset_checksums: Mapping[str, str]) -> frozenset[str]:
    """Marks that identify the test files of a data set, without opening them.

    The marks are the published checksums; path, size and modification time of a user's own files, also of those that
    `data.test` names; and the checksum of the training data in the same place, so that a copy of the folder shares a
    mark with it.

    Args:
        dataset_checksums: file name -> SHA-256 of the data that the study is trained on.
    Raises:
        InputError: no such data set.
        DataError: test files in a user's own folder are missing.
    """
    marks = {f"trained-on:{sha}" for name, sha in dataset_checksums.items() if is_of_examples(name)}
    return frozenset(marks | form_of(settings, local_folder()).test_file_marks(settings))


def marks_of_content(checksums: Mapping[str, str]) -> frozenset[str]:
    """Marks that identify test images that were read.

    Args:
        checksums: as in `HeldOutSplit`.
    """
    return frozenset(f"sha256:{sha}" for name, sha in checksums.items() if is_of_examples(name))
