"""Load the parts of a table: fitted once on training rows for a new study, applied from its record ever after.

What is looked at: parsing, the drawing of the split and the check for infinite numbers read all rows of the files that
they need. The choice of columns, medians, means, categories and classes come from training rows alone. Files of a test
part of their own are never opened here, and rows of the test part are in no prepared array.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from hpsearch.data.images.image_decoding import decoder_versions
from hpsearch.data.prepared import Prepared, checksum_of, open_prepared, source_key
from hpsearch.data.split_rows import Rows, SplitRows, draw_split
from hpsearch.data.splits import SelectionData, Split, limit_train_samples
from hpsearch.data.tables import image_column
from hpsearch.data.tables.arrow_table import ArrowTable, Stored
from hpsearch.data.tables.columns import CategoryColumn, Column, refuse_infinite
from hpsearch.data.tables.features import check_named, choose_features
from hpsearch.data.tables.fitting import fit_preparation
from hpsearch.data.tables.groups import group_column, refuse_shared_groups, units_of
from hpsearch.data.tables.preparation import Preparation
from hpsearch.data.tables.source import TableParts
from hpsearch.data.tables.target import Target, choose_task, class_codes, find_target, fit_target
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

GROUPS: Final = "groups"  # in the record: the column, and the number of validation rows of each group
_BLOCK_ROWS: Final = 2**14
# Keys of [data] that change nothing in the prepared arrays.
_WITHOUT_EFFECT: Final = frozenset({"dataset", "train_samples", "max_resident_bytes"})

Record = Mapping[str, Any]


def load_table(parts: TableParts, settings: DataSettings, *, cache: Path, stored: Record | None) -> SelectionData:
    """Load training and validation rows, from the cache if they were prepared before.

    Args:
        stored: as in `DataRequest`.
    Raises:
        InputError: a key of [data] does not fit the table.
        DataError: a file is missing or broken, or is not the one that the study was created with; a new study has
            a single group in validation.
    """
    options = settings.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT))
    key = {
        **source_key([*parts.main, *parts.validation], options),
        "test": [parts.name_of(path) for path in parts.test],
    }
    record = stored
    if record is None:
        fit_key = {**key, "step": "fit", "decoder": decoder_versions()}
        if settings.group is not None:
            fit_key["units"] = 1  # a record from before there were units of tests is made anew
        record = open_prepared(cache, fit_key, lambda _: _fit(parts, settings, cache, key)).record
        _refuse_one_group(record, parts.name)
    prepared = _arrays(cache, key, record, lambda: _Reading.again(parts, settings, record))
    target = Target.from_json(record["target"])
    num_train = limit_train_samples(len(prepared.arrays["train_labels"]), settings.train_samples)
    return SelectionData(
        name=parts.name,
        train=_split(prepared, "train", num_train),
        validation=replace(
            _split(prepared, "validation", len(prepared.arrays["validation_labels"])),
            groups=prepared.arrays.get("validation_groups"),
        ),
        example_shape=_example_shape(record),
        num_classes=len(target.classes),
        checksums={**record["files"], **_identity(record, options), **_named(prepared.checksums)},
        class_names=target.class_names,
        record={**record, **image_column.decoder_of(record["preparation"])},
    )


def read_table_test(parts: TableParts, settings: DataSettings, stored: Record | None) -> tuple[Split, dict[str, str]]:
    """Read the test rows, and apply the study's preparation to them.

    Returns:
        The rows, and the checksums of the test files, or of the prepared test rows if they come from the same file.
    Raises:
        DataError: there is no test part; it has other columns, kinds of values or classes than training; or a group of
            its own files is in the other files, too.
    """
    record = stored
    if record is None:
        raise DataError("the study has no record of how its data was prepared", hint="create the study again")
    reading = _Reading.again(parts, settings, record, is_test=bool(parts.test))
    rows = np.arange(reading.table.num_rows) if parts.test else reading.split_rows(record).test
    if not len(rows):
        raise DataError(f"{parts.name}: the study has no test rows (data.test = 0)", hint="there is nothing to test on")
    if parts.test and settings.group is not None:
        names = ("main", "validation") if parts.validation else ("main",)
        others = (_Reading.again(parts, settings, record, part=name).table for name in names)
        refuse_shared_groups(settings.group, reading.table, others)
    labels = reading.labels(Target.from_json(record["target"]), rows)
    inputs = reading.inputs(record, rows)
    groups = units_of(reading.table, settings.group, rows) if GROUPS in record and settings.group else None
    own = {"test rows": checksum_of(inputs), "test labels": checksum_of(labels)}
    checksums = parts.sha256(parts.test) if parts.test else own
    return Split(images=inputs, labels=labels, groups=groups), checksums


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The rows of one part's files, read for one purpose."""

    parts: TableParts
    settings: DataSettings
    table: ArrowTable
    target: str

    @classmethod
    def first(cls, parts: TableParts, settings: DataSettings) -> _Reading:
        table = parts.read(parts.main, settings, None)
        return cls(parts=parts, settings=settings, table=table, target=find_target(table, settings))

    @classmethod
    def again(
        cls, parts: TableParts, settings: DataSettings, record: Record, *, is_test: bool = False, part: str = "main"
    ) -> _Reading:
        """Read for a preparation that is known: the columns must be there, each in its kind."""
        paths = parts.test if is_test else getattr(parts, part)
        if not is_test:
            _refuse_other_files(parts, paths, record)
        target = Target.from_json(record["target"])
        kinds = {target.name: target.kind}
        if "features" in record["preparation"]:
            kinds |= Preparation.from_json(record["preparation"]).kinds
        table = parts.read(paths, settings, kinds)
        needed = [*kinds, *([record["preparation"]["image"]] if "image" in record["preparation"] else [])]
        table.require(needed, "the study", DataError)
        return cls(parts=parts, settings=settings, table=table, target=target.name)

    @cached_property
    def target_column(self) -> Column:
        return self.table.column(self.target)

    def split_rows(self, record: Record | None) -> SplitRows:
        """Draw the split of the main files.

        Raises:
            DataError: it is not the one on record.
        """
        parts, settings, column = self.parts, self.settings, self.target_column
        task = choose_task(column, self.target, settings, self.table.source)
        rows = draw_split(
            self.table.num_rows,
            validation=0 if parts.validation else _share(settings.validation),
            test=0 if parts.test else _share(settings.test),
            seed=settings.split_seed,
            source=self.table.source,
            classes=class_codes(column) if task == "classification" else None,
            groups=self._groups(),
        )
        if record is not None and rows.sha256 != record["split"]["sha256"]:
            raise DataError(
                f"{self.table.source}: the split cannot be drawn again: its checksum is {rows.sha256}, on record is "
                f"{record['split']['sha256']}",
                hint="use the versions of numpy, pyarrow and hpsearch that created the study",
            )
        return rows

    def labels(self, target: Target, rows: Rows | None = None) -> NDArray[Any]:
        column = self.table.column(self.target, target.kind)
        return target.labels(column if rows is None else column.rows(rows), self.table.source)

    def inputs(self, record: Record, rows: Rows, write: Callable[..., NDArray[Any]] = np.empty) -> NDArray[Any]:
        """The inputs of some rows: [N, inputs] float32, or [N, pixels] uint8 for images.

        Args:
            write: makes the array, from shape and type.
        """
        preparation = record["preparation"]
        if "image" in preparation:
            pixels, _ = image_column.decode_column(
                self.table.table.column(preparation["image"]),
                rows,
                name=preparation["image"],
                source=self.table.source,
                size=self.settings.image_size,
                shape=tuple(preparation["shape"]),
                allocate=lambda shape: write(shape, np.uint8),
            )
            return pixels
        known = Preparation.from_json(preparation)
        columns = {name: self.table.column(name, kind) for name, kind in known.kinds.items()}
        inputs = write((len(rows), len(known.inputs)), np.float32)
        for name, column in columns.items():
            if not isinstance(column, CategoryColumn):
                refuse_infinite(column.rows(rows), name, self.table.source)
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            inputs[start : start + _BLOCK_ROWS] = known.apply(
                {name: column.rows(block) for name, column in columns.items()}
            )
        return inputs

    def _groups(self) -> NDArray[Any] | None:
        if self.settings.group is None:
            return None
        column = group_column(self.table, self.settings.group)
        groups: NDArray[Any] = column.codes if isinstance(column, CategoryColumn) else column.values
        return groups


def _fit(parts: TableParts, settings: DataSettings, cache: Path, key: Mapping[str, Any]) -> Record:
    """Learn everything that is on record, and prepare the arrays while the rows are in memory."""
    files = parts.sha256((*parts.main, *parts.validation))
    reading = _Reading.first(parts, settings)
    table, column = reading.table, reading.target_column
    task = choose_task(column, reading.target, settings, table.source)
    rows = reading.split_rows(None)
    is_train = np.zeros(table.num_rows, dtype=bool)
    is_train[rows.train] = True
    target = fit_target(
        reading.target, task, column.rows(rows.train), column.rows(np.flatnonzero(~is_train)), table.source
    )
    preparation, left_out = _fit_inputs(reading, rows)
    record: dict[str, Any] = {
        "form": "table",
        "files": files,
        "target": target.as_json(),
        "preparation": preparation,
        "split": rows.as_json(),
        "has_test": bool(parts.test) or len(rows.test) > 0,
        "left_out": left_out,
        "lines": [*parts.lines, *_lines(target, settings, left_out)],
        **image_column.decoder_of(preparation),
    }
    if settings.group is not None:
        of_validation, validation = _validation_rows(reading, record, rows)
        sizes = np.bincount(units_of(of_validation.table, settings.group, validation))
        record[GROUPS] = {"column": settings.group, "validation": sizes.tolist()}
        record["lines"].append(
            f"tests take the {len(sizes):,} values of {settings.group!r} in validation as independent, not its "
            f"{sizes.sum():,} rows"
        )
    _arrays(cache, key, record, lambda: reading)
    return record


def _refuse_one_group(record: Record, name: str) -> None:
    """Raise DataError if validation has a single group, from which nothing can be said about others."""
    if GROUPS in record and len(record[GROUPS]["validation"]) < 2:
        raise DataError(
            f"{name}: all {sum(record[GROUPS]['validation']):,} validation rows have the same value of "
            f"{record[GROUPS]['column']!r} (data.group), but groups are the units of tests: at least 2 are needed",
            hint="make validation larger (data.validation), choose a column with more values, or leave data.group out",
        )


def _validation_rows(reading: _Reading, record: Record, rows: SplitRows) -> tuple[_Reading, Rows]:
    """Where the validation rows are, and which they are.

    Raises:
        DataError: they have a file of their own, and a group of it is in the main files, too.
    """
    if not reading.parts.validation:
        return reading, rows.validation
    of_validation = _Reading.again(reading.parts, reading.settings, record, part="validation")
    if reading.settings.group is not None:
        refuse_shared_groups(reading.settings.group, of_validation.table, [reading.table])
    return of_validation, np.arange(of_validation.table.num_rows)


def _fit_inputs(reading: _Reading, rows: SplitRows) -> tuple[dict[str, Any], dict[str, str]]:
    """`record["preparation"]`, and why columns are left out."""
    table, settings = reading.table, reading.settings
    images = [name for name in table.names if table.stored(name) is Stored.IMAGE]
    wanted = [name for name in images if name in (settings.features or images) and name not in (settings.exclude or ())]
    if len(wanted) == 1:
        check_named(table, settings, reading.target)
        beside = [name for name in settings.features or () if name != wanted[0]]
        if beside:
            raise InputError(
                f"data.features names the images {wanted[0]!r} and {beside[0]!r}",
                hint="the inputs are images or columns of numbers and text, not both",
            )
        _, shape = image_column.decode_column(
            table.table.column(wanted[0]),
            rows.train[:100],
            name=wanted[0],
            source=table.source,
            size=settings.image_size,
        )
        others = [name for name in table.names if name not in (wanted[0], reading.target)]
        return {"image": wanted[0], "shape": list(shape)}, dict.fromkeys(others, "the images are the inputs")
    if settings.image_size is not None:
        raise InputError(
            f"data.image_size has no effect on {reading.parts.name}: its inputs are no images",
            hint="leave it out: it is for a table with a column of images (Parquet, Feather or Arrow)",
        )
    chosen = choose_features(table, settings, target=reading.target, train_rows=rows.train)
    train = {name: column.rows(rows.train) for name, column in chosen.columns.items()}
    return fit_preparation(train, table.source).as_json(), chosen.left_out


def _arrays(cache: Path, key: Mapping[str, Any], record: Record, read: Callable[[], _Reading]) -> Prepared:
    """The prepared arrays of training and validation rows for this record."""

    def build(folder: Path) -> Record:
        reading = read()
        target = Target.from_json(record["target"])
        rows = reading.split_rows(record)
        _write(folder, "train", reading, record, target, rows.train)
        of_validation, validation = _validation_rows(reading, record, rows)
        _write(folder, "validation", of_validation, record, target, validation)
        if GROUPS in record and (group := reading.settings.group) is not None:
            np.save(folder / "validation_groups.npy", units_of(of_validation.table, group, validation))
        return {}

    decoder = image_column.decoder_of(record["preparation"])
    return open_prepared(cache, {**key, **decoder, "step": "apply", "record": _sha256_of(record)}, build)


def _write(folder: Path, part: str, reading: _Reading, record: Record, target: Target, rows: Rows) -> None:
    np.save(folder / f"{part}_labels.npy", reading.labels(target, rows))

    def write(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        array: NDArray[Any] = open_memmap(folder / f"{part}_inputs.npy", mode="w+", dtype=dtype, shape=shape)
        return array

    reading.inputs(record, rows, write)


def _split(prepared: Prepared, part: str, num_rows: int) -> Split:
    inputs, labels = (prepared.arrays[f"{part}_{kind}"][:num_rows] for kind in ("inputs", "labels"))
    return Split(images=inputs, labels=labels)


def _example_shape(record: Record) -> tuple[int, ...]:
    preparation = record["preparation"]
    if "image" in preparation:
        return tuple(preparation["shape"])
    return (len(Preparation.from_json(preparation).inputs),)


def _identity(record: Record, options: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of split and preparation. They cover the files, too: no other data set has the same ones."""
    files = record["files"]
    about = {"split": record["split"], "preparation": [options, record["target"], record["preparation"]]}
    return {name: _sha256_of({"files": files, name: what}) for name, what in about.items()}


def _named(checksums: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", " "): checksum for name, checksum in checksums.items()}


def _refuse_other_files(parts: TableParts, paths: tuple[Path, ...], record: Record) -> None:
    found = parts.sha256(paths)
    changed = [name for name, sha256 in found.items() if record["files"].get(name) != sha256]
    if changed:
        name = changed[0]
        raise DataError(
            f"{name} is not the file that the study was created with: SHA-256 {found[name]}, expected "
            f"{record['files'].get(name)}",
            hint="restore the file, or give the study another name to train on the new one",
        )


def _lines(target: Target, settings: DataSettings, left_out: Mapping[str, str]) -> list[str]:
    """What people are told about the choices that were made for them."""
    how = "" if settings.task else "; data.task would set it"
    what = f"{len(target.classes)} classes" if target.classes else f"mean {target.mean:.6g}"
    lines = [f"the task is {target.task} of {target.name!r} ({what}{how})"]
    return lines + [f"column {name!r} is left out: {reason}" for name, reason in left_out.items()]


def _share(value: float | int | str | None) -> float | int | None:
    assert not isinstance(value, str), "files of a part of its own are in the table's parts"
    return value


def _sha256_of(document: Any) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
