"""Companion studies: which study confirms which, and what their points are made of.

A companion is found by an attribute that names the study that it confirms, whatever it is called itself. Its points
are configurations times seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.points import point_key
from hpsearch.store.studies import HAS_POINTS, StoredStudy, attribute_place
from hpsearch.stored_json import Kind, check_kind, damaged, parse_stored_object
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import ParameterValue

# On the companion: study, definition_sha256, value_sha256 and dataset_checksums of what it confirms, and
# num_parameters of each configuration.
CONFIRMS_ATTRIBUTE = "hpsearch:confirms"
_CONFIRMS_KEYS = ("study", "value_sha256", "dataset_checksums", "num_parameters")
SEED = "seed"  # the searched key in which the trials of one configuration differ

Parameters = Mapping[str, ParameterValue]
Points = Iterable[Parameters]


@dataclass(frozen=True, kw_only=True)
class Companion:
    """A study that confirms another one.

    Args:
        num_parameters: trainable ones of each configuration's network, in the order of the configurations.
    """

    name: str
    num_parameters: tuple[int, ...]


def find_companion(database: Database, study: StoredStudy) -> Companion | None:
    """The study that confirms this one, if there is one. That of a deleted namesake that differed is none of it."""
    for name, confirms in confirmations(database).items():
        if _is_of(confirms, study):
            return Companion(name=name, num_parameters=tuple(confirms["num_parameters"]))
    return None


def confirmations(database: Database) -> dict[str, dict[str, Any]]:
    """All confirmations by their own names, the oldest first; copies that other programs have made are none.

    Raises:
        StorageError: what one of them says was damaged.
    """
    attributes = tables.study_user_attributes
    query = (
        select(tables.studies.c.study_name, attributes.c.value_json)
        .join(attributes, attributes.c.study_id == tables.studies.c.study_id)
        .where(attributes.c.key == CONFIRMS_ATTRIBUTE, HAS_POINTS)
        .order_by(tables.studies.c.study_id)
    )
    rows = database.transaction(lambda connection: connection.execute(query).all())
    place = attribute_place(CONFIRMS_ATTRIBUTE)
    return {row.study_name: _parse_confirms(row.value_json, f"study {row.study_name!r}", place) for row in rows}


def _parse_confirms(text: str, what: str, place: str) -> dict[str, Any]:
    found = parse_stored_object(text, what, place, _CONFIRMS_KEYS)
    check_kind(found["study"], Kind.TEXT, what, f"{place}, study")
    numbers = found["num_parameters"]
    for number in numbers if isinstance(numbers, list) else [numbers]:
        check_kind(number, Kind.WHOLE, what, f"{place}, num_parameters")
    if not isinstance(numbers, list):
        raise damaged(what, f"{place}, num_parameters", "it is no list")
    return found


def configurations_of(points: Points) -> list[dict[str, ParameterValue]]:
    """The points without their seeds, each once, in order."""
    return unique(map(without_seed, points))


def seeds_of(points: Points) -> list[int]:
    """The seeds of the points, each once, in order."""
    return list(dict.fromkeys(int(point[SEED]) for point in points))


def unique(points: Points) -> list[dict[str, ParameterValue]]:
    """Each point once, in order of first appearance."""
    seen: dict[frozenset[tuple[str, ParameterValue]], dict[str, ParameterValue]] = {}
    for point in points:
        seen.setdefault(point_key(point), dict(point))
    return list(seen.values())


def can_seeds_matter(definition: StudyDefinition, configurations: Points) -> bool:
    """Whether another seed can change any of these trainings.

    A seed draws the initial weights, which are all 0 in logistic regression, and the orders of images, if they are
    shuffled.
    """
    trained = [definition.resolve(point) for point in configurations]
    return any(settings.model.family != "logistic" or settings.training.shuffle for settings in trained)


def without_seed(point: Parameters) -> dict[str, ParameterValue]:
    return {name: value for name, value in point.items() if name != SEED}


def _is_of(confirms: Mapping[str, Any], study: StoredStudy) -> bool:
    """Whether it confirms this very study, and no former one of its name."""
    named = confirms["study"], confirms["value_sha256"], confirms["dataset_checksums"]
    return named == (study.name, study.definition.value_sha256, dict(study.dataset_checksums))
