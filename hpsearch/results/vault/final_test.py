"""The vault: the only access to the test split. It is opened once per study, for the chosen point.

No other module imports `hpsearch.data.test_split`; an import check enforces this. The steps of an opening:

    check that the study is finished and its vault unopened
      -> load the chosen point's parameters, or train the point again
      -> check that stored parameters reproduce the validation error on record
      -> commit the intent (opening.py)
      -> read the test files and evaluate the network, which may be a user's own
      -> count the test images that are also training or validation images (copies.py)
      -> record the number (opening.py) -> return it

Source: docs/sources.md, section 6.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.example_shape import is_image
from hpsearch.data.files.download import DownloadProgress
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.device.devices import VisibleDevices, make_current, use_full_float32, wanted_gpus
from hpsearch.device.pin import PinnedDevice, PinRules, pin_device
from hpsearch.errors import ArtifactError, DataError, DeviceError, HpsearchError, InputError
from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.confirmation.companion_study import confirmations
from hpsearch.results.confusion import confusion_matrix, macro_f1
from hpsearch.results.openings.intents import intent_to_finish
from hpsearch.results.openings.record import Finding, VaultRecord, check_reason
from hpsearch.results.selection import Selection
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.stored_parameters import check_reproduction, parameters_on, read_parameters
from hpsearch.results.summary import describe_counts
from hpsearch.results.vault.copies import try_to_count_copies
from hpsearch.results.vault.opening import declare_opening
from hpsearch.search.proportions import grouped_interval
from hpsearch.search.stopping import decide
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.own_networks import require_own_networks
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import describe_shortage, is_out_of_memory
from hpsearch.training.evaluation import Losses, evaluate, evaluate_with_scores
from hpsearch.training.judge import judge_of
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.name import worker_name
from hpsearch.worker.preparation import load_study_data

_LANE = "retrained"  # key of the only trial of its cohort


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
        InputError: not a study of hpsearch, one whose trials are programs, not finished, or not a valid reason.
        NothingCompleteError: no trial is complete.
        ArtifactError: the parameters are missing, damaged, or do not reproduce the validation error on record.
        DataError: data files are missing, damaged or do not match their checksums.
        DeviceError: the device is missing, or does not have enough memory.
        StorageError: the database is not reachable.
    """
    reason = None if request.reason is None else check_reason(request.reason)
    status = read_status(database, name)
    summary = status.summary
    require_own_networks(
        summary.study.definition,
        "there is no test set to open",
        "let the program keep its test data for a last run of the exported command: hpsearch export",
    )
    intent_to_finish(summary.name, summary.openings, summary.intents, reason=reason)
    if summary.study.definition.data.test == 0:
        raise InputError(
            f"study {summary.name!r} has no test part: data.test = 0",
            hint="a study with a test part needs another name",
        )
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
    settings = chosen.trial.settings(chosen.study.definition)
    network = build_network(settings.model, selection.example_shape, selection.num_outputs)
    content = None if request.is_retrained else _stored_parameters(chosen, artifacts)
    with _device(database, request, visible) as pinned:
        device = pinned.device
        if content is None:
            content = _retrained(chosen.study.definition, settings, selection, pinned, tell)
        parameters = parameters_on(device, content, network)
        validation = _evaluate(summary.metric, network, parameters, selection.validation, selection, device)
        if not request.is_retrained:
            check_reproduction(chosen.trial, validation, "; the test set was not opened", summary.metric)
        sha256 = hashlib.sha256(content).hexdigest()
        opening = declare_opening(database, summary, described, sha256, reason, tell)
        with show_download() as progress:
            shown = replace(locations, progress=progress)
            stored = summary.study.data_record
            held_out = load_test_split(summary.study.definition.data, shown, opening.is_on_record, stored)
        _check_fit(held_out, selection)
        losses = _evaluate(summary.metric, network, parameters, held_out, selection, device, is_grouped=True)
        errors = None
        if selection.num_classes:
            errors = _predicted(network, parameters, held_out, device)
        description = pinned.description
    copies = try_to_count_copies(held_out, selection, tell)
    finding = Finding(
        test_checksums=held_out.checksums,
        chosen={
            **opening.chosen,
            "validation_error": summary.metric.value_of(validation.loss),
            "device": description,
            **_other_value(summary.metric, losses),
            **({} if errors is None else {"macro_f1": macro_f1(errors)}),
            **({} if is_image(selection.example_shape) else {"examples": summary.study.examples}),
            **({} if copies is None else {"copies": asdict(copies)}),
        },
        parameters_sha256=sha256,
        num_images=losses.num_examples,
        num_errors=0 if errors is None else int(errors.sum() - np.trace(errors)),
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
    metric = definition.judged_by
    cohorts = Cohorts(stopping, data, pinned.device, metric=metric)
    rule, cohort = cohorts.stopping_rule(settings), cohorts.open(settings)
    cohort.admit(_LANE, settings)
    decision = None
    while decision is None:
        report = cohort.train_epoch()[_LANE]
        pinned.keep()
        pinned.require()
        tell(f"epoch {report.epoch}: {metric.validation_label} {metric.loss_text(report.best.loss)}")
        decision = decide(rule, report, settings.training.max_epochs)
    if cohort.best(_LANE) is None:
        raise HpsearchError(f"the point cannot be trained again: it {decision.detail}")
    return save({name: np.asarray(array, order="C") for name, array in cohort.best_parameters(_LANE).items()})


def _check_fit(held_out: HeldOutSplit, selection: SelectionData) -> None:
    """Raise DataError if the test images are not of the data set that the study was trained on."""
    num_pixels, found, misfit = selection.validation.images.shape[1], held_out.images.shape[1], None
    if found != num_pixels:
        misfit = f"the test images have {found} pixels, those of training and validation {num_pixels}"
    elif selection.num_classes and held_out.labels.max() >= selection.num_classes:
        classes = f"those of training and validation have 0..{selection.num_classes - 1}"
        misfit = f"the test images have the class {held_out.labels.max()}, {classes}"
    if misfit:
        raise DataError(
            f"{misfit}: {', '.join(held_out.checksums)} belong to another data set",
            hint="replace them by the test files of the study's own data set",
        )


def _evaluate(
    metric: Metric,
    network: Network,
    parameters: Tensors,
    split: Split,
    selection: SelectionData,
    device: torch.device,
    *,
    is_grouped: bool = False,
) -> Losses:
    """Losses on these examples.

    Args:
        is_grouped: take the groups of the examples as units, if they have any.
    """
    images, labels = _on_device(split, device)
    groups = None if split.groups is None or not is_grouped else torch.from_numpy(split.groups).to(device)
    judge = judge_of(
        metric.name,
        labels,
        num_classes=selection.num_classes,
        deviation=selection.target_deviation,
        groups=groups,
    )
    return evaluate(network, parameters, images, labels, judge)


def _predicted(network: Network, parameters: Tensors, split: Split, device: torch.device) -> NDArray[np.int64]:
    """The confusion matrix on these examples, [classes, classes]."""
    images, labels = _on_device(split, device)
    _, scores = evaluate_with_scores(network, parameters, images, labels)
    return confusion_matrix(labels.cpu().numpy(), scores.argmax(dim=-1).cpu().numpy(), network.num_outputs)


def _other_value(metric: Metric, losses: Losses) -> dict[str, Any]:
    """The keys of `Finding.chosen` for a value or an interval that does not follow from the number of errors."""
    groups = {"num_groups": losses.num_groups} if losses.num_groups else {}
    if metric is ZERO_ONE:
        return {**groups, "test_interval": list(_share_interval(losses))} if groups else {}
    interval = None if losses.interval is None else list(metric.interval_of(losses.interval))
    value = metric.value_of(losses.loss) if math.isfinite(losses.loss) else None  # an AUC of one class
    return {**groups, "metric": metric.name, "test_value": value, "test_interval": interval}


def _share_interval(losses: Losses) -> tuple[float, float]:
    num_groups, num_rows = losses.num_groups, losses.num_examples
    return grouped_interval(losses.loss, losses.variance, num_groups=num_groups, num_rows=num_rows)


def _on_device(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images [N, inputs], float32 or uint8 levels, and labels [N] int64 or, in regression, float32."""
    label_type = np.int64 if split.labels.dtype.kind in "iu" else np.float32
    images = np.require(split.images, requirements=["C", "W"])
    labels = np.require(split.labels, dtype=label_type, requirements=["C", "W"])
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


def _describe_point(chosen: ChosenPoint, *, is_retrained: bool) -> dict[str, Any]:
    """The keys of `Finding.chosen` that are known before the evaluation."""
    return {
        **chosen.values("trial", "point", "params"),
        "search_error": chosen.trial.value,
        "max_epochs": chosen.trial.settings(chosen.study.definition).training.max_epochs,
        "is_retrained": is_retrained,
    }
