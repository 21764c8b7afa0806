"""A folder of PNG and JPEG images, one folder per class: train/CLASS and test/CLASS, or CLASS alone.

Training and validation images are decoded once, into arrays in the cache (`prepared`). A test folder is not even
listed before the vault opens it. Without one, test rows are drawn from the list of file names, and their files are
opened by the vault alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.cgroups import usable_processors
from hpsearch.data.example_shape import shape_text
from hpsearch.data.files.path_marks import folder_marks
from hpsearch.data.forms.form import SPLIT_KEYS, DataForm, DataRequest, OpeningPermit
from hpsearch.data.images.decoding_pool import decode_images
from hpsearch.data.images.image_array import ImageArray
from hpsearch.data.images.image_decoding import decoder_versions
from hpsearch.data.images.image_listing import (
    TEST,
    ImageListing,
    ListedImages,
    has_image_layout,
    list_images,
    list_test_images,
    require_class_folders,
)
from hpsearch.data.prepared import Prepared, checksum_of, open_prepared, source_key
from hpsearch.data.split_rows import draw_split
from hpsearch.data.splits import SelectionData, Split, limit_train_samples
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings
from hpsearch.wording import counted

REPORT_EVERY: Final = 100  # images
_PARTS: Final = ("train", "validation")
_logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class ImageFolder(DataForm):
    """A folder of images by class. docs/data-images.md describes it."""

    path_description = "a folder of images by class"
    looked_for = "folders of PNG or JPEG images, one per class (train/CLASS and test/CLASS, or CLASS)"
    keys: ClassVar[frozenset[str]] = SPLIT_KEYS | {"image_size"}

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.is_dir() and has_image_layout(path) else None

    def load_selection(self, request: DataRequest) -> SelectionData:
        """Load the training and validation images, [N, inputs] uint8, mapped from the cache.

        Raises:
            InputError: a key does not fit the folder, or `train_samples` exceeds the number of training images.
            DataError: the folder is not laid out as expected, or images cannot be used; the message names them.
        """
        chosen = self._choose(request.settings)
        prepared = self._prepare(chosen, request)
        record = prepared.record
        num_train = limit_train_samples(len(chosen.train), request.settings.train_samples)
        return SelectionData(
            name=self.path.resolve().name,
            train=Split(images=prepared.arrays["train"][:num_train], labels=chosen.train.labels[:num_train]),
            validation=Split(images=prepared.arrays["validation"], labels=chosen.validation.labels),
            example_shape=tuple(record["shape"]),
            num_classes=len(chosen.listing.class_names),
            checksums={
                "files": record["sha256"],
                "split": chosen.sha256,
                **chosen.listing_checksum(),
                **{f"{part} images": prepared.checksums[part] for part in _PARTS},
            },
            class_names=chosen.listing.class_names,
            record=self._record(chosen, record, request.settings),
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        """Decode the test images: those of the test folder, or the files that the stored split names.

        Raises:
            InputError: the data has no test part.
            DataError: as `load_selection`; or the files are not those of the stored split.
        """
        settings, stored = request.settings, request.stored
        chosen = self._choose(settings)
        if stored is not None and stored["split"]["sha256"] != chosen.sha256:
            raise DataError(
                f"{self.path}: the files are not those that the study has split",
                hint="restore the folder to what it was when the study was created",
            )
        if chosen.test is not None:
            files = chosen.test
        elif chosen.listing.test_folder is not None and settings.test != 0:
            files = list_test_images(chosen.listing.test_folder, chosen.listing.class_names)
        else:
            raise InputError(
                f"{self.path}: data.test is 0: there is no test part",
                hint="a study with a test part needs another name",
            )
        shape = tuple(stored["images"]["shape"]) if stored else self.load_selection(request).example_shape
        array = ImageArray(lambda _, size: np.empty(size, np.uint8), {TEST: len(files)}, is_colour=len(shape) == 3)
        self._decode(array, files, request)
        if array.shape != shape:
            raise DataError(
                f"{self.path}: the test images are {shape_text(array.shape)}, those of training and validation "
                f"{shape_text(shape)}",
                hint="give the test folder images of the same kind",
            )
        pixels = array.arrays[TEST]
        checksums = {"test files": array.content_sha256(files.names, {}), "test images": checksum_of(pixels)}
        return Split(images=pixels, labels=files.labels), checksums

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        named = self._named_folders(settings).get("test")
        if named is not None:
            return folder_marks(named)
        folder = self.path / TEST
        return folder_marks(folder) if folder.is_dir() else set()

    def _choose(self, settings: DataSettings) -> _Chosen:
        listing = list_images(self.path, **self._named_folders(settings))
        if listing.test_folder is not None and settings.test != 0:
            require_class_folders(listing.test_folder, listing.class_names)
        return _Chosen.of(listing, settings)

    def _named_folders(self, settings: DataSettings) -> dict[str, Path]:
        """The folders of validation and test images that the study file names."""
        return {
            key: self.path / Path(value).expanduser()
            for key, value in (("validation", settings.validation), ("test", settings.test))
            if isinstance(value, str)
        }

    def _prepare(self, chosen: _Chosen, request: DataRequest) -> Prepared:
        parts = {"train": chosen.train, "validation": chosen.validation}
        paths = [path for part in parts.values() for path in part.paths]
        names = [name for part in parts.values() for name in part.names]
        files = ListedImages(paths=paths, names=names, labels=np.concatenate([part.labels for part in parts.values()]))
        size = request.settings.image_size
        options = {
            "form": "image folder",
            "split": chosen.sha256,
            "image_size": size,
            "decoder": decoder_versions(),
        }

        def build(folder: Path) -> Mapping[str, Any]:
            def allocate(part: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
                path = folder / f"{part}.npy"
                path.unlink(missing_ok=True)  # the array before, which is still read, keeps its own memory
                return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)

            array = ImageArray(allocate, {part: len(listed) for part, listed in parts.items()})
            self._decode(array, files, request)
            _tell(self.path, chosen.listing, array.counts)
            for part in array.arrays.values():
                part.flush()  # type: ignore[attr-defined]
            return {
                "shape": array.shape,
                "counts": array.counts,
                "decoder": options["decoder"],
                "sha256": array.content_sha256(names, {"image_size": size}),
            }

        return open_prepared(request.locations.cache, source_key(paths, options), build)

    def _decode(self, array: ImageArray, files: ListedImages, request: DataRequest) -> None:
        title, progress = f"decoding images of {self.path.name}", request.locations.progress
        sizes = [path.stat().st_size if path.exists() else 0 for path in files.paths]
        total, done = sum(sizes), 0
        images = decode_images(files.paths, request.settings.image_size, num_processes=usable_processors())
        for number, (path, image) in enumerate(zip(files.paths, images, strict=True), start=1):
            array.add(path, image)
            done += sizes[number - 1]
            if progress is not None and (number % REPORT_EVERY == 0 or number == len(sizes)):
                progress(title, done, total)
        array.check(self.path)

    def _record(self, chosen: _Chosen, prepared: Mapping[str, Any], settings: DataSettings) -> dict[str, Any]:
        listing = chosen.listing
        test_from = "drawn" if chosen.test is not None else "none"
        if listing.test_folder is not None and settings.test != 0:
            test_from = f"{listing.test_folder.name}/"
        validation_folder = listing.validation_folder
        return {
            "form": "folder of images",
            "classes": list(listing.class_names),
            "split": {
                "train": len(chosen.train),
                "validation": len(chosen.validation),
                "test": None if chosen.test is None else len(chosen.test),  # a test folder's images are not counted
                "validation_from": "drawn" if validation_folder is None else f"{validation_folder.name}/",
                "test_from": test_from,
                "is_stratified": True,
                "seed": settings.split_seed,
                "sha256": chosen.sha256,
            },
            "images": {
                "shape": prepared["shape"],
                "image_size": None if settings.image_size is None else list(settings.image_size),
                "skipped": listing.skipped,
                **prepared["counts"],
            },
            "decoder": prepared["decoder"],
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Chosen:
    """The files of each part, in the order of use.

    Args:
        test: drawn files; None: they are in a folder of their own, or there are none.
    """

    listing: ImageListing
    train: ListedImages
    validation: ListedImages
    test: ListedImages | None

    @classmethod
    def of(cls, listing: ImageListing, settings: DataSettings) -> Self:
        for key, value, folder in (
            ("validation", settings.validation, listing.validation_folder),
            ("test", settings.test, listing.test_folder),
        ):
            if folder is not None and value not in (None, 0) and not isinstance(value, str):
                raise InputError(
                    f"data.{key} has no effect: the data set has a folder {folder.name}/ of its own",
                    hint=f"leave it out, or rename {folder.name}/",
                )
        source, given = listing.source, listing.validation
        rows = draw_split(
            len(source),
            validation=0 if given is not None else _number(settings.validation),
            test=0 if listing.test_folder is not None else _number(settings.test),
            seed=settings.split_seed,
            source=str(listing.root),
            classes=source.labels,
        )
        if given is None:
            validation = source.rows(rows.validation)
        else:
            order = draw_split(len(given), validation=0, test=0, seed=settings.split_seed, source=str(listing.root))
            validation = given.rows(order.train)
        return cls(
            listing=listing,
            train=source.rows(rows.train),
            validation=validation,
            test=source.rows(rows.test) if len(rows.test) else None,
        )

    @property
    def sha256(self) -> str:
        """SHA-256 over the names of each part, in their order."""
        parts = [None if part is None else list(part.names) for part in (self.train, self.validation, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def listing_checksum(self) -> dict[str, str]:
        """Of the names and sizes of all files from which test images were drawn; empty if none were.

        It depends on neither seed nor image size, so that an opening of the same images is known again
        (`test_file_marks`), and no test file is opened for it.
        """
        if self.test is None:
            return {}
        source = self.listing.source
        sizes = [size for _, size, _ in source_key(source.paths, {})["files"]]
        files = [list(pair) for pair in zip(source.names, sizes, strict=True)]
        return {"names and sizes": hashlib.sha256(json.dumps(files).encode()).hexdigest()}


def _number(wanted: float | int | str | None) -> float | int | None:
    assert not isinstance(wanted, str), "a folder was listed"
    return wanted


def _tell(source: Path, listing: ImageListing, counts: Mapping[str, int]) -> None:
    """Warn of what a user may not expect, when the images are decoded."""
    if listing.skipped:
        files = ", ".join(f"{number:,} {ending}" for ending, number in listing.skipped.items())
        _logger.warning("%s: skipped what is no image: %s", source, files)
    if counts["grey"] and counts["colour"]:
        _logger.warning(
            "%s: %s grey, %s in colour: all are used in colour", source, f"{counts['grey']:,}", f"{counts['colour']:,}"
        )
    if counts["on_white"]:
        _logger.warning(
            "%s: %s laid on white: they have transparent pixels", source, counted(counts["on_white"], "image")
        )
