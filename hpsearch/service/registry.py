"""Studies in the database: create one with all its points, or load it again.

A study is created in one transaction: the Optuna study, its definition, and every point as a WAITING trial. It is
there whole or not at all, and any number of processes may create the same study at once: one does, the others find it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import optuna
import torch
from optuna.distributions import distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import TrialState
from pydantic import ValidationError
from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.dialects import postgresql

import hpsearch
from hpsearch.errors import DefinitionMismatchError, InputError, StorageError, StudyNotFoundError
from hpsearch.service import tables
from hpsearch.service.database import Database
from hpsearch.settings import TrialSettings
from hpsearch.space import ParameterValue
from hpsearch.study import StudyDefinition, describe_differences

# Study attributes that make an Optuna study one of ours. The dashboard shows them.
DEFINITION_ATTRIBUTE = "hpsearch:definition"
CHECKSUMS_ATTRIBUTE = "hpsearch:dataset_checksums"
VERSIONS_ATTRIBUTE = "hpsearch:versions"
# Trial attributes, for readers that know Optuna only.
POINT_ATTRIBUTE = "point"
ATTEMPT_ATTRIBUTE = "attempt"


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
        "torch": torch.__version__,
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
    _check_same(stored, definition, dataset_checksums)
    return stored, is_new


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
        raise InputError(
            f"study {name!r} exists, but hpsearch did not create it", hint="take another study name"
        )
    try:
        definition = StudyDefinition.from_canonical_json(values[DEFINITION_ATTRIBUTE])
    except ValidationError as error:
        raise StorageError(
            f"study {name!r} was created by hpsearch {values.get(VERSIONS_ATTRIBUTE, {}).get('hpsearch', '?')}, "
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


def _check_same(stored: StoredStudy, definition: StudyDefinition, checksums: Mapping[str, str]) -> None:
    differences = describe_differences(stored.definition, definition)
    if differences:
        raise DefinitionMismatchError(
            f"study {definition.name!r} exists with another definition:\n  " + "\n  ".join(differences),
            hint="resume it with its own definition, or rename this one (--set name=...)",
        )
    if dict(stored.dataset_checksums) != dict(checksums):
        raise DefinitionMismatchError(
            f"study {definition.name!r} was trained on other data: its files have other checksums\n  "
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
        insert(tables.study_directions).values(
            study_id=study_id, direction=StudyDirection.MINIMIZE, objective=0
        )
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
    """Enqueue every point as a WAITING trial, in a constant number of (batched) statements."""
    points = list(definition.points())
    trial_ids = insert_trials(connection, study_id, len(points), first_number=0)
    connection.execute(
        insert(tables.points),
        [
            {
                "study_id": study_id,
                "point": index,
                "trial_id": trial_id,
                "cohort": None if definition.is_drawn else cohort_of(definition.resolve(point)),
            }
            for index, (trial_id, point) in enumerate(zip(trial_ids, points, strict=True))
        ],
    )
    parameters = list(_parameter_rows(definition, trial_ids, points))
    if parameters:
        connection.execute(insert(tables.trial_params), parameters)
    write_trial_attributes(
        connection,
        [(trial_id, {POINT_ATTRIBUTE: i, ATTEMPT_ATTRIBUTE: 1}) for i, trial_id in enumerate(trial_ids)],
    )


def _parameter_rows(
    definition: StudyDefinition, trial_ids: list[int], points: list[dict[str, ParameterValue]]
) -> Iterable[dict[str, Any]]:
    distributions = {d.name: d.grid_distribution() for d in definition.search.dimensions}
    texts = {name: distribution_to_json(distribution) for name, distribution in distributions.items()}
    for trial_id, point in zip(trial_ids, points, strict=True):
        for name, value in point.items():
            yield {
                "trial_id": trial_id,
                "param_name": name,
                "param_value": distributions[name].to_internal_repr(value),
                "distribution_json": texts[name],
            }


def insert_trials(connection: Connection, study_id: int, count: int, *, first_number: int) -> list[int]:
    """Insert WAITING trials with consecutive numbers and return their ids in the same order.

    The caller holds a lock under which the study's number of trials cannot change.
    """
    rows = connection.execute(
        insert(tables.trials).returning(tables.trials.c.trial_id, sort_by_parameter_order=True),
        [
            {"study_id": study_id, "number": first_number + i, "state": TrialState.WAITING}
            for i in range(count)
        ],
    )
    return list(rows.scalars())


def count_trials(connection: Connection, study_id: int) -> int:
    """Lock the study's row, as Optuna does when it numbers a new trial, and count its trials."""
    connection.execute(
        select(tables.studies.c.study_id).where(tables.studies.c.study_id == study_id).with_for_update()
    )
    return connection.execute(
        select(func.count()).select_from(tables.trials).where(tables.trials.c.study_id == study_id)
    ).scalar_one()


def write_trial_attributes(connection: Connection, attributes: list[tuple[int, Mapping[str, Any]]]) -> None:
    """Set user attributes of trials, replacing those of the same key."""
    rows = [
        {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        for trial_id, values in attributes
        for key, value in values.items()
    ]
    if not rows:
        return
    statement = postgresql.insert(tables.trial_user_attributes)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=["trial_id", "key"], set_={"value_json": statement.excluded.value_json}
        ),
        rows,
    )
