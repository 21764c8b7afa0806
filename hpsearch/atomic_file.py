"""Writes files completely or not at all: a crash leaves the previous content."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hpsearch.errors import ArtifactError

TEMPORARY_PREFIX = ".writing-"  # of incomplete files
_MOST_LINKS = 40  # as in the kernel: a loop of links would never end


@contextmanager
def replacement_of(target: Path, *, is_synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write into; it replaces `target` in one step when the block ends without an error.

    A reader sees the old content or the new content, never a part. A process that is killed in the block leaves a
    file whose name begins with `TEMPORARY_PREFIX`.

    Args:
        is_synced: the content is on the disk before it gets its name, so that it also survives a power failure.
    Raises:
        OSError: the file cannot be written; the previous content is untouched.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        # 0o666 leaves the permissions to the user's umask; tempfile would lock out all other users.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write into; it replaces a user's result file as `replacement_of` does.

    A link is followed: the file that it points to is replaced. Of several concurrent writers, the last one wins, with
    its complete content.

    Raises:
        ArtifactError: the file cannot be written, or its path contains a link that another user has put into a folder
            that everybody may write to, such as /tmp; the message names it. The previous content is untouched.
    """
    try:
        target = _follow(path)  # the rename would replace the link itself
        if target.exists() and not target.is_file():
            # Renaming over /dev/stdout or a folder would do harm or fail late.
            raise ArtifactError(f"cannot write {path}: it is not a regular file", hint="name another file")
        with replacement_of(target) as file:
            yield file
    except OSError as error:
        raise ArtifactError(
            f"cannot write {path}: {error.strerror}", hint="nothing was changed; free disk space or name another place"
        ) from error


def _follow(path: Path) -> Path:
    """Return the path without links, as `Path.resolve`, but refuse links that the kernel would not follow.

    In a sticky folder that everybody may write to, Linux (fs.protected_symlinks) follows a link only if it belongs to
    the user that follows it, or to the folder's owner. Otherwise a user who knows that root will write to
    /tmp/best.json could make root replace any file. `Path.resolve` reads links, which is always allowed, so this
    function applies the rule.

    Raises:
        OSError: a link that is not followed, or too many links.
    """
    found = path.absolute()
    for _ in range(_MOST_LINKS):
        link = next((step for step in (*reversed(found.parents), found) if step.is_symlink()), None)
        if link is None:
            return found
        _check_link(link)
        found = link.parent / link.readlink() / found.relative_to(link)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check_link(link: Path) -> None:
    place = link.parent.resolve()
    folder = place.stat()
    if not _is_followed(link.lstat().st_uid, folder.st_mode, folder.st_uid):
        raise OSError(errno.EACCES, f"{place / link.name} is a link that another user has put into {place}", str(link))


def _is_followed(link_owner: int, folder_mode: int, folder_owner: int) -> bool:
    is_everybodys = bool(folder_mode & stat.S_ISVTX and folder_mode & stat.S_IWOTH)
    return not is_everybodys or link_owner in (os.geteuid(), folder_owner)


def write_file(path: Path, content: str) -> None:
    """Write a text file in UTF-8, completely or not at all.

    Raises:
        ArtifactError: the file cannot be written; the message names it.
    """
    with replaced_file(path) as file:
        file.write(content.encode())
