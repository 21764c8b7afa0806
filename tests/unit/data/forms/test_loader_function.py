"""A loader of one's own is called once for each part; the test part is asked for by the vault alone."""

from __future__ import annotations

import hashlib
import sys
import textwrap
import uuid
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.registry import with_absolute_dataset
from hpsearch.data.splits import SelectionData, is_of_examples
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings
from hpsearch.study.study_file import parse_definition

LOADERS = """
import numpy as np

asked_for = []

def part(seed, number, shape=(4, 5)):
    images = np.random.default_rng(seed).integers(0, 256, (number, *shape)).astype(np.uint8)
    return images, np.arange(number) // (number // 3)  # sorted by class

def images(name):
    asked_for.append(name)
    return {"train": part(1, 60), "validation": part(2, 12), "test": part(3, 9)}[name]

def no_validation(name):
    asked_for.append(name)
    return None if name == "validation" else images(name)

def no_test(name):
    return None if name == "test" else images(name)

def colour(name):
    return part(1, 60, (4, 5, 3))

def targets(name):
    asked_for.append(name)
    rows = np.random.default_rng(len(name)).normal(size=(40, 3))
    return rows, 100 + 10 * rows.sum(axis=1)

def whole_targets(name):
    x, y = targets(name)
    return x, np.rint(y)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with LOADERS in the working directory."""
    name = f"loaders_{uuid.uuid4().hex}"  # of its own: Python keeps modules
    (tmp_path / f"{name}.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def load(dataset: str, locations: DataLocations, **keys: object) -> SelectionData:
    return load_selection_data(DataSettings(dataset=dataset, **keys), locations=locations)


def load_test(dataset: str, locations: DataLocations, data: SelectionData) -> HeldOutSplit:
    return load_test_split(DataSettings(dataset=dataset), locations, lambda: True, data.record)


def rows_of(images: np.ndarray) -> list[bytes]:
    return sorted(row.tobytes() for row in images)


def test_both_parts_are_loaded_and_the_test_part_is_not_asked_for(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:images", locations)
    loaders = sys.modules[module]
    assert loaders.asked_for == ["train", "validation"]
    (x, y), (x_validation, y_validation) = loaders.part(1, 60), loaders.part(2, 12)
    assert data.train.images.dtype == data.validation.images.dtype == np.uint8  # levels, scaled on the device
    assert rows_of(data.train.images) == rows_of(x.reshape(60, 20))
    assert rows_of(data.validation.images) == rows_of(x_validation.reshape(12, 20))
    assert (data.name, data.example_shape, data.num_classes) == (f"{module}:images", (4, 5), 3)
    for part, images, labels in ((data.train, x, y), (data.validation, x_validation, y_validation)):
        pairs = {row.tobytes(): label for row, label in zip(images.reshape(-1, 20), labels, strict=True)}
        assert [pairs[row.tobytes()] for row in part.images] == part.labels.tolist()


def test_training_rows_are_in_a_random_order_that_the_split_seed_decides(module: str, locations: DataLocations) -> None:
    labels = {seed: load(f"{module}:images", locations, split_seed=seed).train.labels.tolist() for seed in (0, 1)}
    assert labels[0] != sorted(labels[0])
    assert labels[0] != labels[1]
    assert labels[0] == load(f"{module}:images", locations).train.labels.tolist()


def test_without_a_validation_part_it_is_drawn_from_training_by_class(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:no_validation", locations)
    counts = [np.bincount(part.labels) for part in (data.train, data.validation)]
    assert (counts[0] + counts[1]).tolist() == [20, 20, 20]
    assert sorted(counts[1].tolist()) == [3, 3, 4]
    x, _ = sys.modules[module].part(1, 60)
    both = np.concatenate([data.train.images, data.validation.images])
    assert rows_of(both) == rows_of(x.reshape(60, 20))
    assert len(load(f"{module}:no_validation", locations, validation=0.5).validation) == 30
    assert len(load(f"{module}:no_validation", locations, validation=6).validation) == 6
    other = load(f"{module}:no_validation", locations, split_seed=3)
    assert other.checksums["split"] != data.checksums["split"]


def test_colour_images_and_rows_of_numbers_keep_their_shape(module: str, locations: DataLocations) -> None:
    assert load(f"{module}:colour", locations).example_shape == (3, 4, 5)
    assert load(f"{module}:targets", locations).example_shape == (3,)


def test_train_samples_limits_training_alone(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:images", locations, train_samples=30)
    assert (len(data.train), len(data.validation)) == (30, 12)
    with pytest.raises(InputError, match=r"data\.train_samples must be in 1\.\.60"):
        load(f"{module}:images", locations, train_samples=61)


def test_floats_are_targets_standardised_by_the_training_rows(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:targets", locations)
    _, y = sys.modules[module].targets("train")
    assert (data.num_classes, data.num_outputs, data.train.labels.dtype) == (0, 1, np.float32)
    assert (data.train.labels.mean(), data.train.labels.std()) == pytest.approx((0, 1), abs=1e-5)
    target = data.record["target"]
    assert (target["mean"], target["deviation"]) == pytest.approx((y.mean(), y.std()), rel=1e-6)
    assert data.record["split"].items() >= {"train": 40, "validation": 40, "test": None}.items()
    held_out = load_test(f"{module}:targets", locations, data)
    _, y_test = sys.modules[module].targets("test")
    np.testing.assert_allclose(held_out.labels * y.std() + y.mean(), y_test, rtol=1e-5)
    without_record = load_test_split(DataSettings(dataset=f"{module}:targets"), locations, lambda: True)
    np.testing.assert_array_equal(without_record.labels, held_out.labels)


def test_the_task_may_be_set(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:images", locations, task="regression")
    assert (data.num_classes, data.train.labels.dtype) == (0, np.float32)
    with pytest.raises(InputError, match=r":targets: classes are whole numbers, but there are targets with fractions"):
        load(f"{module}:targets", locations, task="classification")
    with pytest.raises(DataError, match="the labels go up to"):  # whole floats are classes, if that is wanted
        load(f"{module}:whole_targets", locations, task="classification")


def test_the_vault_asks_for_the_test_part_alone(module: str, locations: DataLocations) -> None:
    data = load(f"{module}:images", locations)
    loaders = sys.modules[module]
    loaders.asked_for.clear()
    held_out = load_test(f"{module}:images", locations, data)
    assert loaders.asked_for == ["test"]
    x, y = loaders.part(3, 9)
    np.testing.assert_array_equal(held_out.images, x.reshape(9, 20))
    assert held_out.labels.tolist() == y.tolist()
    assert not set(data.checksums.values()) & {held_out.checksums["test images"], held_out.checksums["test labels"]}
    with pytest.raises(DataError, match='returned None for "test": there is no test part'):
        load_test(f"{module}:no_test", locations, data)


def test_the_identity_is_the_arrays_and_the_source_file(module: str, locations: DataLocations, tmp_path: Path) -> None:
    data = load(f"{module}:images", locations)
    names = [f"{part} {what}" for part in ("train", "validation") for what in ("images", "labels")]
    assert list(data.checksums) == [f"source {module}.py", *names]
    assert data.checksums[f"source {module}.py"] == hashlib.sha256(LOADERS.encode()).hexdigest()
    (tmp_path / f"{module}.py").write_text(LOADERS + "# edited\n")
    edited = load(f"{module}:images", locations).checksums
    assert [name for name in edited if edited[name] != data.checksums[name]] == [f"source {module}.py"]
    sys.modules[module].part = lambda seed, number: (np.full((number, 4, 5), seed, np.uint8), np.arange(number) % 3)
    other = load(f"{module}:images", locations).checksums
    assert [name for name in other if other[name] != edited[name]] == names


def test_two_loaders_of_one_file_share_no_mark_of_their_test_parts(module: str, locations: DataLocations) -> None:
    """Neither the source file nor a split of as many rows says that the examples are the same."""
    checksums = load(f"{module}:no_validation", locations).checksums
    assert [name for name in checksums if is_of_examples(name)] == ["train images"]
    marks = marks_of_test_files(DataSettings(dataset=f"{module}:no_validation"), checksums)
    assert marks == {f"trained-on:{checksums['train images']}"}


def test_the_name_of_a_loader_is_stored_as_it_is(module: str) -> None:
    Path(f"{module}:images").mkdir()
    document = {"name": "a", "data": {"dataset": f"{module}:images"}, "search": {"learning_rate": [0.1]}}
    given = parse_definition(document, source="study.toml")
    assert with_absolute_dataset(given) == given


def test_a_validation_part_of_its_own_leaves_no_choice(module: str, locations: DataLocations) -> None:
    with pytest.raises(InputError, match=r"data\.validation has no effect: .*:images has a validation part of its own"):
        load(f"{module}:images", locations, validation=0.2)
    with pytest.raises(InputError, match=r"data\.validation must be a fraction or a number"):
        load(f"{module}:no_validation", locations, validation="validation.csv")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("return None", InputError, 'for "train" the function returned None, expected a pair'),
        ("return 1, 2, 3", InputError, 'for "train" the function returned tuple, expected a pair'),
        ("return 'ab'", InputError, 'for "train" the function returned str, expected a pair'),
        ("raise KeyError(part)", InputError, r'f\("train"\) failed: KeyError: \'train\' \(wrong_\w+\.py:4\)'),
        ("import sys; sys.exit(0)", InputError, r'f\("train"\) failed: ForeignExit: it called sys.exit\(0\)'),
        ("return np.zeros((3, 4)), [0, 1]", DataError, "f, x_train has 3 examples, but y_train has 2 targets"),
        ("return np.zeros((9, 4)), np.arange(9) - 1", DataError, r"expected labels in 0\.\."),
        ("return np.zeros((9, 4)), np.zeros(9, int)", DataError, "nothing to classify|all images have class 0"),
        ("return np.zeros((9, 4)), np.full(9, 2.5)", DataError, r"all targets of training are 2\.5"),
        (
            "return np.zeros((9, 4 if part == 'train' else 5)), np.arange(9) % 3",
            DataError,
            "x_train has 4 features of float32, x_validation 5 features",
        ),
        (
            "return np.zeros((9, 4)), np.arange(9) % 3 * (1 if part == 'train' else 1.0)",
            DataError,
            "y_validation is float32, y_train int64",
        ),
    ],
)
def test_what_a_loader_does_wrong_is_one_line(
    tmp_path: Path, module: str, locations: DataLocations, body: str, kind: type[Exception], message: str
) -> None:
    name = f"wrong_{uuid.uuid4().hex}"
    text = f"import numpy as np\n\ndef f(part):\n{textwrap.indent(body, '    ')}\n"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(kind, match=message) as caught:
        load(f"{name}:f", locations)
    assert f"{name}:f" in str(caught.value)
    assert "\n" not in str(caught.value).partition("\nhint:")[0]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("no_such_module_here:f", r"data\.dataset no_such_module_here:f: there is no module 'no_such_module_here'"),
        ("MODULE:imagse", r"data\.dataset \w+:imagse: \w+ has no function or class 'imagse'"),
    ],
)
def test_a_function_that_is_not_there_is_named(
    module: str, locations: DataLocations, dataset: str, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load(dataset.replace("MODULE", module), locations)
    assert caught.value.hint is not None


def test_a_loader_changes_nothing_of_this_process(tmp_path: Path, module: str, locations: DataLocations) -> None:
    name = f"rude_{uuid.uuid4().hex}"
    text = "import numpy as np, os, sys, torch\ndef f(part):\n    sys.argv[:] = ['x']; os.chdir('/')\n"
    text += "    torch.set_default_dtype(torch.float64); return np.eye(9), np.arange(9) % 3\n"
    (tmp_path / f"{name}.py").write_text(text)
    before = [*sys.argv]
    load(f"{name}:f", locations)
    assert (sys.argv, Path.cwd()) == (before, tmp_path)
    assert sys.modules["torch"].get_default_dtype() == sys.modules["torch"].float32
