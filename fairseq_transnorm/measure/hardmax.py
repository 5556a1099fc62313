"""Saturated attention: the limit of ``softmax(c scores)`` for growing c, with ties.

Source: Merrill et al. 2021, arXiv:2010.09697, section 4.3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..modules.softmax_attention import Allowed


def hardmax(
    scores: Float[Tensor, "... T S"], allowed: Allowed | None = None, tolerance: float = 0.0
) -> Float[Tensor, "... T S"]:
    """Return ``1/|M_t|`` on ``M_t = {s allowed: scores[t, s] = max over allowed}`` and exactly 0 elsewhere.

    A score of minus infinity counts as not allowed. A row without an allowed key is 0; one with a score that is not a
    number is that throughout.

    Args:
        scores: of any scale.
        allowed: broadcasts against the scores; None for all. A mask that sets scores to 0 instead lets them compete:
            set them, and leave this out.
        tolerance: scores that are at most this far below the largest also win.

    Raises:
        ValueError: the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"hardmax: the tolerance of ties is {tolerance}; it must not be negative")
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    largest = scores.amax(-1, keepdim=True)
    won = (scores >= largest - tolerance) & (scores > float("-inf"))
    weights = won.to(scores.dtype)
    return torch.where(largest.isnan(), largest, weights / weights.sum(-1, keepdim=True).clamp_min(1.0))
