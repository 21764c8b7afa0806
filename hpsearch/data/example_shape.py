"""The shape of one example: (rows, columns) of a grey image, (3, rows, columns) of a colour image, or (features,).

Examples are stored flat, [N, inputs], colour images channel by channel; networks that need maps restore the shape.
"""

from __future__ import annotations

import math

ExampleShape = tuple[int, ...]


def num_inputs(shape: ExampleShape) -> int:
    """The number of inputs of one example."""
    return math.prod(shape)


def is_image(shape: ExampleShape) -> bool:
    """Whether the example is an image, and not a row of a table."""
    return len(shape) > 1


def maps_shape(shape: ExampleShape) -> tuple[int, int, int]:
    """(channels, rows, columns) of an image.

    Raises:
        ValueError: the shape is that of a row of a table.
    """
    if not is_image(shape):
        raise ValueError(f"{shape_text(shape)} are no image")
    channels = shape[0] if len(shape) == 3 else 1
    return channels, shape[-2], shape[-1]


def shape_text(shape: ExampleShape) -> str:
    """`28x28`, `32x32 in colour` or `13 features`."""
    if not is_image(shape):
        return f"{shape[0]} features"
    channels, rows, columns = maps_shape(shape)
    return f"{rows}x{columns}" + (" in colour" if channels > 1 else "")
