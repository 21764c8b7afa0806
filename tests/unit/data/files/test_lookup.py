"""Files are looked for in a fixed order, verified where they are found, and downloaded only if need be."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsearch.data.files.lookup import DataLocations, find_file, obtain_file
from hpsearch.data.files.published import TRAIN_IMAGES
from hpsearch.errors import DataError


@pytest.fixture
def places(tmp_path: Path) -> DataLocations:
    (tmp_path / "local").mkdir()
    return DataLocations(local=tmp_path / "local", cache=tmp_path / "cache", allow_download=False)


def test_the_users_folder_for_the_set_comes_first_then_the_users_folder_then_the_cache(
    places: DataLocations, synthetic_set
) -> None:
    entry = synthetic_set.publish("mine")
    folders = places.folders("mine")
    assert folders == (places.local / "mine", places.local, places.cache / "mine")
    for folder in reversed(folders):  # each comes before those that were filled already
        synthetic_set.write(folder)
        file = obtain_file(entry, TRAIN_IMAGES, places)
        assert file.source == str(folder / f"{TRAIN_IMAGES}.gz")


@pytest.mark.parametrize("is_packed", [True, False])
def test_files_may_be_gzipped_or_not(places: DataLocations, synthetic_set, is_packed: bool) -> None:
    synthetic_set.write(places.local, packed=is_packed)
    file = obtain_file(synthetic_set.publish("mine"), TRAIN_IMAGES, places)
    assert file.content == synthetic_set.content(TRAIN_IMAGES)


def test_a_wrong_file_is_an_error_though_a_right_one_lies_further_back(
    places: DataLocations, synthetic_set, other_set, publish
) -> None:
    entry = synthetic_set.publish("mine")
    publish(entry)
    other_set.write(places.local)
    synthetic_set.write(places.cache / "mine")
    with pytest.raises(DataError, match="wrong SHA-256"):
        obtain_file(entry, TRAIN_IMAGES, places)


def test_a_missing_file_is_downloaded_into_the_cache_once(tmp_path: Path, synthetic_set, mirror) -> None:
    places = DataLocations(local=None, cache=tmp_path / "cache")
    mirror.files[f"/{TRAIN_IMAGES}.gz"] = synthetic_set.packed(TRAIN_IMAGES)
    entry = synthetic_set.publish("mine", mirrors=(mirror.address,))
    for _ in range(2):
        file = obtain_file(entry, TRAIN_IMAGES, places)
        assert file.content == synthetic_set.content(TRAIN_IMAGES)
        assert file.source == str(tmp_path / "cache" / "mine" / f"{TRAIN_IMAGES}.gz")
    assert mirror.requests == [f"/{TRAIN_IMAGES}.gz"]


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        (b"<html>Please log in</html>", "an HTML page instead of a data file"),
        (b"\x1f\x8b\x08", "the gzip file is truncated"),
        (b"", "not a gzip file"),
    ],
)
def test_what_a_mirror_serves_in_place_of_the_file_is_refused_with_its_address(
    tmp_path: Path, synthetic_set, mirror, served: bytes, reason: str
) -> None:
    mirror.files[f"/{TRAIN_IMAGES}.gz"] = served
    entry = synthetic_set.publish("mine", mirrors=(mirror.address,))
    with pytest.raises(DataError) as caught:
        obtain_file(entry, TRAIN_IMAGES, DataLocations(local=None, cache=tmp_path))
    assert f"{mirror.address}{TRAIN_IMAGES}.gz: {reason}" in str(caught.value)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_wrong_set_on_the_first_mirror_is_refused_and_the_second_serves(
    tmp_path: Path, synthetic_set, other_set, mirror
) -> None:
    mirror.files[f"/a/{TRAIN_IMAGES}.gz"] = other_set.packed(TRAIN_IMAGES)
    mirror.files[f"/b/{TRAIN_IMAGES}.gz"] = synthetic_set.packed(TRAIN_IMAGES)
    entry = synthetic_set.publish("mine", mirrors=(mirror.address + "a/", mirror.address + "b/"))
    file = obtain_file(entry, TRAIN_IMAGES, DataLocations(local=None, cache=tmp_path))
    assert file.content == synthetic_set.content(TRAIN_IMAGES)


def test_missing_data_without_a_network_names_folders_mirrors_and_what_helps(
    tmp_path: Path, synthetic_set, mirror
) -> None:
    (tmp_path / "local").mkdir()
    places = DataLocations(local=tmp_path / "local", cache=tmp_path / "cache")
    entry = synthetic_set.publish("mine", mirrors=(mirror.address + "a/", mirror.address + "b/"))
    with pytest.raises(DataError) as caught:
        obtain_file(entry, TRAIN_IMAGES, places)
    for folder in places.folders("mine"):
        assert str(folder) in str(caught.value)
    assert f"{mirror.address}a/{TRAIN_IMAGES}.gz: HTTP status 404" in str(caught.value)
    assert f"{mirror.address}b/{TRAIN_IMAGES}.gz: HTTP status 404" in str(caught.value)
    assert caught.value.hint is not None
    assert "hpsearch data fetch mine" in caught.value.hint
    assert f"set HPSEARCH_DATA to a folder that holds {TRAIN_IMAGES}.gz" in caught.value.hint


def test_downloading_can_be_switched_off(tmp_path: Path, synthetic_set, mirror) -> None:
    entry = synthetic_set.publish("mine", mirrors=(mirror.address,))
    places = DataLocations(local=None, cache=tmp_path, allow_download=False)
    with pytest.raises(DataError, match="downloading is switched off"):
        obtain_file(entry, TRAIN_IMAGES, places)
    assert mirror.requests == []


def test_a_local_folder_that_is_no_folder_is_an_error_and_not_passed_over(tmp_path: Path, synthetic_set) -> None:
    places = DataLocations(local=tmp_path / "mistyped", cache=tmp_path / "cache")
    synthetic_set.write(places.cache / "mine")
    with pytest.raises(DataError, match=r"HPSEARCH_DATA is .*mistyped, which is not a folder"):
        obtain_file(synthetic_set.publish("mine"), TRAIN_IMAGES, places)


def test_a_folder_that_cannot_be_searched_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be accessed: File name too long"):
        find_file("x" * 300, tmp_path)


def test_the_environment_names_the_local_folder_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places = DataLocations.from_environment()
    assert places.local == tmp_path / "mine"
    assert places.cache == tmp_path / "cache" / "hpsearch" / "data"
    assert places.allow_download


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_or_empty_variable_names_no_local_folder(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("HPSEARCH_DATA", raising=False)
    else:
        monkeypatch.setenv("HPSEARCH_DATA", value)
    assert DataLocations.from_environment().local is None
