"""Absolute positions, numbered as in fairseq: padding has ``padding_idx``, real tokens follow from the next one on.

Where ``padding_idx`` is None the vocabulary has no padding: every token is real, and the first has position 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .initialisation import draw_normal


def find_padding(tokens: Int[Tensor, "B T"], padding_idx: int | None) -> Bool[Tensor, "B T"] | None:
    """Return where padding is, None when there is none."""
    if padding_idx is None:
        return None
    padding = tokens.eq(padding_idx)
    return padding if padding.any() else None


def padding_of(tokens: Int[Tensor, "B T"], padding_idx: int | None) -> Bool[Tensor, "B T"] | None:
    """Return where padding is, None when there is none.

    Raises:
        ValueError: padding stands before a token: blocks and positions count from the first column.
    """
    padding = find_padding(tokens, padding_idx)
    if padding is not None and (padding[:, :-1] & ~padding[:, 1:]).any():
        raise ValueError("padding before a token; blocks count from the first, pad on the right")
    return padding


def first_position(padding_idx: int | None) -> int:
    """Return the position of a sequence's first token."""
    return 0 if padding_idx is None else padding_idx + 1


def number_positions(
    tokens: Int[Tensor, "B T"], padding_idx: int | None, padding: Bool[Tensor, "B T"] | None, first: int = 0
) -> tuple[Int[Tensor, "B T"], int]:
    """Return the position of each token, the first column being token number ``first``, and the first one not used."""
    start = first_position(padding_idx) + first
    positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)
    if padding is not None:
        assert padding_idx is not None
        positions = positions.masked_fill(padding, padding_idx)
    return positions, start + tokens.shape[1]


class SinusoidalPositions(nn.Module):
    """``P[p] = [sin(p f_0) .. sin(p f_(D/2-1)), cos(p f_0) ..]`` with ``f_k = exp(-k ln(10000) / (D/2 - 1))``.

    Halves, not interleaved; an odd last channel is 0, and so is the row of padding. Computed in float64 and grown when
    a longer sequence comes. Source: Vaswani et al. 2017, arXiv:1706.03762, in the layout of fairseq.

    Args:
        dim: model width D, at least 4.
        padding_idx: position of padding tokens, None for none.
        interleaved: the paper's own layout instead, the first token being number 0: ``P[t] = [sin(t g_0), cos(t g_0),
            sin(t g_1) ..]`` with ``g_k = 10000^(-2k/D)``.
    """

    table: Tensor

    def __init__(self, dim: int, padding_idx: int | None, interleaved: bool = False) -> None:
        super().__init__()
        if dim < 4:
            raise ValueError(f"sinusoidal positions need a width of at least 4, got {dim}")
        self.dim = dim
        self.padding_idx = padding_idx
        self.interleaved = interleaved
        self.register_buffer("table", self._build(first_position(padding_idx) + 512), persistent=False)

    def _build(self, size: int) -> Tensor:
        half = self.dim // 2
        steps, first = (self.dim / 2, first_position(self.padding_idx)) if self.interleaved else (half - 1, 0)
        frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * (-math.log(10000.0) / steps))
        angles = (torch.arange(size, dtype=torch.float64) - first)[:, None] * frequencies
        table = torch.zeros(size, self.dim, dtype=torch.float64)
        sines, cosines = (
            (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if self.interleaved else (slice(half), slice(half, 2 * half))
        )
        table[:, sines], table[:, cosines] = angles.sin(), angles.cos()
        if self.padding_idx is not None:
            table[self.padding_idx] = 0.0
        return table.to(torch.get_default_dtype())

    def forward(self, positions: Int[Tensor, "*B"], first_unused: int) -> Float[Tensor, "*B D"]:
        """Return the rows of ``positions``, all below ``first_unused``."""
        if first_unused > len(self.table):
            grown = self._build(max(first_unused, 2 * len(self.table)))
            self.table = grown.to(device=self.table.device, dtype=self.table.dtype)
        return self.table[positions]


class LearnedPositions(nn.Module):
    """One trained vector a position, drawn from N(0, std^2); the row of padding is and stays 0.

    Args:
        dim: model width D.
        padding_idx: position of padding tokens, None for none.
        max_positions: most tokens of a sequence.
        std: by default ``1/sqrt(D)``.
    """

    def __init__(self, dim: int, padding_idx: int | None, max_positions: int, std: float | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_positions + first_position(padding_idx), dim, padding_idx)
        draw_normal(self.embedding, std=dim**-0.5 if std is None else std)

    def forward(self, positions: Int[Tensor, "*B"], first_unused: int) -> Float[Tensor, "*B D"]:
        """Return the rows of ``positions``, all below ``first_unused``."""
        return self.embedding(positions)
