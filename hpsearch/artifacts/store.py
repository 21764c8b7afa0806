"""Storage for files that all workers of a study share: a folder, or a bucket of S3 (bucket.py).

Both have the methods of an Optuna artifact store, so that `optuna.artifacts.download_artifact` and optuna-dashboard can
read them. A file is stored completely or not at all, even if a process is killed. Nothing here opens a database, and a
folder needs nothing of Optuna: `optuna.artifacts` loads boto3 where it is installed, a quarter of a second.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol, final

from hpsearch.artifacts.place import BUCKET_SCHEME, check_artifact_id, is_bucket, parse_bucket
from hpsearch.atomic_file import replacement_of
from hpsearch.errors import ArtifactError, InputError
from hpsearch.home import make_folder, user_name


class ArtifactStore(Protocol):
    """Optuna's artifact store with the additional methods that hpsearch needs. Thread-safe.

    Failures of the environment are an OSError whose `strerror` gives the reason; a missing artifact is a
    FileNotFoundError.
    """

    @property
    def place(self) -> str:
        """The store's name, as in --artifacts: `open_store` opens the same store by this name in another process."""

    def check_writable(self) -> None:
        """Write something and remove it again.

        Raises:
            ArtifactError: the store is not writable. This is found at the start, not after an hour.
        """

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open the artifact for reading."""

    def read(self, artifact_id: str) -> bytes:
        """Return the complete content of the artifact."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact completely, or raise OSError and leave the previous content."""

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact. A bucket does not report whether it existed."""


@final
class FolderStore:
    """A folder of files with atomic writes: the old content or the new content, never a part.

    Its files are those of Optuna's FileSystemArtifactStore.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def place(self) -> str:
        return str(self.folder)

    def check_writable(self) -> None:
        folder = self.folder
        try:
            make_folder(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ArtifactError(
                f"artifact folder {folder} is not writable for user {user_name()}: {error.strerror or error}",
                hint="name another folder with --artifacts or HPSEARCH_ARTIFACTS",
            ) from error

    def path(self, artifact_id: str) -> Path:
        """Return the path of an artifact. Raises FileNotFoundError unless it is a file name in this folder."""
        return self.folder / check_artifact_id(artifact_id)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        return self.path(artifact_id).open("rb")

    def read(self, artifact_id: str) -> bytes:
        return self.path(artifact_id).read_bytes()

    def remove(self, artifact_id: str) -> None:
        self.path(artifact_id).unlink()

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with replacement_of(self.path(artifact_id)) as file:
            os.fchmod(file.fileno(), 0o644)  # whatever the umask: a dashboard may run as another user
            shutil.copyfileobj(content_body, file)
        self._sync_folder()

    def _sync_folder(self) -> None:
        """Make the new name survive a power failure, because the database is about to name the file."""
        with contextlib.suppress(OSError):  # the folder may be unreadable, or the file system may not support it
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def open_store(place: str | Path, *, is_read_only: bool = False) -> ArtifactStore:
    """Open the folder or bucket of this name. A folder is created, unless it is opened read-only.

    Args:
        place: a folder, or s3://BUCKET/PREFIX. Credentials, region and the endpoint of an S3 that is not Amazon's
            (AWS_ENDPOINT_URL) come from the variables and files that every AWS program reads.
        is_read_only: do not create the folder, and do not check that the store is writable.
    Raises:
        InputError: neither a folder nor a bucket, or boto3 is not installed.
        ArtifactError: the store is not writable.
    """
    text = str(place)
    store = _open_bucket(*parse_bucket(text)) if is_bucket(text) else FolderStore(Path(text))
    if not is_read_only:
        store.check_writable()
    return store


def _open_bucket(bucket: str, prefix: str) -> ArtifactStore:
    try:
        # Imported here because boto3 is optional.
        from hpsearch.artifacts.bucket import BucketStore
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore"):
            raise
        raise InputError(
            f"artifacts in {BUCKET_SCHEME}{bucket} need boto3, which is not installed",
            hint="pip install 'hpsearch[s3]'",
        ) from error
    return BucketStore(bucket, prefix)
