"""Dead relu units and saturated tanh and sigmoid outputs of any network, seen while it computes its scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_KINDS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    functional.relu: "relu",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    torch.tanh_: "tanh",
    Tensor.tanh_: "tanh",
    functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
    functional.sigmoid: "sigmoid",
}
SATURATED_SLOPE = 0.05  # of the derivative at 0


@final
class HiddenUnits(TorchFunctionMode):
    """While this mode is active, records the share of dead or saturated outputs of each non-linearity.

    Works under torch.func.vmap, too: the shares are then those of each lane.

    Args:
        num_images: outputs with another first dimension are ignored.
    """

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.shares: list[tuple[str, Tensor]] = []  # kind and share (0-d), in the order of use
        self._num_images = num_images

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func)
        if kind is not None and isinstance(result, Tensor) and result.shape[:1] == (self._num_images,):
            self.shares.append((kind, _share(kind, result.detach())))
        return result

    def worst(self, *kinds: str) -> Tensor | None:
        """The largest share among the non-linearities of these kinds, 0-d; None if there are none."""
        shares = [share for kind, share in self.shares if kind in kinds]
        return torch.stack(shares).amax() if shares else None


def _share(kind: str, outputs: Tensor) -> Tensor:
    """Of relu the units, or feature maps, that are 0 for every image; of the others the outputs with a small slope."""
    if kind == "relu":
        by_unit = outputs.transpose(0, 1).flatten(start_dim=1) if outputs.dim() > 1 else outputs.unsqueeze(0)
        return (by_unit <= 0).all(dim=1).double().mean()
    slope = 1 - outputs.square() if kind == "tanh" else 4 * outputs * (1 - outputs)
    return (slope < SATURATED_SLOPE).double().mean()
