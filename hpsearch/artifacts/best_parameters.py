"""Artifacts of trials: best parameters as safetensors files, found through Optuna's artifact records.

Each file is complete in the store before its record is added to the trial, where optuna-dashboard shows it. Nothing is
pickled.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from hpsearch.artifacts.store import ArtifactStore, open_store
from hpsearch.errors import ArtifactError
from hpsearch.stored_json import ARTIFACT_RECORD_PREFIX, parse_stored_object
from hpsearch.training.tensor_file import save_arrays, with_checksum

PARAMETERS_FILE = "parameters.safetensors"

# Sets a system attribute of a trial: id, key, value. Returns whether the trial accepts it; `Ledger` has such a method.
SetSystemAttribute = Callable[[int, str, Any], bool]


@dataclass(frozen=True)
class Artifacts:
    """Best parameters of trials, in one store that all workers of a study share."""

    store: ArtifactStore

    @property
    def place(self) -> str:
        """The store's name, as in --artifacts."""
        return self.store.place

    def save_parameters(
        self,
        set_system_attribute: SetSystemAttribute,
        trial_id: int,
        parameters: Mapping[str, NDArray[np.generic]],
        metadata: Mapping[str, str],
    ) -> str | None:
        """Write the parameters with a checksum, then record them on a RUNNING trial.

        Args:
            parameters: name -> array.
            metadata: stored in the same file.
        Returns:
            The artifact's id; None: the trial has ended or was deleted, and the file was removed again.
        Raises:
            ArtifactError: the store refuses; earlier artifacts are untouched and nothing is recorded.
        """
        artifact_id = str(uuid.uuid4())
        content = save_arrays(parameters, with_checksum(parameters, metadata))
        try:
            self.store.write(artifact_id, io.BytesIO(content))
        except OSError as error:
            raise ArtifactError(
                f"cannot write the best parameters into {self.place}: {error.strerror or error}",
                hint="free disk space, or name another place with --artifacts; earlier artifacts are intact",
            ) from error
        # As optuna.artifacts.upload_artifact records it, but after the file exists and not before.
        kind = "application/octet-stream"
        record = {"artifact_id": artifact_id, "filename": PARAMETERS_FILE, "mimetype": kind, "encoding": None}
        if set_system_attribute(trial_id, ARTIFACT_RECORD_PREFIX + artifact_id, json.dumps(record)):
            return artifact_id
        with contextlib.suppress(OSError):
            self.store.remove(artifact_id)  # no record names it
        return None

    def parameters_id(self, trial: FrozenTrial) -> str | None:
        """Return the id of a trial's best parameters in its worker's store, or None if none are recorded.

        The last record with the right file name is used: a file of that name that a user has uploaded was recorded
        earlier, because a trial that has ended accepts no records.
        """
        for key, value in reversed(trial.system_attrs.items()):
            if key.startswith(ARTIFACT_RECORD_PREFIX):
                place = f"table trial_system_attributes, key {key}"
                record = parse_stored_object(value, f"trial {trial.number}", place, ("filename", "artifact_id"))
                if record["filename"] == PARAMETERS_FILE:
                    return str(record["artifact_id"])
        return None


def open_artifacts(place: str | Path, *, is_read_only: bool = False) -> Artifacts:
    """Open the artifacts in this folder or bucket. Raises the errors of `open_store`."""
    return Artifacts(open_store(place, is_read_only=is_read_only))
