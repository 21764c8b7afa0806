"""Before a test image is read, it is on record that somebody is about to; what an unfinished opening allows."""

from __future__ import annotations

import json
import shutil
import textwrap
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import text

from hpsearch.console.tables import print_status
from hpsearch.data import test_split
from hpsearch.data.forms import idx_files
from hpsearch.errors import DataError, VaultOpenedError
from hpsearch.home import vault_file
from hpsearch.results.choice import choose_point
from hpsearch.results.export import ExportFormat, export_point, render_export
from hpsearch.results.openings.intents import declare_intent
from hpsearch.results.report.page import render_report
from hpsearch.results.selection import Selection
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.summary import read_summary
from hpsearch.results.vault.final_test import VaultRequest, open_vault
from tests.integration.results.openings.test_record import AnswerLost
from tests.integration.results.vault_studies import TEST, Search, Searched, confirm, images_of, write_part

PEEKER = """
    import os
    import torch

    class Peeker(torch.nn.Module):
        def __init__(self, image_shape, num_classes):
            super().__init__()
            self.linear = torch.nn.Linear(image_shape[0] * image_shape[1], num_classes)

        def forward(self, images):
            if len(images) == 40 and "PEEK" in os.environ:  # the test set has 40
                print("peeked", float(images.sum()))
                raise RuntimeError("I have seen enough")
            return self.linear(images.flatten(1))
"""


@pytest.fixture
def peeker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A network that prints what it sees of the test images and raises, while PEEK is set."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "peeking_network.py").write_text(textwrap.dedent(PEEKER))
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("PEEK", "1")
    return {"family": "peeking_network:Peeker"}


def intents(searched: Searched) -> tuple[Any, ...]:
    return read_summary(searched.database, "searched").intents


def rows(searched: Searched) -> list[Any]:
    with searched.database.engine.connect() as connection:
        return list(connection.execute(text("SELECT * FROM hpsearch_vault_intents ORDER BY opening, attempt")))


def refuse_to_read(*_: object, **__: object) -> Any:
    raise DataError("the power is cut")


def test_a_network_that_prints_and_raises_leaves_a_record_that_every_view_tells(
    search: Search,
    folder: Path,
    peeker: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    searched = search(str(folder), model=peeker)
    with pytest.raises(RuntimeError, match="I have seen enough"):
        searched.open()
    assert "peeked" in capsys.readouterr().out
    assert searched.openings() == ()
    (intent,) = intents(searched)
    assert (intent.opening, intent.reason, intent.attempts, intent.chosen["trial"]) == (1, None, 1, 0)
    assert "@" in intent.declared_by
    assert len(intent.parameters_sha256) == 64

    status = read_status(searched.database, "searched")
    print_status(status)
    assert "the test set was opened without a number on record:" in capsys.readouterr().out
    assert status.as_json()["test_intents"] == [intent.as_json()]
    page = render_report(StudyStatus(summary=read_summary(searched.database, "searched", with_curves=True)))
    assert "The test set was opened without a number on record." in page
    assert intent.declared_by in page
    document = export_point(choose_point(status.summary, None), StudyStatus(summary=status.summary))
    assert json.loads(render_export(document, ExportFormat.JSON))["test_intents"][0]["attempts"] == 1
    for export_format in ExportFormat:
        assert "test_intents" in render_export(document, export_format).lower()

    monkeypatch.delenv("PEEK")
    record = searched.open()  # the same point with the same parameters: no reason is asked for
    assert (record.opening, record.reason) == (1, None)
    assert [row.attempt for row in rows(searched)] == [1, 2]
    assert intents(searched) == ()
    with pytest.raises(VaultOpenedError, match=r"opened before: .*test error"):
        searched.open()


def test_the_intent_is_committed_before_a_test_file_is_opened(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = search(str(folder))
    seen: list[int] = []
    read = idx_files.read_data_file

    def look(path: Path) -> Any:
        if path.name.startswith("t10k"):
            seen.append(len(rows(searched)))  # by another connection: what is not committed is not seen
        return read(path)

    monkeypatch.setattr(idx_files, "read_data_file", look)
    searched.open()
    assert seen == [1, 1]


def test_test_images_are_not_read_without_an_intent_on_record(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also not through our own functions."""
    searched = search(str(folder))
    monkeypatch.setattr(idx_files, "read_data_file", lambda path: pytest.fail("it was read"))
    with pytest.raises(DataError, match="their opening is not on record"):
        test_split.load_test_split(searched.study.definition.data, searched.locations, lambda: False)


def test_an_unfinished_opening_is_for_its_own_point_and_parameters_only(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = search(str(folder))
    with monkeypatch.context() as power_cut:
        power_cut.setattr(idx_files.IdxFolder, "read_test_part", refuse_to_read)
        with pytest.raises(DataError, match="the power is cut"):
            searched.open()
    confirm(searched)
    with pytest.raises(VaultOpenedError, match=r"opened before for another point: .* no number on record") as caught:
        searched.open(selection=Selection.CONFIRMED)
    assert "--point best" in str(caught.value.hint)
    with pytest.raises(VaultOpenedError, match="opened before for other parameters"):
        searched.open(selection=Selection.BEST, is_retrained=True)
    assert len(rows(searched)) == 1

    again = searched.open(selection=Selection.CONFIRMED, reason="the first one was cut off")
    assert (again.opening, again.reason) == (2, "the first one was cut off")
    assert [intent.opening for intent in intents(searched)] == [1]  # and says for ever that somebody may have looked
    with pytest.raises(VaultOpenedError, match="opened before: "):
        searched.open(selection=Selection.BEST)  # too late: a later number is known


def test_a_further_opening_that_was_cut_off_is_finished_with_its_own_reason(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = search(str(folder))
    searched.open()
    with monkeypatch.context() as power_cut:
        power_cut.setattr(idx_files.IdxFolder, "read_test_part", refuse_to_read)
        with pytest.raises(DataError):
            searched.open(reason="a reviewer asked")
    record = searched.open()
    assert (record.opening, record.reason) == (2, "a reviewer asked")


def test_of_two_points_at_once_one_is_let_in(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    barrier = threading.Barrier(2)
    ended: list[object] = []

    def declare(point: int) -> None:
        chosen = {"selection": "best", "study": "searched", "trial": point, "point": point, "params": {}}
        known = {"chosen": {**chosen, "is_retrained": False}, "parameters_sha256": f"{point}", "reason": None}
        barrier.wait()
        try:
            ended.append(declare_intent(searched.database, searched.study, intent_id=f"{point}", **known).opening)
        except VaultOpenedError:
            ended.append("refused")

    threads = [threading.Thread(target=declare, args=(point,)) for point in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended, key=str) == [1, "refused"]


def test_an_intent_whose_answer_was_lost_is_one_attempt(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    database = searched.database
    unlucky = AnswerLost(engine=database.engine, optuna_storage=database.optuna_storage, url=database.url)
    chosen = {"selection": "best", "study": "searched", "trial": 0, "point": 0, "params": {}, "is_retrained": False}
    declare_intent(unlucky, searched.study, intent_id="one", chosen=chosen, parameters_sha256="a", reason=None)
    assert [(row.intent_id, row.attempt) for row in rows(searched)] == [("one", 1)]


def test_an_intent_outlives_its_study_and_is_told_to_the_next_of_its_name(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = search(str(folder))
    with monkeypatch.context() as power_cut:
        power_cut.setattr(idx_files.IdxFolder, "read_test_part", refuse_to_read)
        with pytest.raises(DataError):
            searched.open()
    optuna.delete_study(study_name="searched", storage=searched.database.storage)
    successor = search(str(folder))
    summary = read_summary(successor.database, "searched")
    assert summary.intents == ()
    assert [intent.opening for intent in summary.earlier_intents] == [1]
    assert "without a number on record" in "\n".join(summary.describe_test_set())
    assert successor.open().opening == 1


# What the machine remembers


def test_other_studies_of_the_machine_are_told_of_earlier_openings_of_the_same_test_files(
    search: Search,
    folder: Path,
    tmp_path: Path,
) -> None:
    """The same folder, and a copy of it: neither test file is opened to find that out. Another one is not told."""
    first = search(str(folder)).open()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    other = tmp_path / "other"
    other.mkdir()
    write_part(other, "train", *images_of(120, 5))
    write_part(other, TEST, *images_of(40, 6))
    for name, dataset, number in (("second", folder, 1), ("third", copy, 2), ("fourth", other, 0)):
        searched = search(str(dataset), name=name)
        told: list[str] = []
        record = open_as(searched, name, told)
        assert record.chosen["machine_openings"] == number
        assert bool(told) == bool(number)
        if number:
            assert f"test error {100 * first.test_error:.2f} %" in told[1]
            assert "for study 'searched' in " in told[1]
    lines = [json.loads(line) for line in vault_file().read_text().splitlines()]
    assert [line["num_images"] for line in lines] == [None, 40] * 4  # before the images are read, and with the number


def test_a_studys_own_attempts_are_not_told_as_another_ones(
    search: Search,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = search(str(folder))
    with monkeypatch.context() as power_cut:
        power_cut.setattr(idx_files.IdxFolder, "read_test_part", refuse_to_read)
        with pytest.raises(DataError):
            searched.open()
    assert searched.open().chosen["machine_openings"] == 0
    assert searched.open(reason="again").chosen["machine_openings"] == 0


def test_a_machine_that_cannot_remember_says_so_and_opens(
    search: Search,
    folder: Path,
) -> None:
    searched = search(str(folder))
    vault_file().mkdir(parents=True)  # no file can be written there, not even by root
    told: list[str] = []
    assert open_as(searched, "searched", told).opening == 1
    assert any("cannot record this opening" in line for line in told)


def open_as(searched: Searched, name: str, told: list[str]) -> Any:
    request = VaultRequest(device="cpu")
    return open_vault(
        searched.database, name, searched.artifacts, request, locations=searched.locations, tell=told.append
    )
