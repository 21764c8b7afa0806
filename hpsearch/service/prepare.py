"""From a definition to a study that workers can join: look at the data, check every point, create or resume.

Everything that can be wrong is found here, before anything is created and before hours are spent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hpsearch.data.catalog import DataLocations, DownloadProgress, load_selection_data
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError
from hpsearch.search.pruners import build_pruner
from hpsearch.service.cohorts import cohort_name
from hpsearch.service.database import Database
from hpsearch.service.registry import StoredStudy, create_study, find_study
from hpsearch.settings import OPTION_PREFIX
from hpsearch.space import Dimension, grid_points
from hpsearch.study import StudyDefinition
from hpsearch.training.networks import build_network


@dataclass(frozen=True, kw_only=True)
class PreparedStudy:
    """A study in the database and the data that it is trained on."""

    study: StoredStudy
    is_new: bool
    data: SelectionData


def prepare_study(
    database: Database,
    definition: StudyDefinition,
    *,
    locations: DataLocations,
    progress: DownloadProgress | None = None,
) -> PreparedStudy:
    """Create the study, or find it with the same definition and the same data.

    Raises:
        InputError: a point cannot be trained on this data, or the study exists with another definition.
        DataError: the data is missing or damaged.
        StorageError: the database went away.
    """
    find_study(database, definition)  # a changed definition is told before any data is fetched
    data = load_selection_data(definition.data, locations=locations, progress=progress)
    check_points(definition, data)
    study, is_new = create_study(database, definition, dataset_checksums=data.checksums, cohort_of=cohort_name)
    return PreparedStudy(study=study, is_new=is_new, data=data)


def load_study_data(
    study: StoredStudy, *, locations: DataLocations, progress: DownloadProgress | None = None
) -> SelectionData:
    """Load the data of a stored study on this machine.

    Raises:
        DataError: it is missing, damaged, or not what the study was created with.
    """
    data = load_selection_data(study.definition.data, locations=locations, progress=progress)
    if dict(data.checksums) != dict(study.dataset_checksums):
        changed = [name for name, sha in study.dataset_checksums.items() if data.checksums.get(name) != sha]
        raise DataError(
            f"study {study.name!r} was created with other data: {', '.join(changed)} differ on this machine "
            f"(found {[data.checksums.get(name) for name in changed]}, "
            f"expected {[study.dataset_checksums[name] for name in changed]})",
            hint="point HPSEARCH_DATA at the data that the study was created with",
        )
    return data


def check_points(definition: StudyDefinition, data: SelectionData) -> None:
    """Check what the definition alone cannot know: sizes that depend on the data.

    Raises:
        InputError: names the key, its value and the allowed range.
    """
    build_pruner(definition.pruning, definition.training.max_epochs)
    resident = ResidentData.place(data, torch.device("cpu"), max_resident_bytes=definition.data.max_resident_bytes)
    for settings in map(definition.resolve, _corner_points(definition)):
        resident.num_minibatches(settings.training.batch_size)
    check_networks(definition, data)


def check_networks(definition: StudyDefinition, data: SelectionData) -> None:
    """Build every network that the points name, once each: a custom family's code must be on this machine.

    Raises:
        InputError: a network does not fit the data, or a family of a user's own cannot be imported or trained.
    """
    models = dict.fromkeys(definition.resolve(point).model for point in _corner_points(definition))
    for model in models:
        build_network(model, data.image_shape, data.num_classes)


def _corner_points(definition: StudyDefinition) -> list[dict[str, float | int | str | bool]]:
    """Points with every value of the dimensions that shape tensors; the others do not matter here."""
    shaping = ("family", "hidden_units", "batch_size")
    dimensions: list[Dimension] = [
        d for d in definition.search.dimensions if d.name in shaping or d.name.startswith(OPTION_PREFIX)
    ]
    return list(grid_points(tuple(dimensions)))
