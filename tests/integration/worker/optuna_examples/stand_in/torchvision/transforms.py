"""`ToTensor`: [28, 28] bytes -> [1, 28, 28] float32 in [0, 1]."""

from __future__ import annotations

import torch
from numpy.typing import NDArray


class ToTensor:
    def __call__(self, image: NDArray) -> torch.Tensor:
        return torch.tensor(image, dtype=torch.float32)[None] / 255
