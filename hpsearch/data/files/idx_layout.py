"""How data sets in four IDX files differ: the names of the files, the form of the labels, the direction of the images.

Sources: docs/sources.md, section 10; https://www.nist.gov/itl/products-and-services/emnist-dataset and
https://github.com/facebookresearch/qmnist describe the files of EMNIST and QMNIST.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import check_label_range
from hpsearch.data.files.data_file import DataFile
from hpsearch.data.files.idx import check_pair, parse_images, parse_labels, parse_wide_labels
from hpsearch.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class IdxLayout:
    """The four files of a data set.

    Args:
        train_images, train_labels, test_images, test_labels: file names without ".gz".
        has_wide_labels: each label has several columns, of which the first is the class.
        is_transposed: the images are stored column by column.
        first_label: label of the first class.
        class_names: in the order of the labels; empty: the labels are the names.
    """

    train_images: str
    train_labels: str
    test_images: str
    test_labels: str
    has_wide_labels: bool = False
    is_transposed: bool = False
    first_label: int = 0
    class_names: tuple[str, ...] = ()

    @property
    def training_files(self) -> tuple[str, str]:
        return self.train_images, self.train_labels

    @property
    def test_files(self) -> tuple[str, str]:
        return self.test_images, self.test_labels

    @property
    def files(self) -> tuple[str, str, str, str]:
        return (*self.training_files, *self.test_files)

    def parse(self, images_file: DataFile, labels_file: DataFile) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Parse an image file and its label file.

        Returns:
            Images [N, rows, columns], grey levels 0..255, upright; labels [N] from 0.
        Raises:
            DataError: one of them is wrong, or their numbers differ.
        """
        images = parse_images(images_file)
        labels = parse_wide_labels(labels_file) if self.has_wide_labels else parse_labels(labels_file)
        check_pair(images, labels, images_file, labels_file)
        if self.is_transposed:
            images = np.ascontiguousarray(images.transpose(0, 2, 1))
        if self.first_label:
            if labels.min() < self.first_label:
                raise DataError(
                    f"{labels_file.source}: expected labels from {self.first_label}, found {labels.min()}",
                    hint="these are the labels of another data set: download the files again",
                )
            labels = labels - np.uint8(self.first_label)
        if self.class_names:
            check_label_range(labels, labels_file.source, len(self.class_names))
        return images, labels


MNIST_LAYOUT = IdxLayout(
    train_images="train-images-idx3-ubyte",
    train_labels="train-labels-idx1-ubyte",
    test_images="t10k-images-idx3-ubyte",
    test_labels="t10k-labels-idx1-ubyte",
)
QMNIST_LAYOUT = IdxLayout(
    train_images="qmnist-train-images-idx3-ubyte",
    train_labels="qmnist-train-labels-idx2-int",
    test_images="qmnist-test-images-idx3-ubyte",
    test_labels="qmnist-test-labels-idx2-int",
    has_wide_labels=True,
)


def _emnist(split: str, class_names: str, first_label: int = 0) -> IdxLayout:
    return IdxLayout(
        train_images=f"emnist-{split}-train-images-idx3-ubyte",
        train_labels=f"emnist-{split}-train-labels-idx1-ubyte",
        test_images=f"emnist-{split}-test-images-idx3-ubyte",
        test_labels=f"emnist-{split}-test-labels-idx1-ubyte",
        is_transposed=True,
        first_label=first_label,
        class_names=tuple(class_names),
    )


_ALL = string.digits + string.ascii_uppercase + string.ascii_lowercase
_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"  # the others look like their capitals
EMNIST_LAYOUTS: Mapping[str, IdxLayout] = MappingProxyType(
    {
        "balanced": _emnist("balanced", _MERGED),
        "letters": _emnist("letters", string.ascii_lowercase, first_label=1),
        "byclass": _emnist("byclass", _ALL),
        "bymerge": _emnist("bymerge", _MERGED),
        "digits": _emnist("digits", string.digits),
        "mnist": _emnist("mnist", string.digits),
    }
)
LAYOUTS = (MNIST_LAYOUT, QMNIST_LAYOUT, *EMNIST_LAYOUTS.values())


def layouts_in(names: Collection[str]) -> tuple[IdxLayout, ...]:
    """The layouts of which a folder or archive with these file names has training files."""
    return tuple(layout for layout in LAYOUTS if any(name in names for name in layout.training_files))
