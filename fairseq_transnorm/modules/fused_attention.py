"""Causal softmax attention by the fastest means at hand: torch's fused kernels, or on a CPU one sequence at a time.

torch's kernels for a CPU take their matrix products from the BLAS of its wheels. Where :mod:`.linear` has a faster
library, a head whose products are large enough is computed by that, its scores never leaving the cache, and only those
gradients that somebody needs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .linear import matrix_product, takes_products
from .recompute import first_order

# multiplications of one product of a head; below, starting each product by itself costs more than it wins
SMALLEST_HEAD = 2**21
ROWS = 32  # the library prepares itself for each new number of rows


def causal_attention(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T V"], scale: float
) -> Float[Tensor, "B H T V"]:
    """Return ``sum over j <= t of softmax_j(scale q_t . k_j) v_j``.

    Second derivatives are not available for large heads in float32 on a CPU.
    """
    length, channels = q.shape[-2:]
    if length * length * min(channels, v.shape[-1]) < SMALLEST_HEAD or not takes_products(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    flat = (x.flatten(0, 1).contiguous() for x in (q, k, v))
    return _OneByOne.apply(*flat, scale).unflatten(0, q.shape[:2])


class _OneByOne(torch.autograd.Function):
    """Attention of heads ``N T K``, each by itself; the weights are kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        later = torch.full((q.shape[1], q.shape[1]), float("-inf")).triu_(1)
        weights = q.new_empty(len(q), *later.shape)
        out = torch.empty_like(v)
        for i in range(len(q)):
            torch.softmax(torch.add(later, matrix_product(q[i], k[i]), alpha=scale), -1, out=weights[i])
            out[i] = matrix_product(weights[i], v[i].t())
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        for_q, for_k, for_v = (
            torch.empty_like(x) if needed else None
            for x, needed in zip((q, k, v), ctx.needs_input_grad[:3], strict=True)
        )
        for i, one in enumerate(grad.contiguous()):
            rows, one, queries, own = _with_gradient(one, q[i], weights[i])
            if for_v is not None:
                for_v[i] = matrix_product(own.t(), one.t())
            if for_q is None and for_k is None:
                continue
            scores = torch._softmax_backward_data(matrix_product(one, v[i]), own, -1, own.dtype)
            scores *= ctx.scale
            if for_q is not None:
                for_q[i].zero_()[rows] = matrix_product(scores, k[i].t())
            if for_k is not None:
                for_k[i] = matrix_product(scores.t(), queries.t())
        return for_q, for_k, for_v, None


def _with_gradient(grad: Tensor, *others: Tensor) -> tuple[Any, ...]:
    """Return which rows have a gradient, as where only some tokens count in a loss, and these rows of all tensors.

    Some others are among them, so that their number is a multiple of ``ROWS``.
    """
    has = grad.any(-1)
    size = max(1, math.ceil(int(has.sum()) / ROWS)) * ROWS
    if size >= len(grad):
        return slice(None), grad, *others
    rows = has.logical_not().to(torch.uint8).argsort(stable=True)[:size]
    return rows, *(x[rows] for x in (grad, *others))
