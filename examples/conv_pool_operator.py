"""Convolution and max-pooling as operators of their own: two random filters on a photograph act as edge detectors.

    pip install pillow
    python examples/conv_pool_operator.py                        # writes conv-pool.png
    python examples/conv_pool_operator.py --photo mine.jpg -o mine.png

Nothing is trained. The photograph, red, green and blue, has the size that the notes use: 639 rows of 516 pixels. Two
filters of 9x9 pixels, with random weights, give two maps of 631 x 508; max-pooling takes the largest of each 2x2
pixels, without the border that is left over.
Source: docs/sources.md, section 2; the filters are drawn as in the notes, uniform in +- 1 / sqrt(3 * 9 * 9).
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

ROWS, COLUMNS = 639, 516
NUM_FILTERS, FILTER_SIZE, POOL_SIZE = 2, 9, 2


def photograph(path: Path | None = None) -> Tensor:
    """A photograph as [1, 3, 639, 516] float32 in [0, 1]: this file, or scikit-learn's picture of a Chinese temple.

    It is cut to this shape around its middle.
    """
    image = Image.fromarray(load_sample_image("china.jpg")) if path is None else Image.open(path)
    pixels = np.asarray(ImageOps.fit(image.convert("RGB"), (COLUMNS, ROWS)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


def random_filters(seed: int = 23455) -> tuple[Tensor, Tensor]:
    """Weights [2, 3, 9, 9] and biases [2]."""
    generator = torch.Generator().manual_seed(seed)
    bound = 1 / math.sqrt(3 * FILTER_SIZE**2)
    shape = (NUM_FILTERS, 3, FILTER_SIZE, FILTER_SIZE)
    weights = torch.empty(shape).uniform_(-bound, bound, generator=generator)
    biases = torch.empty(NUM_FILTERS).uniform_(-0.5, 0.5, generator=generator)
    return weights, biases


def convolve(images: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Sigmoid of the convolution and the bias: [1, 3, 639, 516] -> [1, 2, 631, 508], no padding."""
    return torch.sigmoid(functional.conv2d(images, weights, biases))


def pool(maps: Tensor) -> Tensor:
    """The largest of each 2x2 pixels, borders ignored: [1, 2, 631, 508] -> [1, 2, 315, 254]."""
    return functional.max_pool2d(maps, POOL_SIZE)


def picture(photo: Tensor, maps: Tensor, pooled: Tensor) -> Image.Image:
    """The photograph, both maps, and both pooled maps below, each stretched to the whole range of greys."""
    margin = 8
    width = COLUMNS + NUM_FILTERS * (margin + maps.shape[-1])
    sheet = Image.new("RGB", (width, ROWS + margin + pooled.shape[-2]), "white")
    colours = (255 * photo[0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
    sheet.paste(Image.fromarray(colours), (0, 0))
    for number in range(NUM_FILTERS):
        left = COLUMNS + margin + number * (maps.shape[-1] + margin)
        sheet.paste(_grey(maps[0, number]), (left, 0))
        sheet.paste(_grey(pooled[0, number]), (left, ROWS + margin))
    return sheet


def _grey(values: Tensor) -> Image.Image:
    low, high = values.min(), values.max()
    return Image.fromarray((255 * (values - low) / (high - low)).round().to(torch.uint8).numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, metavar="FILE", help="a photograph; default: scikit-learn's china.jpg")
    parser.add_argument("-o", "--output", type=Path, default=Path("conv-pool.png"), metavar="FILE.png")
    options = parser.parse_args()
    photo = photograph(options.photo)
    maps = convolve(photo, *random_filters())
    pooled = pool(maps)
    picture(photo, maps, pooled).save(options.output)
    print(f"{list(photo.shape)} -> {list(maps.shape)} -> {list(pooled.shape)}: wrote {options.output}")


if __name__ == "__main__":
    main()
