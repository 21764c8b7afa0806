"""Which image files a folder has, by part and class. No file is opened, and a folder of test images is not listed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import MAX_CLASSES
from hpsearch.errors import DataError, InputError

ENDINGS: Final = (".png", ".jpg", ".jpeg")
TRAIN, TEST = "train", "test"
VALIDATION: Final = ("val", "valid", "validation")
_PARTS: Final = frozenset({TRAIN, TEST, *VALIDATION})
_NUM_NAMED = 5
LAYOUTS: Final = "train/CLASS/*.png and test/CLASS/*.png, or CLASS/*.png"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ListedImages:
    """Image files of one part, sorted by class and name.

    Args:
        paths: of the files.
        names: PART/CLASS/FILE, where PART is "train" for files without a part; the same on every machine.
        labels: [N] int64, places in the list of classes.
    """

    paths: Sequence[Path] = field(repr=False)
    names: Sequence[str] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, rows: NDArray[np.int64]) -> ListedImages:
        """Some of the files, in this order."""
        return ListedImages(
            paths=[self.paths[row] for row in rows],
            names=[self.names[row] for row in rows],
            labels=self.labels[rows],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageListing:
    """What a folder of images has.

    Args:
        root: the data set's folder.
        class_names: sorted.
        source: the files of `train/`, or of all class folders.
        validation: the files of the validation folder; None: there is none.
        validation_folder: its path; None: there is none.
        test_folder: the folder of test images, not listed; None: there is none.
        skipped: number of skipped files by ending, and of folders in class folders under "folders".
    """

    root: Path
    class_names: tuple[str, ...]
    source: ListedImages
    validation: ListedImages | None
    validation_folder: Path | None
    test_folder: Path | None
    skipped: dict[str, int]


def has_image_layout(root: Path) -> bool:
    """Whether a folder looks like a folder of images; its test folder is not listed.

    Raises:
        OSError: it cannot be listed.
    """
    folders = _visible_folders(root)
    if TRAIN in folders:
        return any(_has_image(root / TRAIN / name) for name in _visible_folders(root / TRAIN))
    return any(_has_image(root / name) for name in folders if name != TEST)


def list_images(root: Path, *, validation: Path | None = None, test: Path | None = None) -> ImageListing:
    """List the training and validation files.

    Args:
        validation, test: folders that the study file names; None: `val/`, `valid/`, `validation/` and `test/`, if they
            are there.
    Raises:
        InputError: a key names a folder, and the data set has one of its own; or a part's images would be used twice.
        DataError: no layout of ours, too few or too many classes, classes without images, or a folder that cannot be
            listed.
    """
    try:
        return _list_images(root, validation, test)
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error


def require_class_folders(folder: Path, class_names: Sequence[str]) -> None:
    """Raise DataError if a folder of test images has no class, which is known without listing it."""
    if not any((folder / name).is_dir() for name in class_names):
        raise DataError(
            f"{folder}: no folder of a class in it, expected one of {named(f'{name}/' for name in class_names)}",
            hint=f"expected {LAYOUTS}",
        )


def list_test_images(folder: Path, class_names: Sequence[str]) -> ListedImages:
    """List a folder of test images. Only the reader of the test part calls this.

    Raises:
        DataError: it has a class that training has not, or no image.
    """
    try:
        found = _classes_in(folder, (), Counter())
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read: {error.strerror}", hint="check the path and its permissions"
        ) from error
    return _of_known_classes(folder, found, class_names, TEST)


def named(items: Iterable[object]) -> str:
    """The first five, and how many more there are."""
    items = list(items)
    shown = ", ".join(map(str, items[:_NUM_NAMED]))
    return shown + (f" and {len(items) - _NUM_NAMED:,} more" if len(items) > _NUM_NAMED else "")


def _list_images(root: Path, validation: Path | None, test: Path | None) -> ImageListing:
    folders = _visible_folders(root)
    own_validation = [name for name in VALIDATION if name in folders]
    is_by_part = TRAIN in folders
    if len(own_validation) > 1:
        raise DataError(f"{root}: validation images in {' and in '.join(own_validation)}", hint="keep one of them")
    _refuse_two("validation", validation, own_validation)
    _refuse_two("test", test, [TEST] if TEST in folders else [])
    apart = {path.resolve() for path in (validation, test) if path is not None}  # a class folder is none of these
    classes = [name for name in folders if name not in _PARTS and (root / name).resolve() not in apart]
    if is_by_part:
        _refuse_mixture(root, classes)
    elif parts := sorted(_PARTS & set(folders)):
        raise DataError(
            f"{root}: has {named(f'{name}/' for name in parts)}, but no train/",
            hint=f"expected {LAYOUTS}; rename a class of that name",
        )
    skipped: Counter[str] = Counter()
    base = root / TRAIN if is_by_part else root
    found = _classes_in(base, apart, skipped, classes=None if is_by_part else classes)
    class_names = tuple(sorted(found))
    _check_classes(base, found)
    source = _listed(base, found, class_names, TRAIN)
    validation_folder = root / own_validation[0] if own_validation else validation
    test_folder = root / TEST if TEST in folders else test
    used = {path.resolve(): path for path in ([base] if is_by_part else []) + [base / name for name in class_names]}
    for part, folder in (("validation", validation_folder), ("test", test_folder)):
        if folder is not None:
            _check_part(part, folder, class_names, used)
            used |= {path.resolve(): path for path in (folder, *(folder / name for name in class_names))}
    listed = None
    if validation_folder is not None:
        in_validation = _classes_in(validation_folder, apart - {validation_folder.resolve()}, skipped)
        listed = _of_known_classes(validation_folder, in_validation, class_names, "validation")
    return ImageListing(
        root=root,
        class_names=class_names,
        source=source,
        validation=listed,
        validation_folder=validation_folder,
        test_folder=test_folder,
        skipped=dict(sorted(skipped.items())),
    )


def _visible_folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _has_image(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) for entry in entries)


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS) and not name.startswith(".")


def _classes_in(
    folder: Path, apart: Collection[Path], skipped: Counter[str], classes: Iterable[str] | None = None
) -> dict[str, list[str]]:
    """Class -> sorted names of its image files."""
    if classes is None:
        classes = [name for name in _visible_folders(folder) if (folder / name).resolve() not in apart]
    found = {}
    for name in classes:
        files = []
        with os.scandir(folder / name) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    skipped["folders"] += 1
                elif _is_image(entry.name):
                    files.append(entry.name)
                else:
                    skipped[Path(entry.name).suffix.lower() or "no ending"] += 1
        found[name] = sorted(files)
    return found


def _refuse_two(part: str, folder: Path | None, own: Sequence[str]) -> None:
    if folder is not None and own:
        raise InputError(
            f"data.{part} has no effect: the data set has a folder {own[0]}/ of its own",
            hint=f"leave it out, or rename {own[0]}/",
        )


def _check_part(part: str, folder: Path, class_names: Sequence[str], used: dict[Path, Path]) -> None:
    """Refuse a folder that is not there, or with images that another part uses. It is not listed.

    Args:
        used: the folders of the other parts, by their resolved path.
    """
    if not folder.is_dir():
        raise DataError(f"data.{part}: no folder {str(folder)!r}", hint="expected folders of classes")
    above_used = {above: path for resolved, path in used.items() for above in resolved.parents}
    for own in (folder, *(folder / name for name in class_names)):
        resolved = own.resolve()
        places = [
            known[place]
            for known, places in ((used, (resolved, *resolved.parents)), (above_used, (resolved,)))
            for place in places
            if place in known
        ]
        if places:
            raise InputError(
                f"data.{part}: {own} is, contains or lies in {places[0]}, whose images are used for another part",
                hint=f"give the part a folder of its own, or leave data.{part} out to draw it",
            )


def _refuse_mixture(root: Path, others: Iterable[str]) -> None:
    beside = [f"{name}/" for name in others if _has_image(root / name)]
    if beside:
        raise DataError(f"{root}: images in {named(beside)} beside train/", hint=f"choose one layout: {LAYOUTS}")


def _check_classes(folder: Path, found: dict[str, list[str]]) -> None:
    if empty := [name for name in sorted(found) if not found[name]]:
        raise DataError(
            f"{folder}: no image in {named(f'{name}/' for name in empty)}",
            hint=f"images end in {', '.join(ENDINGS)} and stand directly in the folder of their class",
        )
    if len(found) < 2:
        raise DataError(
            f"{folder}: {len(found)} class folder{'' if len(found) == 1 else 's'}, expected at least two",
            hint=f"the folders are the classes: {LAYOUTS}",
        )
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"{folder}: {len(found):,} class folders, expected at most {MAX_CLASSES:,}",
            hint="each folder is a class: are these folders something else?",
        )


def _of_known_classes(folder: Path, found: dict[str, list[str]], class_names: Sequence[str], part: str) -> ListedImages:
    if unknown := sorted(set(found) - set(class_names)):
        raise DataError(
            f"{folder}: {part} images of {named(unknown)}, which training has not",
            hint=f"training has {named(class_names)}",
        )
    if not any(found.values()):
        raise DataError(f"{folder}: no {part} image", hint=f"expected class folders with images ({LAYOUTS})")
    return _listed(folder, found, class_names, part)


def _listed(folder: Path, found: dict[str, list[str]], class_names: Sequence[str], part: str) -> ListedImages:
    pairs = [(name, file) for name in class_names for file in found.get(name, ())]
    counts = [len(found.get(name, ())) for name in class_names]
    return ListedImages(
        paths=[folder / name / file for name, file in pairs],
        names=[f"{part}/{name}/{file}" for name, file in pairs],
        labels=np.repeat(np.arange(len(class_names), dtype=np.int64), counts),
    )
