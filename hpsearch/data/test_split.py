"""The vault's reader: the only code that lets test images be read.

Only `hpsearch.results.vault.final_test` may import this module; a contract in pyproject.toml
enforces this (`make lint`). In addition, a caller
must prove that the intent to open the test set is on record. Source: docs/sources.md, section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.forms.form import DataRequest, OpeningPermit
from hpsearch.data.registry import form_of
from hpsearch.data.splits import Split
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
    stored: Mapping[str, Any] | None = None,
) -> HeldOutSplit:
    """Load the whole test part of a data set (`train_samples` limits training only).

    Args:
        is_declared: whether the intent to open the test set is committed to the database; called before any read.
        stored: `SelectionData.record` of the study.
    Raises:
        InputError: no such data set.
        DataError: there is no intent on record; or files are missing, damaged, or do not match their checksums.
    """
    if not is_declared():
        raise DataError(
            "the test images are not read: their opening is not on record",
            hint="hpsearch test STUDY does both",
        )
    request = DataRequest(settings=settings, locations=locations, stored=stored or None)
    split, checksums = form_of(settings, locations.local).read_test_part(OpeningPermit(), request)
    return HeldOutSplit(images=split.images, labels=split.labels, groups=split.groups, checksums=checksums)
