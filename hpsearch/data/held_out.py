"""The vault's reader: the only code that reads test images.

Only `hpsearch.results.vault` may import this module; an import check holds that. Source: REFERENCE section 6.
"""

from __future__ import annotations

from hpsearch.data.data_file import read_data_file
from hpsearch.data.digits import digits_split, num_test_images, read_bundled_digits
from hpsearch.data.idx import parse_pair
from hpsearch.data.lookup import DataLocations
from hpsearch.data.pickled import build_split, read_pairs
from hpsearch.data.published import TEST_IMAGES, TEST_LABELS, PublishedSet
from hpsearch.data.sources import BundledDigits, IdxFolder, PickledFile, read_source_file, resolve_dataset
from hpsearch.data.splits import Split, scaled_split
from hpsearch.settings import DataSettings


def load_test_split(settings: DataSettings, locations: DataLocations) -> Split:
    """Load the test part of a data set, whole (`train_samples` limits training only).

    Raises:
        InputError: no such data set.
        DataError: files are missing, damaged, or not what their checksums say.
    """
    source = resolve_dataset(settings.dataset)
    match source:
        case BundledDigits():
            images, labels = read_bundled_digits()
            first = len(images) - num_test_images(len(images))
            return digits_split(images[first:], labels[first:])
        case PickledFile(path):
            file = read_data_file(path)
            return build_split(read_pairs(file)[2], f"{file.source}, test")
        case PublishedSet() | IdxFolder():
            return scaled_split(
                *parse_pair(
                    read_source_file(source, TEST_IMAGES, locations),
                    read_source_file(source, TEST_LABELS, locations),
                )
            )
