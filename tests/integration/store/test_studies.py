"""Studies in the database: created whole and once, found again, refused if changed, read by plain Optuna."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from sqlalchemy import Connection

from hpsearch.errors import DefinitionMismatchError, InputError, StorageError, StudyNotFoundError
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.registration import Registration, find_study, register_study
from hpsearch.store.rows import points
from hpsearch.store.studies import load_study, study_names
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.study_file import parse_definition

CHECKSUMS = {"train-images-idx3-ubyte": "ab" * 32, "train-labels-idx1-ubyte": "cd" * 32}
SEARCH: dict[str, Any] = {
    "learning_rate": {"log10": [-1, -3]},
    "lambda_2": {"log10": [-2, -3], "zero": True},
    "hidden_units": {"log10": [1, 2]},
    "activation": ["tanh", "relu"],
    "shuffle": [True, False],
    "batch_size": [20, 500],
}


def definition(search: dict[str, Any] | None = None, **document: Any) -> StudyDefinition:
    return parse_definition({"name": "a", "search": SEARCH if search is None else search, **document}, source="test")


def cohort_of(settings: TrialSettings) -> str:
    return f"batch {settings.training.batch_size}"


def create(database: Database, wanted: StudyDefinition, **checksums: str) -> Registration:
    return register_study(database, wanted, dataset_checksums=checksums or CHECKSUMS, cohort_of=cohort_of)


# Creation


def test_creation_stores_the_definition_the_data_and_the_versions(database: Database) -> None:
    wanted = definition()
    registration = create(database, wanted)
    study = registration.study
    assert (registration.is_new, registration.num_points) == (True, wanted.num_points)
    assert (study.name, study.definition, study.dataset_checksums) == ("a", wanted, CHECKSUMS)
    assert study.definition.sha256 == wanted.sha256
    assert {"hpsearch", "torch", "optuna", "python", "numpy"} <= study.versions.keys()
    assert load_study(database, "a") == study


def test_another_order_of_the_dimensions_is_the_same_study_and_a_wider_one_keeps_its_order(database: Database) -> None:
    study = create(database, definition()).study
    reordered = dict(reversed(SEARCH.items()))
    found = find_study(database, definition(reordered))
    assert found == study
    again = create(database, definition(reordered))
    assert (again.study, again.changes) == (study, ())
    wider = create(database, definition({**reordered, "learning_rate": {"log10": [-1, -4]}})).study
    assert [d.name for d in wider.definition.search.dimensions] == list(SEARCH)


def test_creating_again_finds_the_study_and_adds_nothing(database: Database, execute: Any) -> None:
    study = create(database, definition()).study
    again = create(database, definition())
    assert again.study == study
    assert (again.is_new, again.num_points, again.num_added, again.changes) == (False, definition().num_points, 0, ())
    assert execute("SELECT count(*) FROM trials") == [(definition().num_points,)]
    assert execute("SELECT count(*) FROM hpsearch_points") == [(definition().num_points,)]


def test_two_creators_at_once_make_one_study_and_both_see_all_points(tables_url: str) -> None:
    wanted = definition()
    barrier = threading.Barrier(4)

    def make(_: int) -> tuple[bool, int]:
        own = open_database(tables_url)
        barrier.wait(240)
        registration = create(own, wanted)
        waiting = Ledger(database=own, study_id=registration.study.study_id).counts().waiting
        own.close()
        return registration.is_new, waiting

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(make, range(4)))
    assert sorted(is_new for is_new, _ in outcomes) == [False, False, False, True]
    assert {waiting for _, waiting in outcomes} == {wanted.num_points}


def test_creation_is_all_or_nothing(database: Database, execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("died here")

    with monkeypatch.context() as patch:
        patch.setattr(points, "write_trial_attributes", fail)
        with pytest.raises(RuntimeError, match="died here"):
            create(database, definition())
    assert execute("SELECT count(*) FROM studies") == [(0,)]
    assert execute("SELECT count(*) FROM trials") == [(0,)]
    assert create(database, definition()).is_new


def test_creation_whose_answer_was_lost_is_not_repeated(database: Database, execute: Any) -> None:
    class AnswerLost(Database):
        def transaction(self, work: Callable[[Connection], Any]) -> Any:
            super().transaction(work)
            return super().transaction(work)

    unlucky = AnswerLost(engine=database.engine, optuna_storage=database.optuna_storage, url=database.url)
    create(unlucky, definition())
    assert execute("SELECT count(*) FROM trials") == [(definition().num_points,)]


def test_creation_takes_the_same_number_of_statements_for_any_number_of_points(
    database: Database, statements: Callable[[], AbstractContextManager[list[str]]]
) -> None:
    counts = []
    for name, num_points in (("small", 2), ("large", 3000)):
        with statements() as seen:
            create(database, definition({"seed": list(range(num_points))}, name=name))
        counts.append(len(seen))
    assert counts[0] == counts[1] <= 16


def test_two_studies_number_their_trials_and_points_each_from_zero(database: Database, execute: Any) -> None:
    for name in ("a", "b"):
        study = create(database, definition({"learning_rate": [0.1, 0.2]}, name=name)).study
        rows = execute(
            "SELECT p.point, t.number FROM hpsearch_points p JOIN trials t USING (trial_id) "
            "WHERE p.study_id = :study ORDER BY point",
            study=study.study_id,
        )
        assert rows == [(0, 0), (1, 1)]
    assert study_names(database) == ["a", "b"]


# Another study of this name


def test_changed_definition_gets_a_difference_field_by_field(database: Database, execute: Any) -> None:
    create(database, definition())
    changed = definition(
        SEARCH | {"learning_rate": {"log10": [-1, -4]}},
        training={"max_epochs": 3},
        pruning={"pruner": "median"},
    )
    for refuse in (lambda: create(database, changed), lambda: find_study(database, changed)):
        with pytest.raises(DefinitionMismatchError) as caught:
            refuse()
        assert str(caught.value).splitlines() == [
            "study 'a' exists with another definition:",
            '  pruning.pruner: "none" in the study, "median" given (values of the study would no longer be comparable)',
            "  search.learning_rate: { log10 = [-1, -3] } in the study, { log10 = [-1, -4] } given",
            "  training.max_epochs: 200 in the study, 3 given (the number of epochs can only be raised)",
        ]
        assert caught.value.hint is not None
        assert "choose another name" in caught.value.hint
        assert caught.value.exit_code == 2
    assert execute("SELECT count(*) FROM trials") == [(definition().num_points,)]


def test_other_data_under_the_same_name_is_refused(database: Database) -> None:
    create(database, definition())
    with pytest.raises(DefinitionMismatchError, match="other checksums") as caught:
        create(database, definition(), images="00" * 32)
    assert "train-images-idx3-ubyte: abab" in str(caught.value)


def test_foreign_optuna_study_of_this_name_is_left_alone(database: Database) -> None:
    optuna.create_study(study_name="a", storage=database.storage).add_trial(optuna.trial.create_trial(value=1.0))
    for refuse in (
        lambda: create(database, definition()),
        lambda: load_study(database, "a"),
        lambda: find_study(database, definition()),
    ):
        with pytest.raises(InputError, match="study 'a' exists, but hpsearch did not create it") as caught:
            refuse()
        assert caught.value.hint is not None
    assert len(database.load_study("a").trials) == 1
    assert study_names(database) == []


# Finding


def test_unknown_study_gets_the_names_that_are_there(database: Database) -> None:
    with pytest.raises(StudyNotFoundError) as caught:
        load_study(database, "mlp")
    assert caught.value.hint == "there is none yet: hpsearch run STUDY.toml"
    assert find_study(database, definition()) is None
    create(database, definition({}))
    create(database, definition({}, name="b"))
    with pytest.raises(StudyNotFoundError, match="no study 'mlp' in the database at ") as caught:
        load_study(database, "mlp")
    assert caught.value.hint == "there are: a, b"


def test_definition_of_a_newer_hpsearch_is_told_from_a_damaged_one(database: Database, execute: Any) -> None:
    create(database, definition({}))
    document = json.loads(definition({}).canonical_json())
    document["training"]["warp_speed"] = 9
    execute(
        "UPDATE study_user_attributes SET value_json = :text WHERE key = 'hpsearch:definition'",
        text=json.dumps(json.dumps(document)),
    )
    with pytest.raises(StorageError, match=r"was created by hpsearch .*, whose definition version .* cannot"):
        load_study(database, "a")


@pytest.mark.parametrize(
    ("key", "text", "reason"),
    [
        ("hpsearch:definition", '"{', "Unterminated string"),
        ("hpsearch:definition", '"{"', "Invalid JSON: EOF while parsing an object"),
        ("hpsearch:definition", "5", "JSON input should be string"),
        ("hpsearch:dataset_checksums", "no JSON", "Expecting value"),
        ("hpsearch:versions", "[]", "it is a list, not an object"),
    ],
)
def test_damaged_study_is_told_with_its_name_and_key(
    database: Database, execute: Any, key: str, text: str, reason: str
) -> None:
    create(database, definition({}))
    execute("UPDATE study_user_attributes SET value_json = :text WHERE key = :key", text=text, key=key)
    said = f"study 'a' cannot be read (table study_user_attributes, key {key}): {reason}"
    with pytest.raises(StorageError, match=re.escape(said)):
        load_study(database, "a")


def test_what_others_have_written_about_a_study_is_not_read(database: Database, execute: Any) -> None:
    study_id = create(database, definition({})).study.study_id
    execute(
        "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (:study, 'note', '{')", study=study_id
    )
    assert load_study(database, "a").study_id == study_id


def test_deleting_the_study_with_optuna_deletes_our_rows(database: Database, execute: Any, epoch: Any) -> None:
    study = create(database, definition()).study
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    claims = ledger.claim(2)
    ledger.record({claim.trial_id: epoch() for claim in claims})
    optuna.delete_study(study_name="a", storage=database.storage)
    for table in ("studies", "trials", "hpsearch_points", "hpsearch_epochs"):
        assert execute(f"SELECT count(*) FROM {table}") == [(0,)]
    assert ledger.claim(2) == []
    assert ledger.record({claim.trial_id: epoch(2) for claim in claims}) == set()


# As plain Optuna sees it


def test_plain_optuna_reads_every_point_with_its_parameters_and_scales(database: Database, tables_url: str) -> None:
    wanted = definition()
    create(database, wanted)
    study = optuna.load_study(study_name="a", storage=tables_url)
    assert study.direction is optuna.study.StudyDirection.MINIMIZE
    assert study.user_attrs["hpsearch:definition"] == wanted.canonical_json()
    trials = study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.WAITING] * wanted.num_points
    assert [trial.number for trial in trials] == list(range(wanted.num_points))
    assert [trial.params for trial in trials] == list(wanted.points())
    assert [list(trial.params) for trial in trials] == [list(SEARCH)] * wanted.num_points
    assert [trial.user_attrs for trial in trials] == [{"point": i, "attempt": 1} for i in range(wanted.num_points)]
    assert trials[0].distributions == {
        "learning_rate": FloatDistribution(0.001, 0.1, log=True),
        "lambda_2": CategoricalDistribution((0.0, 0.01, 0.001)),
        "hidden_units": IntDistribution(10, 100, log=True),
        "activation": CategoricalDistribution(("tanh", "relu")),
        "shuffle": CategoricalDistribution((True, False)),
        "batch_size": CategoricalDistribution((20, 500)),
    }
    for point, trial in zip(wanted.points(), trials, strict=True):
        assert wanted.resolve(trial.params) == wanted.resolve(point)


def test_drawn_study_waits_with_points_without_parameters_or_cohort(database: Database, execute: Any) -> None:
    search = {"strategy": "tpe", "num_points": 3, "learning_rate": {"low": 1e-3, "high": 1.0, "log": True}}
    create(database, definition(search))
    assert [trial.params for trial in database.load_study("a").trials] == [{}, {}, {}]
    assert execute("SELECT point, cohort, attempt, crashes, is_counted FROM hpsearch_points ORDER BY 1") == [
        (i, None, 1, 0, False) for i in range(3)
    ]


def test_each_point_has_the_cohort_of_its_settings(database: Database, execute: Any) -> None:
    create(database, definition())
    cohorts = [cohort_of(definition().resolve(point)) for point in definition().points()]
    assert execute("SELECT cohort FROM hpsearch_points ORDER BY point") == [(name,) for name in cohorts]


def test_study_without_dimensions_has_one_point(database: Database) -> None:
    study = create(database, definition({})).study
    assert Ledger(database=database, study_id=study.study_id).counts().total == 1
    assert database.load_study("a").trials[0].params == {}
