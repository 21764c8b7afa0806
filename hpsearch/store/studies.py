"""Studies in the database: create one with its points, load one, or continue one with a changed definition.

A study is created in one transaction: the Optuna study, its definition, and every known point as a WAITING trial. It is
stored completely or not at all. Any number of processes may create the same study at once: one creates it, the others
find it. A definition with more points or a larger budget changes the study, also in one transaction (widening.py).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import optuna
from pydantic import ValidationError
from sqlalchemy import Connection, Row, text

import hpsearch
from hpsearch.errors import DefinitionMismatchError, InputError, StorageError, StudyNotFoundError
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.points import CohortOf, add_points, count_points, narrowing_of
from hpsearch.store.rows.round_rows import insert_round
from hpsearch.store.rows.widening import num_allowed, restore_lost_points, widen_study
from hpsearch.stored_json import damaged, parse_stored, parse_stored_texts
from hpsearch.study.change import StudyChange, compare_definitions
from hpsearch.study.definition import StudyDefinition, check_study_name

# Study attributes that mark an Optuna study as one of hpsearch. Optuna-dashboard shows them.
DEFINITION_ATTRIBUTE = "hpsearch:definition"
CHECKSUMS_ATTRIBUTE = "hpsearch:dataset_checksums"
VERSIONS_ATTRIBUTE = "hpsearch:versions"

# Whether the study `s` has points. Optuna's tools copy a study's attributes and its trials, but not its points.
_HAS_POINTS = "EXISTS (SELECT FROM hpsearch_points p WHERE p.study_id = s.study_id) AS has_points"

_FIND = text(f"""
    SELECT s.study_id, {_HAS_POINTS}, (
        SELECT json_object_agg(a.key, a.value_json) FROM study_user_attributes a
        WHERE a.study_id = s.study_id AND a.key = ANY(CAST(:keys AS text[]))) AS attributes
    FROM studies s WHERE s.study_name = :name
""")

_MARKED = "FROM studies s JOIN study_user_attributes a USING (study_id) WHERE a.key = :key ORDER BY s.study_id"
_NAMES = text(f"SELECT s.study_name, {_HAS_POINTS} {_MARKED}")
_ATTRIBUTES = text(f"SELECT s.study_name, {_HAS_POINTS}, a.value_json {_MARKED}")

_ATTRIBUTE = text("SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :key")

_INSERT = text("""
    WITH created AS (
        INSERT INTO studies (study_name) VALUES (:name) RETURNING study_id
    ), directed AS (
        INSERT INTO study_directions (study_id, direction, objective) SELECT study_id, 'MINIMIZE', 0 FROM created
    )
    SELECT study_id FROM created
""")

_SET_ATTRIBUTE = text("""
    INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)
    ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json
""")


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study as the database has it.

    Args:
        definition: its name is the name of the study's row, even if the stored text has another one.
        dataset_checksums: file name -> SHA-256 of the unpacked content that the study is trained on.
        versions: versions of the programs that created it: hpsearch, torch, optuna, python ...
        is_renamed: another program has changed the name of its row.
    """

    study_id: int
    definition: StudyDefinition
    dataset_checksums: Mapping[str, str]
    versions: Mapping[str, str]
    is_renamed: bool = False

    @property
    def name(self) -> str:
        return self.definition.name


def current_versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import torch  # the import takes seconds, and only code that stores versions needs it

    return {
        "hpsearch": hpsearch.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which YAML refuses
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
    }


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The outcome of `register_study`.

    Args:
        study: with the definition as it is now stored.
        is_new: this call created the study.
        num_points: number of points that the study has now.
        num_added: number of points that this call added to an existing study.
        num_restored: number of points that were queued again because another program had deleted their trials.
        changes: changes to the definition, one line each.
    """

    study: StoredStudy
    is_new: bool
    num_points: int
    num_added: int = 0
    num_restored: int = 0
    changes: tuple[str, ...] = ()


def register_study(
    database: Database,
    definition: StudyDefinition,
    *,
    dataset_checksums: Mapping[str, str],
    cohort_of: CohortOf,
) -> Registration:
    """Create the study with its points, or find the existing one, or change it to this definition.

    One transaction. Any number of processes may call it at once, also while workers train; calling it twice is safe.

    Args:
        dataset_checksums: file name -> SHA-256 of the unpacked content.
        cohort_of: names the cohort of a point: points of one cohort can share a worker's lanes.
    Raises:
        DefinitionMismatchError: a study of this name has other data, or a definition that cannot become this one.
        InputError: a study of this name exists but was not created by hpsearch, or is a copy that another program has
            made; or no study of this name exists, but one that another program has renamed or copied from it.
    """

    def work(connection: Connection) -> Registration:
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"),
            {"name": f"hpsearch:create:{definition.name}"},
        )
        stored = _select_study_or_heir(connection, definition.name)
        if stored is None:
            _insert_study(connection, definition, dataset_checksums, cohort_of)
            return replace(_registration(connection, definition.name), is_new=True)
        change = _allowed_change(stored, definition)
        _check_data(stored, dataset_checksums)
        if change.is_none:
            if stored.is_renamed:
                _set_attributes(connection, stored.study_id, {DEFINITION_ATTRIBUTE: stored.definition.canonical_json()})
            num_restored = restore_lost_points(connection, stored.study_id, stored.definition, cohort_of)
            return replace(_registration(connection, definition.name), num_restored=num_restored)
        changed = definition.told_like(stored.definition)
        num_added = widen_study(connection, stored.study_id, stored.definition, changed, cohort_of)
        _set_attributes(connection, stored.study_id, {DEFINITION_ATTRIBUTE: changed.canonical_json()})
        return replace(_registration(connection, definition.name), num_added=num_added, changes=change.lines)

    return database.transaction(work)


def find_study(database: Database, definition: StudyDefinition) -> StoredStudy | None:
    """Return the study of this name if it exists with exactly this definition.

    Returns None if `register_study` would create or change the study.

    Raises:
        DefinitionMismatchError: it exists with a definition that cannot become this one.
        InputError: it exists, but hpsearch did not create it; or as `register_study` raises.
    """
    stored = database.transaction(lambda connection: _select_study_or_heir(connection, definition.name))
    return stored if stored is not None and _allowed_change(stored, definition).is_none else None


def load_study(database: Database, name: str) -> StoredStudy:
    """Load a study by name.

    Raises:
        StudyNotFoundError: there is no such study; the hint lists the existing ones.
        InputError: a study of this name exists but was not created by hpsearch, or is another program's copy.
    """
    stored = database.transaction(lambda connection: _select_study(connection, name))
    if stored is None:
        known = study_names(database)
        raise StudyNotFoundError(
            f"no study {name!r} in the database at {database.address}",
            hint="there are: " + ", ".join(known) if known else "there is none yet: hpsearch run STUDY.toml",
        )
    return stored


def stored_definition(database: Database, study_id: int) -> StudyDefinition | None:
    """Return the definition of the study that currently has this id, or None if there is none."""
    rows = database.rows(_ATTRIBUTE, {"study": study_id, "key": DEFINITION_ATTRIBUTE})
    return parse_stored_definition(rows[0].value_json, f"study number {study_id}") if rows else None


def study_names(database: Database) -> list[str]:
    """Return the names of all studies of hpsearch, newest last, without the copies that other programs have made."""
    return [name for name, has_points in _names(database) if has_points]


def copied_study_names(database: Database) -> list[str]:
    """Return the names of studies that have a definition but no points: copies or renamed studies of other programs."""
    return [name for name, has_points in _names(database) if not has_points]


def _names(database: Database) -> list[tuple[str, bool]]:
    return [(row.study_name, row.has_points) for row in database.rows(_NAMES, {"key": DEFINITION_ATTRIBUTE})]


def read_attributes(connection: Connection, key: str) -> Sequence[Row[Any]]:
    """Return `study_name`, `has_points` and `value_json` of every study that has this attribute, oldest first."""
    return connection.execute(_ATTRIBUTES, {"key": key}).all()


def parse_stored_definition(text: str, what: str) -> StudyDefinition:
    """Parse the definition in a study's attribute.

    Args:
        what: name of the study in messages.
    Raises:
        ValidationError: the text is intact, but this version of hpsearch does not accept the definition.
        StorageError: the text is damaged.
    """
    place = attribute_place(DEFINITION_ATTRIBUTE)
    document = parse_stored(text, what, place)
    try:
        return StudyDefinition.from_canonical_json(document)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] in ("json_invalid", "json_type"):
            raise damaged(what, place, first["msg"]) from error
        raise


def attribute_place(key: str) -> str:
    """Return where an attribute of a study is stored, for messages."""
    return f"table study_user_attributes, key {key}"


def _allowed_change(stored: StoredStudy, definition: StudyDefinition) -> StudyChange:
    change = compare_definitions(stored.definition, definition)
    if change.refused:
        lines = [next((why for why in change.refused if why.startswith(f"{line} (")), line) for line in change.lines]
        raise DefinitionMismatchError(
            f"study {definition.name!r} exists with another definition:\n  " + "\n  ".join(lines),
            hint="resume it with its own definition, or choose another name (--set name=...)",
        )
    return change


def _check_data(stored: StoredStudy, checksums: Mapping[str, str]) -> None:
    if dict(stored.dataset_checksums) != dict(checksums):
        raise DefinitionMismatchError(
            f"study {stored.name!r} was trained on other data: its files have other checksums\n  "
            + "\n  ".join(f"{file}: {sha} in the study" for file, sha in stored.dataset_checksums.items()),
            hint="point HPSEARCH_DATA at the study's own data, or choose another name (--set name=...)",
        )


def _select_study(connection: Connection, name: str) -> StoredStudy | None:
    """Return the study of this name, or None if there is none.

    Raises:
        InputError: it exists, but hpsearch did not create it; or it is another program's copy; or another program has
            given it a name that hpsearch does not allow.
        StorageError: a newer hpsearch created it, or its attributes are damaged.
    """
    ours = [DEFINITION_ATTRIBUTE, CHECKSUMS_ATTRIBUTE, VERSIONS_ATTRIBUTE]
    found = connection.execute(_FIND, {"name": name, "keys": ours}).one_or_none()
    if found is None:
        return None
    texts: Mapping[str, str] = found.attributes or {}
    if DEFINITION_ATTRIBUTE not in texts:
        raise InputError(f"study {name!r} exists, but hpsearch did not create it", hint="choose another study name")
    if not found.has_points:
        raise InputError(
            f"study {name!r} has trials but no points: another program has copied or renamed a study of hpsearch",
            hint="continue the original study; read the copy with Optuna, or delete it: optuna delete-study",
        )
    what = f"study {name!r}"
    checksums, versions = (
        parse_stored_texts(texts.get(key, ""), what, attribute_place(key))
        for key in (CHECKSUMS_ATTRIBUTE, VERSIONS_ATTRIBUTE)
    )
    try:
        definition = parse_stored_definition(texts[DEFINITION_ATTRIBUTE], what)
    except ValidationError as error:
        creator = versions.get("hpsearch", "?")
        raise StorageError(
            f"study {name!r} was created by hpsearch {creator}, "
            f"whose definition version {hpsearch.__version__} cannot read",
            hint="use the version that created it",
        ) from error
    return StoredStudy(
        study_id=found.study_id,
        definition=_renamed(definition, name),
        dataset_checksums=checksums,
        versions=versions,
        is_renamed=definition.name != name,
    )


def _renamed(definition: StudyDefinition, name: str) -> StudyDefinition:
    """Return the definition under the name of the study's row, because that name identifies the study."""
    try:
        return definition.model_copy(update={"name": check_study_name(name)})
    except ValueError as error:
        raise InputError(
            f"study {name!r} was renamed from {definition.name!r} by another program: its name {error}",
            hint="rename it, with a statement such as UPDATE studies SET study_name = ...",
        ) from error


def _select_study_or_heir(connection: Connection, name: str) -> StoredStudy | None:
    """Return the study of this name, or None if there is neither such a study nor one that was made from it.

    Raises:
        InputError: as `_select_study`; or the study no longer exists, but another program's renamed study or copy does.
    """
    stored = _select_study(connection, name)
    if stored is not None:
        return stored
    for row in read_attributes(connection, DEFINITION_ATTRIBUTE):
        if name not in row.value_json:  # parsing takes longer
            continue
        try:
            was = parse_stored_definition(row.value_json, f"study {row.study_name!r}").name
        except (StorageError, ValidationError):  # not readable, so it cannot be identified
            continue
        if was == name:
            heir = row.study_name
            raise InputError(
                f"study {name!r} no longer exists: another program has renamed it to {heir!r}"
                if row.has_points
                else f"study {name!r} no longer exists, only {heir!r}, a copy without points that another "
                "program has made: its trials cannot be continued",
                hint=f"continue it: --set name={heir}"
                if row.has_points
                else f"to train everything again, choose another name (--set name=...), or delete the copy {heir!r}: "
                "optuna delete-study",
            )
    return None


def _registration(connection: Connection, name: str) -> Registration:
    """Return the study as it is now, in this transaction."""
    study = _select_study(connection, name)
    assert study is not None
    return Registration(study=study, is_new=False, num_points=count_points(connection, study.study_id))


def _insert_study(
    connection: Connection, definition: StudyDefinition, checksums: Mapping[str, str], cohort_of: CohortOf
) -> None:
    study_id: int = connection.execute(_INSERT, {"name": definition.name}).scalar_one()
    attributes = {
        DEFINITION_ATTRIBUTE: definition.canonical_json(),
        CHECKSUMS_ATTRIBUTE: dict(checksums),
        VERSIONS_ATTRIBUTE: current_versions(),
    }
    _set_attributes(connection, study_id, attributes)
    if definition.search.strategy != "coarse-to-fine":
        add_points(connection, study_id, definition, list(definition.points()), cohort_of)
        return
    first = narrowing_of(definition).first_round(room=num_allowed(definition))
    state, num_points = first.state.as_json(), len(first.points)
    insert_round(connection, study_id, 0, num_points=num_points, state=state, reason=first.reason)
    add_points(connection, study_id, definition, first.points, cohort_of, round_number=0)


def _set_attributes(connection: Connection, study_id: int, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        connection.execute(_SET_ATTRIBUTE, {"study": study_id, "key": key, "value": json.dumps(value)})
