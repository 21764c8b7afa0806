"""The place where artifacts are stored, a folder or s3://BUCKET/PREFIX, and their names. Imports nothing heavy."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from hpsearch.errors import InputError
from hpsearch.home import artifact_folder

BUCKET_SCHEME = "s3://"
# Names that S3 and compatible services allow; the server may refuse further ones.
_BUCKET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_PLACE_HINT = "name a folder, or s3://BUCKET/PREFIX, with --artifacts or HPSEARCH_ARTIFACTS"


def artifact_place(place: str | None) -> str:
    """Return the named folder or bucket, or the default folder; folders as absolute paths.

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
        # A folder called "gs:" would receive files that were meant for a bucket.
        raise InputError(f"artifacts: {scheme}:// is neither a folder nor s3://", hint=_PLACE_HINT)
    return False


def parse_bucket(place: str) -> tuple[str, str]:
    """Return the bucket and the prefix (may be empty) of s3://BUCKET/PREFIX.

    Raises:
        InputError: no bucket can have this name. Parts that may be secret are not shown.
    """
    bucket, _, prefix = place.removeprefix(BUCKET_SCHEME).partition("/")
    parts = [part for part in prefix.split("/") if part]
    if "@" in bucket:
        raise InputError(
            "artifacts: the address of a bucket must not contain credentials",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if not _BUCKET_NAME.fullmatch(bucket):
        raise InputError(f"artifacts: invalid bucket name {bucket!r} in {place!r}", hint=_PLACE_HINT)
    if not all(part.isprintable() and part not in (".", "..") for part in parts):
        raise InputError(f"artifacts: invalid prefix {prefix!r} in {place!r}", hint=_PLACE_HINT)
    return bucket, "/".join(parts)


def check_artifact_id(artifact_id: str) -> str:
    """Return the id if it is valid: ids come from the database, and must not lead to another file than an artifact.

    Raises:
        FileNotFoundError: it is not a plain name, so no artifact has it.
    """
    if artifact_id in ("", ".", "..") or "/" in artifact_id or not artifact_id.isprintable():
        raise FileNotFoundError(errno.ENOENT, f"no artifact has the id {artifact_id!r}")
    return artifact_id
