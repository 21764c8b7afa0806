"""The outcome of `hpsearch data verify` for one file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path


class FileState(Enum):
    VERIFIED = "verified"
    UNVERIFIED = "no published checksum"
    WRONG = "wrong"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """The result of `verify_dataset` for one file.

    Args:
        path: None if the file is missing or comes with scikit-learn.
        sha256: SHA-256 of the unpacked content; None if it could not be read, or for an archive.
        problem: one line, if the state is WRONG or MISSING.
    """

    file_name: str
    path: Path | None
    state: FileState
    sha256: str | None = None
    problem: str | None = None

    @property
    def is_usable(self) -> bool:
        return self.state in (FileState.VERIFIED, FileState.UNVERIFIED)
