"""A user's network that passes every check and misbehaves in training, where batches have another size."""

from __future__ import annotations

from torch import Tensor, nn

from hpsearch.training.networks.custom import NUM_TRIED_IMAGES


class Misbehaving(nn.Module):
    def __init__(self, *, image_shape: tuple[int, int], num_classes: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.scores = nn.Linear(image_shape[0] * image_shape[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > NUM_TRIED_IMAGES:
            self.misbehave()
        return self.scores(images.flatten(start_dim=1))

    def misbehave(self) -> None:
        if self.how == "raise":
            raise ValueError("no such layer in postgresql://me:hunter2secret@host/db\nsecond line")
        while self.how == "spin":
            pass
