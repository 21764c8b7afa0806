"""A study of a folder of images on another machine: the same pixels, or a refusal that names both decoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.forms import image_folder
from hpsearch.data.images import image_decoding
from hpsearch.errors import DataError
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import load_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.preparation import load_study_data, prepare_study


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(42):
        path = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (5, 4), dtype=np.uint8)).save(path)
    return tmp_path / "pets"


def definition(folder: Path) -> StudyDefinition:
    document = {"name": "pets", "data": {"dataset": str(folder)}, "search": {"learning_rate": [0.1]}}
    return parse_definition(document, source="pets.toml")


def machine(tmp_path: Path, name: str) -> DataLocations:
    return DataLocations(local=None, cache=tmp_path / name, allow_download=False)


def test_another_machine_with_the_same_files_gets_the_same_arrays(
    database: Database, folder: Path, tmp_path: Path
) -> None:
    prepared = prepare_study(database, definition(folder), locations=machine(tmp_path, "one"))
    study = load_study(database, "pets")
    assert study.data_record["classes"] == ["cat", "dog"]
    assert study.data_record["split"]["test"] == 6
    data = load_study_data(study, locations=machine(tmp_path, "other"))
    np.testing.assert_array_equal(data.train.images, prepared.data.train.images)
    assert data.record == study.data_record


def test_a_decoder_that_gives_other_pixels_is_refused_with_both_versions(
    database: Database, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_study(database, definition(folder), locations=machine(tmp_path, "one"))
    study = load_study(database, "pets")
    decode = image_decoding.decode_files

    def otherwise(*arguments: object) -> object:
        for image in decode(*arguments):
            assert image.pixels is not None
            yield image_decoding.DecodedImage(pixels=image.pixels ^ 1, sha256=image.sha256)

    monkeypatch.setattr(image_folder, "decode_images", lambda paths, size, **_: otherwise(paths, size))
    monkeypatch.setattr(image_folder, "decoder_versions", lambda: {"Pillow": "0.9"})
    with pytest.raises(DataError, match="train images, validation images differ on this machine") as caught:
        load_study_data(study, locations=machine(tmp_path, "other"))
    version = image_decoding.decoder_versions()["Pillow"]
    assert f"Pillow {version}" in str(caught.value)
    assert "here by Pillow 0.9, which may give other pixels" in str(caught.value)
