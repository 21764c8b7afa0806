"""The vault is opened once, for parameters that are what the search selected, and for nothing that is wrong."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score
from sqlalchemy import create_engine, text

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.cli.test_command import opening_as_json
from hpsearch.console.tables import print_opening
from hpsearch.errors import (
    ArtifactError,
    DataError,
    DeviceError,
    HpsearchError,
    InputError,
    NothingCompleteError,
    StorageError,
    StudyNotFoundError,
    VaultOpenedError,
)
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.results.openings.record import Copies, VaultRecord
from hpsearch.results.report.page import write_report
from hpsearch.results.selection import Selection
from hpsearch.results.status import read_status
from hpsearch.results.summary import read_summary
from hpsearch.results.vault import final_test as vault
from hpsearch.results.vault.final_test import VaultRequest, open_vault
from hpsearch.training.tensor_file import CHECKSUM
from tests.integration.results.vault_studies import TEST, TRAIN, Search, Searched, confirm, images_of, write_part


def without_checksum(header: bytes) -> dict[str, str]:
    """The metadata of a parameter file of an older version: what has a checksum is refused for that."""
    return {key: value for key, value in json.loads(header)["__metadata__"].items() if key != CHECKSUM}


def predictions(searched: Searched, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """The classes that the stored logistic regression predicts, computed with numpy."""
    arrays = load_file(searched.artifact())
    scores = images.astype(np.float64) @ arrays["output.weight"].T + arrays["output.bias"]
    return np.asarray(scores.argmax(axis=1))


def wrong_labels(searched: Searched, images: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    """The errors of the logistic regression that is stored, computed with numpy."""
    return int((predictions(searched, images) != labels).sum())


def test_the_number_is_that_of_the_stored_parameters_on_the_whole_test_set(search: Search, folder: Path) -> None:
    searched = search(str(folder), data={"dataset": str(folder), "train_samples": 50})
    record = searched.open()
    images, labels = images_of(40, 2)
    expected = wrong_labels(searched, images.reshape(40, -1) / np.float32(255), labels.astype(np.int64))
    assert (record.num_images, record.num_errors) == (40, expected)
    assert 0 < expected < 40
    predicted = predictions(searched, images.reshape(40, -1) / np.float32(255))
    assert record.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert record.as_json()["macro_f1"] == record.macro_f1
    for file in folder.glob("t10k-*"):
        assert record.test_checksums[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(record.test_checksums) == 2
    assert record.parameters_sha256 == hashlib.sha256(searched.artifact().read_bytes()).hexdigest()
    assert record.definition_sha256 == searched.study.definition.sha256
    best = read_summary(searched.database, "searched").require_best()
    assert record.chosen == {
        "selection": "best",
        "study": "searched",
        "trial": 0,
        "point": 0,
        "params": {"learning_rate": 0.1},
        "search_error": best.value,
        "max_epochs": searched.study.definition.training.max_epochs,
        "validation_error": best.value,
        "is_retrained": False,
        "device": "cpu",
        "machine_openings": 0,
        "copies": {"exact": 0, "near": 0, "num_looked_at": 40},
        "macro_f1": record.macro_f1,
        "intent": record.chosen["intent"],
    }
    assert searched.openings() == (record,)
    write_report(searched.database, "searched", folder / "report.html")
    page = (folder / "report.html").read_text()
    assert "Macro-F1" in page
    assert f">{record.macro_f1_text}<" in page


def test_copies_of_training_and_validation_images_are_counted_and_shown(
    search: Search, folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    known, _ = images_of(120, 1)
    images, labels = images_of(40, 2)
    images[:3] = known[[0, 50, 119]]  # the last 20 are for validation
    images[10:12] = known[[7, 110]]
    images[10:12, 5, 5] += 1  # nearly the same
    write_part(folder, TEST, images, labels)
    searched = search(str(folder))
    assert searched.open().copies == Copies(exact=3, near=2, num_looked_at=40)

    status = read_status(searched.database, "searched")
    (record,) = status.summary.openings
    told = "3 of 40 test images are also training or validation images, and 2 of 40 nearly: the error on new images"
    print_opening(record, status)
    assert told in " ".join(capsys.readouterr().out.split())
    assert opening_as_json(record, status)["chosen"]["copies"] == {"exact": 3, "near": 2, "num_looked_at": 40}
    write_report(searched.database, "searched", tmp_path / "report.html")
    assert f"At opening 1, {told}" in " ".join((tmp_path / "report.html").read_text().split())


def test_images_that_were_left_out_of_training_are_no_copies(search: Search, folder: Path) -> None:
    images, labels = images_of(40, 2)
    images[:3] = images_of(120, 1)[0][[0, 49, 50]]
    write_part(folder, TEST, images, labels)
    searched = search(str(folder), data={"dataset": str(folder), "train_samples": 50})
    assert searched.open().copies == Copies(exact=2, near=0, num_looked_at=40)


def test_the_search_for_near_copies_is_limited_in_images_and_time(
    search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.checks.duplicates.MOST_NEAR_IMAGES", 30)
    searched = search(str(folder))
    assert searched.open().copies == Copies(exact=0, near=0, num_looked_at=30)
    monkeypatch.setattr("hpsearch.checks.duplicates._BLOCK", 10)
    monkeypatch.setattr("hpsearch.results.vault.copies.NEAR_SECONDS", 0.0)
    assert searched.open(reason="again").copies == Copies(exact=0, near=0, num_looked_at=10)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            MemoryError(),
            "no memory to look for copies of training images among the test images: they are not counted",
        ),
        (
            OSError(5, "Input/output error"),
            "copies of training images among the test images are not counted: [Errno 5] Input/output error",
        ),
    ],
)
def test_if_the_copies_cannot_be_counted_the_number_is_recorded_all_the_same(
    search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("hpsearch.results.vault.copies.exact_copies", fail)
    told: list[str] = []
    searched = search(str(folder))
    request = VaultRequest(device="cpu")
    record = open_vault(
        searched.database, "searched", searched.artifacts, request, locations=searched.locations, tell=told.append
    )
    assert (record.num_images, record.copies) == (40, None)
    assert line in told
    assert searched.openings() == (record,)


def test_the_bundled_digits_have_a_test_part_too(search: Search) -> None:
    record = search("digits").open()
    assert record.num_images == 256
    assert set(record.test_checksums) == {"digits"}


def test_a_pickled_set_is_known_by_its_one_file(search: Search, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    parts = [(generator.random((n, 784), np.float32), generator.permutation(np.arange(n) % 10)) for n in (60, 20, 30)]
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(tuple(parts), 2)))
    searched = search(str(path))
    record = searched.open()
    assert record.num_images == 30
    assert record.num_errors == wrong_labels(searched, *parts[2])
    assert record.test_checksums == dict(searched.study.dataset_checksums)


@pytest.mark.parametrize(
    "model",
    [
        {"family": "mlp", "hidden_units": 7, "activation": "relu"},
        {"family": "cnn", "kernels": [2, 3], "hidden_units": 5},
        {"family": "examples.two_hidden_layers:TwoHiddenLayers", "options": {"width": 6}},
    ],
    ids=lambda model: model["family"],
)
def test_every_family_is_evaluated(search: Search, model: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[4]))
    record = search("digits", model=model).open()
    assert record.num_images == 256
    assert 0 < record.num_errors <= 256


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_precision_is_a_matter_of_training_only(search: Search, folder: Path, precision: str) -> None:
    searched = search(str(folder), training={"max_epochs": 1, "precision": precision})
    assert searched.open().num_errors == searched.open(reason="once more", is_retrained=False).num_errors


# A confirmed point


def test_the_confirmed_point_goes_before_the_best_one(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    confirm(searched)
    confirmation = read_status(searched.database, "searched").confirmation
    assert confirmation is not None
    assert confirmation.chosen is not None
    record = searched.open()
    chosen = confirmation.chosen.trial
    assert record.chosen["selection"] == "confirmed"
    assert record.chosen["study"] == "searched-confirm"
    assert record.chosen["trial"] == chosen.number
    assert record.chosen["params"] == chosen.point_parameters
    assert record.chosen["validation_error"] == chosen.value
    assert searched.openings() == (record,)  # of the study, not of its companion
    again = searched.open(selection=Selection.BEST, reason="to compare")
    assert (again.chosen["selection"], again.chosen["study"]) == ("best", "searched")


def test_a_confirmation_that_goes_on_is_said_and_not_waited_for(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    confirm(searched, complete=1)
    with pytest.raises(InputError, match="confirmation of study 'searched' is not finished: 1 waiting") as caught:
        searched.open(selection=Selection.CONFIRMED)
    assert "hpsearch worker searched-confirm" in str(caught.value.hint)
    told: list[str] = []
    request = VaultRequest(device="cpu")
    record = open_vault(
        searched.database, "searched", searched.artifacts, request, locations=searched.locations, tell=told.append
    )
    assert record.chosen["study"] == "searched"
    assert told[0].startswith("its confirmation searched-confirm is not finished: 1 waiting")


def test_a_confirmed_point_without_stored_parameters_can_be_trained_again(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    confirm(searched, keep=False)
    with pytest.raises(ArtifactError, match="of study 'searched-confirm' has no") as caught:
        searched.open()
    assert "--retrain" in str(caught.value.hint)
    record = searched.open(is_retrained=True)
    assert record.chosen["study"] == "searched-confirm"
    assert "seed" in record.chosen["params"]


def test_a_confirmation_has_no_test_set_of_its_own(search: Search, folder: Path, artifacts: Artifacts) -> None:
    searched = search(str(folder))
    confirm(searched)
    with pytest.raises(InputError, match="is the confirmation of study 'searched'") as caught:
        open_vault(searched.database, "searched-confirm", artifacts, VaultRequest())
    assert caught.value.hint == "hpsearch test searched"


# Openings after the first


def test_a_second_opening_is_refused_with_the_record_and_reads_no_test_file(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    record = searched.open()
    for file in folder.glob("t10k-*"):
        file.unlink()  # whoever wanted to read them would fail
    with pytest.raises(VaultOpenedError) as caught:
        searched.open()
    assert str(caught.value) == f"the test set of study 'searched' was opened before: {record.describe()}"
    assert '--again "reason"' in str(caught.value.hint)
    assert caught.value.exit_code == 2
    assert searched.openings() == (record,)


def test_an_opening_for_a_reason_is_a_record_of_its_own(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    with pytest.raises(InputError, match="has not been opened yet"):
        searched.open(reason="a reviewer asked")
    first = searched.open()
    second = searched.open(reason=" a reviewer asked ")
    assert (second.opening, second.reason, second.num_errors) == (2, "a reviewer asked", first.num_errors)
    with pytest.raises(VaultOpenedError, match=r"opened before 2 times.*again: a reviewer asked"):
        searched.open()
    assert searched.openings() == (first, second)


def test_a_reason_that_is_none_is_refused_before_anything_is_looked_at(search: Search, folder: Path) -> None:
    with pytest.raises(InputError, match="--again needs a reason"):
        search(str(folder)).open(reason=" ")


def test_of_two_that_open_at_once_one_gets_the_number_and_the_other_its_record(
    search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the vault unopened before either reads a test file."""
    searched = search(str(folder))
    both_inside = threading.Barrier(2, timeout=240)
    load = vault.load_test_split

    def wait_and_load(*arguments: Any) -> Any:
        both_inside.wait()
        return load(*arguments)

    monkeypatch.setattr(vault, "load_test_split", wait_and_load)
    records: list[VaultRecord] = []
    refusals: list[str] = []

    def open_it() -> None:
        try:
            records.append(searched.open())
        except VaultOpenedError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=open_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (record,) = records
    assert refusals == [f"the test set of study 'searched' was opened before: {record.describe()}"]
    assert searched.openings() == (record,)


# Training again


def test_a_point_can_be_trained_again_with_its_own_seed_and_rule(search: Search, folder: Path) -> None:
    searched = search(str(folder), keep=False)
    told: list[str] = []
    with pytest.raises(ArtifactError, match=r"has no parameters\.safetensors on record") as caught:
        searched.open()
    assert "--retrain" in str(caught.value.hint)
    request = VaultRequest(is_retrained=True, device="cpu")
    record, again = (
        open_vault(
            searched.database,
            "searched",
            searched.artifacts,
            replace(request, reason=reason),
            locations=searched.locations,
            tell=told.append,
        )
        for reason in (None, "is it the same?")
    )
    assert [line.split(":")[0] for line in told] == ["epoch 1", "epoch 2"] * 2
    assert record.chosen["is_retrained"]
    assert record.parameters_sha256 == again.parameters_sha256  # nothing but point, seed and data matters
    assert record.num_errors == again.num_errors
    assert record.chosen["validation_error"] != record.chosen["search_error"]


@pytest.mark.parametrize("rule", ["geometric-patience", "no-improvement-in-n", "significance"])
def test_training_again_ends_by_the_studys_own_rule(search: Search, folder: Path, rule: str) -> None:
    stopping: dict[str, Any] = {"rule": rule, **({"n": 1} if rule == "no-improvement-in-n" else {"patience": 3})}
    searched = search(str(folder), stopping=stopping, training={"max_epochs": 500, "batch_size": 50})
    told: list[str] = []
    request = VaultRequest(is_retrained=True, device="cpu")
    open_vault(
        searched.database, "searched", searched.artifacts, request, locations=searched.locations, tell=told.append
    )
    assert 1 <= len(told) < 500


def test_a_point_that_diverges_when_it_is_trained_again_has_no_number(search: Search, folder: Path) -> None:
    searched = search(str(folder), search={"learning_rate": [1e8, 1e9]}, training={"max_epochs": 3, "lambda_2": 1.0})
    with pytest.raises(HpsearchError, match="cannot be trained again: it diverged at epoch 1") as caught:
        searched.open(is_retrained=True)
    assert caught.value.exit_code == 1
    assert searched.openings() == ()


# What is wrong is found, and leaves no record


def test_parameters_that_do_not_reproduce_the_validation_error_are_refused(search: Search, folder: Path) -> None:
    """Whoever exchanged the file kept its metadata; the test files are not even looked for."""
    searched = search(str(folder))
    path = searched.artifact()
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    arrays = {name: array + np.float32(0.2) * np.sign(array) for name, array in load_file(path).items()}
    save_file(arrays, path, metadata=without_checksum(header))
    for file in folder.glob("t10k-*"):
        file.unlink()
    with pytest.raises(ArtifactError, match=r"do not reproduce its validation error.*the test set was not opened"):
        searched.open()
    assert searched.openings() == ()


def test_parameters_of_another_shape_are_refused(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    path = searched.artifact()
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    arrays = {name: array[:5].copy() for name, array in load_file(path).items()}
    save_file(arrays, path, metadata=without_checksum(header))
    with pytest.raises(ArtifactError, match=r"do not fit the network|is damaged: output"):
        searched.open()


def test_parameters_that_are_not_there_can_be_trained_again(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    searched.artifact().unlink()
    with pytest.raises(ArtifactError, match="is not in") as caught:
        searched.open()
    assert "HPSEARCH_ARTIFACTS" in str(caught.value.hint)
    assert "--retrain" in str(caught.value.hint)
    assert searched.open(is_retrained=True).opening == 1


def _remove(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte").unlink()


def _cut(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])


def _exchange(folder: Path) -> None:
    write_part(folder, TEST, *images_of(40, 2, side=14))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_remove, "no t10k-images-idx3-ubyte.gz or t10k-images-idx3-ubyte in this folder"),
        (_cut, "expected 5776 bytes, found 5775"),
        (_exchange, "the test images have 196 pixels, those of training and validation 144"),
    ],
)
def test_wrong_test_files_leave_the_vault_unopened(
    search: Search, folder: Path, harm: Callable[[Path], None], said: str
) -> None:
    searched = search(str(folder))
    harm(folder)
    with pytest.raises(DataError, match=said) as caught:
        searched.open()
    assert caught.value.exit_code == 3
    assert searched.openings() == ()
    write_part(folder, TEST, *images_of(40, 2))
    assert searched.open().opening == 1


def test_other_training_files_than_the_studys_are_refused(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    write_part(folder, TRAIN, *images_of(120, 7))
    with pytest.raises(DataError, match="was created with other data"):
        searched.open()
    assert searched.openings() == ()


def test_an_unfinished_study_is_refused_with_its_counts(search: Search, folder: Path) -> None:
    with pytest.raises(InputError, match="is not finished: 1 waiting, 0 running, 1 complete") as caught:
        search(str(folder), complete=1).open()
    assert "hpsearch worker searched" in str(caught.value.hint)


def test_a_study_with_nothing_complete_is_refused_with_its_counts(search: Search, folder: Path) -> None:
    with pytest.raises(NothingCompleteError, match="2 waiting, 0 running, 0 complete"):
        search(str(folder), complete=0).open()


def test_a_confirmed_point_needs_a_confirmation(search: Search, folder: Path) -> None:
    with pytest.raises(InputError, match="has not been confirmed") as caught:
        search(str(folder)).open(selection=Selection.CONFIRMED)
    assert "hpsearch confirm searched" in str(caught.value.hint)


def test_studies_that_are_not_there_or_not_ours_are_refused(search: Search, folder: Path, artifacts: Artifacts) -> None:
    database = search(str(folder)).database
    with pytest.raises(StudyNotFoundError, match="no study 'other'"):
        open_vault(database, "other", artifacts, VaultRequest())
    optuna.create_study(study_name="foreign", storage=database.storage)
    with pytest.raises(InputError, match="hpsearch did not create it"):
        open_vault(database, "foreign", artifacts, VaultRequest())


def test_a_device_that_is_not_there_is_an_error_before_any_file_is_read(search: Search, folder: Path) -> None:
    searched = search(str(folder))
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DeviceError, match=r"cuda:99"):
        searched.open(device="cuda:99")


def test_memory_that_does_not_suffice_is_an_error_of_the_device(
    search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = search(str(folder))

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(vault, "evaluate", refuse)
    with pytest.raises(DeviceError, match=r"out of memory on cpu: tried to allocate 2\.00 GiB"):
        searched.open()
    assert searched.openings() == ()


def test_a_database_that_goes_away_before_the_record_leaves_no_number(
    search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch, postgres_server: EmbeddedPostgres
) -> None:
    """It takes no connection any more from the moment on when the test images are read."""
    searched = search(str(folder))
    name = searched.database.url.database
    load = vault.load_test_split
    server = create_engine(postgres_server.url, isolation_level="AUTOCOMMIT")

    def allow(is_allowed: bool) -> None:
        with server.connect() as connection:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {is_allowed}"))
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
            connection.execute(text(end), {"name": name})

    def cut_and_load(*arguments: Any) -> Any:
        allow(False)
        return load(*arguments)

    monkeypatch.setattr(vault, "load_test_split", cut_and_load)
    impatient = replace(searched, database=replace(searched.database, outage_seconds=0.0))
    with pytest.raises(StorageError) as caught:
        impatient.open()
    assert caught.value.exit_code == 3
    assert "error" not in str(caught.value)  # no number in it
    allow(True)
    server.dispose()
    assert searched.openings() == ()
