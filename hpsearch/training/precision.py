"""How precisely training multiplies: float32, TF32 or bfloat16.

TF32 rounds what goes into matrix products and convolutions. bfloat16 rounds what goes in and what comes out
(sums within a product are float32), and LeNet's maps and a user's own activations stay so rounded. Weights,
softmax and losses, the optimizer's state and all validations are float32 in any case.
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


@contextlib.contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """A forward pass inside is computed in bfloat16 if the study asks for it; its backward pass follows suit."""
    if precision == "bfloat16":
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            yield
    else:
        yield


def multiplying(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Products and convolutions inside, forward and backward, may use TF32 if the study asks for it.

    TF32 exists on CUDA devices only; elsewhere such a study trains in float32, which is more exact.
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
    """Matrix products of lanes for gradients that are written out by hand, where autocast does not help."""

    precision: Precision

    def prepared(self, matrices: Tensor) -> Tensor:
        """What `multiply` and `add_product_` take: worth keeping for matrices that are used twice."""
        return matrices.bfloat16() if self.precision == "bfloat16" else matrices

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """[L, n, k] @ [L, k, m] of prepared matrices; as float32, if rounded."""
        with multiplying(self.precision, left.device):
            product = torch.bmm(left, right)
        return product.float() if self.precision == "bfloat16" else product

    def add_product_(self, target: Tensor, left: Tensor, right: Tensor) -> None:
        """target += left @ right. In float32 the product is never written down."""
        if self.precision == "bfloat16":
            target.add_(torch.bmm(left, right))
            return
        with multiplying(self.precision, target.device):
            target.baddbmm_(left, right)
