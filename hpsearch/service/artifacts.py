"""The artifact folder: best parameters as safetensors files, found through Optuna's artifact records.

Each file is written whole under a temporary name and renamed; its record hangs on the trial, where
optuna-dashboard shows it. Nothing is pickled.
"""

from __future__ import annotations

import getpass
import io
import json
import os
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from safetensors.numpy import save

from hpsearch.errors import ArtifactError

PARAMETERS_FILE = "parameters.safetensors"
RECORD_PREFIX = "artifacts:"  # of the system attributes in which Optuna keeps its artifact records


class AtomicFileStore(FileSystemArtifactStore):
    """Optuna's folder store, with writes that leave the old state or the new one, never a part."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    def path(self, artifact_id: str) -> Path:
        """Where an artifact lies. Raises ValueError for an id that leads out of the folder."""
        return self._get_filepath(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact whole, or raise OSError and leave nothing."""
        target = self.path(artifact_id)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)  # not mkstemp's 0600: a dashboard may run as another user
                while chunk := content_body.read(1 << 20):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class ArtifactFolder:
    """Best parameters of trials, in one folder that all workers of a study share."""

    def __init__(self, folder: Path, *, is_read_only: bool = False) -> None:
        """Open the folder; create it, unless it is only to be read.

        Raises:
            ArtifactError: it cannot be written: found at the start, not after an hour.
        """
        self.folder = folder
        self.store = AtomicFileStore(folder)
        if not is_read_only:
            self._check_writable()

    def _check_writable(self) -> None:
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ArtifactError(
                f"artifact folder {folder} is not writable for user {_user()}: {error.strerror or error}",
                hint="name another with --artifacts or HPSEARCH_ARTIFACTS",
            ) from error

    def save_parameters(
        self,
        storage: BaseStorage,
        trial_id: int,
        parameters: Mapping[str, NDArray[np.generic]],
        metadata: Mapping[str, str],
    ) -> str:
        """Write the parameters, then record them on a RUNNING trial. Returns the artifact's id.

        Raises:
            ArtifactError: the disk refuses; earlier artifacts are untouched and nothing is recorded.
            optuna.exceptions.UpdateFinishedTrialError: the trial has been taken from this worker.
        """
        artifact_id = str(uuid.uuid4())
        # safetensors writes the memory of an array as it lies: a transposed view would come back scrambled.
        arrays = {name: np.asarray(array, order="C") for name, array in parameters.items()}
        try:
            self.store.write(artifact_id, io.BytesIO(save(arrays, metadata=dict(metadata))))
        except OSError as error:
            raise ArtifactError(
                f"cannot write the best parameters into {self.folder}: {error.strerror or error}",
                hint="make room; earlier artifacts are intact",
            ) from error
        # As optuna.artifacts.upload_artifact records it, but after the file is there and not before.
        record = ArtifactMeta(
            artifact_id=artifact_id,
            filename=PARAMETERS_FILE,
            mimetype="application/octet-stream",
            encoding=None,
        )
        try:
            storage.set_trial_system_attr(trial_id, RECORD_PREFIX + artifact_id, json.dumps(asdict(record)))
        except UpdateFinishedTrialError:
            self.store.remove(artifact_id)  # nobody will ever look for it
            raise
        return artifact_id

    def parameters_path(self, trial: FrozenTrial) -> Path | None:
        """The file with a trial's best parameters, maybe on another machine; None if none is recorded."""
        for key, value in trial.system_attrs.items():
            if key.startswith(RECORD_PREFIX):
                record = json.loads(value)
                if record["filename"] == PARAMETERS_FILE:
                    return self.store.path(str(record["artifact_id"]))
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())
