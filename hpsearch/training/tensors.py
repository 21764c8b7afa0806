"""The type of named tensors: parameters, gradients and optimizer states of one trial, or stacked, of all lanes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Tensors = Mapping[str, Tensor]
