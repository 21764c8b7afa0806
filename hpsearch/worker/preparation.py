"""From a definition to a study that workers can join: read the data, check every point, create or resume the study.

Everything that can be wrong is found here, before anything is created and before hours are spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import hpsearch
from hpsearch.checks.finding import CheckReport
from hpsearch.checks.record import recall, require_possible
from hpsearch.checks.suite import check_data_only
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.example_shape import is_image
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.registry import with_absolute_dataset
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError
from hpsearch.search.pruners import build_pruner
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import Registration, register_study
from hpsearch.store.studies import EXAMPLES_KEY, StoredStudy, study_named
from hpsearch.study.corners import shape_settings
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.training.class_weights import check_class_weights
from hpsearch.training.judge import check_judgeable, check_metric
from hpsearch.training.networks.build import build_network
from hpsearch.worker.cohorts import cohort_name


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """A study in the database and the data that it is trained on."""

    registration: Registration
    data: SelectionData

    @property
    def study(self) -> StoredStudy:
        return self.registration.study


def prepare_study(
    database: Database,
    definition: StudyDefinition,
    *,
    locations: DataLocations,
    checks: bool = True,
    data_record: Mapping[str, Any] | None = None,
) -> PreparedStudy:
    """Create the study, find it with the same definition and the same data, or change it to this definition.

    `find_study` tells before any data is fetched that a definition cannot change; callers that may wait call it first.

    Args:
        checks: look at the data first, unless the study was checked with it already. The outcome is stored.
        data_record: of another study, whose split and preparation a new study shall have; None: they are made anew.
    Raises:
        InputError: a point cannot be trained on this data, or the data cannot be right; or as `register_study` raises.
        DefinitionMismatchError: the study exists with other data, or a definition that cannot become this one.
        DataError: the data is missing or damaged.
        StorageError: the database went away.
    """
    definition = with_absolute_dataset(definition)
    stored = _stored_record(database, definition) or data_record
    data = load_selection_data(definition.data, locations=locations, stored=stored)
    check_points(definition, data)
    report = _check(database, definition, data) if checks else None
    registration = register_study(
        database,
        definition,
        dataset_checksums=data.checksums,
        data_record=data.record if is_image(data.example_shape) else {**data.record, EXAMPLES_KEY: "rows"},
        cohort_of=cohort_name,
        checks=None if report is None else report.as_json(),
    )
    return PreparedStudy(registration=registration, data=data)


def _stored_record(database: Database, definition: StudyDefinition) -> Mapping[str, Any] | None:
    """The record of this study's data, if the study exists and its data are prepared as this definition says."""
    stored = study_named(database, definition.name)
    options = definition.data.model_dump(exclude={"dataset"})
    is_same = stored is not None and stored.definition.data.model_dump(exclude={"dataset"}) == options
    return stored.data_record if stored is not None and is_same else None


def _check(database: Database, definition: StudyDefinition, data: SelectionData) -> CheckReport | None:
    """The report to store: that of `hpsearch check`, or one about the data; None if the study has one.

    Raises:
        InputError: the study is new, and its data cannot be right.
    """
    stored = study_named(database, definition.name)
    known = (stored and stored.checks) or {}
    report = recall(definition, data.checksums)
    if known.get("checksums") == dict(data.checksums):
        is_newer = report is not None and (not known.get("has_networks") or str(known.get("date")) < report.date)
        if not is_newer:
            return None
    report = report or check_data_only(definition, data, version=hpsearch.__version__)
    require_possible(report, is_new=stored is None)
    return report


def load_study_data(study: StoredStudy, *, locations: DataLocations) -> SelectionData:
    """Load the data of a stored study on this machine.

    Raises:
        DataError: it is missing, damaged, or not the data that the study was created with.
    """
    data = load_selection_data(study.definition.data, locations=locations, stored=study.data_record)
    if dict(data.checksums) != dict(study.dataset_checksums):
        changed = [name for name, sha in study.dataset_checksums.items() if data.checksums.get(name) != sha]
        raise DataError(
            f"study {study.name!r} was created with other data: {', '.join(changed)} differ on this machine "
            f"(found {[data.checksums.get(name) for name in changed]}, "
            f"expected {[study.dataset_checksums[name] for name in changed]}){_decoders(study, data)}",
            hint="point HPSEARCH_DATA at the data that the study was created with",
        )
    return data


def _decoders(study: StoredStudy, data: SelectionData) -> str:
    """`; the images were decoded by Pillow 11.3.0, here by Pillow 12.0.0`, if another decoder may be the reason."""
    before, now = (record.get("decoder") for record in (study.data_record, data.record))
    if not isinstance(before, Mapping) or not isinstance(now, Mapping) or before == now:
        return ""
    texts = [", ".join(f"{name} {version}" for name, version in sorted(one.items())) for one in (before, now)]
    return f"; the images were decoded by {texts[0]}, here by {texts[1]}, which may give other pixels"


def check_points(definition: StudyDefinition, data: SelectionData) -> None:
    """Check what the definition alone cannot know: sizes that depend on the data.

    Raises:
        InputError: names the key, its value and the allowed range.
    """
    check_metric(definition.metric, data.num_classes)
    check_judgeable(definition.metric, data.validation.labels)
    check_class_weights(definition.training.class_weights, data.num_classes)
    if any(dimension.name == "class_weights" for dimension in definition.search.dimensions):
        check_class_weights("balanced", data.num_classes)
    build_pruner(definition.pruning, definition.training.max_epochs)
    corners = shape_settings(definition)
    bound = definition.data.max_resident_bytes
    resident = ResidentData.place(data, torch.device("cpu"), max_resident_bytes=bound, keeps_levels=True)
    for settings in corners:
        resident.num_minibatches(settings.training.batch_size)
    _build_networks(corners, data)


def check_networks(definition: StudyDefinition, data: SelectionData) -> None:
    """Build every network that the points name, once each: the code of a custom family must be on this machine.

    Raises:
        InputError: a network does not fit the data, or a custom family cannot be imported or trained.
    """
    _build_networks(shape_settings(definition), data)


def _build_networks(corners: Iterable[TrialSettings], data: SelectionData) -> None:
    for model in dict.fromkeys(settings.model for settings in corners):
        build_network(model, data.example_shape, data.num_outputs)
