"""Folders of Hugging Face's `datasets`: what `save_to_disk` writes, and the Parquet files of the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

WHOLE: Final = "train"  # the part of files whose names say none
_PARTS: Final[Mapping[str, str]] = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # train_0, Train-00000-of-00002, testData


def is_saved_folder(folder: Path) -> bool:
    """Whether a folder has the form, by the names of its files."""
    markers = ("dataset_dict.json", "state.json")
    return any((folder / name).is_file() for name in markers) or bool(_shards(folder))


def find_parts(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files of the parts train, validation and test, as far as there are such parts. No file of rows is opened.

    Raises:
        DataError: a file is damaged or missing, there is no part for training, or it is not clear which part a file is.
    """
    if (folder / "dataset_dict.json").is_file():
        found = _one_each(folder, [name for name in _saved_splits(folder) if name.lower() in _PARTS])
        parts = {
            part: _test_files(folder / split) if part == "test" else _saved_files(folder / split)
            for part, split in found.items()
        }
    elif (folder / "state.json").is_file():
        parts = {WHOLE: _saved_files(folder)}
    else:
        parts = _hub_files(folder)
    if WHOLE not in parts:
        raise DataError(
            f"{folder}: no part {WHOLE!r}, only {', '.join(parts) or 'others'}", hint="save the data set with all parts"
        )
    return parts


def other_splits(folder: Path) -> tuple[str, ...]:
    """The names of saved parts that are neither for training, validation nor test, and are not read."""
    if not (folder / "dataset_dict.json").is_file():
        return ()
    return tuple(name for name in _saved_splits(folder) if name.lower() not in _PARTS)


def refuse_second_part(folder: Path, parts: Mapping[str, Any], settings: DataSettings) -> None:
    """Raise InputError if data.validation or data.test asks for a part that the folder has already.

    `test = 0` leaves the folder's test part out.
    """
    for part in ("validation", "test"):
        value = getattr(settings, part)
        if part in parts and value is not None and not (part == "test" and value == 0):
            hint = "leave the key out" + (", or set it to 0 for no test part" if part == "test" else "")
            raise InputError(f"data.{part}: {folder.name} has a {part} part of its own", hint=hint)
        if isinstance(getattr(settings, part), str):
            raise InputError(
                f"data.{part}: expected a fraction or a number of rows, got {getattr(settings, part)!r}",
                hint=f"files are for single tables; name a part of a folder {part}-00000-of-00001.parquet",
            )


def _saved_files(folder: Path) -> tuple[Path, ...]:
    entries = _json(folder / "state.json").get("_data_files", [])
    files = tuple(folder / str(entry["filename"]) for entry in entries)
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None or not files:
        raise DataError(f"{missing or folder}: the file of rows is missing", hint="save the data set again")
    return files


def _test_files(folder: Path) -> tuple[Path, ...]:
    """As `_saved_files`, by names alone: nothing in the folder of a test part is opened for selection."""
    files = tuple(sorted([*folder.glob("data-*.arrow"), *folder.glob("dataset.arrow")]))
    if not files:
        raise DataError(f"{folder}: the file of rows is missing", hint="save the data set again")
    return files


def _saved_splits(folder: Path) -> tuple[str, ...]:
    return tuple(map(str, _json(folder / "dataset_dict.json").get("splits", [])))


def _one_each(folder: Path, names: Collection[str]) -> dict[str, str]:
    """The name of each part. Raises DataError if two names, such as val and dev, stand for the same part."""
    found: dict[str, str] = {}
    for name in names:
        part = _PARTS[name.lower()]
        if part in found:
            raise DataError(
                f"{folder}: {found[part]!r} and {name!r} both name the {part} part", hint="leave one of them out"
            )
        found[part] = name
    return found


def _hub_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The part of each file is a word of its name.

    Raises:
        DataError: only some names have such a word, or a name has two: a test file must not be taken for another.
    """
    shards = _shards(folder)
    words = {path: sorted({word.lower() for word in _WORD.findall(path.stem)} & set(_PARTS)) for path in shards}
    hint = "name each file after its part, such as train-00000-of-00001.parquet, or move the other files away"
    if not any(words.values()):
        return {WHOLE: shards}
    for path, found in words.items():
        if not found:
            named = next(path.name for path, found in words.items() if found)
            raise DataError(f"{path}: its name says no part (train, validation, test), that of {named} does", hint=hint)
        if len(found) > 1:
            raise DataError(f"{path}: its name says two parts: {', '.join(found)}", hint=hint)
    parts = _one_each(folder, sorted({found[0] for found in words.values()}))
    return {part: tuple(path for path in shards if words[path] == [word]) for part, word in parts.items()}


def _shards(folder: Path) -> tuple[Path, ...]:
    """The Parquet files of the folder, or of `data` in it. Raises DataError if both have some."""
    found = [
        tuple(sorted(path for path in place.glob("*.parquet") if not path.name.startswith(".")))
        for place in (folder, folder / "data")
    ]
    if all(found):
        raise DataError(
            f"{folder}: Parquet files beside the folder data, and in it", hint="move all of them to one place"
        )
    return found[0] or found[1]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_text())
        if not isinstance(document, dict):
            raise ValueError("expected an object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}", hint="save the data set again") from error
    return document
