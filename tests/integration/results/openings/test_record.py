"""The ledger of the vault: one first opening per study, whoever is fast, and a record that outlives its study."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import Connection

from hpsearch.atomic_file import write_file
from hpsearch.console.tables import print_opening, print_status
from hpsearch.errors import StorageError, StudyNotFoundError, VaultOpenedError
from hpsearch.results.choice import choose_point
from hpsearch.results.export import ExportFormat, export_point, render_export
from hpsearch.results.openings.intents import declare_intent
from hpsearch.results.openings.record import Attempt, Finding, VaultRecord
from hpsearch.results.openings.stored_openings import record_opening
from hpsearch.results.report.page import write_report
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.summary import read_summary
from hpsearch.store.connection.database import Database, DatabaseOperation
from hpsearch.store.studies import StoredStudy
from tests.integration.results.vault_studies import read_earlier_openings, read_openings

HOSTILE = "<script>alert('x')</script>"


def finding(num_errors: int = 21) -> Finding:
    return Finding(
        test_checksums={"t10k-images-idx3-ubyte": "0fa7" * 16},
        chosen={
            "selection": "best",
            "study": "made-up",
            "trial": 0,
            "point": 0,
            "params": {"learning_rate": 0.1},
            "search_error": 0.07,
            "validation_error": 0.07,
            "is_retrained": False,
            "device": "cpu",
        },
        parameters_sha256="a" * 64,
        num_images=256,
        num_errors=num_errors,
    )


def record_number(
    database: Database, study: StoredStudy, found: Finding, reason: str | None = None
) -> tuple[VaultRecord, bool]:
    """An intent and then the number, as `hpsearch test` writes them."""
    intent_id = uuid.uuid4().hex
    attempt = declare_intent(
        database,
        study,
        intent_id=intent_id,
        chosen=found.chosen,
        parameters_sha256=found.parameters_sha256,
        reason=reason,
    )
    return record_opening(database, study, attempt, found)


@dataclass(frozen=True, kw_only=True)
class AnswerLost(Database):
    """Runs every transaction twice, as `transaction` does when the connection breaks after the commit."""

    def transaction(self, work: Callable[[Connection], Any], operation: DatabaseOperation = "other") -> Any:
        super().transaction(work)
        return super().transaction(work)


def test_a_record_holds_who_when_and_what(learning_rates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_COMMIT", "abc123")
    record, is_ours = record_number(learning_rates.database, learning_rates.study, finding())
    assert is_ours
    assert read_openings(learning_rates.database, learning_rates.study) == (record,)
    assert (record.study_name, record.opening, record.reason, record.code_commit) == ("made-up", 1, None, "abc123")
    assert "@" in record.opened_by
    assert record.opened_at.tzinfo is not None
    assert {"hpsearch", "torch", "python"} <= record.versions.keys()
    ours = {name: getattr(record, name) for name in finding().__dataclass_fields__}
    assert Finding(**{**ours, "chosen": finding().chosen}) == finding()


def test_of_attempts_at_one_opening_the_first_number_stays_and_is_given_to_the_others(learning_rates: Any) -> None:
    """Eight have declared the same opening, for the same parameters, before any of them has a number."""
    database, study = learning_rates.database, learning_rates.study
    known = {"chosen": finding().chosen, "parameters_sha256": "a" * 64, "reason": None}
    attempts = [declare_intent(database, study, intent_id=f"attempt {n}", **known) for n in range(8)]
    assert len({(attempt.opening_id, attempt.opening) for attempt in attempts}) == 1
    barrier = threading.Barrier(8)
    results: list[tuple[VaultRecord, bool]] = []

    def record(number: int) -> None:
        barrier.wait()
        attempt = attempts[number]
        results.append(record_opening(database, study, attempt, finding(number)))

    run_at_once(record, 8)
    (opening,) = read_openings(database, study)
    assert [is_ours for _, is_ours in results].count(True) == 1
    assert [found for found, _ in results] == [opening] * 8


def test_openings_at_once_with_a_reason_are_all_counted(learning_rates: Any) -> None:
    database, study = learning_rates.database, learning_rates.study
    record_number(database, study, finding())
    barrier = threading.Barrier(8)

    def open_it(number: int) -> None:
        barrier.wait()
        assert record_number(database, study, finding(number), "a look again")[1]

    run_at_once(open_it, 8)
    openings = read_openings(database, study)
    assert [record.opening for record in openings] == list(range(1, 10))
    assert {record.num_errors for record in openings[1:]} == set(range(8))


def test_a_number_that_an_older_hpsearch_wrote_without_an_intent_stays(learning_rates: Any, execute: Any) -> None:
    """It was at work already when the tables became version 4."""
    database, study = learning_rates.database, learning_rates.study
    known = {"chosen": finding().chosen, "parameters_sha256": "a" * 64, "reason": None}
    attempt = declare_intent(database, study, intent_id="ours", **known)
    older = replace(attempt, intent_id="none", opening_id=attempt.opening_id + 1)
    record_opening(database, study, older, finding(3))
    execute("UPDATE hpsearch_vault SET chosen = (chosen::jsonb - 'intent')::text")
    found, is_ours = record_opening(database, study, attempt, finding(21))
    assert not is_ours
    assert (found,) == read_openings(database, study)
    assert found.num_errors == 3
    with pytest.raises(VaultOpenedError, match="was opened before: "):
        declare_intent(database, study, intent_id="again", **known)


def run_at_once(work: Callable[[int], None], number: int) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("reason", [None, "a look again"])
def test_a_commit_whose_answer_was_lost_is_one_opening_and_ours(learning_rates: Any, reason: str | None) -> None:
    database, study = learning_rates.database, learning_rates.study
    if reason:
        record_number(database, study, finding())
    unlucky = AnswerLost(engine=database.engine, optuna_storage=database.optuna_storage, url=database.url)
    record, is_ours = record_number(unlucky, study, finding(5), reason)
    assert is_ours
    assert record.num_errors == 5
    assert read_openings(database, study)[-1] == record
    assert len(read_openings(database, study)) == (2 if reason else 1)


def test_a_study_that_is_deleted_meanwhile_gets_no_record(learning_rates: Any, execute: Any) -> None:
    optuna.delete_study(study_name="made-up", storage=learning_rates.database.storage)
    with pytest.raises(StudyNotFoundError, match="deleted in the meantime: nothing is recorded"):
        record_opening(
            learning_rates.database,
            learning_rates.study,
            Attempt(intent_id="none", opening_id=1, opening=1, reason=None),
            finding(),
        )
    with pytest.raises(StudyNotFoundError, match="the test set was not opened"):
        record_number(learning_rates.database, learning_rates.study, finding())
    assert execute("SELECT (SELECT count(*) FROM hpsearch_vault) + (SELECT count(*) FROM hpsearch_vault_intents)") == [
        (0,)
    ]


def test_records_outlive_their_study_and_are_told_to_the_next_of_its_name(learning_rates: Any, make_study: Any) -> None:
    database = learning_rates.database
    record, _ = record_number(database, learning_rates.study, finding())
    optuna.delete_study(study_name="made-up", storage=database.storage)
    other = make_study({"learning_rate": [0.1]}, name="other")
    assert read_earlier_openings(database, other.study) == ()
    successor = make_study({"learning_rate": [0.1]})
    assert read_openings(database, successor.study) == ()
    assert read_earlier_openings(database, successor.study) == (record,)
    own, is_ours = record_number(database, successor.study, finding(2))
    assert is_ours
    assert own.opening == 1
    status = read_summary(database, "made-up").as_json()
    assert status["test_openings"] == [own.as_json()]
    assert status["earlier_test_openings"] == [record.as_json()]


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("versions", '{"torch', "Unterminated string"),
        ("test_checksums", "[]", "it is a list, not an object"),
        ("chosen", '{"selection": "best"}', "study is missing"),
    ],
)
def test_damaged_row_is_told_with_its_study_and_column(
    learning_rates: Any, execute: Any, column: str, text: str, reason: str
) -> None:
    record_number(learning_rates.database, learning_rates.study, finding())
    execute(f"UPDATE hpsearch_vault SET {column} = :text", text=text)
    said = f"opening 1 of the test set of study 'made-up' cannot be read (table hpsearch_vault, column {column}): "
    for look in (read_openings, lambda database, study: read_status(database, study.name)):
        with pytest.raises(StorageError, match=re.escape(said + reason)):
            look(learning_rates.database, learning_rates.study)


def test_every_view_tells_the_openings(learning_rates: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = learning_rates.database
    learning_rates.complete(learning_rates.claim(), [0.2])
    unopened = read_summary(database, "made-up")
    assert unopened.as_json()["test_openings"] == unopened.as_json()["earlier_test_openings"] == []
    write_report(database, "made-up", tmp_path / "before.html")
    assert "the test images have no part in this report" in (tmp_path / "before.html").read_text()
    record_number(database, learning_rates.study, finding())
    record_number(database, learning_rates.study, finding(), HOSTILE)
    summary = read_summary(database, "made-up")

    print_status(read_status(database, "made-up"))
    shown = capsys.readouterr().out
    assert "the test set was opened 2 times:" in shown
    assert "test error 8.20 % (21 of 256 images; 95 % interval 5.43 to 12.21 %)" in shown
    assert HOSTILE in shown
    print_opening(summary.openings[0], StudyStatus(summary=summary))
    assert "the test set was opened 2 times:" in capsys.readouterr().out

    write_report(database, "made-up", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "The test set was opened 2 times." in page
    assert "5.43 to 12.21" in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page
    assert HOSTILE not in page
    assert "no part in this report" not in page

    exported = export_point(choose_point(summary, None), StudyStatus(summary=summary))
    write_file(tmp_path / "best.json", render_export(exported, ExportFormat.JSON))
    document = json.loads((tmp_path / "best.json").read_text())
    assert "reason" not in document["test_openings"][0]  # what is absent has its default
    assert document["test_openings"][1]["reason"] == HOSTILE
    assert document["test_openings"][0]["num_errors"] == 21
    for export_format in ExportFormat:
        assert "test_openings" in render_export(exported, export_format).lower()


def test_a_record_without_a_commit_is_shown_all_the_same(
    learning_rates: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    learning_rates.complete(learning_rates.claim(), [0.2])
    record_number(learning_rates.database, learning_rates.study, finding())
    summary = read_summary(learning_rates.database, "made-up")
    summary = replace(summary, openings=(replace(summary.openings[0], code_commit=None),))
    print_opening(summary.openings[0], StudyStatus(summary=summary))
    assert "not known" in capsys.readouterr().out
