"""A published file is what its checksum says, or an error that prints both checksums."""

from __future__ import annotations

import hashlib
import logging
import re

import pytest

from hpsearch.data.files.data_file import DataFile
from hpsearch.data.files.published import (
    PUBLISHED_SETS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    check_published,
)
from hpsearch.errors import DataError


def data_file(content: bytes, packed: bytes | None) -> DataFile:
    return DataFile(
        source="some-file",
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        packed_md5=None if packed is None else hashlib.md5(packed).hexdigest(),
    )


def test_every_set_lists_four_files_and_folders_as_mirrors() -> None:
    assert list(PUBLISHED_SETS) == ["mnist", "fashion-mnist", "kmnist", "qmnist"]
    for name, entry in PUBLISHED_SETS.items():
        assert entry.name == name
        assert tuple(entry.files) == entry.layout.files
        assert entry.mirrors
        assert all(re.fullmatch(r"https?://\S+/", mirror) for mirror in entry.mirrors)


def test_checksums_are_well_formed_and_no_two_files_share_one() -> None:
    files = [file for entry in PUBLISHED_SETS.values() for file in entry.files.values()]
    assert all(re.fullmatch(r"[0-9a-f]{32}", file.packed_md5) for file in files)
    assert len({file.packed_md5 for file in files}) == 16
    sha256s = [file.sha256 for file in files if file.sha256 is not None]
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in sha256s)
    assert len(set(sha256s)) == 4


def test_sha256_of_the_unpacked_content_holds_however_the_file_was_packed(synthetic_set) -> None:
    entry = synthetic_set.publish("mine")
    content = synthetic_set.content(TRAIN_IMAGES)
    for packed in (synthetic_set.packed(TRAIN_IMAGES), b"packed in another way", None):
        assert check_published(data_file(content, packed), entry, TRAIN_IMAGES) is True


def test_a_wrong_sha256_prints_both(synthetic_set, publish) -> None:
    entry = synthetic_set.publish("mine")
    publish(entry)
    file = data_file(b"something else", None)
    with pytest.raises(DataError) as caught:
        check_published(file, entry, TRAIN_IMAGES)
    assert str(caught.value) == (
        f"some-file: wrong SHA-256 of the unpacked content for mine's {TRAIN_IMAGES}: "
        f"expected {entry.files[TRAIN_IMAGES].sha256}, found {file.sha256}"
    )
    assert caught.value.hint == "delete the file, then run: hpsearch data fetch mine"


def test_where_only_an_md5_is_published_it_decides_and_both_are_printed(synthetic_set, publish) -> None:
    entry = synthetic_set.publish("mine", has_sha256=False)
    publish(entry)
    content = synthetic_set.content(TRAIN_IMAGES)
    assert check_published(data_file(content, synthetic_set.packed(TRAIN_IMAGES)), entry, TRAIN_IMAGES)
    wrong = data_file(content, b"packed in another way")
    with pytest.raises(
        DataError, match=f"wrong MD5 .*{entry.files[TRAIN_IMAGES].packed_md5}, found {wrong.packed_md5}"
    ):
        check_published(wrong, entry, TRAIN_IMAGES)


def test_an_unpacked_file_without_a_published_checksum_is_accepted_with_a_warning(
    synthetic_set, publish, caplog: pytest.LogCaptureFixture
) -> None:
    entry = synthetic_set.publish("mine", has_sha256=False)
    publish(entry)
    with caplog.at_level(logging.WARNING):
        assert check_published(data_file(b"anything", None), entry, TRAIN_IMAGES) is False
    assert "some-file: not verified: no checksum of" in caplog.text


def test_the_hint_names_the_set_that_a_wrong_file_belongs_to(synthetic_set, other_set, publish) -> None:
    mine = synthetic_set.publish("mine", has_sha256=False)
    publish(mine, other_set.publish("other"))
    content = other_set.content(TRAIN_IMAGES)
    for packed in (other_set.packed(TRAIN_IMAGES), b"packed in another way", None):
        with pytest.raises(DataError) as caught:
            check_published(data_file(content, packed), mine, TRAIN_IMAGES)
        assert caught.value.hint is not None
        assert f"this is {TRAIN_IMAGES} of other: name other as the dataset" in caught.value.hint


def test_the_hint_recognises_exchanged_files(synthetic_set, publish) -> None:
    mine = synthetic_set.publish("mine")
    publish(mine)
    with pytest.raises(DataError) as caught:
        check_published(data_file(synthetic_set.content(TRAIN_LABELS), None), mine, TRAIN_IMAGES)
    assert caught.value.hint == f"this is {TRAIN_LABELS} of the same set: the files' names are swapped"
