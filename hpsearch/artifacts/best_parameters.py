"""Artifacts of trials: best parameters and filters as safetensors files, found through Optuna's artifact records.

Each file is complete in the store before its record is added to the trial, where optuna-dashboard shows it. Nothing is
pickled.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial

from hpsearch.artifacts.record import artifact_record, recorded_id
from hpsearch.artifacts.store import ArtifactStore, open_store
from hpsearch.errors import ArtifactError
from hpsearch.training.tensor_file import save_arrays, with_checksum

PARAMETERS_FILE = "parameters.safetensors"
FILTERS_FILE = "filters.safetensors"  # the first layer at several epochs (training/filter_series.py)
FILTERS_PREFIX = "filters-"  # of the names in the store

# Sets a system attribute of a trial: id, key, value. Returns whether the trial accepts it; `Ledger` has such a method.
SetSystemAttribute = Callable[[int, str, Any], bool]


@dataclass(frozen=True)
class Artifacts:
    """Files of trials, in one store that all workers of a study share."""

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
        artifact_id = self.write(parameters, metadata, "the best parameters")
        if set_system_attribute(trial_id, *artifact_record(artifact_id, PARAMETERS_FILE)):
            return artifact_id
        self.remove(artifact_id)
        return None

    def remove(self, artifact_id: str) -> None:
        """Remove a file that no record names, if the store can do that now."""
        with contextlib.suppress(OSError):
            self.store.remove(artifact_id)

    def write(
        self, arrays: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str], what: str, prefix: str = ""
    ) -> str:
        """Write a safetensors file with a checksum, and return its id; no record names it yet.

        Args:
            what: the content, in error messages.
            prefix: of the id.
        Raises:
            ArtifactError: the store refuses; earlier artifacts are untouched.
        """
        artifact_id = f"{prefix}{uuid.uuid4()}"
        content = save_arrays(arrays, with_checksum(arrays, metadata))
        try:
            self.store.write(artifact_id, io.BytesIO(content))
        except OSError as error:
            raise ArtifactError(
                f"cannot write {what} into {self.place}: {error.strerror or error}",
                hint="free disk space, or name another place with --artifacts; earlier artifacts are intact",
            ) from error
        return artifact_id

    def parameters_id(self, trial: FrozenTrial) -> str | None:
        """Return the id of a trial's best parameters in its worker's store, or None if none are recorded."""
        return recorded_id(trial.system_attrs, PARAMETERS_FILE, trial.number)


def open_artifacts(place: str | Path, *, is_read_only: bool = False) -> Artifacts:
    """Open the artifacts in this folder or bucket. Raises the errors of `open_store`."""
    return Artifacts(open_store(place, is_read_only=is_read_only))
