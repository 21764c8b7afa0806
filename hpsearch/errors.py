"""Every error that a user may meet: one clear line, a hint, and the exit code that belongs to it.

The command line catches `HpsearchError` once, prints `str(error)` and the hint, and exits with `exit_code`.
Anything else that reaches the top is a bug and keeps its traceback.
"""

from __future__ import annotations


class HpsearchError(Exception):
    """Base class of all errors that hpsearch raises on purpose.

    Args:
        message: one line that names the file, key or object, what was found and what was expected.
        hint: one line that says what to do about it, without the word "hint".
    """

    exit_code: int = 1  # the work itself failed

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # tracebacks show it to those who use hpsearch from Python


class InputError(HpsearchError):
    """The user's input is wrong: a study file, an option, a name. Nothing has been created."""

    exit_code: int = 2


class SurroundingsError(HpsearchError):
    """Base of what the surroundings refuse: database, data files, device, artifact folder."""

    exit_code: int = 3


class DataError(SurroundingsError):
    """Data files are missing, corrupt or not what their checksum says."""


class StorageError(SurroundingsError):
    """The study database cannot be reached, refuses us, or has a schema we do not speak."""


class DeviceError(SurroundingsError):
    """The device that was asked for is not there, or has no memory left."""


class DeviceLostError(DeviceError):
    """Another worker has the GPU now. To be started again helps, so the exit code is not that of the surroundings."""

    exit_code: int = 1


class ArtifactError(SurroundingsError):
    """A file (checkpoint, model, report) cannot be written or read back."""


class OutputError(SurroundingsError):
    """Data cannot be written to standard output."""


class ReaderGoneError(HpsearchError):
    """Whoever read standard output wants no more of it (`hpsearch status | head -1`): nothing to complain about."""

    exit_code: int = 0


class DefinitionMismatchError(InputError):
    """A study of this name exists with another definition."""


class StudyNotFoundError(InputError):
    """No study of this name is in the database."""


class VaultOpenedError(InputError):
    """The study's test set has been opened before."""


class NothingCompleteError(HpsearchError):
    """The study has no complete trial yet, so there is nothing to export or to report."""


class UncountedPointsError(HpsearchError):
    """The study ended with points that could not be counted (their attempts were used up)."""
