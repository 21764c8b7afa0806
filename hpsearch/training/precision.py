"""The precision of training: float32, TF32 or bfloat16.

TF32 rounds the inputs of matrix products and convolutions. bfloat16 rounds inputs and outputs (sums within a product
are float32); LeNet's maps and a custom network's activations stay in bfloat16 between layers. Weights, softmax,
losses, the optimizer's state and all validations are always float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hpsearch.study.settings import Precision


def computing(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """A context for forward passes: autocast to bfloat16 if the precision is bfloat16.

    The backward pass of such a forward pass uses bfloat16 as well.
    """
    if precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return contextlib.nullcontext()


def multiplying(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which products and convolutions, forward and backward, use TF32 if the precision is TF32.

    TF32 exists on CUDA devices only. On other devices such a study trains in float32, which is more exact.
    """
    return _allowing_tf32() if precision == "tf32" and device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def _allowing_tf32() -> Iterator[None]:
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
    """Batched matrix products of lanes for explicit gradients, to which autocast does not apply."""

    precision: Precision

    def prepared(self, matrices: Tensor) -> Tensor:
        """Convert matrices for `multiply` and `add_product_`; keep the result for matrices that are used twice."""
        return matrices.bfloat16() if self.precision == "bfloat16" else matrices

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """[L, n, k] @ [L, k, m] of prepared matrices. A bfloat16 product is returned as float32."""
        with multiplying(self.precision, left.device):
            product = torch.bmm(left, right)
        return product.float() if self.precision == "bfloat16" else product

    def add_product_(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """target += left @ right. Only in bfloat16 is the product stored separately."""
        if self.precision == "bfloat16":
            target.add_(torch.bmm(left, right))
            return
        with multiplying(self.precision, target.device):
            target.baddbmm_(left, right)
