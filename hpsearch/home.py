"""The folders that hpsearch uses on this machine: the embedded database, artifacts, logs of local workers."""

from __future__ import annotations

import contextlib
import getpass
import os
from pathlib import Path

import platformdirs

from hpsearch import environment
from hpsearch.errors import InputError, SurroundingsError


def home_folder() -> Path:
    """Return $HPSEARCH_HOME, otherwise the user's data folder; for root, /var/lib/hpsearch.

    Root's own home is not used: PostgreSQL refuses to run as root, and the user that it runs as instead cannot enter
    /root unless /root is opened to everybody, which hpsearch must not do.

    Raises:
        InputError: HPSEARCH_HOME names the home of a user who does not exist.
        SurroundingsError: the user has no home folder.
    """
    home = os.environ.get(environment.HOME)
    if home:
        try:
            return Path(home).expanduser().absolute()
        except RuntimeError as error:
            raise InputError(f"HPSEARCH_HOME={home}: {error}", hint="use an absolute path") from error
    if os.geteuid() == 0:
        return Path("/var/lib/hpsearch")
    with contextlib.suppress(RuntimeError):  # raised by platformdirs; older versions return a path that begins with ~
        folder = platformdirs.user_data_path("hpsearch")
        if folder.is_absolute():
            return folder
    raise SurroundingsError(
        f"this user (id {os.geteuid()}) has no home folder: neither HOME nor the system names one",
        hint="set HPSEARCH_HOME to a folder that this user may write to",
    )


def make_folder(folder: Path) -> None:
    """Create a folder with its parents. As root, the home folder is created so that PostgreSQL's user can enter it.

    Raises:
        OSError: it cannot be created.
    """
    if os.geteuid() == 0 and home_folder() in (folder, *folder.parents):
        make_passable(home_folder())
    folder.mkdir(parents=True, exist_ok=True)


def make_passable(folder: Path) -> None:
    """Create a folder with its parents. Folders that root creates can be entered by every user, whatever the umask."""
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(exist_ok=True)
            if os.geteuid() == 0:
                path.chmod(0o755)


def artifact_folder() -> Path:
    """The default folder for artifacts."""
    return home_folder() / "artifacts"


def log_folder() -> Path:
    """The folder for the logs of local workers."""
    return home_folder() / "logs"


def attempts_folder() -> Path:
    """The folder for the attempts of trials that are programs."""
    return home_folder() / "attempts"


def lane_folder() -> Path:
    """The folder for what workers of this machine have learned about lanes."""
    return home_folder() / "lanes"


def array_folder() -> Path:
    """The folder for arrays that a notebook has handed over."""
    return home_folder() / "arrays"


def check_folder() -> Path:
    """The folder for the outcome of `hpsearch check`, until the study is created."""
    return home_folder() / "checks"


def vault_file() -> Path:
    """The file that lists this machine's openings of test sets, whatever database their studies are in."""
    return home_folder() / "vault.jsonl"


def user_name() -> str:
    """The name of the user who runs this process; the user's number if it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
