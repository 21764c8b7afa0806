"""Artifacts in a bucket of S3 or a compatible service (MinIO, Ceph), through Optuna's Boto3ArtifactStore.

Imported only by `open_store`, when a bucket is named: boto3 is an optional dependency. The account's settings come from
the usual AWS sources: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL, AWS_PROFILE, the
files in ~/.aws, or the machine's own role.
"""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, final

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from optuna.artifacts import Boto3ArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound

from hpsearch.artifacts.place import check_artifact_id
from hpsearch.errors import ArtifactError
from hpsearch.wording import first_line

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0
ATTEMPTS = 3  # per request, with increasing pauses
_CHECK_ID = ".hpsearch-writable"  # always the same: where deletion is forbidden, one such object remains
_SHORTEST_SECRET = 8  # S3 and MinIO accept no shorter ones; masking a word like "test" would damage messages
_HINT = (
    "check the bucket's name and permissions, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION, "
    "and AWS_ENDPOINT_URL if it is not Amazon's"
)


@final
class BucketStore:
    """One prefix of one bucket. S3 itself makes an object visible completely or not at all.

    Args:
        prefix: without slashes at its ends; "" for none.
    Raises:
        ArtifactError: the AWS variables or files cannot be used.
    """

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.place = f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}"
        self._prefix = f"{prefix}/" if prefix else ""
        self._secrets: tuple[str, ...] = ()
        try:
            session = boto3.session.Session()
            self._secrets = _secrets_of(session)
            client = session.client(
                "s3",
                config=Config(
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                ),
            )
        except (BotoCoreError, ValueError) as error:  # ValueError: AWS_ENDPOINT_URL is not a URL
            raise ArtifactError(f"cannot use {self.place}: {self._describe(error)}", hint=_HINT) from error
        # Without Optuna's copy of the whole content in memory; boto3 closes the given file instead.
        self._store = Boto3ArtifactStore(bucket, client, avoid_buf_copy=True)

    def check_writable(self) -> None:
        try:
            self.write(_CHECK_ID, io.BytesIO())
        except OSError as error:
            raise ArtifactError(f"{self.place} is not writable: {error.strerror}", hint=_HINT) from error
        with contextlib.suppress(OSError):  # deletion may be forbidden there, for good reasons
            self.remove(_CHECK_ID)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        with self._plain_errors():
            return self._store.open_reader(self._key(artifact_id))

    def read(self, artifact_id: str) -> bytes:
        with self._plain_errors(), self._store.open_reader(self._key(artifact_id)) as body:
            return body.read()

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self._plain_errors():
            self._store.write(self._key(artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        with self._plain_errors():
            self._store.remove(self._key(artifact_id))

    def _key(self, artifact_id: str) -> str:
        return self._prefix + check_artifact_id(artifact_id)

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Raise the errors that a folder would raise, so that callers need not know boto3 or Optuna."""
        try:
            yield
        except ArtifactNotFound as error:
            raise FileNotFoundError(errno.ENOENT, first_line(error)) from error
        except (BotoCoreError, Boto3Error, ClientError) as error:
            said = self._describe(error)
            # The cause is dropped if it contains a secret: a traceback would print it.
            raise OSError(errno.EIO, said) from (error if said == first_line(error) else None)

    def _describe(self, error: Exception) -> str:
        said = first_line(error)
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said


def _secrets_of(session: Any) -> tuple[str, ...]:
    """Return what no message may contain: boto3 shows the value of a header that cannot be sent, such as a token's."""
    credentials = session.get_credentials()
    if credentials is None:
        return ()
    frozen = credentials.get_frozen_credentials()
    secrets = ((secret or "").strip() for secret in (frozen.secret_key, frozen.token))
    return tuple(secret for secret in secrets if len(secret) >= _SHORTEST_SECRET)
