"""Data sets that are published as four IDX files: names, mirrors and checksums, and checks against them.

`lookup` finds and downloads the files. Source: docs/sources.md, section 10. The SHA-256 checksums are those of MNIST's
unpacked files.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.files.data_file import DataFile
from hpsearch.data.files.idx_layout import MNIST_LAYOUT, QMNIST_LAYOUT, IdxLayout
from hpsearch.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILE_NAMES = MNIST_LAYOUT.files
_NUM_TEST_IMAGES = 10_000  # in every set here whose test images are known by SHA-256; 28 x 28 pixels each
_TEST_HEADER = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (_NUM_TEST_IMAGES, 28, 28))

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFile:
    """The checksums of one file.

    Args:
        packed_md5: MD5 of the gzipped file as the publisher serves it.
        sha256: SHA-256 of the unpacked content; None if none is published.
    """

    packed_md5: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSet:
    """One data set.

    Args:
        mirrors: addresses of folders, ending in "/", in the order to try them.
        files: unpacked file name -> its checksums, for all files of the layout.
    """

    name: str
    mirrors: tuple[str, ...]
    files: Mapping[str, PublishedFile]
    layout: IdxLayout = MNIST_LAYOUT


def _published(
    name: str,
    *mirrors: str,
    md5: tuple[str, ...],
    sha256: tuple[str | None, ...] = (None,) * 4,
    layout: IdxLayout = MNIST_LAYOUT,
) -> PublishedSet:
    """A set with its checksums in the order of the layout's files."""
    checksums = zip(layout.files, md5, sha256, strict=True)
    files = {file_name: PublishedFile(packed_md5=md5, sha256=sha256) for file_name, md5, sha256 in checksums}
    return PublishedSet(name=name, mirrors=mirrors, files=MappingProxyType(files), layout=layout)


_SETS = (
    _published(
        "mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        md5=(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    _published(
        "fashion-mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        md5=(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    _published(
        "kmnist",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        md5=(
            "bdb82020997e1d708af4cf47b453dcf7",
            "e144d726b3acfaa3e44228e80efcd344",
            "5c965bf0a639b31b8f53240b1b52f4d7",
            "7320c461ea6c1c855c0b718fb2a4b134",
        ),
    ),
    _published(
        "qmnist",
        "https://raw.githubusercontent.com/facebookresearch/qmnist/master/",
        md5=(
            "ed72d4157d28c017586c42bc6afe6370",
            "0058f8dd561b90ffdd0f734c6a30e5e4",
            "1394631089c404de565df7b7aeaf9412",
            "5b5b05890a5e13444e108efe57b788aa",
        ),
        layout=QMNIST_LAYOUT,
    ),
)
PUBLISHED_SETS: Mapping[str, PublishedSet] = MappingProxyType({entry.name: entry for entry in _SETS})


def check_published(file: DataFile, published: PublishedSet, file_name: str) -> bool:
    """Compare a file with its published checksum.

    The SHA-256 of the unpacked content is compared if one is known, otherwise the MD5 of the gzipped file. An unpacked
    file of a set that has only MD5s cannot be checked: it is accepted with a warning, unless it is known to belong to
    another set.

    Returns:
        True if the checksum is correct, False if there is none to compare with.
    Raises:
        DataError: the checksum is wrong; the message has both values.
    """
    comparison = _choose_comparison(file, published, file_name)
    if comparison is None:
        _logger.warning(
            "%s: not verified: no checksum of %s's unpacked %s is published (SHA-256 %s)",
            *(file.source, published.name, file_name, file.sha256),
        )
        return False
    kind, expected, found = comparison
    if expected != found:
        raise DataError(
            f"{file.source}: wrong {kind} for {published.name}'s {file_name}: expected {expected}, found {found}",
            hint=_explain_wrong_checksum(file, published, file_name),
        )
    return True


def refuse_test_file(file: DataFile) -> None:
    """Check that a training file is not a published test file under another name.

    Raises:
        DataError: it is one.
    """
    owner = _find_owner(file)
    if owner is not None and owner[1] in PUBLISHED_SETS[owner[0]].layout.test_files:
        raise _is_a_test_set(file.source, *owner)


def refuse_test_images(images: NDArray[np.uint8] | NDArray[np.float32], source: str) -> None:
    """Check that training images do not begin or end with the test images of a published set.

    MNIST is often distributed with all 70,000 images in one file. Only sets whose unpacked test images have a known
    SHA-256 are detected.

    Args:
        images: [N, rows, columns] or [N, pixels]: grey levels, or floats in [0, 1].
        source: name of the images in error messages.
    Raises:
        DataError: the images contain a published test set.
    """
    if len(images) < _NUM_TEST_IMAGES or images[0].size != 28 * 28:
        return
    for window in (images[:_NUM_TEST_IMAGES], images[-_NUM_TEST_IMAGES:]):
        for levels in _grey_levels(window):
            found = hashlib.sha256(_TEST_HEADER + levels.tobytes()).hexdigest()
            for name, published in PUBLISHED_SETS.items():
                if published.files[published.layout.test_images].sha256 == found:
                    raise _is_a_test_set(source, name, published.layout.test_images)


def _grey_levels(images: NDArray[np.uint8] | NDArray[np.float32]) -> Iterator[NDArray[np.uint8]]:
    """The images as grey levels 0..255. Floats can be level / 255 or level / 256: both forms are in use."""
    if images.dtype == np.uint8:
        yield images.astype(np.uint8, copy=False)
        return
    for scale in (255, 256):
        yield np.rint(np.minimum(images * np.float32(scale), np.float32(255))).astype(np.uint8)


def _is_a_test_set(source: str, name: str, file_name: str) -> DataError:
    return DataError(
        f"{source}: these are {name}'s test images or labels ({file_name}), not for training or selection",
        hint=f"put the training files of {name} there, or name {name} as the dataset",
    )


def _choose_comparison(file: DataFile, published: PublishedSet, file_name: str) -> tuple[str, str, str] | None:
    """The kind of checksum to compare, its expected and its found value; None if there is nothing to compare with."""
    checksums = published.files[file_name]
    if checksums.sha256 is not None:
        return "SHA-256 of the unpacked content", checksums.sha256, file.sha256
    if file.packed_md5 is not None:
        return "MD5", checksums.packed_md5, file.packed_md5
    owner = _find_owner(file)
    if owner is not None:
        return "content", f"{published.name}'s {file_name}", f"{owner[0]}'s {owner[1]}"
    return None


def _explain_wrong_checksum(file: DataFile, published: PublishedSet, file_name: str) -> str:
    owner = _find_owner(file)
    if owner is None:
        return f"delete the file, then run: hpsearch data fetch {published.name}"
    owner_name, owner_file_name = owner
    if owner_name == published.name:
        return f"this is {owner_file_name} of the same set: the files' names are swapped"
    return (
        f"this is {owner_file_name} of {owner_name}: name {owner_name} as the dataset, "
        f"or put {published.name}'s files into HPSEARCH_DATA/{published.name}/"
    )


def _find_owner(file: DataFile) -> tuple[str, str] | None:
    """The published set and file name with the checksum of this file; None if there is none."""
    for name, published in PUBLISHED_SETS.items():
        for file_name, checksums in published.files.items():
            if file.sha256 == checksums.sha256 or file.packed_md5 == checksums.packed_md5:
                return name, file_name
    return None
