"""Attention weights compared with the cells that they should be on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPSILON = 1e-8  # added to each cell, so that a row without a target becomes uniform


def head_weights(
    layers: Sequence[Float[Tensor, "B _ S S"]], heads: Sequence[tuple[int, int]], length: int
) -> Float[Tensor, "B m n n"]:
    """Return the weights of some heads, of the last ``length`` positions as queries and as keys.

    A symbol that a model adds before a sequence is left out; the rows of the others then sum to less than 1.

    Args:
        layers: weights of each layer.
        heads: layer and head, from 0.
        length: n, of the sequences with padding.
    """
    own = layers[0].shape[-1] - length
    return torch.stack([layers[layer][:, head, own:, own:] for layer, head in heads], 1)


def normalised_targets(targets: Bool[Tensor, "B m n n"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B m n n"]:
    """Return ``t = (M + 1e-8) / row sum``: a row of zeros becomes uniform, ``1 / length``.

    Args:
        targets: M, of query and key; False where the key is padding.
        lengths: of the sequences; t is 0 where the key is padding, and means nothing where only the query is.
    """
    low = EPSILON / (targets.sum(-1, keepdim=True, dtype=torch.int32) + EPSILON * lengths[:, None, None, None])
    high = low * ((1 + EPSILON) / EPSILON)
    return torch.where(targets, high, low).masked_fill_(~_real(lengths, targets.shape[-1])[:, None, None], 0.0)


def squared_differences(
    weights: Float[Tensor, "B m n n"], targets: Bool[Tensor, "B m n n"], lengths: Int[Tensor, " B"]
) -> Float[Tensor, "B m"]:
    """Return the mean of ``(A - t)^2`` over the cells of each sequence, ``length^2`` of them, for each head.

    t are the :func:`normalised_targets`, which are 0 where the key is padding, as the weights A must be.
    """
    rows = (weights - normalised_targets(targets, lengths)).square().sum(-1)
    real = _real(lengths, targets.shape[-1])
    return rows.masked_fill(~real[:, None], 0.0).sum(-1) / lengths[:, None].square()


def target_masses(
    weights: Float[Tensor, "B m n n"], targets: Bool[Tensor, "B m n n"], lengths: Int[Tensor, " B"]
) -> Float[Tensor, "B m"]:
    """Return the weight on the cells with M = 1, averaged over the rows of each sequence, for each head.

    A row without a target counts, with weight 0.
    """
    rows = weights.masked_fill(~targets, 0.0).sum(-1)
    real = _real(lengths, targets.shape[-1])
    return rows.masked_fill(~real[:, None], 0.0).sum(-1) / lengths[:, None]


def _real(lengths: Int[Tensor, " B"], length: int) -> Bool[Tensor, "B n"]:
    """Return which positions are no padding."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]
