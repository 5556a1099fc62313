"""Gradients in attention scores by autograd, to hold against the closed forms of ``theory.gradient_bounds``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..modules.norms import rms_normalise
from ..theory.gradient_bounds import (
    SOFTMAX_BOUND,
    equal_scores_derivative,
    norm_attention_bound,
    norm_attention_sharp_bound,
    scaled_linear_bound,
)

Form = Literal["softmax", "scaled linear", "norm"]


class Norm(NamedTuple):
    """The norm of a NormAttention: ``x / (rms + eps)``, or ``x / sqrt(rms^2 + eps)`` when ``inside``."""

    eps: float
    inside: bool

    @property
    def name(self) -> str:
        mantissa, exponent = f"{self.eps:e}".split("e")
        number = f"{float(mantissa):g}e{int(exponent)}"
        return f"norm, eps {number}" + (" inside" if self.inside else "")


# Large enough to see the curve bend, with the paper's place of eps, and the released code's.
NORMS = (Norm(1e-2, False), Norm(1e-6, True), Norm(1e-8, False))


def weights(scores: Float[Tensor, "T S"], form: Form) -> Float[Tensor, "T S"]:
    """Return the weights of softmax or scaled linear attention (which for the latter need positive scores)."""
    return scores.softmax(-1) if form == "softmax" else scores / scores.sum(-1, keepdim=True)


def largest_weight_derivative(scores: Float[Tensor, "T S"], form: Form) -> float:
    """Return the largest ``|dp_ij / ds_ik|`` over all i, j, k, by autograd."""
    largest = 0.0
    for row in scores.detach():
        jacobian = torch.autograd.functional.jacobian(lambda s: weights(s[None], form)[0], row)
        largest = max(largest, float(jacobian.abs().max()))
    return largest


def score_gradient(
    scores: Float[Tensor, "T S"],
    v: Float[Tensor, "S V"],
    upstream: Float[Tensor, "T V"],
    form: Form,
    norm: Norm | None = None,
) -> Float[Tensor, "T S"]:
    """Return ``dL / ds`` by autograd, where ``dL / dO`` is ``upstream`` and O the output of the attention.

    Args:
        scores: no mask.
        v: values.
        upstream: gradient of the loss in the output.
        form: ``softmax``, ``scaled linear``, or ``norm`` for scores that multiply the values as they are.
        norm: of the ``norm`` form.
    """
    scores = scores.detach().requires_grad_()
    if form == "norm":
        assert norm is not None
        out = rms_normalise(scores @ v, norm.eps, norm.inside)
    else:
        out = weights(scores, form) @ v
    (gradient,) = torch.autograd.grad(out, scores, upstream)
    return gradient


def sweep_rows(
    epsilons: Sequence[float], norms: Sequence[Norm] = NORMS, size: int = 16, dim: int = 16, seed: int = 0
) -> list[dict[str, Any]]:
    """Measure gradients when all scores are a small eps: the paper's worst case of scaled linear attention.

    Args:
        epsilons: values of the scores.
        norms: of the NormAttentions.
        size: queries and keys.
        dim: channels of the values; values and upstream gradient are drawn from N(0, 1).
        seed: of that draw.

    Returns:
        Rows with ``form``, ``score``, ``weight_derivative`` (largest |dp_ij / ds_ik|, autograd; None for a norm),
        ``closed_form`` (the same by formula), ``weight_bound``, ``score_gradient`` (largest |dL / ds_ij|),
        ``sharp_bound`` and ``published_bound`` of it (None without a norm, or where the paper states none).
    """
    generator = torch.Generator().manual_seed(seed)
    v, upstream = (torch.randn(size, dim, generator=generator, dtype=torch.float64) for _ in range(2))
    c1, c2 = float(upstream.norm(dim=-1).max()), float(v.norm(dim=-1).max())
    rows = []
    for score in epsilons:
        scores = torch.full((size, size), score, dtype=torch.float64)
        forms: list[tuple[str, Form, Norm | None]] = [
            ("softmax", "softmax", None),
            ("scaled linear", "scaled linear", None),
        ]
        for name, form, norm in [*forms, *((n.name, "norm", n) for n in norms)]:
            row: dict[str, Any] = {"form": name, "score": float(score)}
            row |= dict.fromkeys(("weight_derivative", "closed_form", "weight_bound", "sharp_bound", "published_bound"))
            if norm is None:
                row["weight_derivative"] = largest_weight_derivative(scores, form)
                row["closed_form"] = equal_scores_derivative(1.0 if form == "softmax" else score, size)[0]
                row["weight_bound"] = SOFTMAX_BOUND if form == "softmax" else scaled_linear_bound(score)
            else:
                rms = (scores @ v).square().mean(-1).sqrt()
                bound = norm_attention_sharp_bound(c1, c2, rms, norm.eps, eps_inside=norm.inside)
                row["sharp_bound"] = float(torch.as_tensor(bound).max())
                row["published_bound"] = norm_attention_bound(c1, c2, dim, norm.eps) if norm.inside else None
            row["score_gradient"] = float(score_gradient(scores, v, upstream, form, norm).abs().max())
            rows.append(row)
    return rows
