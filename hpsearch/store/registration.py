"""Creates a study with its points, or continues one with a changed definition.

A study is created in one transaction: the Optuna study, its definition, and every known point as a WAITING trial. It is
stored completely or not at all. Any number of processes may create the same study at once: one creates it, the others
find it. A definition with more points or a larger budget changes the study, also in one transaction (widening.py).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Connection, text

from hpsearch.data.dataset_path import at_stored_place
from hpsearch.errors import DefinitionMismatchError, InputError, StorageError
from hpsearch.store.claims.continuing import continue_trials, num_continuable
from hpsearch.store.claims.requeue import retry_given_up
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.points import CohortOf, add_points, count_points, narrowing_of
from hpsearch.store.rows.round_rows import insert_round, remove_end
from hpsearch.store.rows.trial_state import BUDGETS_ATTRIBUTE, PROGRAM_ATTRIBUTE
from hpsearch.store.rows.widening import num_allowed, restore_lost_points, widen_study
from hpsearch.store.studies import (
    CHECKS_ATTRIBUTE,
    CHECKSUMS_ATTRIBUTE,
    DATA_ATTRIBUTE,
    DEFINITION_ATTRIBUTE,
    VERSIONS_ATTRIBUTE,
    StoredStudy,
    current_versions,
    parse_stored_definition,
    read_attributes,
    select_study,
)
from hpsearch.study.change import StudyChange, compare_definitions
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import counted

_INSERT = text("""
    WITH created AS (
        INSERT INTO studies (study_name) VALUES (:name) RETURNING study_id
    ), directed AS (
        INSERT INTO study_directions (study_id, direction, objective)
        SELECT study_id, CAST(:direction AS studydirection), 0 FROM created
    )
    SELECT study_id FROM created
""")

_SET_ATTRIBUTE = text("""
    INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, :key, :value)
    ON CONFLICT (study_id, key) DO UPDATE SET value_json = excluded.value_json
""")


@dataclass(frozen=True, kw_only=True)
class Registration:
    """The outcome of `register_study`.

    Args:
        study: with the definition as it is now stored.
        is_new: this call created the study.
        num_points: number of points that the study has now.
        num_added: number of points that this call added to an existing study.
        num_continued: number of trials that go on with more epochs.
        num_restored: number of points that were queued again because another program had deleted their trials.
        changes: changes to the definition, one line each.
    """

    study: StoredStudy
    is_new: bool
    num_points: int
    num_added: int = 0
    num_continued: int = 0
    num_restored: int = 0
    changes: tuple[str, ...] = ()


def register_study(
    database: Database,
    definition: StudyDefinition,
    *,
    dataset_checksums: Mapping[str, str],
    cohort_of: CohortOf,
    checks: Mapping[str, Any] | None = None,
    data_record: Mapping[str, Any] | None = None,
) -> Registration:
    """Create the study with its points, or find the existing one, or change it to this definition.

    One transaction. Any number of processes may call it at once, also while workers train; calling it twice is safe.

    Args:
        dataset_checksums: file name -> SHA-256 of the unpacked content.
        cohort_of: names the cohort of a point: points of one cohort can share a worker's lanes.
        data_record: how the data was split and prepared, which is stored with a new study.
        checks: report of new checks, which is stored with the study; None: what is stored stays.
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
            _insert_study(connection, definition, dataset_checksums, cohort_of, data_record or {})
            _store_checks(connection, definition.name, checks)
            return replace(_registration(connection, definition.name), is_new=True)
        requested, change = _allowed_change(stored, definition)
        _check_data(stored, dataset_checksums)
        _store_checks(connection, definition.name, checks)
        if change.is_none:
            if stored.is_renamed:
                _set_attributes(connection, stored.study_id, {DEFINITION_ATTRIBUTE: stored.definition.canonical_json()})
            num_restored = restore_lost_points(connection, stored.study_id, stored.definition, cohort_of)
            num_continued = _continue(connection, stored, stored.definition)
            now = _registration(connection, definition.name)
            return replace(now, num_restored=num_restored, num_continued=num_continued)
        changed = requested.told_like(stored.definition)
        num_added = widen_study(connection, stored.study_id, stored.definition, changed, cohort_of)
        _set_attributes(connection, stored.study_id, {DEFINITION_ATTRIBUTE: changed.canonical_json()})
        num_continued = _continue(connection, stored, changed)
        lines = (*change.lines, *_retry(connection, stored, changed))
        now = _registration(connection, definition.name)
        return replace(now, num_added=num_added, num_continued=num_continued, changes=lines)

    return database.transaction(work)


def find_study(database: Database, definition: StudyDefinition) -> StoredStudy | None:
    """Return the study of this name if it exists with exactly this definition.

    Returns None if `register_study` would create or change the study.

    Raises:
        DefinitionMismatchError: it exists with a definition that cannot become this one.
        InputError: it exists, but hpsearch did not create it; or as `register_study` raises.
    """

    def work(connection: Connection) -> StoredStudy | None:
        stored = _select_study_or_heir(connection, definition.name)
        if stored is None or not _allowed_change(stored, definition)[1].is_none:
            return None
        # A worker that knew the old number of epochs may have ended a trial there after it was raised.
        can_go_on = stored.budgets and stored.definition.is_continuable
        has_left_over = can_go_on and num_continuable(connection, stored.study_id, stored.budgets[-1])
        return None if has_left_over else stored

    return database.transaction(work)


def _select_study_or_heir(connection: Connection, name: str) -> StoredStudy | None:
    """Return the study of this name, or None if there is neither such a study nor one that was made from it.

    Raises:
        InputError: as `select_study`; or the study no longer exists, but another program's renamed study or copy does.
    """
    stored = select_study(connection, name)
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
    study = select_study(connection, name)
    assert study is not None
    return Registration(study=study, is_new=False, num_points=count_points(connection, study.study_id))


def _continue(connection: Connection, stored: StoredStudy, changed: StudyDefinition) -> int:
    """Let trials go on that an earlier number of epochs has ended, and return how many."""
    max_epochs = changed.training.max_epochs
    budgets = stored.budgets or (stored.definition.training.max_epochs,)
    if max_epochs != budgets[-1]:
        budgets = (*budgets, max_epochs)
        _set_attributes(connection, stored.study_id, {BUDGETS_ATTRIBUTE: list(budgets)})
    if len(budgets) == 1 or not changed.is_continuable:
        return 0
    number = continue_trials(connection, stored.study_id, max_epochs)
    if number:
        remove_end(connection, stored.study_id)  # the search goes on from the new values
    return number


def _retry(connection: Connection, stored: StoredStudy, changed: StudyDefinition) -> list[str]:
    """Try points again that were given up, if programs have more attempts now; returns what to tell."""
    before, now = stored.definition.program, changed.program
    if before is None or now is None or now.max_attempts <= before.max_attempts:
        return []
    number = retry_given_up(connection, stored.study_id, now.max_attempts)
    if not number:
        return []
    remove_end(connection, stored.study_id)
    return [f"{counted(number, 'point')} that {'was' if number == 1 else 'were'} given up: tried again"]


def _insert_study(
    connection: Connection,
    definition: StudyDefinition,
    checksums: Mapping[str, str],
    cohort_of: CohortOf,
    data_record: Mapping[str, Any],
) -> None:
    study_id: int = connection.execute(
        _INSERT, {"name": definition.name, "direction": definition.judged_by.direction.upper()}
    ).scalar_one()
    attributes = {
        DEFINITION_ATTRIBUTE: definition.canonical_json(),
        CHECKSUMS_ATTRIBUTE: dict(checksums),
        VERSIONS_ATTRIBUTE: current_versions(trains=not definition.is_program),
        **({DATA_ATTRIBUTE: dict(data_record)} if data_record else {}),
        **_program_attribute(definition),
    }
    _set_attributes(connection, study_id, attributes)
    if definition.search.strategy != "coarse-to-fine":
        add_points(connection, study_id, definition, list(definition.points()), cohort_of)
        return
    first = narrowing_of(definition).first_round(room=num_allowed(definition))
    state, num_points = first.state.as_json(), len(first.points)
    insert_round(connection, study_id, 0, num_points=num_points, state=state, reason=first.reason)
    add_points(connection, study_id, definition, first.points, cohort_of, round_number=0)


def _program_attribute(definition: StudyDefinition) -> dict[str, Any]:
    """What marks a study of programs; its key names the folders of its attempts, whatever the study is called."""
    if definition.program is None:
        return {}
    return {PROGRAM_ATTRIBUTE: {"section": definition.program.section, "key": secrets.token_hex(8)}}


def _store_checks(connection: Connection, name: str, checks: Mapping[str, Any] | None) -> None:
    study = None if checks is None else select_study(connection, name)
    if study is None or checks is None:
        return
    before = study.checks or {}
    # Of two processes that create the study, one may have checked its networks.
    is_poorer = before.get("has_networks") and not checks.get("has_networks")
    if not is_poorer or before.get("checksums") != checks.get("checksums"):
        _set_attributes(connection, study.study_id, {CHECKS_ATTRIBUTE: checks})


def _set_attributes(connection: Connection, study_id: int, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        connection.execute(_SET_ATTRIBUTE, {"study": study_id, "key": key, "value": json.dumps(value)})


def _allowed_change(stored: StoredStudy, given: StudyDefinition) -> tuple[StudyDefinition, StudyChange]:
    """Return the definition with the stored path of its data, and how it differs from the stored one.

    Raises:
        DefinitionMismatchError: the study cannot become this.
    """
    definition = at_stored_place(given, stored.definition)
    change = compare_definitions(stored.definition, definition)
    if change.refused:
        lines = [next((why for why in change.refused if why.startswith(f"{line} (")), line) for line in change.lines]
        raise DefinitionMismatchError(
            f"study {definition.name!r} exists with another definition:\n  " + "\n  ".join(lines),
            hint="resume it with its own definition, or choose another name (--set name=...)",
        )
    return definition, change


def _check_data(stored: StoredStudy, checksums: Mapping[str, str]) -> None:
    if dict(stored.dataset_checksums) == dict(checksums):
        return
    files = "\n  ".join(f"{file}: {sha} in the study" for file, sha in stored.dataset_checksums.items())
    if stored.definition.is_program:
        raise DefinitionMismatchError(
            f"study {stored.name!r} was created with other files than these\n  {files}",
            hint="a changed program is a new study: choose another name (--set name=...), or restore the files",
        )
    raise DefinitionMismatchError(
        f"study {stored.name!r} was trained on other data: its files have other checksums\n  {files}",
        hint="point HPSEARCH_DATA at the study's own data, or choose another name (--set name=...)",
    )
