"""Read the files of a trial, above all its best parameters, from the artifacts that its worker wrote."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from hpsearch.artifacts.best_parameters import PARAMETERS_FILE, Artifacts
from hpsearch.errors import ArtifactError
from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy
from hpsearch.study.own_networks import require_own_networks
from hpsearch.study.settings import ModelSettings, TrialSettings
from hpsearch.training.evaluation import Losses
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network
from hpsearch.training.tensor_file import CHECKSUM, Array, load_arrays, with_checksum

_PLACE_HINT = "name the folder or bucket that the workers wrote to with --artifacts or HPSEARCH_ARTIFACTS"

# How closely stored parameters must reproduce the validation losses in the database. The search computed these in
# lanes and perhaps on another kind of device: rounding can change the class of an image or two, and the last digits of
# the NLL. Other parameters, or other images, differ by more.
ERRORS_TOLERANCE = 2  # images, or ...
ERRORS_TOLERANCE_SHARE = 0.0005  # ... this share of all images, if that is more: 5 of MNIST's 10,000
NLL_TOLERANCE = 1e-3  # nats, plus the same fraction of the value


def read_parameters(study: StoredStudy, trial: TrialSummary, artifacts: Artifacts) -> bytes:
    """The bytes of the trial's parameter file (safetensors), as its worker wrote them.

    Files of older versions have no checksum. In these the numbers must be finite, and the shapes must be consistent.

    Raises:
        InputError: the study's trials are programs.
        ArtifactError: the trial has no parameter file, or the file is missing, damaged, or belongs to another trial.
    """
    require_own_networks(
        study.definition,
        f"trial {trial.number} has no parameters",
        "let the program save its model in hpsearch.trial.folder(): the folder of the best point is kept",
    )
    artifact_id = artifacts.parameters_id(trial.frozen())
    if artifact_id is None:
        raise ArtifactError(
            f"trial {trial.number} of study {study.name!r} has no {PARAMETERS_FILE} on record",
            hint="a worker keeps the parameters only of trials that are the best of the study when they end (with "
            "keep_every, among the five best); keep_parameters = all keeps those of each complete trial",
        )
    content, arrays, metadata = read_file(study, trial, artifacts, PARAMETERS_FILE, artifact_id)
    damage = _damage(arrays, metadata, study.definition.resolve(trial.parameters).model)
    if damage is not None:
        raise _damaged(_named(artifact_id, PARAMETERS_FILE, trial), artifacts, damage)
    return content


def read_file(
    study: StoredStudy, trial: TrialSummary, artifacts: Artifacts, file_name: str, artifact_id: str
) -> tuple[bytes, dict[str, Array], dict[str, str]]:
    """Content, arrays and metadata of a safetensors file that the trial's worker wrote. Its checksum is not verified.

    Raises:
        ArtifactError: the file is missing, damaged, or belongs to another trial.
    """
    found = _named(artifact_id, file_name, trial)
    try:
        content = artifacts.store.read(artifact_id)
        arrays, metadata = load_arrays(content)
    except FileNotFoundError as error:
        raise ArtifactError(f"{found} is not in {artifacts.place}", hint=_PLACE_HINT) from error
    except OSError as error:
        raise ArtifactError(
            f"{found} in {artifacts.place} cannot be read: {error.strerror}", hint=_PLACE_HINT
        ) from error
    except SafetensorError as error:
        raise _damaged(found, artifacts, error, file_name) from error
    if not _is_of(metadata, study, trial):
        raise ArtifactError(
            f"{found} in {artifacts.place} says that it belongs to trial {metadata.get('trial')} of study "
            f"{metadata.get('study')!r}",
            hint=_PLACE_HINT,
        )
    return content, arrays, metadata


def parameters_on(device: torch.device, content: bytes, network: Network) -> dict[str, Tensor]:
    """The parameters of a file, on the device.

    Args:
        content: of a safetensors file.
    Raises:
        ArtifactError: they do not fit the network.
    """
    arrays, _ = load_arrays(content)
    expected = {name: shape.shape for name, shape in network.parameter_shapes.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        raise ArtifactError(
            f"the stored parameters do not fit the network: expected {expected}, found {found}",
            hint="name the artifacts that the workers wrote; `hpsearch test --retrain` trains the point again",
        )
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def check_reproduction(trial: TrialSummary, found: Losses, consequence: str = "", metric: Metric = ZERO_ONE) -> None:
    """Check that the parameters are those that the search selected, not from a wrong file or for a wrong network.

    Args:
        found: of the parameters, on the validation images.
        consequence: ends the error message.
    Raises:
        ArtifactError: the losses differ from those on record.
    """
    assert trial.loss is not None, "a complete trial has a value"
    if metric is ZERO_ONE:
        allowed = max(ERRORS_TOLERANCE, ERRORS_TOLERANCE_SHARE * found.num_examples)
        is_off = abs(found.num_errors - trial.loss * found.num_examples) > allowed
    else:  # an example or two that change places change these by more than a rounding
        is_off = not metric.is_bounded and not abs(found.loss - trial.loss) <= NLL_TOLERANCE * (1 + trial.loss)
    nll = trial.best_validation_nll
    if nll is not None:
        is_off |= not abs(found.nll - nll) <= NLL_TOLERANCE * (1 + abs(nll))
    if is_off:
        raise ArtifactError(
            f"the stored parameters of trial {trial.number} do not reproduce its {metric.validation_label}: found "
            f"{metric.loss_text(found.loss)} and NLL {found.nll:.4f}, on record are "
            f"{metric.text(trial.value)} and NLL {'none' if nll is None else f'{nll:.4f}'}{consequence}",
            hint="name the artifacts that the workers wrote; `hpsearch test --retrain` trains the point again",
        )


def _named(artifact_id: str, file_name: str, trial: TrialSummary) -> str:
    return f"artifact {artifact_id} ({file_name} of trial {trial.number})"


def _damaged(found: str, artifacts: Artifacts, reason: object, file_name: str = PARAMETERS_FILE) -> ArtifactError:
    hint = "restore it from a copy"
    if file_name == PARAMETERS_FILE:
        hint += "; to evaluate the point without it, `hpsearch test --retrain` trains it again"
    return ArtifactError(f"{found} in {artifacts.place} is damaged: {reason}", hint=hint)


def checksum_is_wrong(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bool:
    """Whether the file has a checksum, and its content another one."""
    stored = metadata.get(CHECKSUM)
    return stored is not None and with_checksum(arrays, metadata)[CHECKSUM] != stored


def _damage(arrays: Mapping[str, Array], metadata: Mapping[str, str], model: ModelSettings) -> str | None:
    """Why the parameters are damaged; None if no damage was found."""
    if CHECKSUM in metadata:
        return "its checksum is wrong" if checksum_is_wrong(arrays, metadata) else None
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

    They must match the study's definition or, if the study was widened since, the trial's settings; it may have been
    given more epochs.
    """
    if (metadata.get("study"), metadata.get("trial")) != (study.name, str(trial.number)):
        return False
    if metadata.get("definition_sha256") == study.definition.sha256:
        return True
    try:
        settings = TrialSettings.model_validate_json(metadata.get("settings", ""), strict=False)
    except ValidationError:
        return False
    expected = study.definition.resolve(trial.parameters)
    same_epochs = expected.training.model_copy(update={"max_epochs": settings.training.max_epochs})
    return settings == expected.model_copy(update={"training": same_epochs})
