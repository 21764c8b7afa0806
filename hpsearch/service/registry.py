"""Studies in the database: create one with all its points, or load it again.

A study is created in one transaction: the Optuna study, its definition, and every point as a WAITING trial.
It is there whole or not at all, and any number of processes may create the same study at once: one does, the
others find it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import optuna
import torch
from optuna.study import StudyDirection
from pydantic import ValidationError
from sqlalchemy import Connection, insert, select, text

import hpsearch
from hpsearch.errors import DefinitionMismatchError, InputError, StorageError, StudyNotFoundError
from hpsearch.service import tables
from hpsearch.service.database import Database
from hpsearch.service.trial_rows import insert_parameters, insert_trials, write_trial_attributes
from hpsearch.settings import TrialSettings
from hpsearch.study import StudyDefinition, describe_differences

# Study attributes that make an Optuna study one of ours. The dashboard shows them.
DEFINITION_ATTRIBUTE = "hpsearch:definition"
CHECKSUMS_ATTRIBUTE = "hpsearch:dataset_checksums"
VERSIONS_ATTRIBUTE = "hpsearch:versions"
# Trial attributes, for readers that know Optuna only.
POINT_ATTRIBUTE = "point"
ATTEMPT_ATTRIBUTE = "attempt"

_INSERT_POINTS = text("""
    INSERT INTO hpsearch_points (study_id, point, trial_id, cohort, attempt, crashes, furthest_epoch, is_counted)
    SELECT :study, place - 1, trial_id, cohort, 1, 0, 0, false
    FROM unnest(CAST(:trial_ids AS int[]), CAST(:cohorts AS text[]))
        WITH ORDINALITY AS r(trial_id, cohort, place)
""")


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study as the database has it.

    Args:
        dataset_checksums: file name -> SHA-256 of the unpacked content that the study is trained on.
        versions: what created it: hpsearch, torch, optuna, python ...
    """

    study_id: int
    definition: StudyDefinition
    dataset_checksums: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.definition.name


def current_versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {
        "hpsearch": hpsearch.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which YAML refuses
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
    }


def create_study(
    database: Database,
    definition: StudyDefinition,
    *,
    dataset_checksums: Mapping[str, str],
    cohort_of: Callable[[TrialSettings], str],
) -> tuple[StoredStudy, bool]:
    """Create the study with all its points, or find that it is there already.

    Args:
        cohort_of: names the cohort of a point: points of one cohort can share a worker's lanes.
    Returns:
        The stored study, and whether this call created it.
    Raises:
        DefinitionMismatchError: a study of this name has another definition or other data.
    """

    def work(connection: Connection) -> bool:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"hpsearch:create:{definition.name}"},
        )
        if _study_id(connection, definition.name) is not None:
            return False
        study_id = _insert_study(connection, definition, dataset_checksums)
        _insert_points(connection, study_id, definition, cohort_of)
        return True

    is_new = database.transaction(work)
    stored = load_study(database, definition.name)
    _check_definition(stored, definition)
    _check_data(stored, dataset_checksums)
    return stored, is_new


def find_study(database: Database, definition: StudyDefinition) -> StoredStudy | None:
    """The study of this name, if it is there and has this very definition.

    Raises:
        DefinitionMismatchError: it is there with another definition.
        InputError: it is there, but hpsearch did not create it.
    """
    if database.transaction(lambda connection: _study_id(connection, definition.name)) is None:
        return None
    stored = load_study(database, definition.name)
    _check_definition(stored, definition)
    return stored


def load_study(database: Database, name: str) -> StoredStudy:
    """Load a study by name.

    Raises:
        StudyNotFoundError: no such study; the hint names those that are there.
        InputError: a study of this name exists but was not made by hpsearch.
    """
    attributes = database.transaction(lambda connection: _read_attributes(connection, name))
    if attributes is None:
        known = study_names(database)
        raise StudyNotFoundError(
            f"no study {name!r} in the database at {database.address}",
            hint="there are: " + ", ".join(known) if known else "there is none yet: hpsearch run STUDY.toml",
        )
    study_id, values = attributes
    if DEFINITION_ATTRIBUTE not in values:
        raise InputError(f"study {name!r} exists, but hpsearch did not create it", hint="take another study name")
    try:
        definition = StudyDefinition.from_canonical_json(values[DEFINITION_ATTRIBUTE])
    except ValidationError as error:
        creator = values.get(VERSIONS_ATTRIBUTE, {}).get("hpsearch", "?")
        raise StorageError(
            f"study {name!r} was created by hpsearch {creator}, "
            f"whose definition version {hpsearch.__version__} cannot read",
            hint="use the version that created it",
        ) from error
    return StoredStudy(
        study_id=study_id,
        definition=definition,
        dataset_checksums=values[CHECKSUMS_ATTRIBUTE],
        versions=values[VERSIONS_ATTRIBUTE],
    )


def study_names(database: Database) -> list[str]:
    """The names of all studies of ours, newest last."""
    query = (
        select(tables.studies.c.study_name)
        .join(
            tables.study_user_attributes,
            tables.study_user_attributes.c.study_id == tables.studies.c.study_id,
        )
        .where(tables.study_user_attributes.c.key == DEFINITION_ATTRIBUTE)
        .order_by(tables.studies.c.study_id)
    )
    return list(database.transaction(lambda connection: connection.execute(query).scalars().all()))


def _check_definition(stored: StoredStudy, definition: StudyDefinition) -> None:
    differences = describe_differences(stored.definition, definition)
    if differences:
        raise DefinitionMismatchError(
            f"study {definition.name!r} exists with another definition:\n  " + "\n  ".join(differences),
            hint="resume it with its own definition, or rename this one (--set name=...)",
        )


def _check_data(stored: StoredStudy, checksums: Mapping[str, str]) -> None:
    if dict(stored.dataset_checksums) != dict(checksums):
        raise DefinitionMismatchError(
            f"study {stored.name!r} was trained on other data: its files have other checksums\n  "
            + "\n  ".join(f"{file}: {sha} in the study" for file, sha in stored.dataset_checksums.items()),
            hint="point HPSEARCH_DATA at the study's own data, or rename the study",
        )


def _study_id(connection: Connection, name: str) -> int | None:
    return connection.execute(
        select(tables.studies.c.study_id).where(tables.studies.c.study_name == name)
    ).scalar_one_or_none()


def _read_attributes(connection: Connection, name: str) -> tuple[int, dict[str, Any]] | None:
    study_id = _study_id(connection, name)
    if study_id is None:
        return None
    attributes = tables.study_user_attributes
    rows = connection.execute(
        select(attributes.c.key, attributes.c.value_json).where(attributes.c.study_id == study_id)
    )
    return study_id, {row.key: json.loads(row.value_json) for row in rows}


def _insert_study(connection: Connection, definition: StudyDefinition, checksums: Mapping[str, str]) -> int:
    study_id: int = connection.execute(
        insert(tables.studies).values(study_name=definition.name).returning(tables.studies.c.study_id)
    ).scalar_one()
    connection.execute(
        insert(tables.study_directions).values(study_id=study_id, direction=StudyDirection.MINIMIZE, objective=0)
    )
    attributes = {
        DEFINITION_ATTRIBUTE: definition.canonical_json(),
        CHECKSUMS_ATTRIBUTE: dict(checksums),
        VERSIONS_ATTRIBUTE: current_versions(),
    }
    connection.execute(
        insert(tables.study_user_attributes),
        [{"study_id": study_id, "key": k, "value_json": json.dumps(v)} for k, v in attributes.items()],
    )
    return study_id


def _insert_points(
    connection: Connection,
    study_id: int,
    definition: StudyDefinition,
    cohort_of: Callable[[TrialSettings], str],
) -> None:
    """Enqueue every point as a WAITING trial, in four statements."""
    points = list(definition.points())
    cohorts = [None if definition.is_drawn else cohort_of(definition.resolve(point)) for point in points]
    trial_ids = insert_trials(connection, study_id, len(points), first_number=0)
    connection.execute(_INSERT_POINTS, {"study": study_id, "trial_ids": trial_ids, "cohorts": cohorts})
    distributions = {d.name: d.grid_distribution() for d in definition.search.dimensions}
    insert_parameters(connection, distributions, zip(trial_ids, points, strict=True))
    write_trial_attributes(
        connection,
        [(trial_id, {POINT_ATTRIBUTE: i, ATTEMPT_ATTRIBUTE: 1}) for i, trial_id in enumerate(trial_ids)],
    )
