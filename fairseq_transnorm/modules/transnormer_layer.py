"""One TransNormer layer: an attention and a feed-forward sublayer, each with a norm and a residual connection."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .attention import SelfAttention, State


class TransNormerLayer(nn.Module):
    """``x + attn(norm(x))`` then ``x + ffn(norm(x))``, or ``norm(x + attn(x))`` then ``norm(x + ffn(x))``.

    Args:
        attn: ``LinearAttention`` or ``LocalAttention``.
        ffn: maps ``B T D`` to ``B T D``.
        attn_norm, ffn_norm: norms of the two sublayers.
        dropout: on each sublayer's output, before the residual sum.
        post_norm: norm after the sum instead of before the sublayer.
    """

    def __init__(
        self,
        attn: SelfAttention,
        ffn: nn.Module,
        attn_norm: nn.Module,
        ffn_norm: nn.Module,
        dropout: float = 0.0,
        post_norm: bool = False,
    ) -> None:
        super().__init__()
        self.attn = attn
        self.ffn = ffn
        self.attn_norm = attn_norm
        self.ffn_norm = ffn_norm
        self.dropout = dropout
        self.post_norm = post_norm

    def forward(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        return self._after_attention(x, self.attn(self._before(self.attn_norm, x), key_padding_mask))

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Run on T new positions, the first of which is ``position``, after those that ``state`` remembers."""
        attended, state = self.attn.step(self._before(self.attn_norm, x), state, position)
        return self._after_attention(x, attended), state

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.post_norm else norm(x)

    def _add(self, norm: nn.Module, x: Tensor, change: Tensor) -> Tensor:
        x = x + F.dropout(change, self.dropout, self.training)
        return norm(x) if self.post_norm else x

    def _after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self._add(self.attn_norm, x, attended)
        return self._add(self.ffn_norm, x, self.ffn(self._before(self.ffn_norm, x)))
