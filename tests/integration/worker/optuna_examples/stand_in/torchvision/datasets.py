"""`FashionMNIST`, read from the IDX files in ROOT/FashionMNIST/raw, which nothing downloads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class FashionMNIST(Dataset):
    def __init__(
        self, root: str, train: bool = True, transform: Callable[[Any], Any] | None = None, download: bool = False
    ) -> None:
        raw, part = Path(root, "FashionMNIST", "raw"), "train" if train else "t10k"
        images = np.frombuffer((raw / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
        self._images = images.reshape(-1, 28, 28)
        self._labels = np.frombuffer((raw / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._images[index]
        return (image if self._transform is None else self._transform(image)), int(self._labels[index])
