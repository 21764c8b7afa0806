"""Where files are kept that all workers of a study share: a folder, or a bucket of S3 (bucket.py).

Both are artifact stores as Optuna knows them, so that `optuna.artifacts.download_artifact` and optuna-dashboard
read them. A file is there whole or not at all, whoever is killed on the way. Nothing here knows a database.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tempfile
from pathlib import Path
from typing import BinaryIO, Protocol, final

from optuna.artifacts import FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpsearch.errors import ArtifactError, InputError
from hpsearch.home import artifact_folder, make_folder

BUCKET_SCHEME = "s3://"
TEMPORARY_PREFIX = ".writing-"  # of files in a folder that are not whole yet
# As S3 and its likes allow it; what the server thinks of a name beyond that is its own affair.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PLACE_HINT = "name a folder, or s3://BUCKET/PREFIX, with --artifacts or HPSEARCH_ARTIFACTS"


class ArtifactStore(Protocol):
    """Optuna's artifact store, and what we need beside it. Any number of threads may use one at once.

    What the surroundings refuse is an OSError whose `strerror` says why; what is not there is
    optuna.artifacts.exceptions.ArtifactNotFound.
    """

    @property
    def place(self) -> str:
        """What --artifacts calls it: `open_store` opens the same one by this name in another process."""

    def check_writable(self) -> None:
        """Write something and take it away again.

        Raises:
            ArtifactError: it cannot be written: found at the start, not after an hour.
        """

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A file to read the artifact from."""

    def read(self, artifact_id: str) -> bytes:
        """All of the artifact."""

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact whole, or raise OSError and leave what was there."""

    def remove(self, artifact_id: str) -> None:
        """Remove an artifact. A bucket does not say whether it was there."""


@final
class FolderStore(FileSystemArtifactStore):
    """Optuna's folder store, with writes that leave the old state or the new one, never a part."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
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
                f"artifact folder {folder} is not writable for user {_user()}: {error.strerror or error}",
                hint="name another with --artifacts or HPSEARCH_ARTIFACTS",
            ) from error

    def path(self, artifact_id: str) -> Path:
        """Where an artifact lies. Raises ArtifactNotFound for an id that is no name of a file in this folder."""
        return self._get_filepath(artifact_id)

    def _get_filepath(self, artifact_id: str) -> Path:
        """What Optuna's own methods ask, too."""
        return self.folder / check_artifact_id(artifact_id)

    def read(self, artifact_id: str) -> bytes:
        try:
            return self.path(artifact_id).read_bytes()
        except FileNotFoundError as error:
            raise ArtifactNotFound(f"{artifact_id} is not in {self.folder}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        target = self.path(artifact_id)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=TEMPORARY_PREFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)  # not mkstemp's 0600: a dashboard may run as another user
                while chunk := content_body.read(1 << 20):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._sync_folder()

    def _sync_folder(self) -> None:
        """Let the new name survive a power cut: the database is about to name the file."""
        with contextlib.suppress(OSError):  # a folder that may not be listed, or a file system that cannot
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def check_artifact_id(artifact_id: str) -> str:
    """The id, if it can be one: ids come out of the database, and none may lead to another file than an artifact.

    Raises:
        ArtifactNotFound: it is no plain name, so no artifact has it.
    """
    if artifact_id in ("", ".", "..") or "/" in artifact_id or not artifact_id.isprintable():
        raise ArtifactNotFound(f"no artifact has the id {artifact_id!r}")
    return artifact_id


def open_store(place: str | Path, *, is_read_only: bool = False) -> ArtifactStore:
    """Open the folder or bucket of this name; a folder is created, unless it is only to be read.

    Args:
        place: a folder, or s3://BUCKET/PREFIX. Credentials, region and the endpoint of an S3 that is not Amazon's
            come from the variables and files that every AWS program reads (AWS_ENDPOINT_URL for the last).
    Raises:
        InputError: neither a folder nor a bucket, or boto3 is not installed.
        ArtifactError: it cannot be written.
    """
    text = str(place)
    store = _open_bucket(*parse_bucket(text)) if is_bucket(text) else FolderStore(Path(text))
    if not is_read_only:
        store.check_writable()
    return store


def artifact_place(place: str | None) -> str:
    """The folder or bucket that was named, or the default folder; folders as absolute paths.

    Raises:
        InputError: neither a folder nor a bucket of S3.
    """
    if place is None:
        return str(artifact_folder())
    return place if is_bucket(place) else str(Path(place).expanduser().absolute())


def is_bucket(place: str) -> bool:
    """Whether this names a bucket and not a folder.

    Raises:
        InputError: it is a URL, but not one of S3.
    """
    if place.startswith(BUCKET_SCHEME):
        return True
    if place.startswith("s3:"):
        raise InputError("artifacts: the address of a bucket begins with s3://", hint=_PLACE_HINT)
    scheme, separator, _ = place.partition("://")
    if separator and "/" not in scheme:
        # A folder of the name "gs:" would hold what was meant for a bucket.
        raise InputError(f"artifacts: {scheme}:// is neither a folder nor s3://", hint=_PLACE_HINT)
    return False


def parse_bucket(place: str) -> tuple[str, str]:
    """Bucket and prefix (maybe empty) of s3://BUCKET/PREFIX.

    Raises:
        InputError: no bucket can have this name. What may be a secret is not shown.
    """
    bucket, _, prefix = place.removeprefix(BUCKET_SCHEME).partition("/")
    parts = [part for part in prefix.split("/") if part]
    if "@" in bucket:
        raise InputError(
            "artifacts: the address of a bucket must not hold credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if not _BUCKET_NAME.fullmatch(bucket):
        raise InputError(f"artifacts: no bucket is called {bucket!r}, in {place!r}", hint=_PLACE_HINT)
    if not all(part.isprintable() and part not in (".", "..") for part in parts):
        raise InputError(f"artifacts: no prefix is called {prefix!r}, in {place!r}", hint=_PLACE_HINT)
    return bucket, "/".join(parts)


def _open_bucket(bucket: str, prefix: str) -> ArtifactStore:
    try:
        # Here and not above: boto3 is optional.
        from hpsearch.artifacts.bucket import BucketStore
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore"):
            raise
        raise InputError(
            f"artifacts in {BUCKET_SCHEME}{bucket} need boto3, which is not installed",
            hint="pip install 'hpsearch[s3]'",
        ) from error
    return BucketStore(bucket, prefix)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())
