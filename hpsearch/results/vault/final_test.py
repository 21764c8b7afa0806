"""The vault: the only access to the test split. It is opened once per study, for the chosen point.

No other module imports `hpsearch.data.test_split`; an import check enforces this. The steps of an opening:

    check that the study is finished and its vault unopened
      -> load the chosen point's parameters, or train the point again
      -> check that stored parameters reproduce the validation error on record
      -> commit the intent (opening.py)
      -> read the test files and evaluate the network, which may be a user's own
      -> record the number (record.py) -> return it

Source: docs/sources.md, section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from hpsearch import metric
from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.download import DownloadProgress
from hpsearch.data.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.device.devices import VisibleDevices, make_current, use_full_float32, wanted_gpus
from hpsearch.device.pin import PinnedDevice, PinRules, pin_device
from hpsearch.errors import ArtifactError, DataError, DeviceError, HpsearchError, InputError
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.confirmation.companion_study import confirmations
from hpsearch.results.openings.intents import intent_to_finish
from hpsearch.results.openings.record import Finding, VaultRecord, check_reason
from hpsearch.results.selection import Selection
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.stored_parameters import read_parameters
from hpsearch.results.summary import describe_counts
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.results.vault.opening import declare_opening
from hpsearch.search.stopping import decide
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import describe_shortage, is_out_of_memory
from hpsearch.training.evaluation import Losses, evaluate
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.preparation import load_study_data
from hpsearch.worker.process import worker_name

_LANE = "retrained"  # key of the only trial of its cohort

# How closely stored parameters must reproduce the validation losses in the database. The search computed these in
# lanes and perhaps on another kind of device: rounding can change the class of an image or two, and the last digits of
# the NLL. Other parameters, or other images, differ by more.
ERRORS_TOLERANCE = 2  # images, or ...
ERRORS_TOLERANCE_SHARE = 0.0005  # ... this share of all images, if that is more: 5 of MNIST's 10,000
NLL_TOLERANCE = 1e-3  # nats, plus the same fraction of the value


@dataclass(frozen=True, kw_only=True)
class VaultRequest:
    """What to evaluate, and where.

    Args:
        selection: the best or the confirmed point; None: the chosen point (results/choice.py).
        is_retrained: train the point again instead of using its stored parameters.
        reason: why the vault is opened again; None: it must be unopened.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: number of CPU threads; None keeps torch's setting.
    """

    selection: Selection | None = None
    is_retrained: bool = False
    reason: str | None = None
    device: str = "auto"
    pin_rules: PinRules = field(default_factory=PinRules)
    threads: int | None = None


def open_vault(
    database: Database,
    name: str,
    artifacts: Artifacts,
    request: VaultRequest,
    *,
    locations: DataLocations | None = None,
    show_download: Callable[[], AbstractContextManager[DownloadProgress | None]] = nullcontext,
    tell: Callable[[str], None] = lambda line: None,
) -> VaultRecord:
    """Evaluate the chosen point on the test images, once per study, and return the record.

    All errors are found before a test file is opened, except errors in the test files or during their evaluation. In
    that case the intent remains on record without a number, and the same call for the same point finishes it. Any
    number of processes may call it at the same time: one of them records the number, and the others raise
    VaultOpenedError with its record.

    Args:
        locations: of the data files; None: from the environment.
        show_download: context for the progress display of a download.
        tell: receives lines for display while the function runs.
    Raises:
        StudyNotFoundError: no such study.
        VaultOpenedError: the vault was opened before and no reason was given to open it again; the message has the
            recorded number. Or it was opened for another point or other parameters, and no number is on record.
        InputError: not a study of hpsearch, not finished, or not a valid reason.
        NothingCompleteError: no trial is complete.
        ArtifactError: the parameters are missing, damaged, or do not reproduce the validation error on record.
        DataError: data files are missing, damaged or do not match their checksums.
        DeviceError: the device is missing, or does not have enough memory.
        StorageError: the database is not reachable.
    """
    reason = None if request.reason is None else check_reason(request.reason)
    status = read_status(database, name)
    summary = status.summary
    intent_to_finish(summary.name, summary.openings, summary.intents, reason=reason)
    chosen = _choose(database, status, request.selection)
    if status.confirmation is not None and not status.confirmation.is_finished:
        for line in status.confirmation.brief():
            tell(line)
    described = _describe_point(chosen, is_retrained=request.is_retrained)
    intent_to_finish(summary.name, summary.openings, summary.intents, reason=reason, chosen=described)
    visible = VisibleDevices.detect()
    wanted_gpus(request.device, visible)  # fail early if the device does not exist
    locations = locations or DataLocations.from_environment()
    with show_download() as progress:
        selection = load_study_data(summary.study, locations=replace(locations, progress=progress))
    settings = chosen.study.definition.resolve(chosen.trial.parameters)
    network = build_network(settings.model, selection.image_shape, selection.num_classes)
    content = None if request.is_retrained else _stored_parameters(chosen, artifacts)
    with _device(database, request, visible) as pinned:
        device = pinned.device
        if content is None:
            content = _retrained(chosen.study.definition, settings, selection, pinned, tell)
        parameters = _parameters_of(network, content, device)
        validation = evaluate(network, parameters, *_on_device(selection.validation, device))
        if not request.is_retrained:
            _check_reproduction(chosen.trial, validation)
        sha256 = hashlib.sha256(content).hexdigest()
        opening = declare_opening(database, summary, described, sha256, reason, tell)
        with show_download() as progress:
            shown = replace(locations, progress=progress)
            held_out = load_test_split(summary.study.definition.data, shown, opening.is_on_record)
        _check_fit(held_out, selection)
        losses = evaluate(network, parameters, *_on_device(held_out, device))
        description = pinned.description
    finding = Finding(
        test_checksums=held_out.checksums,
        chosen={**opening.chosen, "validation_error": validation.zero_one, "device": description},
        parameters_sha256=sha256,
        num_images=losses.num_images,
        num_errors=losses.num_errors,
    )
    return opening.record(finding, tell)


def _choose(database: Database, status: StudyStatus, selection: Selection | None) -> ChosenPoint:
    """The point for which the test set may be opened.

    Raises:
        NothingCompleteError: no trial is complete.
        InputError: the search is not finished, the study is itself a companion study, or the confirmed point was
            requested and there is none.
    """
    summary = status.summary
    confirms = confirmations(database).get(summary.name)
    if confirms is not None:
        raise InputError(
            f"study {summary.name!r} is the confirmation of study {confirms['study']!r}; test that study instead",
            hint=f"hpsearch test {confirms['study']}",
        )
    summary.require_best()
    if not summary.is_finished:
        raise InputError(
            f"study {summary.name!r} is not finished: {describe_counts(summary.points)}",
            hint=f"finish it first (hpsearch worker {summary.name}): it may still choose another point",
        )
    return status.choose(selection)


def _stored_parameters(chosen: ChosenPoint, artifacts: Artifacts) -> bytes:
    try:
        return read_parameters(chosen.study, chosen.trial, artifacts)
    except ArtifactError as error:
        alternative = f"{error.hint}; or " if error.hint else ""
        raise ArtifactError(str(error), hint=f"{alternative}train the point again with --retrain") from error


@contextmanager
def _device(database: Database, request: VaultRequest, visible: VisibleDevices) -> Iterator[PinnedDevice]:
    """Pin the device; a GPU is then not used by workers. An out-of-memory error becomes a DeviceError."""
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    use_full_float32()
    pin = pin_device(
        database,
        request.device,
        visible,
        worker=worker_name(),
        stop=StopSignal(),
        is_finished=lambda: False,
        rules=request.pin_rules,
    )
    with pin as pinned:
        assert pinned is not None, "only an exception ends the wait"
        make_current(pinned.device)
        try:
            yield pinned
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"out of memory on {pinned.description}: {describe_shortage(error)}",
                hint="free the device, or choose another with --device",
            ) from error


def _retrained(
    definition: StudyDefinition,
    settings: TrialSettings,
    selection: SelectionData,
    pinned: PinnedDevice,
    tell: Callable[[str], None],
) -> bytes:
    """The point's parameters at its best validation after training it again, as a safetensors file.

    It is trained in a single lane, with its own seed, until its stopping rule, its schedule or its epochs end it. The
    result equals that of the trial in the search bit for bit on the same kind of device with the same other lanes, and
    otherwise up to rounding, which long training amplifies.

    Raises:
        InputError: the batch size does not fit the training set.
        HpsearchError: no validation was finite.
    """
    stopping = definition.stopping
    data = ResidentData.place(selection, pinned.device, max_resident_bytes=definition.data.max_resident_bytes)
    cohorts = Cohorts(stopping, data, pinned.device)
    rule, cohort = cohorts.stopping_rule(settings), cohorts.open(settings)
    cohort.admit(_LANE, settings)
    decision = None
    while decision is None:
        report = cohort.train_epoch()[_LANE]
        pinned.keep()
        pinned.require()
        tell(f"epoch {report.epoch}: {metric.NAME} {metric.error_text(report.best.zero_one)}")
        decision = decide(rule, report, settings.training.max_epochs)
    if cohort.best(_LANE) is None:
        raise HpsearchError(f"the point cannot be trained again: it {decision.detail}")
    return save({name: np.asarray(array, order="C") for name, array in cohort.best_parameters(_LANE).items()})


def _parameters_of(network: Network, content: bytes, device: torch.device) -> dict[str, Tensor]:
    """The parameters of a safetensors file, on the device.

    Raises:
        ArtifactError: they do not fit the network.
    """
    arrays = load(content)
    expected = {name: shape.shape for name, shape in network.parameter_shapes.items()}
    found = {name: array.shape for name, array in arrays.items()}
    if found != expected:
        raise ArtifactError(
            f"the stored parameters do not fit the network: expected {expected}, found {found}",
            hint="train the point again with --retrain",
        )
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _check_reproduction(trial: TrialSummary, found: Losses) -> None:
    """Check that the parameters are those that the search selected, not from a wrong file or for a wrong network.

    Raises:
        ArtifactError: their validation losses differ from those on record.
    """
    assert trial.value is not None, "a complete trial has a value"
    allowed = max(ERRORS_TOLERANCE, ERRORS_TOLERANCE_SHARE * found.num_images)
    is_off = abs(found.num_errors - trial.value * found.num_images) > allowed
    nll = trial.best_validation_nll
    if nll is not None:
        is_off |= not abs(found.nll - nll) <= NLL_TOLERANCE * (1 + abs(nll))
    if is_off:
        raise ArtifactError(
            f"the stored parameters of trial {trial.number} do not reproduce its {metric.NAME}: found "
            f"{metric.error_text(found.zero_one)} and NLL {found.nll:.4f}, on record are "
            f"{metric.error_text(trial.value)} and NLL {'none' if nll is None else f'{nll:.4f}'}; "
            "the test set was not opened",
            hint="name the artifacts that the workers wrote with --artifacts, or train the point again with --retrain",
        )


def _check_fit(held_out: HeldOutSplit, selection: SelectionData) -> None:
    """Raise DataError if the test images are not of the data set that the study was trained on."""
    num_pixels, found, misfit = selection.validation.images.shape[1], held_out.images.shape[1], None
    if found != num_pixels:
        misfit = f"the test images have {found} pixels, those of training and validation {num_pixels}"
    elif held_out.labels.max() >= selection.num_classes:
        classes = f"those of training and validation have 0..{selection.num_classes - 1}"
        misfit = f"the test images have the class {held_out.labels.max()}, {classes}"
    if misfit:
        raise DataError(
            f"{misfit}: {', '.join(held_out.checksums)} belong to another data set",
            hint="replace them by the test files of the study's own data set",
        )


def _on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [N, pixels] float32 and labels [N] int64."""
    images = np.require(split.images, dtype=np.float32, requirements=["C", "W"])
    labels = np.require(split.labels, dtype=np.int64, requirements=["C", "W"])
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _describe_point(chosen: ChosenPoint, *, is_retrained: bool) -> dict[str, Any]:
    """The keys of `Finding.chosen` that are known before the evaluation."""
    return {
        **chosen.values("trial", "point", "params"),
        "search_error": chosen.trial.value,
        "is_retrained": is_retrained,
    }
