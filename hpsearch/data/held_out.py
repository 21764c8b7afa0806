"""The vault's reader: the only code that reads test images.

Only `hpsearch.results.vault.final_test` may import this module; an import check enforces this. In addition, a caller
must prove that the intent to open the test set is on record. Source: docs/sources.md, section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hpsearch.data.data_file import DataFile, read_data_file
from hpsearch.data.digits import DIGITS, digits_split, num_test_images, read_bundled_digits
from hpsearch.data.download import DownloadProgress
from hpsearch.data.idx import parse_pair
from hpsearch.data.lookup import DataLocations, obtain_file
from hpsearch.data.pickled import build_split, read_pairs
from hpsearch.data.published import TEST_IMAGES, TEST_LABELS, PublishedSet
from hpsearch.data.sources import BundledDigits, IdxFolder, PickledFile, find_in_folder, resolve_dataset
from hpsearch.data.splits import Split, scaled_split
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutSplit(Split):
    """The test images with their labels.

    Args:
        checksums: file name -> SHA-256 of the unpacked content from which they were read. For an mnist.pkl.gz this
            covers the whole file; for the bundled digits the test part's grey levels followed by its labels.
    """

    checksums: Mapping[str, str]


def load_test_split(
    settings: DataSettings,
    locations: DataLocations,
    is_declared: Callable[[], bool],
    progress: DownloadProgress | None = None,
) -> HeldOutSplit:
    """Load the whole test part of a data set (`train_samples` limits training only).

    Args:
        is_declared: whether the intent to open the test set is committed to the database; called before any read.
    Raises:
        InputError: no such data set.
        DataError: there is no intent on record; or files are missing, damaged, or do not match their checksums.
    """
    if not is_declared():
        raise DataError(
            "the test images are not read: nobody has put on record that they are opened",
            hint="hpsearch test STUDY does both",
        )
    source = resolve_dataset(settings.dataset)
    match source:
        case BundledDigits():
            images, labels = read_bundled_digits()
            first = len(images) - num_test_images(len(images))
            images, labels = images[first:], labels[first:]
            checksum = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
            return _held_out(digits_split(images, labels), {DIGITS: checksum})
        case PickledFile(path):
            file = read_data_file(path)
            split = build_split(read_pairs(file)[2], f"{file.source}, test")
            return _held_out(split, {path.name.removesuffix(".gz"): file.sha256})
        case PublishedSet() | IdxFolder():
            images_file = _read_test_file(source, TEST_IMAGES, locations, progress)
            labels_file = _read_test_file(source, TEST_LABELS, locations, progress)
            checksums = {TEST_IMAGES: images_file.sha256, TEST_LABELS: labels_file.sha256}
            return _held_out(scaled_split(*parse_pair(images_file, labels_file)), checksums)


def _read_test_file(
    source: PublishedSet | IdxFolder, file_name: str, locations: DataLocations, progress: DownloadProgress | None
) -> DataFile:
    if isinstance(source, PublishedSet):
        return obtain_file(source, file_name, locations, progress=progress)
    return read_data_file(find_in_folder(source, file_name))


def _held_out(split: Split, checksums: Mapping[str, str]) -> HeldOutSplit:
    return HeldOutSplit(images=split.images, labels=split.labels, checksums=checksums)
