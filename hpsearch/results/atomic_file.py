"""Write a result's file whole or not at all: whoever is killed on the way leaves what was there before."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hpsearch.errors import ArtifactError


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the place of `path` when the block ends well, in one step.

    The content is on the disk before it gets its name. A link is followed: what it points to is replaced. Of
    several writers at once the last one wins, whole.

    Raises:
        ArtifactError: the file cannot be written; names it. What was there is untouched.
    """
    try:
        target = path.resolve()  # the rename would replace the link itself
        if target.exists() and not target.is_file():
            # A rename over /dev/stdout or a folder would do harm or fail late.
            raise ArtifactError(f"cannot write {path}: it is not a regular file", hint="name another file")
        temporary = target.with_name(f".writing-{uuid.uuid4().hex}")
        try:
            # 0o666 leaves the rights to the user's umask; tempfile would lock out everybody else.
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror}",
            hint="nothing there was changed; name another place, or make room",
        ) from error


def write_file(path: Path, content: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written; names it.
    """
    with replaced_file(path) as file:
        file.write(content.encode())
