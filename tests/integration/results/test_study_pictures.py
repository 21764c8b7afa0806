"""`pictures()` and the report's pictures: made from what is stored, and clear about what is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

import hpsearch
from hpsearch.artifacts.best_parameters import PARAMETERS_FILE
from hpsearch.artifacts.record import recorded_id
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import ArtifactError, DataError, InputError, NothingCompleteError
from hpsearch.results.report.page import write_report
from hpsearch.results.study_pictures import Pictures
from hpsearch.store.connection.database import Database
from hpsearch.training.networks.dense import Mlp
from tests.integration.picture_studies import PictureBench
from tests.integration.results.vault_studies import TEST, TRAIN, images_of, write_part


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> PictureBench:
    return PictureBench(database, tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of IDX files whose test files cannot be read: 300 training images, of which 50 are for validation."""
    folder = tmp_path / "images"
    folder.mkdir()
    write_part(folder, TRAIN, *images_of(300, 1))
    for name in (f"{TEST}-images-idx3-ubyte", f"{TEST}-labels-idx1-ubyte"):
        (folder / name).write_bytes(b"nobody reads this")
    return folder


@pytest.fixture
def load(bench: PictureBench, tables_url: str) -> Callable[..., hpsearch.Study]:
    """Train a study on a data set and load it."""

    def train(dataset: Path | str = "digits", **sections: Any) -> hpsearch.Study:
        sections = {"training": {"batch_size": 25, "max_epochs": 6}, **sections}
        bench.train(bench.prepare(data={"dataset": str(dataset)}, **sections))
        return hpsearch.load("a", tables_url, artifacts=bench.artifacts.place)

    return train


@pytest.mark.parametrize("number", [None, 0, 1])
def test_the_pictures_are_those_of_the_trial_and_agree_with_its_error(
    load: Callable[..., hpsearch.Study], images: Path, number: int | None
) -> None:
    study = load(images)
    pictures = study.pictures()
    trial = study.best if number is None else next(t for t in study.summary.trials if t.number == number)
    data = load_selection_data(study.definition.data, locations=DataLocations(local=None, cache=images))
    labels = data.validation.labels

    confusion = pictures.confusion(number)
    assert confusion.shape == (10, 10)
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels, minlength=10))
    assert trial.value == 1 - np.trace(confusion) / len(labels)

    wrong = pictures.wrong(number, number=1000)
    assert len(wrong) == len(labels) - np.trace(confusion) > 0
    assert (wrong.labels != wrong.predicted).all()
    np.testing.assert_array_equal(wrong.labels, labels[wrong.indexes])
    np.testing.assert_array_equal(wrong.images, data.validation.floats().reshape(-1, 12, 12)[wrong.indexes])
    assert (np.diff(wrong.probabilities) <= 0).all()
    assert len(pictures.wrong(number, number=2)) == 2

    assert sorted(pictures.trials) == [0, 1]
    filters = pictures.filters(number)
    assert (filters.trial, filters.epochs, filters.weights.shape) == (trial.number, (2, 4, 6), (3, 8, 12, 12))
    figures = (pictures.filters_figure(number), pictures.confusion_figure(number), pictures.wrong_figure(number))
    assert all(
        isinstance(figure, go.Figure) and f"Trial {trial.number}" in figure.layout.title.text for figure in figures
    )
    assert [len(figure.data) for figure in figures] == [3, 1, min(24, len(wrong))]
    assert len(pictures.filters_figure(number, moments=2).data) == 2
    assert repr(pictures) == "<hpsearch.Pictures of 'a': filters of 2 trials>"


def test_a_model_looks_at_the_validation_images_once_for_all_its_pictures(
    load: Callable[..., hpsearch.Study], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = load(images).pictures()
    num_images: list[int] = []
    logits = Mlp.logits
    monkeypatch.setattr(
        Mlp, "logits", lambda self, values, some: num_images.append(len(some)) or logits(self, values, some)
    )
    pictures.confusion()
    pictures.wrong()
    pictures.wrong_figure()
    assert sum(num_images) == 50


def test_nothing_is_trained_and_no_test_file_is_opened(
    load: Callable[..., hpsearch.Study], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load(images)
    for name in ("train_epoch", "admit"):
        monkeypatch.setattr(f"hpsearch.training.lanes.cohort.Cohort.{name}", lambda *_: pytest.fail("it trains"))
    opened: list[str] = []
    read_bytes, open_path = Path.read_bytes, Path.open
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.name) or read_bytes(path))
    monkeypatch.setattr(
        Path, "open", lambda path, *more, **kw: opened.append(path.name) or open_path(path, *more, **kw)
    )
    pictures = study.pictures()
    pictures.filters_figure()
    pictures.confusion_figure()
    pictures.wrong_figure()
    assert opened
    assert not [name for name in opened if name.startswith(TEST)]


def test_without_keep_every_there_are_no_filters_but_the_best_models_errors(
    load: Callable[..., hpsearch.Study], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = load(images, keep_every=None)
    pictures = study.pictures()
    assert pictures.trials == []
    with pytest.raises(InputError, match="the study has no keep_every") as caught:
        pictures.filters()
    assert "--set keep_every=5" in str(caught.value.hint)
    assert pictures.confusion().sum() == 50
    pictures._ipython_display_()
    assert "the study has no keep_every" in capsys.readouterr().out


def test_a_notebook_shows_all_figures_of_the_best_trial(
    load: Callable[..., hpsearch.Study],
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "_ipython_display_", lambda figure: shown.append(figure))
    load(images).pictures()._ipython_display_()
    assert ["filters" in f.layout.title.text or "wrong" in f.layout.title.text for f in shown[:2]] == [True, True]
    assert len(shown) == 3
    assert capsys.readouterr().out == "<hpsearch.Pictures of 'a': filters of 2 trials>\n"


def test_what_is_missing_is_named_with_what_helps(
    load: Callable[..., hpsearch.Study], images: Path, bench: PictureBench, tmp_path: Path
) -> None:
    pruning = {"pruner": "median", "startup_trials": 1, "warmup_epochs": 2}
    points = [{"learning_rate": rate} for rate in (0.5, 0.3, 1e-6)]
    study = load(images, search={"strategy": "listed", "points": points}, pruning=pruning)
    best, pruned = study.best, next(t for t in study.summary.trials if not t.is_complete)
    with pytest.raises(InputError, match="has no trial 17") as caught:
        study.pictures().filters(17)
    assert caught.value.hint == "its trials have the numbers 0 to 2"
    assert study.pictures().filters(pruned.number).epochs
    with pytest.raises(InputError, match=f"trial {pruned.number} of study 'a' is not complete"):
        study.pictures().confusion(pruned.number)
    for wrong in (lambda: study.pictures().wrong(number=0), lambda: study.pictures().filters_figure(moments=-1)):
        with pytest.raises(InputError, match="must be at least 1"):
            wrong()

    write_part(images, TRAIN, *images_of(300, 2))
    with pytest.raises(DataError, match="was created with other data") as data_error:
        study.pictures().confusion()
    assert "HPSEARCH_DATA" in str(data_error.value.hint)
    for path in images.iterdir():
        path.unlink()
    with pytest.raises(DataError):
        study.pictures().wrong()
    assert study.pictures().filters().epochs == (2, 4, 6)

    artifact_id = recorded_id(best.artifact_records, PARAMETERS_FILE, best.number)
    assert artifact_id is not None
    write_part(images, TRAIN, *images_of(300, 1))
    (Path(bench.artifacts.place) / artifact_id).unlink()
    with pytest.raises(ArtifactError, match=f"{PARAMETERS_FILE} of trial {best.number}\\) is not in"):
        study.pictures().confusion()
    with pytest.raises(ArtifactError, match=r"filters\.safetensors of trial"):
        Pictures(study.summary, str(tmp_path / "elsewhere")).filters()


def test_data_that_would_have_to_be_downloaded_are_not(
    load: Callable[..., hpsearch.Study], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = load("digits")
    monkeypatch.delenv("HPSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    definition = study.definition.model_copy(
        update={"data": study.definition.data.model_copy(update={"dataset": "mnist"})}
    )
    summary = study.summary
    object.__setattr__(summary.study, "definition", definition)
    with pytest.raises(DataError, match="downloading is switched off") as caught:
        Pictures(summary, str(tmp_path)).confusion()
    assert "hpsearch data fetch mnist" in str(caught.value.hint)


def test_a_study_of_nothing_complete_has_no_pictures(tables_url: str, bench: PictureBench) -> None:
    bench.prepare()
    with pytest.raises(NothingCompleteError, match="2 waiting"):
        hpsearch.load("a", tables_url, artifacts=bench.artifacts.place).pictures().filters()


def test_the_example_of_the_document_is_a_program_that_works(
    bench: PictureBench, tables_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[3] / "docs" / "pictures.md").read_text()
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", document, flags=re.MULTILINE | re.DOTALL))
    assert "hpsearch.load" in program
    bench.train(bench.prepare("digits-small", search={"learning_rate": [0.2, 0.1, 0.05]}))
    monkeypatch.setenv("HPSEARCH_STORAGE", tables_url)
    monkeypatch.setenv("HPSEARCH_ARTIFACTS", bench.artifacts.place)
    names: dict[str, Any] = {"hpsearch": hpsearch}
    exec(compile(program, "pictures.md", "exec"), names)
    assert names["filters"].weights.shape == (3, 8, 28, 28)


def section_of(html: str) -> str:
    """The report's section of pictures, without its images; empty if there is none."""
    found = re.search(r"<h2>Pictures of the best trials</h2>(.*?)</section>", html, re.DOTALL)
    return re.sub(r"base64,[^\"]+", "", found[1]) if found else ""


def test_the_report_shows_the_filters_of_the_best_trials_and_the_best_ones_errors(
    load: Callable[..., hpsearch.Study], images: Path, tmp_path: Path
) -> None:
    rates = [0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002]
    study = load(images, keep_every=1, training={"batch_size": 25, "max_epochs": 9}, search={"learning_rate": rates})
    path = tmp_path / "report.html"
    study.report(path)
    section = section_of(path.read_text())
    best = study.best
    assert f"First-layer filters of trial {best.number} over time" in section
    moments = re.findall(r"First-layer filters of trial (\d+) after epoch (\d+)", section)
    assert [int(epoch) for trial, epoch in moments if int(trial) == best.number] == [1, 3, 4, 6, 7, 9]
    assert len({trial for trial, _ in moments}) == 5  # of seven
    assert len(moments) == 30
    confusion = study.pictures().confusion()
    cells = re.findall(r"<td[^>]*>(\d+)</td>", section)
    assert [int(cell) for cell in cells] == list(confusion.flatten())
    assert section.count('alt="Validation image') == min(24, 50 - int(np.trace(confusion)))
    assert 'class="notice"' not in section


def test_the_report_says_what_it_cannot_show_and_shows_the_rest(
    load: Callable[..., hpsearch.Study], images: Path, bench: PictureBench, tmp_path: Path
) -> None:
    study = load(images)
    for path in images.iterdir():
        path.unlink()
    study.report(tmp_path / "report.html")
    section = section_of((tmp_path / "report.html").read_text())
    assert "No confusion matrix and no misclassified images: " in section
    assert "Confusion matrix of" not in section
    assert section.count("First-layer filters of trial 0 after epoch") == 3
    write_report(bench.database, "a", tmp_path / "report.html", artifacts=str(tmp_path / "elsewhere"))
    section = section_of((tmp_path / "report.html").read_text())
    assert section.count("No filters of trial") == 2
    assert "is not in" in section
    write_report(bench.database, "a", tmp_path / "report.html", artifacts="gs://elsewhere")
    assert "No pictures: artifacts: gs:// is neither a folder nor s3://" in section_of(
        (tmp_path / "report.html").read_text()
    )


def test_a_report_of_a_study_without_filters_has_no_pictures(
    load: Callable[..., hpsearch.Study], images: Path, tmp_path: Path
) -> None:
    load(images, keep_every=None).report(tmp_path / "report.html")
    assert section_of((tmp_path / "report.html").read_text()) == ""
