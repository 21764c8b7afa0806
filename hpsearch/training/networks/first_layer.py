"""The filters of a network's first layer: the weights that can be seen as pictures, and their copies in 8 bits.

Of images in colour a filter is the mean of its three channels' weights: what it answers to a grey image, by thirds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpsearch.data.example_shape import is_image, maps_shape
from hpsearch.training.filter_series import LARGEST_CODE, FilterCopy
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

MOST_FILTERS = 64  # of a trial; of a wider layer, this many evenly spaced ones
MOST_WEIGHTS = 64 * 32 * 32  # of a copy: of larger images fewer filters are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstLayer:
    """The kept filters of a network's first layer.

    Args:
        name: of the parameter: [units, inputs], or kernels [kernels, channels, height, width].
        units: the rows of the parameter that are kept.
        shape: height and width of a filter.
        channels: 1, or 3 in colour.
    """

    name: str
    units: tuple[int, ...]
    shape: tuple[int, int]
    channels: int = 1

    @classmethod
    def of(cls, network: Network) -> FirstLayer | None:
        """The network's first weight with one of the two shapes; None if no weight has one."""
        if not is_image(network.example_shape):
            return None
        channels, *size = maps_shape(network.example_shape)
        for name in network.weight_names:
            match network.parameter_shapes[name].shape:
                case (rows, columns) if columns == network.num_inputs:
                    shape = size
                case (rows, depth, height, width) if depth == channels and height * width > 1:
                    shape = [height, width]
                case _:
                    continue
            number = min(rows, MOST_FILTERS, max(1, MOST_WEIGHTS // (shape[0] * shape[1])))
            units = tuple(i * rows // number for i in range(number))
            return cls(name=name, units=units, shape=(shape[0], shape[1]), channels=channels)
        return None

    def codes(self, weights: Tensor, lanes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The kept filters of some lanes, each scaled so that its largest weight becomes `LARGEST_CODE`.

        Args:
            weights: the parameter of all lanes, [L, rows, ...]; rows beyond the network's own are padding.
        Returns:
            [lanes, filters, height, width] int8, and the value of one step, [lanes, filters] float32.
        """
        rows = torch.tensor(lanes, device=weights.device), torch.tensor(self.units, device=weights.device)
        filters = weights[rows[0].unsqueeze(1), rows[1]].flatten(start_dim=2).float()  # [lanes, filters, inputs]
        if self.channels > 1:
            filters = filters.reshape(*filters.shape[:2], self.channels, -1).mean(dim=2)  # [lanes, filters, pixels]
        scales = filters.abs().amax(dim=2) / LARGEST_CODE
        codes = filters / scales.unsqueeze(2).clamp(min=torch.finfo(torch.float32).tiny)
        return codes.round().to(torch.int8).reshape(*scales.shape, *self.shape), scales


@torch.no_grad()
def copy_filters(parameters: Tensors, lanes: Iterable[tuple[int, Network]]) -> dict[int, FilterCopy]:
    """Copy the filters of these lanes to the host: two transfers per network of different width.

    Args:
        parameters: stacked, [L, ...] each, in the widths of the widest network.
        lanes: index and own network.
    Returns:
        By lane. Lanes without a suitable layer, and those whose weights are not finite, are left out.
    """
    by_layer: dict[FirstLayer, list[int]] = {}
    for lane, network in lanes:
        layer = FirstLayer.of(network)
        if layer is not None:
            by_layer.setdefault(layer, []).append(lane)
    copies = {}
    for layer, its_lanes in by_layer.items():
        units = np.array(layer.units, dtype=np.int32)
        codes, scales = (tensor.cpu().numpy() for tensor in layer.codes(parameters[layer.name], its_lanes))
        for index, lane in enumerate(its_lanes):
            if np.isfinite(scales[index]).all():
                copies[lane] = FilterCopy(units=units, codes=codes[index], scales=scales[index])
    return copies
