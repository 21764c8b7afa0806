"""Folders of Hugging Face's datasets are read without it: saved ones, and Parquet files as on the hub."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from hpsearch.data.images import image_decoding
from hpsearch.data.tables import image_column, loading
from hpsearch.data.tables.image_column import decode_column
from hpsearch.data.tables.preparation import input_names
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings
from tests.unit.data.tables.conftest import Load

NUM_ROWS = 42


def png(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **options)
    return stream.getvalue()


def pixels_of(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)


FEATURES = {
    "picture": {"_type": "Image"},
    "animal": {"names": ["zebra", "ape"], "_type": "ClassLabel"},
    "weight": {"dtype": "float32", "_type": "Value"},
}


def image_table(rows: range = range(NUM_ROWS), **changes: Any) -> pa.Table:
    """As `datasets` writes it."""
    columns = {
        "picture": [{"bytes": png(pixels_of(row)), "path": None} for row in rows],
        "animal": [row % 2 for row in rows],
        "weight": [0.5 * row for row in rows],
        **changes,
    }
    types = {
        "picture": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "animal": pa.int64(),
        "weight": pa.float32(),
    }
    schema = pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})})
    return pa.table(columns, schema=schema)


def test_a_folder_that_datasets_saved_has_its_parts(load: Load, load_test, tmp_path: Path) -> None:
    """Written by the real package; the test part is not opened."""
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "animal": datasets.ClassLabel(names=["zebra", "ape"]),
            "weight": datasets.Value("float32"),
        }
    )

    def part(rows: range) -> Any:
        columns = {
            "picture": [Image.fromarray(pixels_of(row)) for row in rows],
            "animal": [row % 2 for row in rows],
            "weight": [0.5 * row for row in rows],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    folder = tmp_path / "animals"
    whole = {"train": part(range(30)), "validation": part(range(30, 36)), "test": part(range(36, 42))}
    datasets.DatasetDict(whole).save_to_disk(folder, num_shards={"train": 2, "validation": 1, "test": 1})
    hidden = folder / "test" / "data-00000-of-00001.arrow"
    content = hidden.read_bytes()
    hidden.write_bytes(b"not looked at")
    state = folder / "test" / "state.json"
    state.rename(folder / "state-of-test")
    data = load(folder)
    assert data.class_names == ("ape", "zebra")
    assert data.example_shape == (3, 4, 5)
    assert (len(data.train), len(data.validation)) == (30, 6)
    expected = np.stack([pixels_of(row).transpose(2, 0, 1).reshape(-1) for row in range(30, 36)])
    np.testing.assert_array_equal(data.validation.images, expected)
    np.testing.assert_array_equal(data.validation.labels, [1, 0, 1, 0, 1, 0])
    assert not any(name.startswith("test") for name in data.checksums)
    hidden.write_bytes(content)
    (folder / "state-of-test").rename(state)
    test = load_test(folder, stored=data.record)
    np.testing.assert_array_equal(test.labels, [1, 0, 1, 0, 1, 0])
    assert set(test.checksums) == {"test/data-00000-of-00001.arrow"}


def test_a_saved_data_set_without_parts_is_split(load: Load, tmp_path: Path) -> None:
    columns = {"x": [row * 0.5 for row in range(70)], "y": ["a", "b"] * 35}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "one")
    data = load(tmp_path / "one", target="y")
    assert (len(data.train), len(data.validation), data.record["split"]["test"]) == (50, 10, 10)
    assert input_names(data.record) == ("x",)


@pytest.mark.parametrize("place", ["", "data"])
def test_parquet_files_as_on_the_hub_have_their_parts(load: Load, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "hub"
    (folder / place).mkdir(parents=True)
    for name, rows in (("train-00000-of-00002", range(20)), ("train-00001-of-00002", range(20, 30))):
        pa.parquet.write_table(image_table(rows), folder / place / f"{name}.parquet")
    (folder / place / "test-00000-of-00001.parquet").write_bytes(b"not looked at")
    data = load(folder)
    assert (len(data.train), len(data.validation)) == (25, 5)
    assert data.record["has_test"] is True
    assert data.record["split"]["test"] == 0
    (mark,) = marks_of_test_files(DataSettings(dataset=str(folder)), {})
    assert mark.startswith(f"file:{folder / place / 'test-00000-of-00001.parquet'}:13:")


def test_a_single_parquet_file_with_images_is_split(load: Load, load_test, tmp_path: Path) -> None:
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(), path)
    data = load(path, target="animal")
    assert (len(data.train), len(data.validation)) == (30, 6)
    assert data.record["left_out"] == {"weight": "the images are the inputs"}
    known = {pixels_of(row).transpose(2, 0, 1).tobytes(): row for row in range(NUM_ROWS)}
    test = load_test(path, stored=data.record, target="animal")
    rows = [known[image.tobytes()] for part in (data.train, data.validation, test) for image in part.images]
    assert sorted(rows) == list(range(NUM_ROWS))
    worker = load(path, target="animal", stored=data.record)
    assert worker.checksums == data.checksums


def test_other_columns_may_be_the_features(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(), path)
    assert input_names(load(path, target="animal", features=("weight",)).record) == ("weight",)


def test_images_and_other_columns_together_are_refused(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(), path)
    with pytest.raises(InputError, match=r"data.features names the images 'picture' and 'weight'"):
        load(path, target="animal", features=("picture", "weight"))


def test_images_of_several_sizes_are_refused_or_resized(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    folder.mkdir()
    pictures = [{"bytes": png(np.zeros((4 + row % 2, 5, 3), np.uint8)), "path": None} for row in range(NUM_ROWS)]
    pa.parquet.write_table(image_table(picture=pictures), folder / "all.parquet")
    with pytest.raises(DataError, match=r"column 'picture', row \d+: [45]x5 pixels, others have [45]x5") as caught:
        load(folder)
    assert "data.image_size" in str(caught.value.hint)
    assert load(folder, image_size=(3, 2)).example_shape == (3, 3, 2)


def test_images_of_a_single_file_are_resized_too(load: Load, load_test, tmp_path: Path) -> None:
    pictures = [{"bytes": png(np.zeros((4 + row % 2, 5, 3), np.uint8)), "path": None} for row in range(NUM_ROWS)]
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(picture=pictures), path)
    data = load(path, target="animal", image_size=(3, 2))
    assert data.example_shape == (3, 3, 2)
    assert load_test(path, stored=data.record, target="animal", image_size=(3, 2)).images.shape == (6, 18)
    with pytest.raises(
        InputError, match=r"data\.image_size has no effect on animals\.parquet: its inputs are no images"
    ):
        load(path, target="animal", features=("weight",), image_size=(3, 2))
    (tmp_path / "x.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    with pytest.raises(InputError, match=r"data\.image_size has no effect on x\.csv: its inputs are no images"):
        load(tmp_path / "x.csv", target="y", image_size=(3, 2))


def test_the_decoder_is_on_record_and_another_one_decodes_again(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(), path)
    before = load(path, target="animal")
    assert before.record["decoder"] == image_decoding.decoder_versions()
    assert "decoder" not in load(path, target="animal", features=("weight",)).record
    for module in (loading, image_column):
        monkeypatch.setattr(module, "decoder_versions", lambda: {"Pillow": "0.1"})
    decode = image_decoding.decode_content
    images = []
    monkeypatch.setattr(image_column, "decode_content", lambda *call: images.append(1) or decode(*call))
    for stored in (before.record, None):
        data = load(path, target="animal", stored=stored)
        assert data.record["decoder"] == {"Pillow": "0.1"}
        assert data.checksums == before.checksums  # the pixels are the same
        assert images
        images.clear()


def test_grey_and_coloured_images_together_are_coloured(load: Load, tmp_path: Path) -> None:
    pictures = [
        {"bytes": png(pixels_of(row) if row % 2 else pixels_of(row)[:, :, 0]), "path": None} for row in range(NUM_ROWS)
    ]
    path = tmp_path / "mixed.parquet"
    pa.parquet.write_table(image_table(picture=pictures), path)
    assert load(path, target="animal").example_shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ({"bytes": b"no image", "path": None}, r"column 'picture', row \d+: an image damaged, or neither PNG nor JPEG"),
        ({"bytes": None, "path": "zebra.png"}, r"column 'picture' has no image in row \d+"),
    ],
)
def test_broken_images_are_named(load: Load, tmp_path: Path, picture: dict[str, Any], message: str) -> None:
    path = tmp_path / "animals.parquet"
    pa.parquet.write_table(image_table(picture=[picture] * NUM_ROWS), path)
    with pytest.raises(DataError, match=message):
        load(path, target="animal")


def test_a_part_that_is_there_already_is_not_drawn(load: Load, tmp_path: Path) -> None:
    pa.parquet.write_table(image_table(), tmp_path / "train.parquet")
    pa.parquet.write_table(image_table(), tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"data.test: .* has a test part of its own"):
        load(tmp_path, test=0.2)
    with pytest.raises(InputError, match=r"data.validation: expected a fraction or a number of rows"):
        load(tmp_path, validation="other.parquet")


def test_damaged_folders_are_named(load: Load, tmp_path: Path) -> None:
    pa.parquet.write_table(image_table(), tmp_path / "test.parquet")
    with pytest.raises(DataError, match="no part 'train', only test"):
        load(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state.json: damaged"):
        load(tmp_path)
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    with pytest.raises(DataError, match=r"data-0.arrow: the file of rows is missing"):
        load(tmp_path)


def test_a_test_part_without_rows_is_named(load: Load, tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"x": [row * 0.5 for row in range(70)], "y": ["a", "b"] * 35})
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "both")
    (tmp_path / "both" / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match=r"both/test: the file of rows is missing"):
        load(tmp_path / "both", target="y")


def test_shards_with_different_columns_are_refused(load: Load, tmp_path: Path) -> None:
    pa.parquet.write_table(image_table(), tmp_path / "train-00000-of-00002.parquet")
    other = image_table().drop_columns("weight").append_column("weight", pa.array(["x"] * NUM_ROWS))
    pa.parquet.write_table(other, tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(DataError, match="its files have different columns"):
        load(tmp_path)


def test_a_folder_of_other_files_is_none_and_the_hint_tells_what_makes_one(load: Load, tmp_path: Path) -> None:
    (tmp_path / "notes.json").touch()
    with pytest.raises(DataError, match="a folder without data of a known form") as caught:
        load(tmp_path)
    assert "dataset_dict.json, state.json or *.parquet" in str(caught.value.hint)


def decoded(*contents: bytes) -> np.ndarray:
    """The images of a column, [N, ...]."""
    column = image_table(picture=[{"bytes": content, "path": None} for content in contents * NUM_ROWS][:NUM_ROWS])
    rows = np.arange(len(contents))
    pixels, shape = decode_column(column.column("picture"), rows, name="picture", source="x", size=None)
    return pixels.reshape(-1, *shape)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def large(side: int) -> bytes:
    """The header of a PNG of this size."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), b"IDAT"
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 5\n%%EndComments\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(np.zeros((2, 2), np.uint16)), "with 16 bits per channel"),
        (b"", "without content"),
        (EPS, "neither PNG nor JPEG"),
        (saved(Image.new("L", (5, 4)), "TIFF"), "neither PNG nor JPEG"),
        (saved(Image.new("CMYK", (3, 3)), "JPEG"), "with the colours of a printer"),
        (large(8_100), "of more than 64 million pixels"),
    ],
    ids=["16 bits", "empty", "EPS", "TIFF", "CMYK", "large"],
)
def test_images_are_refused_by_the_rules_of_folders(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^x: column 'picture', row 2: an image .*{message}"):
        decoded(png(pixels_of(0)), content)


@pytest.mark.parametrize(
    ("error", "detail"), [(KeyError("x"), "'x'"), (MemoryError(), "it needs more memory than there is")]
)
def test_whatever_the_decoder_raises_names_the_row(
    monkeypatch: pytest.MonkeyPatch, error: Exception, detail: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(image_decoding, "_without_alpha", fail)
    with pytest.raises(DataError, match=rf"^x: column 'picture', row 1: an image damaged, .*\({detail}\)"):
        decoded(png(pixels_of(0)))


def test_transparent_pixels_become_white() -> None:
    pixels = np.full((2, 2, 4), 40, dtype=np.uint8)
    pixels[..., 3] = [[255, 0], [255, 255]]
    np.testing.assert_array_equal(decoded(png(pixels))[0, 0], [[40, 255], [40, 40]])


def test_the_turn_of_exif_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert decoded(png(pixels_of(0), exif=exif)).shape == (1, 3, 5, 4)


def test_a_column_of_more_than_2_gib_is_read_chunk_by_chunk(tmp_path: Path) -> None:
    """Each chunk has a row of an image, and a row of a gigabyte that is not read, in a sparse file."""
    first, second = png(pixels_of(0)), png(pixels_of(1))
    path, length = tmp_path / "content", 3 * 2**29
    with path.open("wb") as file:
        file.write(first + second)
        file.truncate(length)
    chunks = []
    for start, end in ((0, len(first)), (len(first), len(first) + len(second))):
        with pa.memory_map(str(path)) as mapped:
            content = mapped.read_buffer()
        offsets = pa.array([start, end, length], pa.int32()).buffers()[1]
        values = pa.Array.from_buffers(pa.binary(), 2, [None, offsets, content])
        chunks.append(pa.StructArray.from_arrays([values, pa.array(["a", "b"])], ["bytes", "path"]))
    column = pa.chunked_array([*chunks, chunks[0].slice(0, 1)])
    pixels, _ = decode_column(column, np.array([4, 2, 0]), name="picture", source="x", size=None)
    expected = [pixels_of(seed).transpose(2, 0, 1).reshape(-1) for seed in (0, 1, 0)]
    np.testing.assert_array_equal(pixels, expected)


def test_the_folder_can_move(load: Load, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    pa.parquet.write_table(image_table(), tmp_path / "one" / "train.parquet")
    data = load(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert load(tmp_path / "two", stored=data.record).checksums == data.checksums


# Which part a file is


def shards(folder: Path, *names: str) -> None:
    """Files of rows; those of which the name has "test" in some writing cannot be read."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path = folder / f"{name}.parquet"
        if "test" in name.lower():
            path.write_bytes(b"not looked at")
        else:
            pa.parquet.write_table(image_table(), path)


@pytest.mark.parametrize(
    "names",
    [
        ("train_data", "test_data"),
        ("train_0", "test_0"),
        ("train.0", "test.0"),
        ("train0", "test0"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("train-part-0", "test-part-1"),
        ("animalsTrain", "animalsTest"),
        ("animals-training-0123456789abcdef", "animals-testing-0123456789abcdef"),
    ],
)
def test_the_word_for_a_part_may_be_anywhere_in_the_name_of_a_file(
    load: Load, tmp_path: Path, names: tuple[str, str]
) -> None:
    shards(tmp_path / "hub", *names)
    data = load(tmp_path / "hub")
    assert next(iter(data.checksums)) == f"{names[0]}.parquet"
    assert (len(data.train), len(data.validation), data.record["split"]["test"]) == (35, 7, 0)
    assert data.record["has_test"] is True


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train-0", "more"), r"more.parquet: its name says no part .*, that of train-0.parquet does"),
        (("part-0", "test-part-1"), r"part-0.parquet: its name says no part"),
        (("train", "train-test"), r"train-test.parquet: its name says two parts: test, train"),
        (("train", "val-0", "dev-0"), r"'dev' and 'val' both name the validation part"),
    ],
)
def test_files_whose_part_is_not_clear_are_refused(
    load: Load, tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    shards(tmp_path / "hub", *names)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "hub")


def test_files_in_two_places_are_refused(load: Load, tmp_path: Path) -> None:
    shards(tmp_path / "hub", "train")
    shards(tmp_path / "hub" / "data", "test")
    with pytest.raises(DataError, match=r"hub: Parquet files beside the folder data, and in it"):
        load(tmp_path / "hub")


def saved(folder: Path, *names: str) -> Path:
    part = datasets.Dataset.from_dict({"x": [row * 0.5 for row in range(70)], "y": ["a", "b"] * 35})
    datasets.DatasetDict(dict.fromkeys(names, part)).save_to_disk(folder)
    return folder


def test_two_saved_parts_for_validation_are_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'validation' and 'dev' both name the validation part"):
        load(saved(tmp_path / "two", "train", "validation", "dev"), target="y")


def test_other_saved_parts_are_left_out_with_a_line(load: Load, tmp_path: Path) -> None:
    data = load(saved(tmp_path / "more", "train", "test", "unsupervised"), target="y")
    assert len(data.train) + len(data.validation) == 70
    assert "part 'unsupervised' is left out" in data.record["lines"]


def test_the_test_part_of_a_folder_may_be_left_out(load: Load, load_test, tmp_path: Path) -> None:
    folder = saved(tmp_path / "both", "train", "test")
    data = load(folder, target="y", test=0)
    assert (len(data.train) + len(data.validation), data.record["has_test"]) == (70, False)
    with pytest.raises(DataError, match=r"no test rows \(data.test = 0\)"):
        load_test(folder, stored=data.record, target="y", test=0)


def test_a_test_part_that_comes_later_is_no_matter_of_the_cache(load: Load, tmp_path: Path) -> None:
    shards(tmp_path / "hub", "train")
    assert load(tmp_path / "hub").record["split"]["test"] == 6
    shards(tmp_path / "hub", "test")
    assert load(tmp_path / "hub").record["split"]["test"] == 0


def test_image_size_without_images_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.image_size has no effect on numbers: its inputs are no images"):
        load(saved(tmp_path / "numbers", "train"), target="y", image_size=(3, 2))


def test_images_of_a_single_file_are_resized(load: Load, tmp_path: Path) -> None:
    shards(tmp_path, "train")
    data = load(tmp_path / "train.parquet", target="animal", image_size=(3, 2))
    assert data.example_shape == (3, 3, 2)


@pytest.mark.parametrize("key", ["exclude", "features"])
def test_unknown_columns_beside_images_are_refused(load: Load, tmp_path: Path, key: str) -> None:
    shards(tmp_path / "hub", "train")
    names = ("picture", "size") if key == "features" else ("size",)
    with pytest.raises(InputError, match=rf"no column 'size', which data.{key} names"):
        load(tmp_path / "hub", **{key: names})


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_group_in_two_parts_of_a_folder_is_refused(load: Load, load_test, tmp_path: Path, part: str) -> None:
    def rows(groups: range) -> Any:
        columns = {"x": [0.5 * group for group in groups], "g": [f"g{group}" for group in groups]}
        return datasets.Dataset.from_dict({**columns, "y": ["a", "b"] * (len(groups) // 2)})

    whole = {"train": rows(range(60)), part: rows(range(53, 83))}
    datasets.DatasetDict(whole).save_to_disk(tmp_path / "groups")
    message = r"7 of its values of 'g' \(data.group\) are in .*, too: 'g53', 'g54', 'g55', 'g56', 'g57' and 2 more"
    keys = {"target": "y", "group": "g"}
    with pytest.raises(DataError, match=message):
        load_test(tmp_path / "groups", stored=load(tmp_path / "groups", **keys).record, **keys)
