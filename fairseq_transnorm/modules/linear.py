"""Affine maps whose matrix products run, on a CPU, through oneDNN instead of the BLAS that torch calls by default.

torch's wheels link Intel MKL, which leaves the wide vector units of other makers' processors unused; the oneDNN inside
the same wheels uses them, at the same precision. On an AMD processor with AVX-512 that is twice as fast.
``torch.backends.mkldnn.flags(enabled=False)`` turns it off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .recompute import first_order

# the operator that torch.compile itself calls for this; it has no derivative of its own
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
# multiplications; below, the ten microseconds or so that setting oneDNN up takes are not won back
SMALLEST_PRODUCT = 2**19


def linear(x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias``, ``*rows O``: ``F.linear`` by the fastest library for float32 on a CPU.

    Second derivatives are not available there.
    """
    if not _takes(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        place = _Operands.apply(rows, weight, bias)
        out = _Product.apply(place, rows.detach(), weight.detach(), None if bias is None else bias.detach())
    else:
        out = matrix_product(rows, weight, bias)
    return out.view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """``nn.Linear`` by the function ``linear``."""

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        return linear(x, self.weight, self.bias)


def takes_products(*tensors: Tensor) -> bool:
    """Return whether oneDNN can multiply these: float32 on a CPU, and neither a compiler nor autocast at work."""
    return (
        _ONEDNN is not None
        and not torch.compiler.is_compiling()  # the compiler chooses by itself
        and not torch.jit.is_tracing()
        and all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.is_autocast_enabled("cpu")
    )


def _takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether ``linear`` computes this product itself; what does not fit is left to F.linear's clear errors."""
    return (
        takes_products(x, weight, *(() if bias is None else (bias,)))
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() * len(weight) >= max(1, SMALLEST_PRODUCT)
    )


def matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` of two matrices, not to be differentiated."""
    if not torch.backends.mkldnn.enabled:
        return F.linear(x, weight, bias)
    assert _ONEDNN is not None
    return _ONEDNN(x, weight, None if bias is None else bias.contiguous(), "none", [], "")


class _Operands(torch.autograd.Function):
    """Keeps the operands of a product and turns its gradient into theirs; the product itself is ``_Product``'s.

    They are two, joined by a tensor that only has a shape, because activation checkpointing stops computing again once
    it has seen all that was kept: one function that keeps its operands would be run in full before that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        return x.new_empty_strided((len(x), len(weight)), (0, 0))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            matrix_product(grad, weight.t()) if for_x else None,
            matrix_product(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, place: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return matrix_product(x, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None, None, None
