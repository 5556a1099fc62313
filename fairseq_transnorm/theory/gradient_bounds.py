"""How large gradients in the attention scores can be: softmax, scaled linear attention, and attention with a norm.

The paper's first claim is that the scaled (divided) linear attention has unbounded gradients, and that softmax and
attention with a norm have bounded ones. Source: Qin et al. 2022, arXiv:2210.10340; the sharper bounds are ours.

Scores s, values V, and as output: softmax and scaled linear attention the average with weights
``p_ij = f(s_ij) / sum_k f(s_ik)``; NormAttention ``O_i = T_i / sqrt(mean(T_i^2) + eps)`` with ``T = s V``.
"""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

SOFTMAX_BOUND = 0.25
"""Largest |dp_ij / ds_ik| of softmax, whatever the scores: p (1 - p) at p = 1/2."""


def softmax_derivative(p: Float[Tensor, "... S"]) -> Float[Tensor, "... S S"]:
    """Return ``dp_j / ds_k = 1[j = k] p_j - p_j p_k`` of softmax weights ``p``; j down, k across."""
    return p.diag_embed() - p[..., :, None] * p[..., None, :]


def scaled_linear_derivative(s: Float[Tensor, "... S"]) -> Float[Tensor, "... S S"]:
    """Return ``dp_j / ds_k = (1[j = k] p_j - p_j p_k) / s_k`` of ``p = s / sum(s)``; j down, k across.

    Scores must not be zero: there the weights are 1 / sum(s) per unit of score, but this form divides 0 by 0.
    """
    p = s / s.sum(-1, keepdim=True)
    return softmax_derivative(p) / s[..., None, :]


def scaled_linear_bound(score: float) -> float:
    """Return ``1 / (4 |s_ik|)``, the bound of ``|dp_ij / ds_ik|`` for positive scores; it grows without end."""
    return 1 / (4 * abs(score))


def equal_scores_derivative(eps: float, keys: int) -> tuple[float, float]:
    """Return dp_j / ds_k of scaled linear attention for k = j and for k != j, when every score is ``eps``.

    That is the paper's example of unbounded gradients: all features equal, of squared norm eps. With n keys, p = 1 / n
    and the derivatives are ``(1 / eps) (1 / n) (1 - 1 / n)`` and ``-(1 / eps) / n^2``.
    """
    return (1 - 1 / keys) / (keys * eps), -1 / (keys**2 * eps)


def norm_attention_bound(c1: float, c2: float, dim: int, eps: float) -> float:
    """Return the published bound of NormAttention's ``|dL / ds_ij|``: ``3 c1 c2 d / (2 sqrt(eps))``.

    Args:
        c1: largest Euclidean norm of a row of dL / dO.
        c2: largest Euclidean norm of a row of V.
        dim: channels d of a row of V.
        eps: of the norm, under the root.
    """
    return 3 * c1 * c2 * dim / (2 * math.sqrt(eps))


def norm_attention_sharp_bound(
    c1: float, c2: float, rms: Float[Tensor, "*rows"] | float, eps: float, *, eps_inside: bool
) -> Float[Tensor, "*rows"] | float:
    """Return a sharper bound of ``|dL / ds_ij|`` for NormAttention, for each row of the output.

    The Jacobian of the norm has spectral norm 1 / sqrt(rms_i^2 + eps) with eps under the root, 1 / (rms_i + eps) with
    eps added to it (the released code); the bound is c1 c2 times that.

    Args:
        c1, c2: as in :func:`norm_attention_bound`.
        rms: sqrt(mean(T_i^2)) of the rows before the norm; 0 gives the bound of all rows.
        eps: of the norm.
        eps_inside: eps under the root.
    """
    return c1 * c2 / ((rms * rms + eps) ** 0.5 if eps_inside else rms + eps)
