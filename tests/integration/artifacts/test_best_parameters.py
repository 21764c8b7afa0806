"""Artifacts in a folder: whole files or none, records that Optuna finds, and errors that name the path."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.artifacts import download_artifact, get_all_artifact_meta
from safetensors import safe_open
from safetensors.numpy import load_file

from hpsearch import atomic_file, home
from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.artifacts.store import FolderStore
from hpsearch.errors import ArtifactError
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.training.tensor_file import with_checksum
from tests.full_disk import files_no_larger_than

PARAMETERS = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3).T, "biases": np.zeros(3, np.float32)}
METADATA = {"study": "a", "settings": '{"x": 1}'}

# Writes an artifact into the folder argv[1] and is killed when all bytes are written, before the rename.
KILLED_BEFORE_THE_RENAME = """
import io, os, signal, sys
from pathlib import Path
from hpsearch.artifacts import store as artifact_store
artifact_store.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
artifact_store.FolderStore(Path(sys.argv[1])).write("model", io.BytesIO(b"new" * 1000))
"""

# Writes files of 64 KB into the folder argv[1] until the disk is full; then removes one and writes again.
FILL_THE_DISK = """
import errno, io, sys
from pathlib import Path
from hpsearch.artifacts.store import open_store

folder = Path(sys.argv[1])
store = open_store(folder)
written = []
try:
    while True:
        store.write(f"file-{len(written)}", io.BytesIO(bytes([len(written)]) * 65536))
        written.append(f"file-{len(written)}")
except OSError as error:
    assert error.errno == errno.ENOSPC, error
assert len(written) > 2, written
assert sorted(path.name for path in folder.iterdir()) == sorted(written)
assert all(store.read(name) == bytes([number]) * 65536 for number, name in enumerate(written))
store.remove(written.pop())
store.write("again", io.BytesIO(b"x" * 1000))
print(sorted(set(path.name for path in folder.iterdir()) - set(written)))
"""


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    return Ledger(database=database, study_id=new_study(2).study_id, owner=1)


def save(folder: Artifacts, ledger: Ledger, trial_id: int) -> str:
    artifact_id = folder.save_parameters(ledger.set_system_attribute, trial_id, PARAMETERS, METADATA)
    assert artifact_id is not None
    return artifact_id


def test_parameters_are_read_back_as_they_were(ledger: Ledger, tmp_path: Path) -> None:
    folder = open_artifacts(tmp_path / "deep" / "folder")
    (claim,) = ledger.claim(1)
    artifact_id = save(folder, ledger, claim.trial_id)
    assert folder.parameters_id(ledger.database.storage.get_trial(claim.trial_id)) == artifact_id
    path = tmp_path / "deep" / "folder" / artifact_id
    found = load_file(path)
    assert found.keys() == PARAMETERS.keys()
    for name, array in PARAMETERS.items():
        np.testing.assert_array_equal(found[name], array)
    with safe_open(path, "numpy") as file:
        assert file.metadata() == with_checksum(PARAMETERS, METADATA)


def test_optuna_finds_and_downloads_the_artifact(ledger: Ledger, tmp_path: Path) -> None:
    folder = open_artifacts(tmp_path / "artifacts")
    (claim,) = ledger.claim(1)
    artifact_id = save(folder, ledger, claim.trial_id)
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5)])
    trial = ledger.database.storage.get_trial(claim.trial_id)
    (meta,) = get_all_artifact_meta(trial, storage=ledger.database.storage)
    assert (meta.artifact_id, meta.filename) == (artifact_id, "parameters.safetensors")
    copy = tmp_path / "copy"
    store = optuna.artifacts.FileSystemArtifactStore(str(tmp_path / "artifacts"))
    download_artifact(artifact_store=store, artifact_id=artifact_id, file_path=str(copy))
    assert copy.read_bytes() == (tmp_path / "artifacts" / artifact_id).read_bytes()


def test_trial_without_an_artifact_has_no_id(ledger: Ledger, tmp_path: Path) -> None:
    (claim,) = ledger.claim(1)
    assert open_artifacts(tmp_path).parameters_id(ledger.database.storage.get_trial(claim.trial_id)) is None


def test_trial_that_was_taken_away_leaves_no_file(ledger: Ledger, tmp_path: Path) -> None:
    folder = open_artifacts(tmp_path)
    (claim,) = ledger.claim(1)
    ledger.release("stopped")
    assert folder.save_parameters(ledger.set_system_attribute, claim.trial_id, PARAMETERS, METADATA) is None
    assert list(tmp_path.iterdir()) == []


def test_other_users_may_read_the_files(ledger: Ledger, tmp_path: Path) -> None:
    (claim,) = ledger.claim(1)
    artifact_id = save(open_artifacts(tmp_path), ledger, claim.trial_id)
    assert stat.S_IMODE((tmp_path / artifact_id).stat().st_mode) == 0o644


# Whole or not at all


def test_second_write_replaces_the_first(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("model", io.BytesIO(b"old" * 1_000_000))
    store.write("model", io.BytesIO(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert store.path("model").read_bytes() == b"new"


def test_writer_killed_before_the_rename_leaves_the_old_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("model", io.BytesIO(b"old"))
    result = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(tmp_path)], timeout=240)
    assert result.returncode == -signal.SIGKILL
    assert (tmp_path / "model").read_bytes() == b"old"


def test_full_disk_keeps_what_is_there_and_leaves_no_part_of_what_is_not(tmp_path: Path) -> None:
    """On a real, small file system, mounted in a name space of its own: other tests and users see nothing of it."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel lets nobody mount a file system of his own")
    script = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    command = ["unshare", "-Urm", "sh", "-c", script, sys.executable, FILL_THE_DISK]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.stdout.strip() == "['again']", result.stderr


def test_write_that_the_kernel_cuts_short_leaves_nothing_and_keeps_what_was_there(
    ledger: Ledger, tmp_path: Path
) -> None:
    folder = open_artifacts(tmp_path)
    one, two = ledger.claim(2)
    earlier = save(folder, ledger, one.trial_id)
    before = (tmp_path / earlier).read_bytes()
    with files_no_larger_than(100), pytest.raises(ArtifactError) as caught:
        save(folder, ledger, two.trial_id)
    assert str(caught.value) == f"cannot write the best parameters into {tmp_path}: File too large"
    assert caught.value.hint is not None
    assert [path.name for path in tmp_path.iterdir()] == [earlier]
    assert (tmp_path / earlier).read_bytes() == before
    assert ledger.database.storage.get_trial(two.trial_id).system_attrs == {}


def test_full_disk_is_named(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = open_artifacts(tmp_path)
    (claim,) = ledger.claim(1)
    monkeypatch.setattr(atomic_file.os, "fsync", fsync)
    with pytest.raises(ArtifactError, match=f"into {tmp_path}: No space left on device"):
        save(folder, ledger, claim.trial_id)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "artifact_id", ["../outside", "/etc/outside", "a/../../outside", "a/../b", "", ".", "..", "nul\0", "half \udc80"]
)
def test_no_id_leads_out_of_the_folder(tmp_path: Path, artifact_id: str) -> None:
    store = FolderStore(tmp_path / "artifacts")
    store.folder.mkdir()
    uses = (store.read, store.open_reader, store.remove, store.path, lambda name: store.write(name, io.BytesIO(b"x")))
    for use in uses:
        with pytest.raises(match="no artifact has the id"):
            use(artifact_id)
    assert [path.name for path in tmp_path.rglob("*")] == ["artifacts"]


# A folder that cannot be written is found at the start


@pytest.mark.parametrize("user", ["known", "unknown to the system"])
def test_folder_that_cannot_be_made_is_named_with_the_user(
    tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getuser() -> str:
        if user != "known":
            raise KeyError("getpwuid(): uid not found")
        return "somebody"

    monkeypatch.setattr(home.getpass, "getuser", getuser)
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "artifacts"
    with pytest.raises(ArtifactError) as caught:
        open_artifacts(folder)
    shown = "somebody" if user == "known" else str(os.getuid())
    assert str(caught.value) == f"artifact folder {folder} is not writable for user {shown}: Not a directory"
    assert caught.value.hint == "name another folder with --artifacts or HPSEARCH_ARTIFACTS"
    assert caught.value.exit_code == 3


def test_folder_where_the_kernel_refuses_files_is_found_at_the_start() -> None:
    with pytest.raises(ArtifactError, match="artifact folder /proc/self is not writable"):
        open_artifacts(Path("/proc/self"))  # not even root can write there


def test_opening_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    open_artifacts(tmp_path)
    assert list(tmp_path.iterdir()) == []
