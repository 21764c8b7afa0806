"""Studies in the database: their names, and what is stored of one. Registration (registration.py) writes them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, Row, text

import hpsearch
from hpsearch.errors import InputError, StorageError, StudyNotFoundError
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.trial_state import BUDGETS_ATTRIBUTE, PROGRAM_ATTRIBUTE, parse_budgets
from hpsearch.stored_json import damaged, parse_stored, parse_stored_object, parse_stored_texts
from hpsearch.study.definition import StudyDefinition, check_study_name

# Study attributes that mark an Optuna study as one of hpsearch. Optuna-dashboard shows them.
DEFINITION_ATTRIBUTE = "hpsearch:definition"
CHECKSUMS_ATTRIBUTE = "hpsearch:dataset_checksums"
VERSIONS_ATTRIBUTE = "hpsearch:versions"
CHECKS_ATTRIBUTE = "hpsearch:checks"
DATA_ATTRIBUTE = "hpsearch:data"
EXAMPLES_KEY = "examples"  # of this attribute: "rows" if the examples are no images
GROUPS_KEY = "groups"  # of this attribute: groups of rows that are the units of tests (data.tables.loading)

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


@dataclass(frozen=True, kw_only=True)
class StoredStudy:
    """A study as the database has it.

    Args:
        definition: its name is the name of the study's row, even if the stored text has another one.
        dataset_checksums: file name -> SHA-256 of the unpacked content that the study is trained on.
        versions: versions of the programs that created it: hpsearch, torch, optuna, python ...
        is_renamed: another program has changed the name of its row.
        checks: the report of the last checks of its data and networks, a JSON document; None if there were none.
        program_key: of a study whose trials are programs: a random name that no other study has.
        data_record: how its data was split and prepared (`SelectionData.record`); empty if there is nothing to tell.
        budgets: the numbers of epochs that it has had, in order; empty if it has had only one.
    """

    study_id: int
    definition: StudyDefinition
    dataset_checksums: Mapping[str, str]
    versions: Mapping[str, str]
    is_renamed: bool = False
    checks: Mapping[str, Any] | None = None
    budgets: tuple[int, ...] = ()
    data_record: Mapping[str, Any] = field(default_factory=dict)
    program_key: str = ""

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def examples(self) -> str:
        """What its examples are called: images, rows of a table, or examples of a program's."""
        return str(self.data_record.get(EXAMPLES_KEY, "examples" if self.definition.is_program else "images"))

    @property
    def group_sizes(self) -> tuple[int, ...] | None:
        """The number of validation rows of each group, if groups are the units of tests; None: examples are."""
        groups = self.data_record.get(GROUPS_KEY)
        sizes = groups.get("validation") if isinstance(groups, Mapping) else None
        is_sound = isinstance(sizes, list) and sizes and all(type(size) is int and size > 0 for size in sizes)
        return tuple(sizes) if is_sound and sizes else None

    @property
    def units(self) -> str:
        """What the units of tests and intervals are called."""
        return self.examples if self.group_sizes is None else "groups"

    @property
    def value_sha256(self) -> str:
        """`StudyDefinition.value_sha256` with the first number of epochs: it stays when the study gets more."""
        definition = self.definition
        return (definition.with_max_epochs(self.budgets[0]) if self.budgets else definition).value_sha256


def current_versions(*, trains: bool = True) -> dict[str, str]:
    """Return the versions that a result depends on.

    Args:
        trains: hpsearch itself trains; a program brings its own libraries.
    """
    own = {"hpsearch": hpsearch.__version__, "python": platform.python_version()}
    if not trains:
        return {**own, "optuna": importlib.metadata.version("optuna")}

    import numpy  # these imports take seconds, and only code that stores versions needs them
    import optuna
    import torch

    return {
        **own,
        "torch": str(torch.__version__),  # a class of its own, which YAML refuses
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
    }


def load_study(database: Database, name: str) -> StoredStudy:
    """Load a study by name.

    Raises:
        StudyNotFoundError: there is no such study; the hint lists the existing ones.
        InputError: a study of this name exists but was not created by hpsearch, or is another program's copy.
    """
    stored = study_named(database, name)
    if stored is None:
        known = study_names(database)
        raise StudyNotFoundError(
            f"no study {name!r} in the database at {database.address}",
            hint="there are: " + ", ".join(known) if known else "there is none yet: hpsearch run STUDY.toml",
        )
    return stored


def study_named(database: Database, name: str) -> StoredStudy | None:
    """Return the study of this name, or None if there is none. Raises the errors of `select_study`."""
    return database.transaction(lambda connection: select_study(connection, name))


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


def select_study(connection: Connection, name: str) -> StoredStudy | None:
    """Return the study of this name, or None if there is none.

    Raises:
        InputError: it exists, but hpsearch did not create it; or it is another program's copy; or another program has
            given it a name that hpsearch does not allow.
        StorageError: a newer hpsearch created it, or its attributes are damaged.
    """
    ours = [DEFINITION_ATTRIBUTE, CHECKSUMS_ATTRIBUTE, VERSIONS_ATTRIBUTE]
    ours += [CHECKS_ATTRIBUTE, DATA_ATTRIBUTE, BUDGETS_ATTRIBUTE, PROGRAM_ATTRIBUTE]
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
        checks=_parse_checks(texts.get(CHECKS_ATTRIBUTE), what),
        data_record=_parse_record(texts.get(DATA_ATTRIBUTE), what),
        budgets=parse_budgets(texts.get(BUDGETS_ATTRIBUTE), what),
        program_key=_parse_program_key(texts.get(PROGRAM_ATTRIBUTE), what),
    )


def _parse_checks(document: str | None, what: str) -> Mapping[str, Any] | None:
    """The report, or None: a damaged one stops nobody, because nothing depends on it."""
    with contextlib.suppress(StorageError):
        return None if document is None else parse_stored_object(document, what, attribute_place(CHECKS_ATTRIBUTE))
    return None


def _parse_record(document: str | None, what: str) -> Mapping[str, Any]:
    return {} if document is None else parse_stored_object(document, what, attribute_place(DATA_ATTRIBUTE))


def _parse_program_key(document: str | None, what: str) -> str:
    if document is None:
        return ""
    return str(parse_stored_object(document, what, attribute_place(PROGRAM_ATTRIBUTE), ("key",))["key"])


def _renamed(definition: StudyDefinition, name: str) -> StudyDefinition:
    """Return the definition under the name of the study's row, because that name identifies the study."""
    try:
        return definition.model_copy(update={"name": check_study_name(name)})
    except ValueError as error:
        raise InputError(
            f"study {name!r} was renamed from {definition.name!r} by another program: its name {error}",
            hint="rename it, with a statement such as UPDATE studies SET study_name = ...",
        ) from error
