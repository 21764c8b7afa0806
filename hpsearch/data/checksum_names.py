"""Names of checksums (`SelectionData.checksums`) that are not of examples, so that two data sets may share them."""

from __future__ import annotations

from typing import Final

SPLIT: Final = "split"  # of the row numbers of a split: depends on the number of rows and a seed
SOURCE_PREFIX: Final = "source "  # of a file with a user's loaders, followed by its name


def is_of_examples(name: str) -> bool:
    """Whether data sets with the same checksum of this name have the same examples."""
    return "labels" not in name and name != SPLIT and not name.startswith(SOURCE_PREFIX)
