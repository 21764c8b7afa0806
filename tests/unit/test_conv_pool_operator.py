"""The example of the notes' convolution and pooling operators: its shapes, its edges and its picture."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

EXAMPLE = Path(__file__).parents[2] / "examples/conv_pool_operator.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


def test_the_shapes_are_those_of_the_notes(example: dict[str, Any]) -> None:
    photo = example["photograph"]()
    maps = example["convolve"](photo, *example["random_filters"]())
    pooled = example["pool"](maps)
    assert [list(tensor.shape) for tensor in (photo, maps, pooled)] == [
        [1, 3, 639, 516],
        [1, 2, 631, 508],
        [1, 2, 315, 254],
    ]
    assert torch.equal(pooled[0, 0, 3, 5], maps[0, 0, 6:8, 10:12].max())


def test_the_filters_respond_to_edges(example: dict[str, Any]) -> None:
    """Beside a vertical edge the maps change; in areas of one colour they do not."""
    photo = torch.zeros(1, 3, 639, 516)
    photo[..., 258:] = 1.0
    maps = example["convolve"](photo, *example["random_filters"]())[0]
    steps = (maps[:, :, 1:] - maps[:, :, :-1]).abs().amax(dim=(0, 1))
    changing = np.flatnonzero(steps.numpy() > 1e-6)
    assert changing.min() >= 258 - 9
    assert changing.max() <= 258
    assert len(changing) >= 5


def test_it_writes_a_picture_of_any_photograph(
    example: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (40, 30), 128).save(tmp_path / "grey.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "noise.png")
    output = tmp_path / "out.png"
    monkeypatch.setattr(sys, "argv", ["it", "--photo", str(tmp_path / "noise.png"), "-o", str(output)])
    example["main"]()
    assert capsys.readouterr().out.startswith("[1, 3, 639, 516] -> [1, 2, 631, 508] -> [1, 2, 315, 254]")
    with Image.open(output) as picture:
        assert picture.size == (516 + 2 * (8 + 508), 639 + 8 + 315)
        left_map = np.asarray(picture.convert("L"))[:631, 524:1032]
    assert left_map.min() == 0
    assert left_map.max() == 255
    assert example["photograph"](tmp_path / "grey.png").shape == (1, 3, 639, 516)
