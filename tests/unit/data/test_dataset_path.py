"""A path of data is looked for in the working directory, beside the study file, and in HPSEARCH_DATA, in this order."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.data.dataset_path import at_stored_place, load_study_file
from hpsearch.data.files.named_path import find_path
from hpsearch.data.registry import resolve_dataset, with_absolute_dataset
from hpsearch.errors import DataError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three places; the working directory is one of them."""
    found = {name: tmp_path / name for name in ("here", "studies", "local")}
    for folder in found.values():
        folder.mkdir()
    monkeypatch.chdir(found["here"])
    monkeypatch.setenv("HPSEARCH_DATA", str(found["local"]))
    write_study(found, "photos")
    return found


def write_study(places: dict[str, Path], dataset: str) -> None:
    text = f'name = "a"\n[data]\ndataset = "{dataset}"\n[search]\nlearning_rate = [0.1]\n'
    (places["studies"] / "study.toml").write_text(text)


def found_by_a_study(places: dict[str, Path], *overrides: str) -> str:
    return with_absolute_dataset(load_study_file(places["studies"] / "study.toml", overrides)).data.dataset


def test_each_place_comes_before_those_that_were_filled_already(places: dict[str, Path]) -> None:
    assert found_by_a_study(places) == "photos"
    for name in ("local", "studies", "here"):
        (places[name] / "photos").mkdir()
        assert found_by_a_study(places) == str(places[name] / "photos")


def test_an_override_is_relative_to_the_working_directory_alone(places: dict[str, Path]) -> None:
    (places["studies"] / "photos").mkdir()
    assert found_by_a_study(places, "data.dataset=photos") == "photos"
    assert found_by_a_study(places, "seed=3") == str(places["studies"] / "photos")


def test_a_path_to_a_neighbour_of_the_study_file_is_stored_without_its_dots(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(places, "../local")
    (places["here"] / "deeper").mkdir()
    monkeypatch.chdir(places["here"] / "deeper")
    assert found_by_a_study(places) == str(places["local"])


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_a_folder_beside_the_study_file_does_not_hide_a_name_of_the_catalogue(
    places: dict[str, Path], name: str
) -> None:
    (places["studies"] / name).mkdir()
    write_study(places, name)
    assert found_by_a_study(places) == name


@pytest.mark.parametrize("dataset", ["~nobody-of-this-name", "x" * 5000, " "])
def test_what_cannot_be_a_path_is_left_to_the_error_that_names_it(places: dict[str, Path], dataset: str) -> None:
    write_study(places, dataset)
    assert found_by_a_study(places) == dataset


def test_an_absolute_path_of_another_machine_is_found_by_its_last_parts(
    places: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    deep = places["local"] / "animals" / "photos"
    deep.mkdir(parents=True)
    with caplog.at_level(logging.INFO):
        assert find_path("/home/ada/animals/photos", places["local"]).path == deep
    assert f"/home/ada/animals/photos is not on this machine: using {deep}" in caplog.text
    shallow = places["local"] / "photos"  # the last component comes before the last two
    shallow.mkdir()
    assert find_path("/home/ada/animals/photos", places["local"]).path == shallow
    assert find_path("/home/ada/animals/photos", None).path is None
    assert find_path("/home/ada/../photos", places["local"]).path is None


def test_a_path_that_is_nowhere_names_the_places(places: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="no file or folder 'a/photos'") as caught:
        resolve_dataset("a/photos", places["local"])
    listed = f"{places['here']}/a/photos, beside the study file, {places['local']}/a/photos"
    assert f"(looked at: {listed})" in str(caught.value)
    with pytest.raises(DataError) as caught:
        resolve_dataset("/a/photos", places["local"])
    assert f"(looked at: /a/photos, {places['local']}/photos, {places['local']}/a/photos)" in str(caught.value)
    with pytest.raises(DataError, match=r"looked at: /a/photos, HPSEARCH_DATA is not set\)"):
        resolve_dataset("/a/photos", None)


def definition(dataset: object) -> StudyDefinition:
    return parse_definition(
        {"name": "a", "data": {"dataset": str(dataset)}, "search": {"learning_rate": [0.1]}}, source="study.toml"
    )


def test_a_study_of_another_machine_keeps_its_path(places: dict[str, Path]) -> None:
    for name in ("here", "local"):
        (places[name] / "photos").mkdir()
    stored = definition("/home/ada/photos")
    same = definition(places["local"] / "photos")
    assert at_stored_place(same, stored) == stored
    assert at_stored_place(definition(places["here"] / "photos"), stored).data.dataset == str(places["here"] / "photos")


def test_data_at_the_stored_path_is_not_taken_for_other_data(places: dict[str, Path]) -> None:
    for name in ("here", "local"):
        (places[name] / "photos").mkdir()
    stored, other = definition(places["here"] / "photos"), definition(places["local"] / "photos")
    assert at_stored_place(other, stored) == other
    assert at_stored_place(definition("digits"), stored) == definition("digits")
    assert at_stored_place(other, definition("photos")) == other  # the folder of an old relative path is not known


def test_a_study_without_such_a_path_loads_no_forms_of_data(places: dict[str, Path]) -> None:
    program = "import sys; from hpsearch.data.dataset_path import load_study_file; from pathlib import Path; "
    program += "load_study_file(Path(sys.argv[1])); print('numpy' in sys.modules)"
    path = str(places["studies"] / "study.toml")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
