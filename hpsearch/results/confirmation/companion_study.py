"""Companion studies: how to find the study that confirms another one, and how its points are composed.

A companion study has an attribute that names the study that it confirms; its own name does not matter. Its points are
configurations times seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy, attribute_place, read_attributes
from hpsearch.stored_json import Kind, check_kind, damaged, parse_stored_object
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.registry import FAMILIES
from hpsearch.study.space import ParameterValue, point_key

# An attribute of the companion study: study, definition_sha256, value_sha256 and dataset_checksums of the confirmed
# study, and num_parameters of each configuration.
CONFIRMS_ATTRIBUTE = "hpsearch:confirms"
_CONFIRMS_KEYS = ("study", "value_sha256", "dataset_checksums", "num_parameters")
SEED = "seed"  # the searched key in which the trials of one configuration differ

Parameters = Mapping[str, ParameterValue]
Points = Iterable[Parameters]


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A study that confirms another one.

    Args:
        num_parameters: trainable parameters of each configuration's network, in the order of the configurations; None
            for programs, whose models are not known.
    """

    name: str
    num_parameters: tuple[int | None, ...]


def find_companion(database: Database, study: StoredStudy) -> Companion | None:
    """The companion study that confirms this study; None if there is none.

    Ignores the confirmation of a deleted study with the same name but another definition or data.
    """
    confirmed = study.name, study.value_sha256, dict(study.dataset_checksums)
    for name, confirms in confirmations(database).items():
        if (confirms["study"], confirms["value_sha256"], confirms["dataset_checksums"]) == confirmed:
            return Companion(name=name, num_parameters=tuple(number or None for number in confirms["num_parameters"]))
    return None


def confirmations(database: Database) -> dict[str, dict[str, Any]]:
    """The `CONFIRMS_ATTRIBUTE` of every companion study, by the companion's name, oldest first.

    Ignores copies of companion studies that were made by other programs, which have no points of hpsearch.

    Raises:
        StorageError: a stored attribute is damaged.
    """
    rows = database.transaction(lambda connection: read_attributes(connection, CONFIRMS_ATTRIBUTE))
    place = attribute_place(CONFIRMS_ATTRIBUTE)
    return {
        row.study_name: _parse_confirms(row.value_json, f"study {row.study_name!r}", place)
        for row in rows
        if row.has_points
    }


def _parse_confirms(text: str, what: str, place: str) -> dict[str, Any]:
    found = parse_stored_object(text, what, place, _CONFIRMS_KEYS)
    check_kind(found["study"], Kind.TEXT, what, f"{place}, study")
    numbers = found["num_parameters"]
    for number in numbers if isinstance(numbers, list) else [numbers]:
        check_kind(number, Kind.WHOLE, what, f"{place}, num_parameters")
    if not isinstance(numbers, list):
        raise damaged(what, f"{place}, num_parameters", "expected a list")
    return found


def configurations_of(points: Points) -> list[dict[str, ParameterValue]]:
    """The distinct points without their seeds, in order of first appearance."""
    return unique(map(without_seed, points))


def seeds_of(points: Points) -> list[int]:
    """The distinct seeds of the points, in order of first appearance."""
    return list(dict.fromkeys(int(point[SEED]) for point in points))


def unique(points: Points) -> list[dict[str, ParameterValue]]:
    """The distinct points, in order of first appearance."""
    seen: dict[frozenset[tuple[str, ParameterValue]], dict[str, ParameterValue]] = {}
    for point in points:
        seen.setdefault(point_key(point), dict(point))
    return list(seen.values())


def can_seeds_matter(definition: StudyDefinition, configurations: Points) -> bool:
    """Whether another seed can change the training of any of these configurations.

    The seed determines the initial weights, unless the family's are all 0, and the order of the images, if they are
    shuffled. Of a program nothing is known before it has run.
    """
    if definition.is_program:
        return True
    trained = [definition.resolve(point) for point in configurations]
    zeros = [name for name, family in FAMILIES.items() if family.starts_at_zero]
    return any(settings.model.family not in zeros or settings.training.shuffle for settings in trained)


def without_seed(point: Parameters) -> dict[str, ParameterValue]:
    return {name: value for name, value in point.items() if name != SEED}
