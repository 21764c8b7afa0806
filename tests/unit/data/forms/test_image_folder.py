"""Folders of images by class: what becomes of each kind of file, how they are split, and what is refused."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.forms import image_folder
from hpsearch.data.images import decoding_pool, image_decoding
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

CLASSES = ("cat", "dog")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def write(path: Path, pixels: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def random_pixels(seed: int, shape: tuple[int, ...] = (6, 5)) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def fill(folder: Path, *, number: int = 7, first: int = 0, shape: tuple[int, ...] = (6, 5)) -> Path:
    """Two classes with images that all differ, as PNG: the pixels of file N of a class are known by its seed."""
    for offset, name in enumerate(CLASSES):
        for index in range(number):
            write(folder / name / f"{index:02d}.png", random_pixels(first + 1000 * offset + index, shape))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with 2 x 7 images and test/ with 2 x 3."""
    fill(tmp_path / "pets" / "train")
    fill(tmp_path / "pets" / "test", number=3, first=500)
    return tmp_path / "pets"


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """Class folders alone, 2 x 21 images."""
    return fill(tmp_path / "pets", number=21)


@pytest.fixture
def load(locations: DataLocations) -> Callable[..., SelectionData]:
    return lambda path, **settings: load_selection_data(
        DataSettings(dataset=str(path), **settings), locations=locations
    )


Load = Callable[..., SelectionData]


@pytest.fixture
def load_test(locations: DataLocations) -> Callable[..., HeldOutSplit]:
    def read(path: Path, stored: Any = None, **settings: Any) -> HeldOutSplit:
        return load_test_split(DataSettings(dataset=str(path), **settings), locations, lambda: True, stored)

    return read


LoadTest = Callable[..., HeldOutSplit]


def rows_of(pixels: Pixels) -> set[bytes]:
    return {row.tobytes() for row in np.asarray(pixels)}


def one_image(load: Load, path: Path, pixels: Any, ending: str = "png", **options: Any) -> tuple[Pixels, SelectionData]:
    """What an image becomes that a folder of equally large ones has beside others."""
    size = pixels.size[::-1] if isinstance(pixels, Image.Image) else pixels.shape[:2]
    for name in CLASSES:
        for index in range(3):
            write(path / name / f"{index}.png", np.full(size, 7, dtype=np.uint8))
    write(path / "cat" / f"9.{ending}", pixels, **options)
    data = load(path, test=0)
    both = np.concatenate([data.train.images, data.validation.images])
    (found,) = [row for row in both if not (row == 7).all()]
    return found.reshape(data.example_shape), data


# --- layouts and splits


def test_train_and_test_folders_are_parts_and_validation_is_drawn_by_class(
    folder: Path, load: Load, load_test: LoadTest
) -> None:
    data = load(folder)
    assert (data.name, data.example_shape, data.num_classes, data.class_names) == ("pets", (6, 5), 2, CLASSES)
    assert (len(data.train), len(data.validation)) == (12, 2)  # one in six
    np.testing.assert_array_equal(np.bincount(data.train.labels), [6, 6])
    expected = {random_pixels(1000 * label + index).tobytes() for label in (0, 1) for index in range(7)}
    assert rows_of(data.train.images) | rows_of(data.validation.images) == expected
    for part in (data.train, data.validation):
        for image, label in zip(part.images, part.labels, strict=True):
            assert image.tobytes() in {random_pixels(1000 * int(label) + index).tobytes() for index in range(7)}
    assert data.record["split"]["test"] is None
    held_out = load_test(folder, stored=data.record)
    assert rows_of(held_out.images) == {random_pixels(500 + 1000 * c + i).tobytes() for c in (0, 1) for i in range(3)}
    np.testing.assert_array_equal(held_out.labels, [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_folder_is_used_whole_in_a_random_order(folder: Path, load: Load, name: str) -> None:
    fill(folder / name, number=20, first=200)
    data = load(folder)
    assert (len(data.train), len(data.validation)) == (14, 40)
    assert rows_of(data.validation.images) == {
        random_pixels(200 + 1000 * c + i).tobytes() for c in (0, 1) for i in range(20)
    }
    assert np.count_nonzero(np.diff(data.validation.labels)) > 5  # not sorted by class
    assert data.record["split"]["validation_from"] == f"{name}/"
    with pytest.raises(
        InputError, match=rf"data.validation has no effect: the data set has a folder {name}/"
    ) as caught:
        load(folder, validation=0.2)
    assert name in str(caught.value.hint)


def test_class_folders_alone_are_split_in_three_and_each_image_is_in_one_part(
    alone: Path, load: Load, load_test: LoadTest
) -> None:
    data = load(alone)
    held_out = load_test(alone, stored=data.record)
    assert (len(data.train), len(data.validation), len(held_out)) == (30, 6, 6)  # 5 : 1 : 1
    parts = [rows_of(part.images) for part in (data.train, data.validation, held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 42
    assert all(np.bincount(part.labels).tolist() == [len(part) // 2] * 2 for part in (data.train, held_out))
    assert np.count_nonzero(np.diff(data.train.labels)) > 5


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"validation": 0.25, "test": 0.25}, (22, 10, 10)),
        ({"validation": 4, "test": 2}, (36, 4, 2)),
        ({"validation": 12, "test": 0}, (30, 12, 0)),
    ],
)
def test_parts_are_as_large_as_the_study_file_says(
    alone: Path, load: Load, settings: dict[str, Any], sizes: tuple[int, int, int]
) -> None:
    data = load(alone, **settings)
    stored = data.record["split"]
    assert (len(data.train), len(data.validation), stored["test"] or 0) == sizes
    assert (stored["train"], stored["validation"]) == sizes[:2]


def test_the_seed_of_the_split_chooses_the_rows_and_their_order(alone: Path, load: Load) -> None:
    one, same, other = load(alone), load(alone), load(alone, split_seed=1)
    np.testing.assert_array_equal(one.train.images, same.train.images)
    assert one.checksums == same.checksums
    assert rows_of(one.validation.images) != rows_of(other.validation.images)
    assert one.checksums["split"] != other.checksums["split"]
    folder_alone = load(alone, train_samples=5)
    np.testing.assert_array_equal(folder_alone.train.images, one.train.images[:5])
    assert folder_alone.checksums == one.checksums


def test_without_a_test_part_nothing_is_held_out_and_the_vault_says_why(
    folder: Path, load: Load, load_test: LoadTest
) -> None:
    assert load(folder, test=0).record["split"]["test_from"] == "none"
    with pytest.raises(InputError, match=r"data\.test is 0: there is no test part"):
        load_test(folder, test=0)


def test_a_folder_of_test_images_leaves_the_key_without_effect(folder: Path, load: Load) -> None:
    with pytest.raises(InputError, match=r"data\.test has no effect: the data set has a folder test/ of its own"):
        load(folder, test=0.1)


def test_folders_that_the_study_file_names_are_parts_and_no_classes(
    tmp_path: Path, load: Load, load_test: LoadTest
) -> None:
    pets = fill(tmp_path / "pets", number=6)
    fill(pets / "held_out", number=2, first=500)
    fill(tmp_path / "more", number=5, first=200)
    settings = {"validation": "../more", "test": "held_out"}
    data = load(pets, **settings)
    assert data.class_names == CLASSES
    assert (len(data.train), len(data.validation)) == (12, 10)
    assert len(load_test(pets, stored=data.record, **settings)) == 4
    with pytest.raises(DataError, match=r"data.validation: no folder '.*nowhere'"):
        load(pets, validation="nowhere", test="held_out")


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    "value", ["train", ".", "", "..", "train/cat", "other/../train", "link", "other", "other/cat", "linked_classes"]
)
def test_a_named_folder_whose_images_are_used_elsewhere_is_refused(
    tmp_path: Path, load: Load, part: str, value: str
) -> None:
    """Before a study is created: the vault would score training images."""
    pets = tmp_path / "pets"
    fill(pets / "train")
    write(pets / "train" / "ewe" / "0.png", random_pixels(0))
    fill(pets / "other")
    (pets / "link").symlink_to(pets / "train")
    (pets / "linked_classes").mkdir()
    (pets / "linked_classes" / "cat").symlink_to(pets / "train" / "cat")
    settings: dict[str, Any] = {"validation": "other", "test": "other", part: value}
    with pytest.raises(InputError, match=r"is, contains or lies in .*, whose images are used for another part"):
        load(pets, **settings)


def test_a_named_folder_that_contains_the_class_folders_is_refused(alone: Path, load: Load) -> None:
    for value in (".", "dog/.."):
        with pytest.raises(InputError, match=r"data\.test: .* contains"):
            load(alone, test=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [("typo", r"data\.test: no folder '.*typo'"), ("cow", "no folder of a class in it, expected one of cat/, dog/")],
)
def test_a_test_folder_without_classes_is_refused_before_the_vault_opens_it(
    alone: Path, load: Load, value: str, message: str
) -> None:
    write(alone / "cow" / "0.png", random_pixels(0))
    with pytest.raises(DataError, match=message):
        load(alone, test=value)


def test_a_test_folder_of_its_own_without_classes_is_refused_too(folder: Path, load: Load) -> None:
    (folder / "test").rename(folder / "moved")
    (folder / "test").mkdir()
    with pytest.raises(DataError, match="no folder of a class in it"):
        load(folder)
    assert load(folder, test=0).record["split"]["test_from"] == "none"


def test_a_named_folder_beside_one_of_the_same_part_is_refused(folder: Path, load: Load) -> None:
    with pytest.raises(InputError, match=r"data\.test has no effect"):
        load(folder, test="elsewhere")


def test_test_files_are_marked_by_their_folder(folder: Path) -> None:
    marks = marks_of_test_files(DataSettings(dataset=str(folder)), {"files": "1"})
    assert {mark.split(":")[0] for mark in marks} == {"folder", "trained-on"}


def test_a_folder_of_test_images_that_the_study_names_is_marked_without_being_listed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_own = marks_of_test_files(DataSettings(dataset=str(folder)), {})
    other = folder.with_name("others")
    fill(other)
    settings = DataSettings(dataset=str(other), test=str(folder / "test"))
    assert marks_of_test_files(DataSettings(dataset=str(other)), {}) == set()  # drawn
    listed, scandir = [], os.scandir

    def watched(path: Any) -> Any:
        listed.append(Path(path).resolve())
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    assert marks_of_test_files(settings, {}) == as_own != set()
    assert other in listed
    assert not any(path.is_relative_to(folder) for path in listed)
    assert marks_of_test_files(DataSettings(dataset=str(other), test="../pets/test"), {}) == as_own


def test_a_folder_of_test_images_that_is_gone_is_named(folder: Path) -> None:
    fill(folder.with_name("others"))
    settings = DataSettings(dataset=str(folder.with_name("others")), test="gone")
    with pytest.raises(DataError, match=r"others/gone: the test part cannot be found: No such file") as caught:
        marks_of_test_files(settings, {})
    assert caught.value.hint


def test_drawn_test_images_are_marked_whatever_the_seed_and_the_size(alone: Path, tmp_path: Path, load: Load) -> None:
    def marks(path: Path, **settings: Any) -> frozenset[str]:
        return marks_of_test_files(DataSettings(dataset=str(path), **settings), load(path, **settings).checksums)

    first = marks(alone)
    assert first & marks(alone, split_seed=1, image_size=[3, 3])
    assert first & marks(shutil.copytree(alone, tmp_path / "copy"), split_seed=1, image_size=[3, 3])
    other = fill(tmp_path / "other", number=21, first=300)
    assert not first & marks(other, split_seed=1)


# --- the vault


WATCH = """
    import json, sys
    seen = []
    def watch(event, arguments):
        if event in ("open", "os.scandir", "os.listdir") and arguments and isinstance(arguments[0], (str, bytes)):
            seen.append(str(arguments[0]))
    sys.addaudithook(watch)
    from pathlib import Path
    from hpsearch.data.catalog import load_selection_data
    from hpsearch.data.files.lookup import DataLocations
    from hpsearch.study.settings import DataSettings
    folder, cache = sys.argv[1:]
    data = load_selection_data(DataSettings(dataset=folder), locations=DataLocations(local=None, cache=Path(cache)))
    print(json.dumps({"seen": seen, "record": data.record}))
"""


def watched(path: Path, cache: Path) -> tuple[list[str], dict[str, Any]]:
    """Every path that a process opens or lists while it loads the data."""
    command = [sys.executable, "-c", textwrap.dedent(WATCH), str(path), str(cache)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found["seen"], found["record"]


def test_nobody_opens_or_lists_a_test_folder_but_the_vault(folder: Path, tmp_path: Path) -> None:
    seen, _ = watched(folder, tmp_path / "cache")
    assert str(folder / "train" / "cat" / "00.png") in seen  # what is watched is seen
    assert str(folder / "train" / "cat") in seen
    assert not [path for path in seen if path.startswith(str(folder / "test"))]


def test_drawn_test_images_are_not_opened_and_not_in_the_cache(alone: Path, tmp_path: Path) -> None:
    seen, record = watched(alone, tmp_path / "cache")
    opened = {path for path in seen if path.endswith(".png")}
    assert len(opened) == record["split"]["train"] + record["split"]["validation"] == 36
    (images,) = (tmp_path / "cache" / "prepared").glob("*/train.npy")
    cached = rows_of(np.load(images)) | rows_of(np.load(images.with_name("validation.npy")))
    assert cached == {np.asarray(Image.open(path)).tobytes() for path in opened}


def test_the_vault_refuses_another_split_than_that_of_the_study(alone: Path, load: Load, load_test: LoadTest) -> None:
    record = load(alone).record
    (alone / "cat" / "00.png").rename(alone / "cat" / "new.png")
    with pytest.raises(DataError, match="the files are not those that the study has split"):
        load_test(alone, stored=record)


def test_the_vault_finds_a_class_that_training_has_not(folder: Path, load: Load, load_test: LoadTest) -> None:
    record = load(folder).record
    write(folder / "test" / "cow" / "0.png", random_pixels(0))
    with pytest.raises(DataError, match=r"test images of cow, which training has not"):
        load_test(folder, stored=record)


def test_test_images_of_another_kind_are_refused(folder: Path, load: Load, load_test: LoadTest) -> None:
    record = load(folder).record
    write(folder / "test" / "cat" / "9.png", random_pixels(0, (6, 5, 3)))
    with pytest.raises(DataError, match="the test images are 6x5 in colour, those of training and validation 6x5"):
        load_test(folder, stored=record)


def test_grey_test_images_of_a_study_in_colour_get_three_channels(
    folder: Path, load: Load, load_test: LoadTest
) -> None:
    write(folder / "train" / "cat" / "9.png", random_pixels(0, (6, 5, 3)))
    record = load(folder).record
    images = load_test(folder, stored=record).images.reshape(6, 3, 6, 5)
    np.testing.assert_array_equal(images, images[:, :1].repeat(3, axis=1))


# --- kinds of images


def test_colour_comes_channel_by_channel(tmp_path: Path, load: Load) -> None:
    pixels = random_pixels(1, (4, 3, 3))
    found, data = one_image(load, tmp_path / "a", pixels)
    assert data.example_shape == (3, 4, 3)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("is_colour_first", [False, True])
def test_grey_images_among_colour_get_three_channels_and_a_line_says_so(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture, is_colour_first: bool
) -> None:
    """Whichever comes first: the order is that of the split."""
    pets = fill(tmp_path / "pets", number=8)
    files = sorted(pets.glob("*/*.png"))
    seeds = range(20)
    colour = random_pixels(99, (6, 5, 3))
    for seed in seeds:  # a seed that puts the image in colour first, or last
        order = image_folder.draw_split(
            16, validation=None, test=0, seed=seed, source="", classes=np.arange(16) // 8
        ).train
        if (order[0] if is_colour_first else order[-1]) == 3:
            break
    write(files[3], colour)
    with caplog.at_level(logging.WARNING):
        data = load(pets, test=0, split_seed=seed)
    images = data.train.images.reshape(-1, 3, 6, 5)
    place = 0 if is_colour_first else -1
    np.testing.assert_array_equal(images[place], colour.transpose(2, 0, 1))
    others = images[1:] if is_colour_first else images[:-1]
    np.testing.assert_array_equal(others, others[:, :1].repeat(3, axis=1))
    assert "15 grey, 1 in colour: all are used in colour" in caplog.text
    assert (data.record["images"]["grey"], data.record["images"]["colour"]) == (15, 1)


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_kinds_of_grey_files_stay_grey(tmp_path: Path, load: Load, mode: str) -> None:
    levels = np.where(random_pixels(1, (4, 3)) > 100, 255, 0).astype(np.uint8)
    image = Image.fromarray(levels)
    image = image.convert(mode) if mode != "P" else image.convert("P", palette=Image.Palette.ADAPTIVE)
    found, data = one_image(load, tmp_path / "a", image)
    assert data.example_shape == (4, 3)
    np.testing.assert_array_equal(found, levels)


def test_a_palette_with_colours_is_colour(tmp_path: Path, load: Load) -> None:
    pixels = np.zeros((4, 3, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    pixels[0, 0] = (0, 0, 255)
    image = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    found, data = one_image(load, tmp_path / "a", image)
    assert data.example_shape == (3, 4, 3)
    np.testing.assert_array_equal(found, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("mode", "shape"), [("RGBA", (3, 2, 2)), ("LA", (2, 2))])
def test_transparent_pixels_become_white_and_a_line_says_so(
    tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture, mode: str, shape: tuple[int, ...]
) -> None:
    pixels = np.full((2, 2, len(mode)), 40, dtype=np.uint8)
    pixels[..., -1] = [[255, 0], [255, 255]]
    with caplog.at_level(logging.WARNING):
        found, data = one_image(load, tmp_path / "a", Image.fromarray(pixels, mode=None))
    assert found.shape == shape
    np.testing.assert_array_equal(found.reshape(-1, 2, 2)[0], [[40, 255], [40, 40]])
    assert "1 image laid on white: they have transparent pixels" in caplog.text
    assert data.record["images"]["on_white"] == 1


def test_an_opaque_alpha_channel_is_dropped(tmp_path: Path, load: Load) -> None:
    pixels = random_pixels(1, (3, 2, 4))
    pixels[..., 3] = 255
    found, data = one_image(load, tmp_path / "a", pixels)
    np.testing.assert_array_equal(found, pixels[..., :3].transpose(2, 0, 1))
    assert data.record["images"]["on_white"] == 0


def test_an_image_is_turned_as_its_exif_note_says(tmp_path: Path, load: Load) -> None:
    upright = random_pixels(1, (4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees: right top
    found, data = one_image(load, tmp_path / "a", np.rot90(upright).copy(), exif=exif)
    np.testing.assert_array_equal(found, upright)
    assert data.record["images"]["turned"] == 1


def test_images_are_resized_if_the_study_file_gives_a_size(tmp_path: Path, load: Load) -> None:
    pets = tmp_path / "pets"
    for index, name in enumerate(CLASSES * 3):
        write(pets / name / f"{index}.png", np.full((4 + index, 9), 50, dtype=np.uint8))
    write(pets / "cat" / "8.png", np.arange(6, dtype=np.uint8).reshape(3, 2))
    data = load(pets, image_size=[3, 2], test=0)
    assert data.example_shape == (3, 2)
    both = np.concatenate([data.train.images, data.validation.images])
    assert np.arange(6, dtype=np.uint8).tobytes() in rows_of(both)  # it had this size
    assert (both == 50).all(axis=1).sum() == 6
    assert data.record["images"]["resized"] == 6


def test_endings_in_capitals_are_images_and_other_files_are_skipped_with_one_line(
    folder: Path, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder / "train" / "cat" / "A.JPEG", random_pixels(1), format="JPEG")
    (folder / "train" / "cat" / "notes.txt").write_text("")
    (folder / "train" / "dog" / "b.TXT").write_text("")
    (folder / "train" / "dog" / "Makefile").write_text("")
    (folder / "train" / "dog" / "deeper").mkdir()
    for hidden in (folder / "train" / "dog" / ".DS_Store", folder / "train" / "dog" / "._00.png"):
        hidden.write_text("")
    (folder / "train" / ".hidden").mkdir()
    with caplog.at_level(logging.WARNING):
        data = load(folder)
    assert len(data.train) + len(data.validation) == 15
    assert caplog.messages == [f"{folder}: skipped what is no image: 2 .txt, 1 folders, 1 no ending"]
    assert data.record["images"]["skipped"] == {".txt": 2, "folders": 1, "no ending": 1}


# --- what is refused


def refused(load: Load, path: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    assert caught.value.hint
    return str(caught.value)


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 2 x 2 pixels with 16 bits per channel."""
    lines = (b"\0" + b"\x12\x34" * channels * 2) * 2
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def huge_png(side: int) -> bytes:
    """The header of a PNG of this size, and no pixels: decoding it would fail."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def cmyk_jpeg() -> bytes:
    content = io.BytesIO()
    Image.new("CMYK", (2, 2)).save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1 image without content"),
        (b"<html>", "1 image damaged, or neither PNG nor JPEG"),
        (b"GIF89a" + bytes(50), "1 image damaged, or neither PNG nor JPEG"),
        (deep_png(0, 1), "with 16 bits per channel"),
        (deep_png(2, 3), "with 16 bits per channel"),
        (cmyk_jpeg(), "with the colours of a printer"),
        (huge_png(8_100), "of more than 64 million pixels.*8100x8100"),  # below Pillow's own limit
        (huge_png(30_000), "of more than 64 million pixels"),  # above it
    ],
    ids=["empty", "html", "gif", "16-bit grey", "16-bit RGB", "CMYK", "64 megapixels", "bomb"],
)
def test_an_image_that_cannot_be_used_is_named(folder: Path, load: Load, content: bytes, message: str) -> None:
    (folder / "train" / "dog" / "bad.png").write_bytes(content)
    found = refused(load, folder)
    assert re.search(message, found)
    assert "dog/bad.png" in found


def test_a_truncated_jpeg_is_damaged(folder: Path, load: Load) -> None:
    path = write(folder / "train" / "dog" / "bad.jpg", random_pixels(1, (64, 64)))
    path.write_bytes(path.read_bytes()[:-400])
    assert "bad.jpg (image file is truncated" in refused(load, folder, image_size=[6, 5])


def test_five_are_named_and_the_others_counted(folder: Path, load: Load) -> None:
    for index in range(8):
        (folder / "train" / "dog" / f"bad{index}.png").write_bytes(b"")
    found = refused(load, folder)
    assert found.startswith(f"{folder}: 8 images without content: ")
    assert found.endswith("and 3 more")
    assert found.count("bad") == 5


def test_a_dangling_link_is_named(folder: Path, load: Load) -> None:
    (folder / "train" / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    assert "gone.png: cannot be read" in refused(load, folder)


def test_images_of_different_sizes_are_named_with_a_hint(folder: Path, load: Load) -> None:
    write(folder / "train" / "cat" / "wide.png", random_pixels(1, (6, 9)))
    with pytest.raises(DataError, match=r"images of different sizes: .*has 6x[59].*has 6x[59]") as caught:
        load(folder)
    assert "wide.png" in str(caught.value)
    assert "image_size" in str(caught.value.hint)


def add_class(part: str) -> Callable[[Path], object]:
    return lambda folder: write(folder / part / "cow" / "0.png", random_pixels(0))


def two_validations(folder: Path) -> None:
    fill(folder / "val")
    fill(folder / "valid")


def only_test(folder: Path) -> None:
    (folder / "train").rename(folder / "cat")
    write(folder / "cat" / "0.png", random_pixels(0))


def one_class(folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.unlink()
    (folder / "train" / "dog").rmdir()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: fill(folder / "val") and add_class("val")(folder), "validation images of cow, which training"),
        (two_validations, "validation images in val and in valid"),
        (lambda folder: write(folder / "cow" / "0.png", random_pixels(0)), "images in cow/ beside train/"),
        (only_test, "has test/, but no train/"),
        (one_class, "1 class folder, expected at least two"),
        (lambda folder: (folder / "train" / "cow").mkdir(), "no image in cow/"),
        (lambda folder: (folder / "val" / "cat").mkdir(parents=True), "no validation image"),
    ],
    ids=["new class", "two validations", "mixed", "no train", "one class", "empty class", "empty validation"],
)
def test_a_layout_that_is_unclear_is_refused(
    folder: Path, load: Load, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    assert message in refused(load, folder)


def test_too_many_classes_are_refused(tmp_path: Path, load: Load) -> None:
    for index in range(1001):
        (tmp_path / "pets" / str(index)).mkdir(parents=True)
        (tmp_path / "pets" / str(index) / "a.png").write_bytes(b"")
    assert "1,001 class folders, expected at most 1,000" in refused(load, tmp_path / "pets")


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == folder / "train" / "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{folder}/train/dog: cannot be read: Permission denied" in refused(load, folder)


def test_an_image_that_needs_too_much_memory_is_named(
    folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_decoding, "_without_alpha", too_much)
    assert ".png (it needs more memory than there is)" in refused(load, folder)


def test_a_pipe_among_the_images_does_not_block(folder: Path, load: Load) -> None:
    os.mkfifo(folder / "train" / "dog" / "pipe.png")
    assert "1 image not readable: " in refused(load, folder)


# --- cache and identity


def test_images_are_decoded_once_and_mapped_afterwards(
    folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder)
    monkeypatch.setattr(image_folder, "decode_images", lambda *_, **__: pytest.fail("decoded again"))
    again = load(folder)
    assert again.checksums == first.checksums
    np.testing.assert_array_equal(again.train.images, first.train.images)
    assert isinstance(again.train.images.base, np.memmap)
    placed = ResidentData.place(again, torch.device("cpu"), keeps_levels=True)
    assert np.shares_memory(placed.validation_images.numpy(), again.validation.images)  # all workers share these pages


def test_a_changed_image_is_decoded_again_and_is_other_data(folder: Path, load: Load) -> None:
    before = load(folder).checksums
    write(folder / "train" / "cat" / "00.png", random_pixels(77))
    after = load(folder).checksums
    assert {name for name in before if before[name] != after[name]} >= {"files"}
    assert before["split"] == after["split"]
    assert after["train images"] != before["train images"] or after["validation images"] != before["validation images"]


def test_a_renamed_folder_is_the_same_data(folder: Path, load: Load) -> None:
    before = load(folder).checksums
    assert load(folder.rename(folder.with_name("other"))).checksums == before


def test_another_decoder_decodes_again(folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(folder).record["decoder"] == image_decoding.decoder_versions()
    monkeypatch.setattr(image_folder, "decoder_versions", lambda: {"Pillow": "0.1"})
    assert load(folder).record["decoder"] == {"Pillow": "0.1"}


def test_progress_is_told_in_bytes_of_the_files(
    folder: Path, locations: DataLocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "REPORT_EVERY", 5)
    told: list[tuple[str, int, int | None]] = []
    where = replace(locations, progress=lambda *call: told.append(call))
    load_selection_data(DataSettings(dataset=str(folder)), locations=where)
    total = sum(path.stat().st_size for path in (folder / "train").glob("*/*.png"))
    assert [name for name, *_ in told] == ["decoding images of pets"] * 3
    assert told[-1][1:] == (total, total)
    assert sorted(told, key=lambda call: call[1]) == told


# --- helpers


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that helpers are started for a handful of files."""
    monkeypatch.setattr(decoding_pool, "FEW_FILES", 1)
    monkeypatch.setattr(decoding_pool, "CHUNK", 3)


@pytest.mark.usefixtures("few")
def test_helpers_give_the_same_images_in_the_same_order(folder: Path) -> None:
    write(folder / "train" / "cat" / "9.png", random_pixels(0, (6, 5, 3)))
    (folder / "train" / "dog" / "bad.png").write_bytes(b"bad")
    paths = sorted((folder / "train").glob("*/*"))
    helped = list(decoding_pool.decode_images(paths, (4, 4), num_processes=2))
    alone = list(decoding_pool.decode_images(paths, (4, 4), num_processes=1))
    assert len(helped) == len(alone) == 16
    for one, other in zip(helped, alone, strict=True):
        assert (one.sha256, one.problem, one.detail) == (other.sha256, other.problem, other.detail)
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("request_bytes", "num_files"), [(1, 1), (2 * 90, 2), (2**23, 3)])
def test_requests_and_waiting_answers_are_bounded_in_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, request_bytes: int, num_files: int
) -> None:
    """6 x 5 pixels are at most 90 bytes."""
    monkeypatch.setattr(decoding_pool, "REQUEST_BYTES", request_bytes, raising=False)
    monkeypatch.setattr(decoding_pool, "WAITING_BYTES", 2 * 90 * num_files, raising=False)
    requested: list[int] = []
    decode = decoding_pool._Helper.decode
    monkeypatch.setattr(
        decoding_pool._Helper,
        "decode",
        lambda self, paths, *rest: requested.append(len(paths)) or decode(self, paths, *rest),
    )
    paths = sorted((folder / "train").glob("*/*"))
    for number, image in enumerate(decoding_pool.decode_images(paths, None, num_processes=4), start=1):
        assert image.pixels is not None
        assert sum(requested) - number < 2 * num_files  # decoded, but not taken yet
    assert number == 14
    assert max(requested) == num_files


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("num_processes", [1, 2])
def test_images_of_another_size_than_the_first_are_not_decoded(folder: Path, num_processes: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write(folder / "train" / "dog" / "turned.png", random_pixels(1, (5, 6)), exif=exif)
    write(folder / "train" / "dog" / "wide.png", random_pixels(1, (5, 6)))
    (folder / "train" / "dog" / "large.png").write_bytes(huge_png(4_000))  # decoding it would fail
    paths = sorted((folder / "train").glob("*/*"))
    images = list(decoding_pool.decode_images(paths, None, num_processes=num_processes))
    sizes = {path.name: image.other_size for path, image in zip(paths, images, strict=True) if image.pixels is None}
    assert sizes == {"wide.png": (5, 6), "large.png": (4_000, 4_000)}
    assert all(image.sha256 for image in images)


@pytest.mark.usefixtures("few")
def test_a_helper_that_cannot_be_started_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(decoding_pool.subprocess, "Popen", refuse)
    with pytest.raises(DataError, match="no process can be started that decodes images"):
        list(decoding_pool.decode_images(sorted((folder / "train").glob("*/*")), None, num_processes=2))


@pytest.mark.usefixtures("few")
def test_a_helper_that_is_killed_is_an_error_that_names_the_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    monkeypatch.setattr(
        decoding_pool.subprocess, "Popen", lambda command, **options: popen([sys.executable, "-c", "1"], **options)
    )
    paths = sorted((folder / "train").glob("*/*"))
    with pytest.raises(DataError, match=r"the process that decodes images ended .*01\.png"):
        list(decoding_pool.decode_images(paths, None, num_processes=2))
