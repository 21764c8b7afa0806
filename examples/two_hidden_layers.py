"""A network of one's own: a perceptron with two hidden layers, for two_hidden_layers.toml beside this file.

docs/custom-networks.md says what such a module may do.
"""

from __future__ import annotations

from torch import Tensor, nn


class TwoHiddenLayers(nn.Module):
    """Pixels -> width -> width -> one score per class.

    Args:
        image_shape: height and width in pixels; hpsearch gives it, and num_classes.
        width: of both hidden layers; the study's [model] options or its search give it.
    """

    def __init__(self, *, image_shape: tuple[int, int], num_classes: int, width: int = 64) -> None:
        super().__init__()
        num_pixels = image_shape[0] * image_shape[1]
        self.first = nn.Linear(num_pixels, width)
        self.norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.scores = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:  # [B, 1, height, width]
        hidden = self.norm(self.first(images.flatten(start_dim=1))).relu()
        return self.scores(self.second(hidden).relu())
