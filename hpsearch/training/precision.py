"""How precisely training multiplies: float32, TF32 or bfloat16. Everything else is float32 in any case.

Weights, sums over minibatches, softmax and losses, the optimizer's state and all validations stay float32;
what changes is the rounding of what goes into matrix products and convolutions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hpsearch.settings import Precision


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Products and convolutions inside are computed as the study asks.

    TF32 exists on CUDA devices only; elsewhere such a study trains in float32, which is more exact.
    """
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
    elif precision == "tf32" and device.type == "cuda":
        with _tf32():
            yield
    else:
        yield


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = True, True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@final
@dataclass(frozen=True, kw_only=True)
class Products:
    """Matrix products of lanes for gradients that are written out by hand, where autocast does not help."""

    precision: Precision

    def prepared(self, matrices: Tensor) -> Tensor:
        """What `multiply` and `add_product_` take: worth keeping for matrices that are used twice."""
        return matrices.bfloat16() if self.precision == "bfloat16" else matrices

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """[L, n, k] @ [L, k, m] of prepared matrices, in the precision of the weights."""
        product = torch.bmm(left, right)
        return product.float() if self.precision == "bfloat16" else product

    def add_product_(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """target += left @ right. In float32 the product is never written down."""
        if self.precision == "bfloat16":
            target.add_(torch.bmm(left, right))
        else:
            target.baddbmm_(left, right)
