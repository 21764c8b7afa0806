"""Write a result's file whole or not at all: whoever is killed on the way leaves what was there before."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hpsearch.errors import ArtifactError

_MOST_STEPS = 4000  # parts of a path, links followed: a loop of links never ends


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that takes the place of `path` when the block ends well, in one step.

    The content is on the disk before it gets its name. A link is followed: what it points to is replaced. Of
    several writers at once the last one wins, whole.

    Raises:
        ArtifactError: the file cannot be written, or the way to it leads over a link that somebody else has put into
            a folder of everybody's, such as /tmp; names it. What was there is untouched.
    """
    try:
        target = _follow(path)  # the rename would replace the link itself
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


def _follow(path: Path) -> Path:
    """The path without links, as `Path.resolve`, but for those that the kernel would not follow when it opens a file.

    Linux (fs.protected_symlinks) follows a link in a sticky folder that everybody may write to only if it belongs to
    who follows it, or to the folder's owner: whoever knows what root will write to /tmp/best.json could otherwise let
    root replace any file. `Path.resolve` reads links, which nothing forbids, so the rule has to be kept here.

    Raises:
        OSError: a link that is not followed, or too many links.
    """
    found = Path("/")
    waiting = list(reversed(path.absolute().parts[1:]))
    for _ in range(_MOST_STEPS):
        if not waiting:
            return found
        part = waiting.pop()
        if part == "..":
            found = found.parent
            continue
        step = found / part
        if not step.is_symlink():
            found = step
            continue
        _check_link(step)
        link = step.readlink()
        found = Path("/") if link.is_absolute() else found
        waiting += reversed(link.parts[1:] if link.is_absolute() else link.parts)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _check_link(link: Path) -> None:
    folder = link.parent.stat()
    if not _is_followed(link.lstat().st_uid, folder.st_mode, folder.st_uid):
        raise OSError(errno.EACCES, f"{link} is a link that another user has put into {link.parent}", str(link))


def _is_followed(link_owner: int, folder_mode: int, folder_owner: int) -> bool:
    is_everybodys = bool(folder_mode & stat.S_ISVTX and folder_mode & stat.S_IWOTH)
    return not is_everybodys or link_owner in (os.geteuid(), folder_owner)


def write_file(path: Path, content: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        ArtifactError: the file cannot be written; names it.
    """
    with replaced_file(path) as file:
        file.write(content.encode())
