"""All errors that a user may see: one clear line, a hint, and an exit code.

The command line catches `HpsearchError` once, prints `str(error)` and the hint, and exits with `exit_code`
(`run_command_line` in cli/main.py, whose docstring lists all codes; 130, interrupted, has no class here). Any other
exception that reaches the top is a bug and keeps its traceback.
"""

from __future__ import annotations


class HpsearchError(Exception):
    """Base class of all errors that hpsearch raises on purpose.

    Args:
        message: one line that names the file, key or object, what was found and what was expected.
        hint: one line that says what to do about it, without the word "hint".
    """

    exit_code: int = 1  # the work failed

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # tracebacks then show it to users of the Python API


class InputError(HpsearchError):
    """The user's input is wrong: a study file, an option, a name. Nothing has been created."""

    exit_code: int = 2


class SurroundingsError(HpsearchError):
    """Base class of environment errors: database, data files, device, artifact folder."""

    exit_code: int = 3


class DataError(SurroundingsError):
    """Data files are missing, corrupt, or do not match their checksums."""


class StorageError(SurroundingsError):
    """The study database cannot be reached, refuses the connection or a statement, or has an unknown schema."""


class DeviceError(SurroundingsError):
    """The requested device does not exist, or has not enough memory."""


class DeviceLostError(DeviceError):
    """Another worker has taken the GPU.

    Restarting the worker helps, so the exit code is not that of SurroundingsError.
    """

    exit_code: int = 1


class ArtifactError(SurroundingsError):
    """A file (checkpoint, model, report) cannot be written or read back."""


class OutputError(SurroundingsError):
    """Data cannot be written to standard output."""


class ReaderGoneError(HpsearchError):
    """The reader of standard output has closed it (`hpsearch status | head -1`), which is not a failure."""

    exit_code: int = 0


class DefinitionMismatchError(InputError):
    """A study of this name exists with another definition."""


class StudyNotFoundError(InputError):
    """No study of this name is in the database."""


class VaultOpenedError(InputError):
    """The study's test set has been opened before."""


class NothingCompleteError(HpsearchError):
    """The study has no complete trial yet, so there is nothing to export or report."""


class UncountedPointsError(HpsearchError):
    """The study has ended with points that were not counted, because their workers crashed too often."""
