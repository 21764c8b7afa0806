"""Collect decoded images in arrays of one shape: grey if all are grey, in colour if any has colour."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.example_shape import ExampleShape, num_inputs, shape_text
from hpsearch.data.images.image_decoding import DecodedImage, Problem
from hpsearch.data.images.image_listing import named
from hpsearch.errors import DataError
from hpsearch.wording import counted

Allocate = Callable[[str, tuple[int, int]], NDArray[np.uint8]]
_CHANNELS: Final = 3
_SAVE_AS = "convert them with an image program, for example to 8-bit PNG"
_HINTS: Final = {
    Problem.UNREADABLE: "check the paths and their permissions",
    Problem.EMPTY: "copy them again, or remove them",
    Problem.DAMAGED: "copy them again, or remove them",
    Problem.TOO_LARGE: "make them smaller before: networks see few pixels",
    Problem.SIXTEEN_BITS: _SAVE_AS,
    Problem.CMYK: "convert them to RGB with an image program",
}


@final
class ImageArray:
    """Fills arrays [N, inputs] uint8, one per part, with images in the order in which they come.

    Grey images that came before the first one in colour are written again, with three equal channels.

    Args:
        allocate: makes the array of a part with this shape; called again if colour comes later.
        sizes: part -> number of images.
        is_colour: whether to begin in colour.
    """

    def __init__(self, allocate: Allocate, sizes: Mapping[str, int], *, is_colour: bool = False) -> None:
        self.arrays: dict[str, NDArray[np.uint8]] = {}
        self._allocate = allocate
        self._sizes = sizes
        self._is_colour = is_colour
        self._size: tuple[int, int] | None = None  # rows and columns
        self._first: Path | None = None  # the image that decided them
        self._places = [(part, row) for part, number in sizes.items() for row in range(number)]
        self._num_done = 0
        self._digests: list[str] = []
        self._counts = {"grey": 0, "colour": 0, "turned": 0, "on_white": 0, "resized": 0}
        self._problems: dict[Problem, list[str]] = defaultdict(list)
        self._misfits: list[tuple[Path, tuple[int, int]]] = []

    @property
    def shape(self) -> ExampleShape:
        """Of one image."""
        assert self._size is not None, "an image came"
        return (_CHANNELS, *self._size) if self._is_colour else self._size

    @property
    def counts(self) -> dict[str, int]:
        """How many images are grey or in colour, and how many were turned, laid on white and resized."""
        return dict(self._counts)

    def content_sha256(self, names: Sequence[str], options: Mapping[str, Any]) -> str:
        """SHA-256 over the files' names and contents, in the order of their names, and over the options."""
        files = sorted(zip(names, self._digests, strict=True))
        return hashlib.sha256(json.dumps([files, dict(options)], sort_keys=True).encode()).hexdigest()

    def add(self, path: Path, image: DecodedImage) -> None:
        """Write the next image, or remember why it cannot be used."""
        part, row = self._places[self._num_done]
        self._num_done += 1
        self._digests.append(image.sha256)
        if image.other_size is not None:
            self._misfits.append((path, image.other_size))
            return
        if image.problem is not None or image.pixels is None:
            problem = image.problem or Problem.DAMAGED
            self._problems[problem].append(f"{path}{f' ({image.detail})' if image.detail else ''}")
            return
        is_grey = image.pixels.ndim == 2
        size = image.pixels.shape[-2], image.pixels.shape[-1]
        if self._size is None:
            self._size, self._first = size, path
            self._start(is_colour=self._is_colour or not is_grey)
        if size != self._size:
            self._misfits.append((path, size))
            return
        if not is_grey and not self._is_colour:
            self._turn_to_colour()
        self._counts["grey" if is_grey else "colour"] += 1
        for name, is_so in (
            ("turned", image.is_turned),
            ("on_white", image.is_on_white),
            ("resized", image.is_resized),
        ):
            self._counts[name] += is_so
        target = self.arrays[part][row].reshape(-1, *self._size)
        target[:] = image.pixels  # a grey image fills all three channels of a target in colour

    def check(self, source: Path) -> None:
        """Raise DataError if an image cannot be used, with the first five and how many there are."""
        for problem in Problem:
            if found := self._problems.get(problem):
                raise DataError(
                    f"{source}: {counted(len(found), 'image')} {problem}: {named(found)}", hint=_HINTS[problem]
                )
        if self._misfits:
            assert self._size is not None
            shown = [f"{path} has {shape_text(size)}" for path, size in self._misfits]
            raise DataError(
                f"{source}: images of different sizes: {self._first} has {shape_text(self._size)}, {named(shown)}",
                hint="resize all while they are read: data.image_size = [ROWS, COLUMNS], for example [32, 32]",
            )

    def _start(self, *, is_colour: bool) -> None:
        self._is_colour = is_colour
        inputs = num_inputs(self.shape)
        self.arrays = {part: self._allocate(part, (number, inputs)) for part, number in self._sizes.items()}

    def _turn_to_colour(self) -> None:
        grey = self.arrays
        self._start(is_colour=True)
        for part, images in grey.items():
            wide = self.arrays[part].reshape(len(images), _CHANNELS, -1)
            wide[:] = images[:, np.newaxis]
