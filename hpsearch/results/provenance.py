"""Who runs hpsearch, and from which commit: what the vault writes down beside its number. Nothing here ever fails."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from pathlib import Path

import hpsearch
from hpsearch import environment

_MOST_CHARACTERS = 200
_GIT_SECONDS = 10.0


def user_at_host() -> str:
    """`user@host`; a number stands in for a user without a name. HPSEARCH_USER goes first."""
    try:
        user = os.environ.get(environment.USER, "").strip() or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        user = str(os.getuid())
    return _plain(f"{user}@{platform.node()}")


def code_commit(package: Path | None = None) -> str | None:
    """The commit that the code runs from, with "-dirty" if files of the package were changed since; None: unknown.

    HPSEARCH_COMMIT goes first.

    Args:
        package: the folder of the code; None: this package's own.
    """
    named = os.environ.get(environment.COMMIT, "").strip()
    if named:
        return _plain(named)
    folder = Path(hpsearch.__file__).parent if package is None else package
    # Installed into an environment that lies inside of somebody's checkout, the code is of no commit of theirs.
    if not _git(folder, "ls-files", "--", "__init__.py"):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--", ".")
    return _plain(f"{commit}-dirty" if changed else commit)


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; nothing if there is no git, no checkout, or no answer."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


def _plain(text: str) -> str:
    """One short line without control characters: these come from the environment."""
    return "".join(character if character.isprintable() else "?" for character in text)[:_MOST_CHARACTERS]
