"""The vault: the one door to the test split.

No other module imports `hpsearch.data.held_out`; an import check holds that. The ledgered `hpsearch test`
command, which opens the vault once per study and writes down who opened it, builds on this.
Source: REFERENCE section 6.
"""

from __future__ import annotations

from hpsearch.data.held_out import load_test_split
from hpsearch.data.lookup import DataLocations
from hpsearch.data.splits import Split
from hpsearch.settings import DataSettings


def open_test_split(settings: DataSettings, locations: DataLocations) -> Split:
    """Read the test images and labels, whole.

    Only for the final number of a configuration that was selected, and confirmed, on the validation set.

    Raises:
        InputError: no such data set.
        DataError: files are missing, damaged, or not what their checksums say.
    """
    return load_test_split(settings, locations)
