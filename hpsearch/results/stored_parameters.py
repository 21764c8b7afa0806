"""Read the best parameters of a trial from the artifacts that its worker wrote."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError

from hpsearch.artifacts.best_parameters import PARAMETERS_FILE, Artifacts
from hpsearch.errors import ArtifactError
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import ModelSettings, TrialSettings
from hpsearch.training.networks.build import build_network
from hpsearch.training.tensor_file import CHECKSUM, Array, load_arrays, with_checksum

_PLACE_HINT = "name the folder or bucket that the workers wrote to with --artifacts or HPSEARCH_ARTIFACTS"


def read_parameters(study: StoredStudy, trial: TrialSummary, artifacts: Artifacts) -> bytes:
    """The bytes of the trial's parameter file (safetensors), as its worker wrote them.

    Files of older versions have no checksum. In these the numbers must be finite, and the shapes must be consistent.

    Raises:
        ArtifactError: the trial has no parameter file, or the file is missing, damaged, or belongs to another trial.
    """
    artifact_id = artifacts.parameters_id(trial.frozen())
    if artifact_id is None:
        raise ArtifactError(
            f"trial {trial.number} of study {study.name!r} has no {PARAMETERS_FILE} on record",
            hint="a worker keeps the parameters only of trials that are the best of the study when they end",
        )
    found = f"artifact {artifact_id} ({PARAMETERS_FILE} of trial {trial.number})"
    try:
        content = artifacts.store.read(artifact_id)
        arrays, metadata = load_arrays(content)
    except FileNotFoundError as error:
        raise ArtifactError(f"{found} is not in {artifacts.place}", hint=_PLACE_HINT) from error
    except OSError as error:
        raise ArtifactError(f"{found} in {artifacts.place} cannot be read: {error.strerror}") from error
    except SafetensorError as error:
        raise _damaged(found, artifacts, error) from error
    if not _is_of(metadata, study, trial):
        raise ArtifactError(
            f"{found} in {artifacts.place} says that it belongs to trial {metadata.get('trial')} of study "
            f"{metadata.get('study')!r}",
            hint=_PLACE_HINT,
        )
    damage = _damage(arrays, metadata, study.definition.resolve(trial.parameters).model)
    if damage is not None:
        raise _damaged(found, artifacts, damage)
    return content


def _damaged(found: str, artifacts: Artifacts, reason: object) -> ArtifactError:
    hint = "restore it from a copy, or train the point again with `hpsearch test --retrain`"
    return ArtifactError(f"{found} in {artifacts.place} is damaged: {reason}", hint=hint)


def _damage(arrays: Mapping[str, Array], metadata: Mapping[str, str], model: ModelSettings) -> str | None:
    """Why the parameters are damaged; None if no damage was found."""
    stored = metadata.get(CHECKSUM)
    if stored is not None:
        return None if with_checksum(arrays, metadata)[CHECKSUM] == stored else "its checksum is wrong"
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            return f"{name} has numbers that are not finite"
    return _misfit(arrays, model)


def _misfit(arrays: Mapping[str, Array], model: ModelSettings) -> str | None:
    """Why the arrays do not fit a network of this model, for images of any size; None if they fit."""
    if model.family not in ("logistic", "mlp"):
        return None  # needs the image size; `open_vault` checks against the whole network
    first = arrays.get("output.weight" if model.family == "logistic" else "hidden.weight")
    if first is None or first.ndim != 2 or "output.bias" not in arrays:
        return f"it is not of a network of the family {model.family}"
    network = build_network(model, (1, first.shape[1]), arrays["output.bias"].size)
    expected = {name: tuple(shape.shape) for name, shape in network.parameter_shapes.items()}
    found = {name: array.shape for name, array in arrays.items()}
    return None if found == expected else f"its shapes are {found}, expected {expected}"


def _is_of(metadata: Mapping[str, str], study: StoredStudy, trial: TrialSummary) -> bool:
    """Whether the file's metadata name this trial.

    They must match the study's definition or, if the study was widened since, the trial's settings.
    """
    if (metadata.get("study"), metadata.get("trial")) != (study.name, str(trial.number)):
        return False
    if metadata.get("definition_sha256") == study.definition.sha256:
        return True
    try:
        settings = TrialSettings.model_validate_json(metadata.get("settings", ""), strict=False)
    except ValidationError:
        return False
    return settings == study.definition.resolve(trial.parameters)
