"""The best parameters of a trial, out of the artifacts that its worker wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping

from optuna.artifacts.exceptions import ArtifactNotFound
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load

from hpsearch.errors import ArtifactError
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.service.artifacts import PARAMETERS_FILE, Artifacts
from hpsearch.service.registry import StoredStudy
from hpsearch.settings import TrialSettings

_PLACE_HINT = "name the folder or bucket that the workers wrote to with --artifacts or HPSEARCH_ARTIFACTS"


def read_parameters(study: StoredStudy, trial: TrialSummary, artifacts: Artifacts) -> bytes:
    """The bytes of the trial's parameter file (safetensors), after a look at what it says it is.

    Raises:
        ArtifactError: the trial has none, or the file is not there, is damaged, or is another trial's.
    """
    artifact_id = artifacts.parameters_id(trial.frozen())
    if artifact_id is None:
        raise ArtifactError(
            f"trial {trial.number} of study {study.name!r} has no {PARAMETERS_FILE} on record",
            hint="a worker keeps those of trials that are the best so far when they end, and no others",
        )
    found = f"artifact {artifact_id} ({PARAMETERS_FILE} of trial {trial.number})"
    try:
        content = artifacts.store.read(artifact_id)
        metadata = _read_metadata(content)
    except ArtifactNotFound as error:
        raise ArtifactError(f"{found} is not in {artifacts.place}", hint=_PLACE_HINT) from error
    except OSError as error:
        raise ArtifactError(f"{found} in {artifacts.place} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise ArtifactError(f"{found} in {artifacts.place} is damaged: {error}") from error
    if not _is_of(metadata, study, trial):
        raise ArtifactError(
            f"{found} in {artifacts.place} says that it belongs to trial {metadata.get('trial')} of study "
            f"{metadata.get('study')!r}",
            hint=_PLACE_HINT,
        )
    return content


def _read_metadata(content: bytes) -> Mapping[str, str]:
    """What a safetensors file says about itself. Raises SafetensorError if it is damaged."""
    load(content)  # checks the header and every tensor's place; it does not give the metadata away
    header_length = int.from_bytes(content[:8], "little")
    metadata: Mapping[str, str] = json.loads(content[8 : 8 + header_length]).get("__metadata__") or {}
    return metadata


def _is_of(metadata: Mapping[str, str], study: StoredStudy, trial: TrialSummary) -> bool:
    """Whether they are this trial's: by the study's definition or, if that has been widened since, the settings."""
    if (metadata.get("study"), metadata.get("trial")) != (study.name, str(trial.number)):
        return False
    if metadata.get("definition_sha256") == study.definition.sha256:
        return True
    try:
        settings = TrialSettings.model_validate_json(metadata.get("settings", ""), strict=False)
    except ValidationError:
        return False
    return settings == study.definition.resolve(trial.parameters)
