"""Who runs hpsearch, and from which commit. The vault records both with its number. These functions never raise."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import hpsearch
from hpsearch import environment
from hpsearch.home import user_name
from hpsearch.wording import printable

_MOST_CHARACTERS = 200
_GIT_SECONDS = 10.0


def user_at_host() -> str:
    """`user@host`. HPSEARCH_USER overrides the user's name; a user without a name is given by number."""
    user = os.environ.get(environment.USER, "").strip() or user_name()
    return printable(f"{user}@{platform.node()}")[:_MOST_CHARACTERS]


def code_commit(package: Path | None = None) -> str | None:
    """The commit of the running code, with "-dirty" if files of the package have changed since; None: unknown.

    HPSEARCH_COMMIT overrides it.

    Args:
        package: folder of the code; None: the folder of this package.
    """
    named = os.environ.get(environment.COMMIT, "").strip()
    if named:
        return printable(named)[:_MOST_CHARACTERS]
    folder = Path(hpsearch.__file__).parent if package is None else package
    # If the package is installed in an environment inside another project's checkout, git would report its commit.
    if not _git(folder, "ls-files", "--", "__init__.py"):
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--", ".")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    """The output of a git command; "" if git is missing, fails or times out."""
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
