"""A table becomes training and validation arrays and a record, from which workers and the vault make the same again."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest

from hpsearch.data.tables import source
from hpsearch.data.tables.preparation import Preparation, input_names
from hpsearch.data.tables.source import file_parts
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings
from tests.unit.data.tables.conftest import NUM_ROWS, Load, people, written


def test_a_table_of_all_kinds_is_split_5_to_1_to_1_and_prepared(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid")
    assert (len(data.train), len(data.validation)) == (100, 20)
    assert data.class_names == ("no", "yes")
    assert data.num_classes == 2
    assert data.record["split"]["test"] == 20
    inputs = ("age", "age is missing", "city = Aachen", "city = Bonn", "city = Celle", "city is missing", "member")
    assert input_names(data.record) == inputs
    assert data.example_shape == (len(inputs),)
    assert data.train.images.dtype == np.float32
    assert data.train.labels.dtype == np.int64
    known = data.train.images[:, 1] == 0
    assert abs(data.train.images[:, 0].mean()) < 1e-6
    assert data.train.images[known, 0][data.train.labels[known] == 1].min() > 0.9 * (
        data.train.images[known, 0][data.train.labels[known] == 0].max()
    )


def test_choices_are_told_and_on_record(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid")
    assert set(data.record["left_out"]) == {"id", "name", "family"}
    assert data.record["left_out"]["name"] == "100 different texts in 100 rows"
    assert data.record["lines"][:2] == [
        "the task is classification of 'paid' (2 classes; data.task would set it)",
        "column 'id' is left out: it counts the rows",
    ]


def test_named_features_are_taken_whatever_they_say(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid", features=("id", "name"))
    assert input_names(data.record) == ("id", "name = other")


def test_excluded_columns_are_no_features(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid", exclude=("age", "city"))
    assert input_names(data.record) == ("member",)


def test_a_group_stays_on_one_side_and_is_no_feature(load: Load, load_test, people_csv: Path) -> None:
    keys = {"target": "paid", "group": "family", "features": ("id",)}
    data = load(people_csv, **keys)
    test = load_test(people_csv, stored=data.record, **keys)
    (feature,) = Preparation.from_json(data.record["preparation"]).features

    def families(images: np.ndarray) -> set[int]:
        return {round(value * feature.scale + feature.mean - 1) // 2 for value in images[:, 0].tolist()}

    parts = [families(part.images) for part in (data.train, data.validation, test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == NUM_ROWS // 2
    assert "family" not in input_names(load(people_csv, target="paid", group="family").record)


def test_groups_of_rows_are_numbered_and_their_sizes_on_record(load: Load, load_test, people_csv: Path) -> None:
    keys = {"target": "paid", "group": "family"}
    data = load(people_csv, **keys)
    assert data.train.groups is None
    assert data.validation.groups is not None
    sizes = data.record["groups"]["validation"]
    assert data.record["groups"]["column"] == "family"
    assert sizes == np.bincount(data.validation.groups).tolist() == [2] * (len(data.validation) // 2)
    assert data.record["lines"][-1].startswith(f"tests take the {len(sizes)} values of 'family' in validation")
    test = load_test(people_csv, stored=data.record, **keys)
    assert np.bincount(test.groups).tolist() == [2] * (len(test) // 2)
    again = load(people_csv, stored=data.record, **keys)
    assert again.checksums == data.checksums
    assert np.array_equal(again.validation.groups, data.validation.groups)


def test_a_study_from_before_groups_were_units_has_none(load: Load, load_test, people_csv: Path) -> None:
    keys = {"target": "paid", "group": "family"}
    record = {key: value for key, value in load(people_csv, **keys).record.items() if key != "groups"}
    before = load(people_csv, stored=record, **keys)
    assert before.validation.groups is None
    assert "validation groups" not in before.checksums
    assert load_test(people_csv, stored=record, **keys).groups is None


def test_groups_of_a_validation_file_of_its_own_are_numbered(load: Load, tmp_path: Path) -> None:
    values = {"x": [row * 0.37 for row in range(NUM_ROWS)], "y": ["a", "b"] * (NUM_ROWS // 2)}
    path = written(tmp_path / "t.csv", {**values, "g": [row // 2 for row in range(NUM_ROWS)]})
    written(tmp_path / "own.csv", {"x": [1, 2, 3, 4], "y": ["a", "b"] * 2, "g": [2001, 2000, 2001, 2001]})
    data = load(path, target="y", group="g", validation="own.csv")
    assert data.validation.groups is not None
    assert data.validation.groups.tolist() == [1, 0, 1, 1]
    assert data.record["groups"]["validation"] == [1, 3]


def test_a_single_group_in_validation_is_refused_when_a_study_is_created(load: Load, tmp_path: Path) -> None:
    """Also if its preparation is in the cache."""
    values = {"x": [row * 0.37 for row in range(NUM_ROWS)], "y": ["a", "b"] * (NUM_ROWS // 2)}
    path = written(tmp_path / "t.csv", {**values, "g": [row // 2 for row in range(NUM_ROWS)]})
    written(tmp_path / "own.csv", {"x": [1, 2, 3], "y": ["a", "b", "a"], "g": [2001] * 3})
    for _ in range(2):
        with pytest.raises(DataError, match=r"all 3 validation rows have the same value of 'g'") as caught:
            load(path, target="y", group="g", validation="own.csv")
    assert "data.validation" in str(caught.value.hint)
    big = written(tmp_path / "big.csv", {**values, "g": [row // 70 + row // 139 for row in range(NUM_ROWS)]})
    with pytest.raises(DataError, match=r"validation rows have the same value of 'g'"):
        load(big, target="y", group="g")


def test_more_groups_than_units_share_numbers(load: Load, people_csv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.data.tables.groups.MOST_UNITS", 3)
    data = load(people_csv, target="paid", group="family")
    assert data.validation.groups is not None
    assert set(data.validation.groups.tolist()) == {0, 1, 2}
    assert sum(data.record["groups"]["validation"]) == len(data.validation)


def test_regression_labels_are_standardised_by_training_rows(load: Load, people_csv: Path) -> None:
    columns = people()
    columns["income"] = [1000.5 + 10 * row for row in range(NUM_ROWS)]
    written(people_csv, columns)
    data = load(people_csv, target="income")
    target = data.record["target"]
    assert data.num_classes == 0
    assert data.num_outputs == 1
    assert target["task"] == "regression"
    assert data.train.labels.dtype == np.float32
    assert abs(float(data.train.labels.mean())) < 1e-6
    assert float(data.train.labels.std()) == pytest.approx(1, abs=1e-5)
    values = data.validation.labels * target["deviation"] + target["mean"]
    assert set(np.round(values, 1)) <= {np.float32(round(value, 1)) for value in columns["income"]}


@pytest.mark.parametrize(
    ("values", "keys", "task", "classes"),
    [
        ([row % 20 for row in range(NUM_ROWS)], {}, "classification", list(range(20))),
        ([row % 21 for row in range(NUM_ROWS)], {}, "regression", None),
        ([row % 21 for row in range(NUM_ROWS)], {"task": "classification"}, "classification", list(range(21))),
        ([row % 3 for row in range(NUM_ROWS)], {"task": "regression"}, "regression", None),
        ([0.5 + row % 3 for row in range(NUM_ROWS)], {}, "regression", None),
        ([["true", "false"][row % 2] for row in range(NUM_ROWS)], {}, "classification", [False, True]),
    ],
)
def test_the_task_follows_from_the_target_and_may_be_set(
    load: Load, tmp_path: Path, values: list[object], keys: dict[str, str], task: str, classes: list[object] | None
) -> None:
    path = written(tmp_path / "t.csv", {"x": [row * 0.37 for row in range(NUM_ROWS)], "y": values})
    target = load(path, target="y", **keys).record["target"]
    assert target["task"] == task
    assert target.get("classes") == classes


@pytest.mark.parametrize("ending", [".parquet", ".feather", ".arrow", ".tsv", ".csv.gz"])
def test_all_kinds_of_files_give_the_same_arrays(load: Load, people_csv: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"people{ending}"
    if ending == ".tsv":
        written(path, people(), "\t")
    elif ending == ".csv.gz":
        path.write_bytes(gzip.compress(people_csv.read_bytes()))
    else:
        options = pa.csv.ConvertOptions(strings_can_be_null=True)
        table = pa.csv.read_csv(people_csv, convert_options=options)
        if ending == ".parquet":
            pa.parquet.write_table(table, path)
        elif ending == ".feather":
            pa.feather.write_feather(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    expected, data = load(people_csv, target="paid"), load(path, target="paid")
    np.testing.assert_array_equal(data.train.images, expected.train.images)
    np.testing.assert_array_equal(data.validation.labels, expected.validation.labels)


def test_semicolons_and_decimal_commas_are_found_out(load: Load, people_csv: Path, tmp_path: Path) -> None:
    columns = people()
    columns["age"] = [None if value is None else str(value).replace(".", ",") for value in columns["age"]]
    path = written(tmp_path / "german.csv", columns, ";")
    expected = load(people_csv, target="paid")
    np.testing.assert_array_equal(load(path, target="paid").train.images, expected.train.images)
    odd = written(tmp_path / "odd.csv", people(), ":")
    np.testing.assert_array_equal(load(odd, target="paid", separator=":").train.images, expected.train.images)


def test_another_encoding_is_named(load: Load, tmp_path: Path) -> None:
    columns = {"stadt": ["Köln", "Bonn"] * 40, "x": [0.5 * row for row in range(80)], "y": ["ä", "b"] * 40}
    path = written(tmp_path / "t.csv", columns)
    path.write_bytes(path.read_text().encode("latin-1"))
    with pytest.raises(DataError, match=r"not written in UTF-8: column 'stadt' in row 1: .*K") as caught:
        load(path, target="y")
    assert "latin-1" in str(caught.value.hint)
    data = load(path, target="y", encoding="latin-1")
    assert data.class_names == ("b", "ä")
    assert "stadt = Köln" in input_names(data.record)
    path.write_bytes(path.read_bytes().decode("latin-1").encode("cp1252"))
    with pytest.raises(DataError, match="not written in ascii"):
        load(path, target="y", encoding="ascii")


def test_marks_of_missing_values_are_named(load: Load, tmp_path: Path) -> None:
    ages = ["?" if row % 20 == 3 else 20.5 + row for row in range(NUM_ROWS)]
    path = written(tmp_path / "t.csv", {"age": ages, "y": ["a", "b"] * (NUM_ROWS // 2)})
    message = r"'age' is text, but 9\d.* of its values are numbers; the others are '\?'"
    with pytest.raises(DataError, match=message) as caught:
        load(path, target="y")
    assert """data.missing = ["", '?']""" in str(caught.value.hint)
    data = load(path, target="y", missing=("", "?"))
    assert input_names(data.record) == ("age", "age is missing")
    assert "age = other" in input_names(load(path, target="y", features=("age",)).record)


# Identity, workers and the cache


def test_a_worker_makes_the_same_arrays_from_the_record(load: Load, people_csv: Path, tmp_path: Path) -> None:
    data = load(people_csv, target="paid")
    record = json.loads(json.dumps(data.record))  # as the database gives it back
    (tmp_path / "cache").rename(tmp_path / "cache-of-another-machine")
    again = load(people_csv, target="paid", stored=record)
    assert again.checksums == data.checksums
    np.testing.assert_array_equal(again.train.images, data.train.images)


def test_a_preparation_is_applied_and_not_fitted_again(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid", features=("age",))
    record = json.loads(json.dumps(data.record))
    record["preparation"]["features"][0]["mean"] += 10 * record["preparation"]["features"][0]["scale"]
    moved = load(people_csv, target="paid", features=("age",), stored=record)
    np.testing.assert_allclose(moved.train.images[:, 0], data.train.images[:, 0] - 10, atol=1e-4)
    assert moved.checksums["preparation"] != data.checksums["preparation"]


def test_a_file_that_changed_is_refused_with_both_checksums(load: Load, people_csv: Path) -> None:
    data = load(people_csv, target="paid")
    lines = people_csv.read_text().splitlines()
    people_csv.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match=f"people.csv is not the file .* expected {data.checksums['people.csv']}"):
        load(people_csv, target="paid", stored=data.record)


def test_a_split_that_cannot_be_drawn_again_is_refused(load: Load, people_csv: Path) -> None:
    record = json.loads(json.dumps(load(people_csv, target="paid").record))
    record["split"]["sha256"] = "0" * 64
    with pytest.raises(DataError, match="the split cannot be drawn again"):
        load(people_csv, target="paid", stored=record)


def test_options_and_seed_are_part_of_the_identity(load: Load, people_csv: Path) -> None:
    one = load(people_csv, target="paid").checksums
    other = load(people_csv, target="paid", split_seed=1).checksums
    assert one["people.csv"] == other["people.csv"]
    assert one["split"] != other["split"]
    assert one["train inputs"] != other["train inputs"]
    assert load(people_csv, target="paid", exclude=("age",)).checksums["preparation"] != one["preparation"]


def test_equal_splits_of_other_data_have_other_checksums(load: Load, tmp_path: Path) -> None:
    """Checksums are compared between studies to find data that is the same."""
    paths = [
        written(tmp_path / f"{n}.csv", {"x": [(n + r) ** 1.5 for r in range(99)], "y": ["a", "b", "c"] * 33})
        for n in (1, 2)
    ]
    one, other = (set(load(path, target="y").checksums.values()) for path in paths)
    shared = one & other
    assert not shared - {load(paths[0], target="y").checksums[f"{part} labels"] for part in ("train", "validation")}


def test_train_samples_takes_the_first_rows_of_the_same_split(load: Load, people_csv: Path) -> None:
    whole, some = load(people_csv, target="paid"), load(people_csv, target="paid", train_samples=30)
    np.testing.assert_array_equal(some.train.images, whole.train.images[:30])
    assert some.checksums == whole.checksums
    with pytest.raises(InputError, match=r"train_samples must be in 1\.\.100"):
        load(people_csv, target="paid", train_samples=101)


# The test part


def test_the_parts_are_disjoint_and_cover_the_file(load: Load, load_test, people_csv: Path) -> None:
    keys = {"target": "paid", "features": ("id",)}
    data = load(people_csv, **keys)
    test = load_test(people_csv, stored=data.record, **keys)
    (feature,) = Preparation.from_json(data.record["preparation"]).features
    ids = [np.round(p.images[:, 0] * feature.scale + feature.mean) for p in (data.train, data.validation, test)]
    assert sorted(np.concatenate(ids).astype(int).tolist()) == list(range(1, NUM_ROWS + 1))
    assert set(test.checksums) == {"test rows", "test labels"}
    assert not set(test.checksums.values()) & set(data.checksums.values())


def test_no_prepared_array_has_a_test_row(load: Load, load_test, people_csv: Path, tmp_path: Path) -> None:
    data = load(people_csv, target="paid")
    test = load_test(people_csv, stored=data.record, target="paid")
    arrays = [np.load(path) for path in (tmp_path / "cache").rglob("*_inputs.npy")]
    assert sorted(map(len, arrays)) == [20, 100]
    rows = {row.tobytes() for array in arrays for row in array}
    # Only `age` is nearly unique; rows without one may be alike.
    assert all(row.tobytes() not in rows for row in test.images if row[1] == 0)


def test_nothing_but_the_split_depends_on_test_rows(load: Load, load_test, people_csv: Path, tmp_path: Path) -> None:
    """Other values in all test rows, but for the target, leave the preparation as it is."""
    keys = {"target": "paid"}
    with_ids = load(people_csv, **keys, features=("id",))
    (feature,) = Preparation.from_json(with_ids.record["preparation"]).features
    test = load_test(people_csv, stored=with_ids.record, **keys, features=("id",))
    test_rows = set(np.round(test.images[:, 0] * feature.scale + feature.mean).astype(int).tolist())
    columns = people()
    for row in range(NUM_ROWS):
        if row + 1 in test_rows:
            columns["age"][row], columns["city"][row] = 1e6, f"only in the test {row}"
    changed = written(tmp_path / "changed.csv", columns)
    one, other = load(people_csv, **keys), load(changed, **keys)
    assert one.record["preparation"] == other.record["preparation"]
    np.testing.assert_array_equal(one.train.images, other.train.images)


def test_a_test_file_of_its_own_is_not_opened_for_selection(
    load: Load, load_test, people_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def watch(name: str) -> None:
        call = getattr(source, name)

        def watched(path: Path, *rest: object) -> object:
            opened.append(path.name)
            return call(path, *rest)

        monkeypatch.setattr(source, name, watched)

    watch("_read_file")
    watch("_sha256")
    keys = {"target": "paid", "test": "held-out.csv"}
    held_out = people_csv.with_name("held-out.csv")
    held_out.write_bytes(b"\xff\x00 no table at all")
    data = load(people_csv, **keys)
    assert (len(data.train), len(data.validation)) == (117, 23)
    assert data.record["has_test"] is True
    assert all("held-out" not in name for name in data.checksums)
    assert set(opened) == {"people.csv"}
    rows = {name: values[:10] for name, values in people().items()}
    written(held_out, rows)
    test = load_test(people_csv, stored=data.record, **keys)
    assert len(test) == 10
    assert set(test.checksums) == {"held-out.csv"}
    assert "held-out.csv" in opened
    np.testing.assert_array_equal(test.labels, [data.class_names.index(value) for value in rows["paid"]])


def test_a_test_file_that_the_study_names_is_marked_without_being_opened(
    people_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = people_csv.with_name("held-out.csv")
    held_out.write_bytes(b"no table")

    def marks(**keys: object) -> frozenset[str]:
        return marks_of_test_files(DataSettings(dataset=str(people_csv), target="paid", **keys), {})

    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    stat = held_out.stat()
    before = marks(test="held-out.csv")
    assert before == {f"file:{held_out.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"}
    assert marks(test=str(held_out)) == before
    assert marks() == marks(test=0.2) == set()
    os.utime(held_out, ns=(0, stat.st_mtime_ns + 1))
    assert not marks(test="held-out.csv") & before
    held_out.unlink()
    with pytest.raises(DataError, match=r"data\.test: no file .*held-out\.csv"):
        marks(test="held-out.csv")


def test_a_validation_file_is_prepared_with_the_training_rows(load: Load, people_csv: Path) -> None:
    other = people_csv.with_name("validation.csv")
    written(other, {name: values[:12] for name, values in people().items()})
    data = load(people_csv, target="paid", validation="validation.csv", test=0.2)
    assert (len(data.train), len(data.validation)) == (112, 12)
    assert set(data.checksums) >= {"people.csv", "validation.csv"}
    worker = load(people_csv, target="paid", validation="validation.csv", test=0.2, stored=data.record)
    assert worker.checksums == data.checksums


def test_an_infinite_number_in_a_validation_file_is_named(load: Load, people_csv: Path) -> None:
    other = people_csv.with_name("validation.csv")
    rows = {name: values[:12] for name, values in people().items()}
    written(other, {**rows, "age": [*rows["age"][:11], "inf"]})
    with pytest.raises(DataError, match=r"validation.csv: column 'age' has infinite values in 1 row: 12"):
        load(people_csv, target="paid", validation="validation.csv")


def test_without_a_test_part_the_record_says_so(load: Load, load_test, people_csv: Path) -> None:
    data = load(people_csv, target="paid", test=0)
    assert (len(data.train), len(data.validation)) == (117, 23)
    assert data.record["has_test"] is False
    with pytest.raises(DataError, match=r"no test rows \(data.test = 0\)"):
        load_test(people_csv, stored=data.record, target="paid", test=0)


def test_test_rows_of_other_kinds_or_classes_are_named(load: Load, load_test, people_csv: Path) -> None:
    keys = {"target": "paid", "test": "held-out.csv"}
    held_out = people_csv.with_name("held-out.csv")
    rows = {name: values[:6] for name, values in people().items()}
    written(held_out, rows)
    data = load(people_csv, **keys)
    written(held_out, {**rows, "age": ["old"] * 6})
    with pytest.raises(DataError, match=r"column 'age' in row 1: invalid value 'old'"):
        load_test(people_csv, stored=data.record, **keys)
    written(held_out, {**rows, "paid": ["maybe"] * 6})
    with pytest.raises(DataError, match=r"class 'maybe', which training does not have"):
        load_test(people_csv, stored=data.record, **keys)
    written(held_out, {name: values for name, values in rows.items() if name != "city"})
    with pytest.raises(DataError, match=r"no column 'city', which the study names"):
        load_test(people_csv, stored=data.record, **keys)


# What is refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"data\.target is missing"),
        ({"target": "Paid"}, r"data\.target: .*people.csv has no column 'Paid'"),
        ({"target": "paid", "features": ("age", "size")}, r"no column 'size', which data.features names"),
        ({"target": "paid", "exclude": ("size",)}, r"no column 'size', which data.exclude names"),
        ({"target": "paid", "group": "size"}, r"no column 'size', which data.group names"),
        ({"target": "paid", "features": ("paid",)}, r"data.features names the target"),
        ({"target": "paid", "features": ("age",), "exclude": ("age",)}, r"both name 'age'"),
        ({"target": "paid", "exclude": ("age", "city", "member")}, r"no column is left as a feature .*id: it counts"),
        ({"target": "paid", "encoding": "klingon"}, r"data.encoding: 'klingon' is not the name of an encoding"),
        ({"target": "paid", "encoding": "base64"}, r"data.encoding: 'base64' is not the name of an encoding"),
        ({"target": "paid", "encoding": "hex"}, r"data.encoding: 'hex' is not the name of an encoding"),
        ({"target": "paid", "separator": "§"}, r"data.separator: '§' cannot separate columns"),
        ({"target": "paid", "separator": '"'}, r"data.separator: '\"' cannot separate columns"),
        ({"target": "paid", "test": 200}, r"data.test = 200 is more than the 140 rows"),
        ({"target": "paid", "validation": "people.csv"}, r"'people.csv' is the data set itself"),
        ({"target": "paid", "validation": "people.png"}, r"'people.png' is not a table"),
        ({"target": "paid", "image_size": (8, 8)}, r"data.image_size has no effect"),
    ],
)
def test_keys_that_do_not_fit_are_refused(load: Load, people_csv: Path, keys: dict[str, object], message: str) -> None:
    people_csv.with_name("people.png").touch()
    with pytest.raises(InputError, match=message):
        load(people_csv, **keys)


def test_a_missing_target_lists_the_columns(load: Load, people_csv: Path) -> None:
    with pytest.raises(InputError) as caught:
        load(people_csv)
    assert "age (numbers), city (text), member (truth values)" in str(caught.value.hint)


def test_keys_for_text_have_no_effect_on_other_files(people_csv: Path) -> None:
    with pytest.raises(InputError, match=r"data.separator has no effect on people.parquet"):
        file_parts(people_csv.with_name("people.parquet"), DataSettings(separator=";"))


def change(name: str, values: list[object]) -> dict[str, object]:
    return {**people(), name: values}


_HALF = ["a", "b"] * (NUM_ROWS // 2)


@pytest.mark.parametrize(
    ("columns", "keys", "message"),
    [
        (change("day", ["2026-01-02"] * NUM_ROWS), {}, r"1 column cannot be features: 'day' \(dates or times\)"),
        (change("day", ["2026-01-02 10:00:00"] * NUM_ROWS), {}, r"'day' \(dates or times\)"),
        (
            change("paid", ["", "", "", "", "", "", *_HALF[6:]]),
            {},
            r"'paid' is missing in 6 rows: 1, 2, 3, 4, 5 and 1 ",
        ),
        (
            change("age", [1.5, "inf", "-inf", *[2.5] * (NUM_ROWS - 3)]),
            {},
            r"'age' has infinite values in 2 rows: 2, 3",
        ),
        (change("paid", [0.5, "inf", *[2.5] * (NUM_ROWS - 2)]), {}, r"'paid' has infinite values in 1 row: 2"),
        (change("age", [0.5, 1e40, *[2.5] * (NUM_ROWS - 2)]), {}, r"'age' has values above 1e\+30 in 1 row: 2"),
        (change("paid", ["no"] * NUM_ROWS), {}, r"all rows have class 'no'"),
        (change("paid", [2.5] * NUM_ROWS), {}, r"the target 'paid' is 2.5 in every training row"),
        (change("paid", [0.5, 1.5] * 70), {"task": "classification"}, r"classification, but column 'paid' holds fract"),
        (people(), {"task": "regression"}, r"regression, but column 'paid' holds text"),
        (change("family", [None, *["f"] * (NUM_ROWS - 1)]), {"group": "family"}, r"group 'family' is missing in 1 row"),
        (change("family", ["f"] * NUM_ROWS), {"group": "family"}, r"1 different values, too few"),
        (change("paid", ["2026-01-02"] * NUM_ROWS), {}, r"'paid' holds dates or times, expected"),
    ],
)
def test_values_that_cannot_be_used_are_named(
    load: Load, tmp_path: Path, columns: dict[str, list[object]], keys: dict[str, str], message: str
) -> None:
    path = written(tmp_path / "t.csv", columns)
    with pytest.raises(DataError, match=message):
        load(path, target="paid", **keys)


def test_dates_that_are_excluded_are_no_error(load: Load, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", change("day", ["2026-01-02"] * NUM_ROWS))
    assert "day" not in input_names(load(path, target="paid", exclude=("day",)).record)


def test_a_class_of_one_group_that_training_lacks_is_named(load: Load, tmp_path: Path) -> None:
    """The split looks at the targets of all rows, and so does this check."""
    columns = {
        "x": [row * 0.5 for row in range(60)],
        "g": [f"g{row // 20}" for row in range(60)],
        "y": [["a", "b", "c"][row // 20] for row in range(60)],
    }
    path = written(tmp_path / "t.csv", columns)
    with pytest.raises(DataError, match=r"no training row has classes '.', '.' of the target 'y'"):
        load(path, target="y", group="g")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"an empty file"),
        (b"\n \n", r"an empty file"),
        (b"a,b\n", r"a table without rows"),
        (b"a,a\n1,2\n", r"2 columns are headed 'a'"),
        (b"a,b\n1,2\n3,4,5\n6,7\n", r"row 2 is broken: .*Expected 2 columns, got 3"),
        (b"a,b\n1,2\n3\n", r"row 2 is broken: .*Expected 2 columns, got 1"),
    ],
)
def test_broken_files_are_named(load: Load, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path, target="a")
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "changed"])
@pytest.mark.parametrize("num_rows", [140, 20_000])
def test_damaged_gzip_files_are_named(load: Load, tmp_path: Path, damage: str, num_rows: int) -> None:
    """A long file is damaged behind the lines by which the separator is found."""
    content = gzip.compress(written(tmp_path / "t.csv", people(num_rows)).read_bytes())
    half = len(content) // 2
    content = content[:half] if damage == "truncated" else content[:half] + b"\xff" * 64 + content[half + 64 :]
    path = tmp_path / "t.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t.csv.gz: ") as caught:
        load(path, target="paid")
    assert "prepared data" not in str(caught.value)
    assert "make room" not in str(caught.value.hint)


@pytest.mark.parametrize("ending", [".parquet", ".feather", ".arrow"])
def test_truncated_binary_files_are_named(load: Load, people_csv: Path, tmp_path: Path, ending: str) -> None:
    table = pa.csv.read_csv(people_csv)
    path = tmp_path / f"t{ending}"
    if ending == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        pa.feather.write_feather(table, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"t{ending}: (damaged|cannot be read)"):
        load(path, target="paid")


@pytest.mark.parametrize("end", ["\r", "\r\n"])
def test_other_ends_of_lines_are_read(load: Load, people_csv: Path, tmp_path: Path, end: str) -> None:
    expected = load(people_csv, target="paid")
    path = tmp_path / "other.csv"
    path.write_bytes(people_csv.read_bytes().replace(b"\n", end.encode()))
    np.testing.assert_array_equal(load(path, target="paid").train.images, expected.train.images)


@pytest.mark.parametrize("name", ["t.parquet", "t.feather", "t.arrow"])
def test_files_that_are_not_what_their_name_says_are_named(load: Load, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        load(path, target="a")
    path.write_bytes(b"no such thing, but long enough to be read")
    with pytest.raises(DataError, match=rf"{name}: (damaged|cannot be read)"):
        load(path, target="a")


@pytest.mark.parametrize("name", ["t.xlsx", "t.XLS", "t.ods"])
def test_spreadsheets_are_refused_with_a_hint(load: Load, tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="is a spreadsheet") as caught:
        load(tmp_path / name, target="a")
    assert "save its sheet as CSV" in str(caught.value.hint)


def test_a_part_that_is_not_there_is_named(load: Load, people_csv: Path) -> None:
    with pytest.raises(DataError, match=r"data.test: no file .*nowhere.csv"):
        load(people_csv, target="paid", test="nowhere.csv")


@pytest.mark.parametrize("how", ["name", "symbolic", "hard"])
def test_one_file_for_validation_and_test_is_refused(load: Load, people_csv: Path, how: str) -> None:
    one, other = people_csv.with_name("a.csv"), people_csv.with_name("b.csv")
    written(one, people())
    if how == "symbolic":
        other.symlink_to(one)
    elif how == "hard":
        other.hardlink_to(one)
    name = "a.csv" if how == "name" else "b.csv"
    with pytest.raises(InputError, match=rf"data.validation and data.test: 'a.csv' and '{name}' are the same file"):
        load(people_csv, target="paid", validation="a.csv", test=name)


def test_a_link_to_the_data_set_is_no_test_file(load: Load, people_csv: Path) -> None:
    people_csv.with_name("b.csv").hardlink_to(people_csv)
    with pytest.raises(InputError, match=r"data.test: 'b.csv' is the data set itself"):
        load(people_csv, target="paid", test="b.csv")


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize(
    ("values", "wrong", "message"),
    [
        ([row % 3 for row in range(NUM_ROWS)], "inf", r"'y' has infinite values in 1 row: 2"),
        ([row % 3 for row in range(NUM_ROWS)], 1.5, r"the target 'y' has fractions in 1 row: 2"),
        ([row * 0.5 for row in range(NUM_ROWS)], "-inf", r"'y' has infinite values in 1 row: 2"),
        ([row * 0.5 for row in range(NUM_ROWS)], 1e35, r"'y' has values above 1e\+30 in 1 row: 2"),
    ],
)
def test_targets_of_a_file_of_its_own_are_checked(
    load: Load, load_test, tmp_path: Path, part: str, values: list[float], wrong: object, message: str
) -> None:
    x = [row * 0.37 for row in range(NUM_ROWS)]
    path = written(tmp_path / "t.csv", {"x": x, "y": values})
    written(tmp_path / "own.csv", {"x": [1, 2, 3], "y": [1, wrong, 2]})
    keys = {"target": "y", part: "own.csv"}
    with pytest.raises(DataError, match=f"own.csv: .*{message}"):
        load_test(path, stored=load(path, **keys).record, **keys)


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("shared", [7, "7"])
def test_a_group_in_two_files_is_refused(load: Load, load_test, tmp_path: Path, part: str, shared: object) -> None:
    """Though its column is of numbers in one file, and of text in another."""
    values = {"x": [row * 0.37 for row in range(NUM_ROWS)], "y": ["a", "b"] * (NUM_ROWS // 2)}
    path = written(tmp_path / "t.csv", {**values, "g": [row // 2 for row in range(NUM_ROWS)]})
    own = tmp_path / "own.csv"
    keys = {"target": "y", "group": "g", part: "own.csv"}
    written(own, {"x": [1, 2], "y": ["a", "b"], "g": ["new", shared]})
    with pytest.raises(DataError, match=r"own.csv: 1 of its values of 'g' \(data.group\) is in .*t.csv, too: '7'"):
        load_test(path, stored=load(path, **keys).record, **keys)
    written(own, {"x": [1, 2], "y": ["a", "b"], "g": ["new", "newer"]})
    assert len(load_test(path, stored=load(path, **keys).record, **keys)) >= 2


def test_too_many_categories_are_refused_with_the_column(
    load: Load, people_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.data.tables.fitting.MOST_CATEGORIES", 2)
    message = r"people.csv: text takes 3 inputs, more than 2: most are the 3 categories of column 'city'"
    with pytest.raises(DataError, match=message) as caught:
        load(people_csv, target="paid")
    assert 'data.exclude = ["city"]' in str(caught.value.hint)


def test_a_constant_target_is_named_in_spite_of_rounding(load: Load, tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", {"x": [row * 0.37 for row in range(1400)], "y": [0.1] * 1400})
    with pytest.raises(DataError, match=r"the target 'y' is 0.1 in every training row") as caught:
        load(path, target="y")
    assert "another target" in str(caught.value.hint)


@pytest.fixture
def datasets_folder() -> Callable[[str], Path]:
    import os

    folder = os.environ.get("HPSEARCH_DATASETS")
    if folder is None:
        pytest.skip("HPSEARCH_DATASETS is not set")
    return lambda name: Path(folder) / name


def test_titanic(load: Load, datasets_folder: Callable[[str], Path]) -> None:
    data = load(datasets_folder("titanic.csv"), target="Survived", group="Ticket")
    assert set(data.record["left_out"]) == {"PassengerId", "Name", "Cabin"}
    assert data.record["target"]["classes"] == [0, 1]
    assert data.record["split"]["train"] + data.record["split"]["validation"] + data.record["split"]["test"] == 891


def test_housing(load: Load, datasets_folder: Callable[[str], Path]) -> None:
    data = load(datasets_folder("housing.csv"), target="median_house_value")
    assert data.record["target"]["task"] == "regression"
    names = input_names(data.record)
    assert "total_bedrooms is missing" in names
    assert "ocean_proximity = other" in names  # ISLAND has five rows
    assert len(data.train) == 14744
