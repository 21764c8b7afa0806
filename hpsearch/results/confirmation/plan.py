"""Plan a confirmation: the best points of a study times fresh seeds, as a companion study that any worker can join.

The lowest of many validation errors on the same images is low partly by chance, so the best few points are trained
again:

    best points of the search -> plan (points times seeds) -> companion study (strategy `listed`) -> workers

A companion study grows when more points or seeds are requested, and never shrinks. Where seeds cannot matter a single
seed is used: more seeds would give the same models, and the same comparison over the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import text

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError, StudyNotFoundError
from hpsearch.postgres.lock_wait import wait_for_lock
from hpsearch.results.confirmation.companion_study import (
    CONFIRMS_ATTRIBUTE,
    SEED,
    Parameters,
    can_seeds_matter,
    configurations_of,
    confirmations,
    find_companion,
    seeds_of,
    unique,
    without_seed,
)
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.study.definition import StudyDefinition, check_study_name
from hpsearch.study.space import ParameterValue
from hpsearch.study.study_file import parse_definition
from hpsearch.training.networks.build import build_network
from hpsearch.worker.preparation import load_study_data, prepare_study
from hpsearch.worker.programs.preparation import check_files, check_values, prepare_program

_SEED_STREAM = 0x636F6E66  # "conf": separates these seeds from all others derived from a study's seed
_DEFAULT_SUFFIX = "-confirm"
_LOCK_SECONDS = 60.0  # adding points takes a second or two
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
_MAY_IDLE = text("SET LOCAL idle_in_transaction_session_timeout = 0")  # the connection is idle while it holds the lock


@dataclass(frozen=True, kw_only=True)
class ConfirmPlan:
    """The points that a confirmation trains.

    Args:
        search: the study to confirm.
        top, seeds: requested number of best points, and of seeds per point.
        definition: of the companion study, with the points that it has and those that the plan adds.
        num_added: number of points that the companion study does not have yet.
        has_more_epochs: whether the study was given more epochs than the companion study has.
        is_there: whether the companion study exists and has its `CONFIRMS_ATTRIBUTE`.
        num_configurations, num_seeds: of the whole companion study. They may exceed the requested numbers;
            `num_seeds` is normally 1 where seeds cannot matter.
        can_seeds_matter: whether another seed can change the training of any configuration.
    """

    search: StudySummary
    top: int
    seeds: int
    definition: StudyDefinition
    num_added: int
    has_more_epochs: bool
    is_there: bool
    num_configurations: int
    num_seeds: int
    can_seeds_matter: bool

    @property
    def is_created(self) -> bool:
        """Whether the companion study has no points before this plan is carried out."""
        return self.num_added == self.definition.num_points


def plan_confirmation(
    database: Database, study_name: str, *, top: int, num_seeds: int, name: str | None = None
) -> ConfirmPlan:
    """Choose the best points and their seeds. Writes nothing.

    Args:
        top: number of best complete points with different parameters; fewer if there are fewer.
        num_seeds: seeds per point, where seeds can matter. The seeds of an earlier call are included.
        name: name of the companion study; None: the name of the existing one, or the study's name with "-confirm".
    Raises:
        StudyNotFoundError: no such study.
        NothingCompleteError: the study has no complete trial; says how many points are in which state.
        InputError: a number is below 1, the study is itself a companion study, or the name cannot be used.
    """
    if top < 1 or num_seeds < 1:
        raise InputError(f"--top and --seeds must be at least 1, got {top} and {num_seeds}")
    search = read_summary(database, study_name)
    _check_is_no_confirmation(database, search.study)
    search.require_best()
    if search.study.definition.objective is not None and any(SEED in trial.parameters for trial in search.complete):
        raise InputError(
            f"study {search.name!r} cannot be confirmed: its objective asks for a parameter {SEED!r}, the name "
            "of what differs between the trials of a confirmation",
            hint="call it otherwise, and take the trial's seed from hpsearch.trial.seed()",
        )
    return _plan(database, search, _companion_name(database, search.study, name), top, num_seeds)


def _plan(database: Database, search: StudySummary, companion: str, top: int, seeds: int) -> ConfirmPlan:
    """Plan the points that the companion study has already, and the requested best points and seeds."""
    stored = _find_study(database, companion)
    known = [dict(point) for point in stored.definition.search.points] if stored else []
    configurations = unique([*configurations_of(known), *best_configurations(search, top)])
    if search.study.definition.command is not None:  # consent to the search is none to texts that it does not have
        for configuration in configurations:
            check_values(search.study.definition, configuration)
    seeds_matter = can_seeds_matter(search.study.definition, configurations)
    num_seeds = max(seeds if seeds_matter else 1, len(seeds_of(known)))
    drawn = fresh_seeds(search.study.definition.seed, num_seeds)
    # Keys in the order in which the definition is stored. All points of one seed come before the next seed, so that a
    # comparison is possible early.
    wanted = [dict(sorted({**point, SEED: seed}.items())) for seed in drawn for point in configurations]
    points = unique([*known, *wanted])
    return ConfirmPlan(
        search=search,
        top=top,
        seeds=seeds,
        definition=companion_definition(search.study.definition, companion, points),
        num_added=len(points) - len(known),
        has_more_epochs=stored is not None
        and stored.definition.training.max_epochs < search.study.definition.training.max_epochs,
        is_there=find_companion(database, search.study) is not None,
        num_configurations=len(configurations),
        num_seeds=num_seeds,
        can_seeds_matter=seeds_matter,
    )


def prepare_confirmation(database: Database, plan: ConfirmPlan, *, locations: DataLocations) -> ConfirmPlan:
    """Create the companion study or add its missing points, and mark it as a companion study. Repeating it is safe.

    Any number of processes may call it at the same time, with different numbers of points and seeds: the companion
    study gets all of them.

    Returns:
        The plan as it was carried out, including points that other processes have added.
    Raises:
        DataError: the data on this machine (of a program its files) are missing, damaged, or differ from those of the
            confirmed study.
        InputError: a point cannot be trained, or a study of the companion's name has another definition or other data.
        StorageError: another process has held the lock for too long.
    """
    if plan.is_there and not (plan.num_added or plan.has_more_epochs):
        return plan
    study, name = plan.search.study, plan.definition.name
    data = None
    if study.definition.is_program:
        check_files(study, Path.cwd())
    else:
        data = load_study_data(study, locations=locations)
    with _lock(database, name):
        plan = _plan(database, plan.search, name, plan.top, plan.seeds)
        if plan.num_added or plan.has_more_epochs or not plan.is_there:
            mark = _mark(plan, data)
            stored = _find_study(database, name)
            if stored is not None:  # before the new points are added: `num_parameters` always covers all points
                database.storage.set_study_user_attr(stored.study_id, CONFIRMS_ATTRIBUTE, mark)
            companion = _register(database, plan, locations)
            if stored is None:
                database.storage.set_study_user_attr(companion.study_id, CONFIRMS_ATTRIBUTE, mark)
    return plan


def _register(database: Database, plan: ConfirmPlan, locations: DataLocations) -> StoredStudy:
    if plan.definition.is_program:
        return prepare_program(database, plan.definition, Path.cwd()).study
    record = plan.search.study.data_record
    return prepare_study(database, plan.definition, locations=locations, checks=False, data_record=record).study


def _mark(plan: ConfirmPlan, data: SelectionData | None) -> dict[str, Any]:
    """The `CONFIRMS_ATTRIBUTE` of the companion study.

    Args:
        data: None for programs, whose models are not known.
    """
    study = plan.search.study
    return {
        "study": study.name,
        "definition_sha256": study.definition.sha256,
        "value_sha256": study.value_sha256,
        "dataset_checksums": dict(study.dataset_checksums),
        "num_parameters": [0] * plan.num_configurations if data is None else count_parameters(plan.definition, data),
    }


@contextmanager
def _lock(database: Database, name: str) -> Iterator[None]:
    """Let one process at a time add points to a companion study, since attribute and points are two transactions.

    The lock is released when the context or the process ends.

    Raises:
        StorageError: another process has held the lock for `_LOCK_SECONDS`.
    """
    with database.engine.connect() as connection:
        connection.execute(_MAY_IDLE)
        wait_for_lock(
            lambda: bool(connection.execute(_TRY_LOCK, {"name": f"hpsearch:confirm:{name}"}).scalar_one()),
            seconds=_LOCK_SECONDS,
            activity=f"adding points to study {name!r}",
            hint="find it in pg_stat_activity, or try again",
        )
        yield


def fresh_seeds(study_seed: int, count: int) -> list[int]:
    """Seeds that the search has not used. They are deterministic; a smaller `count` gives a prefix of a larger one."""
    seeds: dict[int, None] = {}
    index = 0
    while len(seeds) < count:
        sequence = np.random.SeedSequence(study_seed, spawn_key=(_SEED_STREAM, index))
        seed = int(sequence.generate_state(1)[0])  # 32 bits: exact where a parameter is stored as a float
        if seed != study_seed:
            seeds[seed] = None
        index += 1
    return list(seeds)


def companion_definition(study: StudyDefinition, name: str, points: Sequence[Parameters]) -> StudyDefinition:
    """The study's data, metric, model, training (or its command) and stopping rule with a list of points, unpruned."""
    own = {"metric", "data", "model", "training"} if study.program is None else {study.program.section}
    sections = {"seed", "stopping", *own}
    # Without defaults: an explicit key that has no effect on the listed points would cause a warning.
    document = study.model_dump(mode="json", include=sections, exclude_defaults=True)
    search = {"strategy": "listed", "max_points": max(study.search.max_points, len(points)), "points": list(points)}
    document |= {"name": name, "search": search} | ({} if study.is_program else {"keep_parameters": "all"})
    return parse_definition(document, source=f"the confirmation of study {study.name!r}")


def best_configurations(search: StudySummary, top: int) -> list[dict[str, ParameterValue]]:
    """The parameters of the best complete points, best first, without duplicates; a searched seed is ignored."""
    reduce = search.study.definition.reduce
    return unique(without_seed(reduce(trial.named_parameters)) for trial in search.complete)[:top]


def count_parameters(definition: StudyDefinition, data: SelectionData) -> list[int]:
    """Number of trainable parameters of each configuration's network."""
    networks = (
        build_network(definition.resolve(configuration).model, data.example_shape, data.num_outputs)
        for configuration in configurations_of(map(dict, definition.search.points))
    )
    return [sum(math.prod(p.shape) for p in network.parameter_shapes.values()) for network in networks]


def _companion_name(database: Database, study: StoredStudy, name: str | None) -> str:
    """The name of the study's companion study, existing or new.

    Raises:
        InputError: the name is not a valid study name, belongs to another study, or differs from the existing one's.
    """
    found = find_companion(database, study)
    if found is not None:
        if name not in (None, found.name):
            raise InputError(
                f"--name {name}: study {study.name!r} is already confirmed in study {found.name!r}",
                hint="omit --name: the existing study is continued, and nothing is trained twice",
            )
        return found.name
    wanted = name or study.name + _DEFAULT_SUFFIX
    try:
        check_study_name(wanted)
    except ValueError as error:
        raise InputError(f"the confirmation's name {error}", hint="name it with --name") from None
    _check_name_is_free(database, study, wanted)
    return wanted


def _check_name_is_free(database: Database, study: StoredStudy, name: str) -> None:
    stored = _find_study(database, name)
    if stored is None or _is_unmarked_companion(stored, study):
        return
    confirms = confirmations(database).get(name)
    what = "exists already and is not its confirmation"
    if confirms is not None and confirms["study"] == study.name:
        what = "confirms a deleted study of this name, which had another definition or other data"
    raise InputError(
        f"study {study.name!r} cannot be confirmed as {name!r}: that study {what}", hint="take another name with --name"
    )


def _is_unmarked_companion(stored: StoredStudy, study: StoredStudy) -> bool:
    """Whether this is a companion study whose creator was killed before it set the attribute."""
    points = [dict(point) for point in stored.definition.search.points]
    if not points or not all(SEED in point for point in points):
        return False
    seeds = seeds_of(points)
    return (
        seeds == fresh_seeds(study.definition.seed, len(seeds))
        and dict(stored.dataset_checksums) == dict(study.dataset_checksums)
        and stored.definition == companion_definition(study.definition, stored.name, points)
    )


def _check_is_no_confirmation(database: Database, study: StoredStudy) -> None:
    confirms = confirmations(database).get(study.name)
    if confirms is not None:
        raise InputError(
            f"study {study.name!r} is itself the confirmation of study {confirms['study']!r}",
            hint=f"for more seeds: hpsearch confirm {confirms['study']} --seeds N",
        )


def _find_study(database: Database, name: str) -> StoredStudy | None:
    try:
        return load_study(database, name)
    except StudyNotFoundError:
        return None
