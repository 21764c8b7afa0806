"""The artifact folder: best parameters as safetensors files, found through Optuna's artifact records.

Each file is written whole under a temporary name and renamed; its record hangs on the trial, where optuna-dashboard
shows it. Nothing is pickled.
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

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write an artifact whole, or raise OSError and leave nothing."""
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        try:
            with os.fdopen(handle, "wb") as file:
                while chunk := content_body.read(1 << 20):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.folder / artifact_id)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


class ArtifactFolder:
    """Best parameters of trials, in one folder that all workers of a study share."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, creating it. Raises ArtifactError at once if it cannot be written, not after an hour."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ArtifactError(
                f"artifact folder {folder} is not writable for user {getpass.getuser()}: {error.strerror}",
                hint="name another with --artifacts or HPSEARCH_ARTIFACTS",
            ) from error
        self.store = AtomicFileStore(folder)

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
        try:
            self.store.write(artifact_id, io.BytesIO(save(dict(parameters), metadata=dict(metadata))))
        except OSError as error:
            raise ArtifactError(
                f"cannot write the best parameters into {self.folder}: {error.strerror}",
                hint="make room; earlier artifacts are intact",
            ) from error
        # As optuna.artifacts.upload_artifact records it, but after the file is there and not before.
        record = ArtifactMeta(
            artifact_id=artifact_id, filename=PARAMETERS_FILE, mimetype="application/octet-stream", encoding=None
        )
        storage.set_trial_system_attr(trial_id, RECORD_PREFIX + artifact_id, json.dumps(asdict(record)))
        return artifact_id

    def parameters_path(self, trial: FrozenTrial) -> Path | None:
        """The file with a trial's best parameters; None if none was recorded. It may lie on another machine."""
        for key, value in trial.system_attrs.items():
            if key.startswith(RECORD_PREFIX):
                record = json.loads(value)
                if record["filename"] == PARAMETERS_FILE:
                    return self.folder / str(record["artifact_id"])
        return None
