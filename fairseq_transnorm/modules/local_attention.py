"""Block-diagonal local attention: tokens see their own block of the sequence and nothing else.

Pure functions of ``q, k: B H T K`` (q already scaled, both with their positions) and ``v: B H T V``. Blocks count from
the first position. Source: Qin et al. 2022 (TransNormer, "DiagAttention"), arXiv:2210.10340.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .activations import get_activation
from .linear_attention import heads_first
from .recompute import by_segments

SOFTMAX = "softmax"
Padding = Bool[Tensor, "B T"]


def weigh(scores: Tensor, allowed: Tensor | None, activation: str) -> Tensor:
    """Turn scores into weights: softmax over the allowed keys, or a pointwise activation; 0 where not allowed.

    None allows all.

    The mask comes after a pointwise activation, since one with f(0) != 0 would otherwise show masked keys. A query
    without an allowed key has weight 0 everywhere.
    """
    if allowed is None:
        return torch.softmax(scores, dim=-1) if activation == SOFTMAX else get_activation(activation)(scores)
    if activation == SOFTMAX:
        weights = torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)
        # softmax gives 0 to a masked key already, but not-a-number to a row of them, which only padding can make
        return weights.masked_fill(~allowed, 0.0) if allowed.dim() > 2 else weights
    return get_activation(activation)(scores).masked_fill(~allowed, 0.0)


def allowed_in_blocks(
    length: int, block_size: int, causal: bool, key_padding_mask: Padding | None, device: torch.device
) -> Tensor:
    """Return which keys (across) a query (down) may see, ``T T``, or ``B 1 T T`` with padding."""
    position = torch.arange(length, device=device)
    block = position // block_size
    allowed = block[:, None] == block[None, :]
    if causal:
        allowed = allowed & (position[None, :] <= position[:, None])
    return allowed if key_padding_mask is None else allowed & ~key_padding_mask[:, None, None, :]


def dense_block_local_weights(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    block_size: int,
    activation: str = SOFTMAX,
    causal: bool = True,
    key_padding_mask: Padding | None = None,
) -> Float[Tensor, "B H T T"]:
    """Return all T x T weights, zero outside the blocks: the oracle of ``block_local_attention``."""
    allowed = allowed_in_blocks(q.shape[2], block_size, causal, key_padding_mask, q.device)
    return weigh(q @ k.transpose(-1, -2), allowed, activation)


def dense_block_local_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    block_size: int,
    activation: str = SOFTMAX,
    causal: bool = True,
    key_padding_mask: Padding | None = None,
) -> Float[Tensor, "B H T V"]:
    """Return ``out[t] = sum over allowed s of weight[t, s] v[s]`` in O(T^2)."""
    return dense_block_local_weights(q, k, block_size, activation, causal, key_padding_mask) @ v


def block_local_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    block_size: int,
    activation: str = SOFTMAX,
    causal: bool = True,
    key_padding_mask: Padding | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T V"]:
    """Return block-diagonal attention in O(T block_size).

    Allowed keys are real (not padding, inside the sequence), of the query's block, and not later when ``causal``.

    Args:
        q, k, v: any strides.
        block_size: positions a block; the last block may be partial.
        activation: ``softmax`` or the name of a pointwise activation of the scores.
        causal: keys after the query are not allowed.
        key_padding_mask: True at padding; None when there is none.
        dropout: probability of dropping a weight.

    Raises:
        ValueError: ``block_size`` is below 1, or the activation is unknown.
    """
    rows = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return block_local_from_rows(heads_first, rows, (), block_size, activation, causal, key_padding_mask, dropout)


def block_local_from_rows(
    prepare: Callable[..., tuple[Tensor, ...]],
    rows: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    block_size: int,
    activation: str = SOFTMAX,
    causal: bool = True,
    key_padding_mask: Padding | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T V"]:
    """Return block-diagonal attention of ``q, k, v = prepare(*rows, *shared)``.

    ``prepare`` runs on a few blocks at a time, again in the backward pass: q, k and v never exist as a whole.

    Args:
        prepare: maps blocks ``R w ...`` of the rows, w = min(block_size, T), to q, k ``R H w K`` and v ``R H w V``.
        rows: tensors ``B T ...``, filled up with zeros where the last block is partial.
        shared: tensors that all blocks need.
        block_size, activation, causal, key_padding_mask, dropout: as in ``block_local_attention``.

    Raises:
        ValueError: ``block_size`` is below 1, or the activation is unknown.
    """
    if block_size < 1:
        raise ValueError(f"block_local_attention: block_size {block_size} must be at least 1; try 64")
    B, T = rows[0].shape[:2]
    w = min(block_size, T)
    filled = -T % w

    def blocks(x: Tensor) -> Tensor:
        """Cut ``B T ...`` into ``(B T/w) w ...``: no copy where w divides T."""
        if filled:
            x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, filled))
        return x.unflatten(1, (x.shape[1] // w, w)).flatten(0, 1)

    cut = [blocks(row) for row in rows]
    # causal queries do not see the filled keys, which come last
    masked = key_padding_mask is not None or (filled > 0 and not causal)
    if masked:
        real = rows[0].new_ones(B, T, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
        cut.append(blocks(real))

    # the function lives until the backward pass: it must hold no tensor of a whole batch
    num_rows, num_cut = len(rows), len(cut)

    def attend(*inputs: Tensor) -> Tensor:
        allowed = torch.ones(w, w, dtype=torch.bool, device=inputs[0].device)
        if causal:
            allowed = allowed.tril()
        if masked:
            allowed = allowed & inputs[num_rows][:, None, None, :]
        q, k, v = prepare(*inputs[:num_rows], *inputs[num_cut:])
        weights = F.dropout(weigh(q @ k.transpose(-1, -2), allowed, activation), dropout)
        return (weights @ v).transpose(1, 2)

    out = attend(*cut, *shared) if dropout else by_segments(attend, tuple(cut), shared)
    return out.unflatten(0, (B, (T + filled) // w)).flatten(1, 2)[:, :T].transpose(1, 2)
