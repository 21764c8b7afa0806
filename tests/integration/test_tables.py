"""A study on a table from the file to predictions: run, confirm, test, export, predict."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import tomli_w
from PIL import Image
from safetensors.numpy import load_file

import hpsearch
from hpsearch.data.forms.digits import read_bundled_digits
from hpsearch.data.split_rows import draw_split
from hpsearch.data.tables.frame import columns_of
from hpsearch.data.tables.preparation import Preparation
from hpsearch.errors import InputError
from hpsearch.store.connection.database import open_storage
from hpsearch.store.studies import load_study
from tests.acceptance.in_process import hpsearch_here

ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = {
    "name": "people",
    "data": {"dataset": "people.csv", "target": "paid"},
    "model": {"hidden_units": 8},
    "training": {"batch_size": 20, "max_epochs": 4, "optimizer": "adam", "learning_rate": 0.01},
    "search": {"learning_rate": [0.03, 0.01], "lambda_2": [0.0, 0.001]},
    "stopping": {"rule": "none"},
}


class Place:
    """A folder with the table, a database and artifacts."""

    def __init__(self, folder: Path, storage: str) -> None:
        self.folder, self.storage = folder, storage
        self.environment = {
            "HPSEARCH_HOME": os.environ["HPSEARCH_HOME"],
            "HPSEARCH_STORAGE": storage,
            "HPSEARCH_ARTIFACTS": str(folder / "artifacts"),
        }

    def __call__(self, *arguments: str | Path, code: int = 0) -> str:
        done = hpsearch_here(*arguments, folder=self.folder, environment=self.environment)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def create(self, document: dict[str, Any]) -> None:
        (self.folder / "study.toml").write_text(tomli_w.dumps(document))
        self("create", "study.toml")
        self("worker", document["name"], "--lanes", "4")

    def study(self, name: str) -> hpsearch.api.Study:
        return hpsearch.load(name, self.storage, artifacts=self.folder / "artifacts")


@pytest.fixture
def place(tmp_path: Path, tables_url: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    people().to_csv(tmp_path / "people.csv", index=False)
    return Place(tmp_path, tables_url)


def people(num_rows: int = 280) -> pd.DataFrame:
    """Who pays depends on age and city."""
    generator = np.random.default_rng(3)
    age = generator.uniform(18, 80, num_rows).round(1)
    city = np.array(["Aachen", "Bonn", "Celle"])[generator.integers(0, 3, num_rows)]
    frame = pd.DataFrame({"age": age, "city": city, "member": generator.random(num_rows) < 0.5})
    frame["paid"] = np.where(age + 20 * (city == "Bonn") > 50, "yes", "no")
    frame.loc[::15, "age"] = np.nan
    return frame


def test_a_table_goes_all_the_way_and_predicts_without_its_file(place: Place) -> None:
    place.create(DOCUMENT)
    place("confirm", "people", "--top", "2", "--seeds", "2", "--workers", "1")
    told = place("test", "people")
    assert re.search(r"test error +\d+\.\d+ % \(\d+ of 40 rows", told)
    place("export", "people", "-o", "best.json", "--model", "best.safetensors")
    (place.folder / "people.csv").unlink()  # everything below is from the database and the artifacts
    shutil.rmtree(place.folder / "cache")
    frame = people().iloc[:50].drop(columns="paid")
    study = place.study("people")
    predicted = study.predict(frame)
    assert set(predicted) == {"yes", "no"}
    assert (predicted == people().iloc[:50]["paid"]).mean() > 0.8
    probabilities = study.predict_proba(frame)
    assert study.predictor().classes == ("no", "yes")
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(np.array(["no", "yes"])[probabilities.argmax(axis=1)], predicted)
    assert len(study.predict(frame.iloc[:0])) == 0
    assert study.predict_proba(frame.iloc[:0]).shape == (0, 2)

    # The same from the exported files alone, with numpy.
    document = json.loads((place.folder / "best.json").read_text())
    assert document["target"]["name"] == "paid"
    preparation = Preparation.from_json(document["preparation"])
    inputs = preparation.apply(columns_of(frame, preparation.kinds))
    weights = load_file(place.folder / "best.safetensors")
    hidden = np.tanh(inputs @ weights["hidden.weight"].T + weights["hidden.bias"])
    scores = hidden @ weights["output.weight"].T + weights["output.bias"]
    np.testing.assert_array_equal(np.array(document["classes"])[scores.argmax(axis=1)], predicted)

    with pytest.raises(InputError, match="the table has no column 'city'"):
        study.predict(frame.drop(columns="city"))
    with pytest.raises(InputError, match="'age' must hold numbers, as in training, got 'old'"):
        study.predict([{"age": "old", "city": "Bonn", "member": True}])


def test_predictions_are_those_of_the_validation_that_is_on_record(place: Place) -> None:
    place.create(DOCUMENT)
    study = place.study("people")
    codes = (people()["paid"] == "yes").to_numpy().astype(np.int64)
    rows = draw_split(280, validation=None, test=None, seed=0, source="", classes=codes)
    validation = people().iloc[rows.validation]
    wrong = study.predict(validation.drop(columns="paid"), point="best") != validation["paid"]
    assert wrong.mean() == pytest.approx(study.best.value)


def test_a_study_without_a_test_part_says_so_before_anything_is_recorded(place: Place) -> None:
    place.create({**DOCUMENT, "data": {**DOCUMENT["data"], "test": 0}})
    told = place("test", "people", code=2)
    assert "study 'people' has no test part: data.test = 0" in told
    assert place.study("people").summary.intents == ()


def test_a_worker_with_another_file_is_refused(place: Place) -> None:
    (place.folder / "study.toml").write_text(tomli_w.dumps(DOCUMENT))
    told = place("create", "study.toml")
    assert "the task is classification of 'paid' (2 classes; data.task would set it)" in told
    people(281).to_csv(place.folder / "people.csv", index=False)
    told = place("worker", "people", code=3)
    assert "people.csv is not the file that the study was created with" in told


def test_a_study_with_bad_input_is_not_created(place: Place) -> None:
    document = {**DOCUMENT, "data": {"dataset": "people.csv"}}
    (place.folder / "study.toml").write_text(tomli_w.dumps(document))
    told = place("create", "study.toml", code=2)
    assert "data.target is missing" in told
    assert "age (numbers), city (text), member (truth values), paid (text)" in told


def test_images_are_predicted_from_arrays(place: Place) -> None:
    place.create({**DOCUMENT, "name": "small", "data": {"dataset": "sklearn:digits"}})
    study = place.study("small")
    images, labels = read_bundled_digits()
    predicted = study.predict(images / 16)
    assert (predicted == labels).mean() > 0.5
    assert study.predict_proba((images * 15).astype(np.uint8)).shape == (len(images), 10)
    for wrong, message in (
        (images[0] / 16, r"must be an array \[N, rows, columns\]"),
        (images / 8, r"must be in 0\.\.1, got 0 \.\. 2"),
        (images.astype(np.int64), r"uint8 or floats in 0\.\.1, got int64"),
    ):
        with pytest.raises(InputError, match=message):
            study.predict(wrong)


def test_rows_of_an_array_file_are_predicted_in_the_unit_of_their_targets(place: Place) -> None:
    rows = np.random.default_rng(0).normal(size=(280, 3))
    y = 100 + 10 * rows.sum(axis=1)
    np.savez(place.folder / "mine.npz", x_train=rows, y_train=y)
    document = {**DOCUMENT, "name": "mine", "metric": "rmse", "data": {"dataset": "mine.npz"}}
    place.create({**document, "training": {**DOCUMENT["training"], "max_epochs": 20}})
    study = place.study("mine")
    assert np.abs(study.predict(rows) - y).mean() < 0.3 * y.std()
    assert len(study.predict(rows[:0])) == 0
    for wrong in (rows[0], rows[:, :2], rows.astype(str)):
        with pytest.raises(InputError, match=r"rows to predict must be numbers \[N, 3\], got "):
            study.predict(wrong)
    assert re.search(r"test RMSE +\d", place("test", "mine"))


def test_classes_of_a_folder_of_images_are_predicted_by_their_names(place: Place) -> None:
    generator = np.random.default_rng(0)
    lowest = {"cat": 0, "dog": 150}
    levels = {name: generator.integers(low, low + 100, (60, 8, 8), dtype=np.uint8) for name, low in lowest.items()}
    for name, images in levels.items():
        (place.folder / "pets" / name).mkdir(parents=True)
        for place_of, image in enumerate(images):
            Image.fromarray(image).save(place.folder / "pets" / name / f"{place_of}.png")
    place.create({**DOCUMENT, "name": "pets", "data": {"dataset": "pets"}})
    study = place.study("pets")
    assert study.predictor().classes == ("cat", "dog")
    assert (study.predict(levels["dog"]) == "dog").mean() > 0.9
    with pytest.raises(InputError, match="images to predict are 4x8, those of training 8x8"):
        study.predict(levels["dog"][:, :4])
    place("export", "pets", "-o", "best.json")
    assert json.loads((place.folder / "best.json").read_text())["classes"] == ["cat", "dog"]


def test_classes_of_cifar_are_predicted_and_exported_by_their_names(place: Place) -> None:
    generator = np.random.default_rng(0)
    names = [f"kind {number}" for number in range(10)]
    (place.folder / "cifar").mkdir()
    for number in range(1, 6):
        images = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        batch = {"data": images, "labels": [place_of % 10 for place_of in range(20)]}
        (place.folder / "cifar" / f"data_batch_{number}").write_bytes(pickle.dumps(batch, 2))
    (place.folder / "cifar" / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
    place.create({**DOCUMENT, "name": "kinds", "data": {"dataset": "cifar"}})
    study = place.study("kinds")
    assert study.predictor().classes == tuple(names)
    assert set(study.predict(images.reshape(20, 3, 32, 32).transpose(0, 2, 3, 1))) <= set(names)
    place("export", "kinds", "-o", "best.json")
    assert json.loads((place.folder / "best.json").read_text())["classes"] == names


@pytest.fixture
def income(place: Place) -> pd.DataFrame:
    """A study for regression: the targets are `income`."""
    frame = people()
    frame["income"] = 1000 + 40 * frame["age"].fillna(50) + 500 * frame["member"]
    frame = frame.drop(columns="paid")
    frame.to_csv(place.folder / "people.csv", index=False)
    data = {"dataset": "people.csv", "target": "income"}
    training = {**DOCUMENT["training"], "max_epochs": 40}
    place.create({**DOCUMENT, "name": "income", "data": data, "metric": "rmse", "training": training})
    return frame


def test_a_study_for_regression_is_confirmed(place: Place, income: pd.DataFrame) -> None:
    told = place("confirm", "income", "--top", "2", "--seeds", "2", "--workers", "1")
    assert "confirmed in income-confirm" in told


def test_a_companion_study_has_the_preparation_of_the_search(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create(DOCUMENT)
    shutil.rmtree(place.folder / "cache")  # nothing is found there: it would be fitted again
    monkeypatch.delattr("hpsearch.data.tables.loading.fit_preparation")
    place("confirm", "people", "--top", "1", "--seeds", "1", "--workers", "1")
    with open_storage(place.storage) as database:
        search, companion = (load_study(database, name) for name in ("people", "people-confirm"))
    assert companion.data_record == search.data_record
    assert companion.dataset_checksums == search.dataset_checksums


def test_a_table_for_regression_goes_all_the_way(place: Place, income: pd.DataFrame) -> None:
    frame = income
    place("test", "income")
    place("export", "income", "-o", "best.json")
    document = json.loads((place.folder / "best.json").read_text())
    assert document["target"]["name"] == "income"
    assert document["target"]["task"] == "regression"
    assert "classes" not in document
    predicted = place.study("income").predict(frame)
    assert np.sqrt(((predicted - frame["income"]) ** 2).mean()) < 0.5 * frame["income"].std()
    with pytest.raises(InputError, match="regression, which has no probabilities"):
        place.study("income").predict_proba(frame)


def test_the_report_of_a_table_has_a_confusion_matrix_and_no_pictures(place: Place) -> None:
    place.create({**DOCUMENT, "keep_every": 2})
    place("report", "people", "-o", "report.html")
    page = (place.folder / "report.html").read_text()
    assert "onfusion" in page
    assert "Most confidently wrong" not in page
    pictures = place.study("people").pictures()
    assert pictures.confusion().sum() == 40
    with pytest.raises(InputError, match="rows of a table cannot be shown as images"):
        pictures.wrong()


@pytest.mark.parametrize(("name", "most"), [("titanic", 0.45), ("housing", 90_000)])
def test_a_shipped_study_trains_on_the_real_table(place: Place, name: str, most: float) -> None:
    folder = os.environ.get("HPSEARCH_DATASETS")
    if folder is None:
        pytest.skip("HPSEARCH_DATASETS is not set")
    shutil.copy(Path(folder) / f"{name}.csv", place.folder)
    shutil.copy(ROOT / "studies" / f"{name}.toml", place.folder)
    place("create", f"{name}.toml", "--set", "training.max_epochs=2")
    place("worker", name)
    assert place.study(name).best.value < most


@pytest.mark.parametrize(
    ("page", "name", "most"),
    [("data-tables", "people", 0.4), ("data-scikit-learn", "cancer", 0.2), ("data-hugging-face", "animals", 0.3)],
)
def test_the_study_of_each_document_is_complete_and_trains(place: Place, page: str, name: str, most: float) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    block = re.search(rf"```toml\n# {name}\.toml\n(.*?)```", text, re.DOTALL)
    assert block
    (place.folder / f"{name}.toml").write_text(block[1])
    save_animals(place.folder / "animals")
    place("create", f"{name}.toml")
    place("worker", name)
    assert place.study(name).best.value < most


def save_animals(folder: Path) -> None:
    """Images of several sizes in two classes, bright and dark, as `datasets` saves them."""
    generator = np.random.default_rng(0)

    def image(row: int) -> Image.Image:
        levels = generator.integers(0, 100, (8 + row % 3, 8, 3)) + 150 * (row % 2)
        return Image.fromarray(levels.astype(np.uint8))

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [image(row) for row in range(140)], "label": [row % 2 for row in range(140)]}
    whole = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(folder)
