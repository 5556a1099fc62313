"""The two self-attentions of TransNormer, batch first: linear attention with a norm, and block-diagonal attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .activations import get_activation
from .linear_attention import (
    bidirectional_linear_attention,
    causal_linear_attention,
    chunkwise_linear_attention,
    recurrent_linear_attention,
)
from .local_attention import SOFTMAX, block_local_attention, dense_block_local_weights
from .lrpe import LRPE
from .norms import at_least_float32

State = tuple[Tensor, ...]  # what a layer remembers between steps; every tensor has the batch first
DENOMINATOR_FLOOR = 1e-6


class SelfAttention(nn.Module):
    """What both attentions share: projections, heads, positions, precision, the norm and the output projection.

    Between the projections everything is float32 or wider, whatever the model's type or autocast: without a
    denominator the sums outgrow float16 and stall in bfloat16.

    Args:
        dim: model width D.
        num_heads: heads H; must divide D. Head h owns channels h D/H .. (h + 1) D/H - 1 of q, k and v.
        norm: applied to the D channels of all heads together, in float32; None for none.
        lrpe: kind of positional encoding of q and k, ``none`` for none.
        causal: a query sees no later key.
        init_gain: gain of the Xavier uniform draw of the q, k and v weights.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self, dim: int, num_heads: int, norm: nn.Module | None, lrpe: str, causal: bool, init_gain: float
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            near = [n for n in range(1, dim + 1) if dim % n == 0]
            raise ValueError(f"{num_heads} attention heads do not divide the width {dim}; use one of {near}")
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = norm
        self.lrpe = LRPE(dim // num_heads, lrpe) if lrpe != "none" else None
        for weight in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(weight, gain=init_gain)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def step(self, x: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        """Attend from new positions, after those that ``state`` remembers."""
        raise NotImplementedError

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return q above k as ``B 2H T K``, and v as ``B H T K``, in float32 or wider."""
        heads = at_least_float32(self.qkv(x)).unflatten(-1, (3 * self.num_heads, -1)).transpose(1, 2)
        return heads[:, : 2 * self.num_heads], heads[:, 2 * self.num_heads :]

    def positions(self, x: Tensor, first: int) -> Tensor:
        return torch.arange(first, first + x.shape[1], device=x.device)

    def encode(self, qk: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Give q and k their positions and part them."""
        q, k = (qk if self.lrpe is None else self.lrpe(qk, positions)).chunk(2, dim=1)
        return q, k

    def finish(self, out: Tensor, dtype: torch.dtype) -> Tensor:
        """Join the heads of ``B H T V``, normalise, return to the model's type and project."""
        joined = out.transpose(1, 2).flatten(2)
        return self.out((joined if self.norm is None else self.norm(joined)).to(dtype))


def _wide(x: Tensor) -> torch.autocast:
    """Switch autocast off for the type of device that ``x`` is on."""
    return torch.autocast(x.device.type, enabled=False)


class LinearAttention(SelfAttention):
    """NormAttention: ``norm(phi(q) (sum of phi(k)^T v))`` instead of a softmax or a denominator.

    Args:
        dim, num_heads, norm, lrpe, causal: as in ``SelfAttention``; positions count over the whole sequence.
        activation: feature map phi of q and k, applied before the positional encoding.
        impl: form of the causal sum, one of ``CAUSAL_FORMS``.
        chunk_length: positions a chunk of the chunkwise form.
        denominator: divide by the sum of the weights (plain linear attention, Katharopoulos et al. 2020,
            arXiv:2006.16236), kept above 1e-6.

    Source: Qin et al. 2022, arXiv:2210.10340.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        norm: nn.Module | None,
        activation: str = "1+elu",
        lrpe: str = "1d3",
        causal: bool = True,
        impl: str = "chunk",
        chunk_length: int = 64,
        denominator: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, norm, lrpe, causal, init_gain=2**-0.5)
        if chunk_length < 1:
            raise ValueError(f"chunk length {chunk_length} must be at least 1; try 64")
        self.activation = get_activation(activation)
        self.impl = impl
        self.chunk_length = chunk_length
        self.denominator = denominator

    def features(self, x: Tensor, position: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k after feature map and positions, and v, with a column of ones when there is a denominator."""
        qk, v = self.project(x)
        with _wide(x):
            q, k = self.encode(self.activation(qk), self.positions(x, position))
        return q, k, F.pad(v, (0, 1), value=1.0) if self.denominator else v

    def _divide(self, out: Tensor) -> Tensor:
        if not self.denominator:
            return out
        return out[..., :-1] / out[..., -1:].clamp(min=DENOMINATOR_FLOOR)

    def forward(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Attend over whole sequences.

        Args:
            x: layer input.
            key_padding_mask: True at padding, which then adds nothing to any sum; None when there is none.
        """
        q, k, v = self.features(x)
        with _wide(x):
            if key_padding_mask is not None:
                v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
            if self.causal:
                out = causal_linear_attention(q, k, v, self.impl, self.chunk_length)
            else:
                out = bidirectional_linear_attention(q, k, v)
        return self.finish(self._divide(out), x.dtype)

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Attend from T new positions, the first of which is ``position``; state: ``(sum of k^T v,)``, in float32."""
        q, k, v = self.features(x, position)
        past = None if state is None else state[0]
        with _wide(x):
            if x.shape[1] == 1:
                out, past = recurrent_linear_attention(q, k, v, past)
            else:
                out, past = chunkwise_linear_attention(q, k, v, self.chunk_length, past)
        return self.finish(self._divide(out), x.dtype), (past,)

    def attention_weights(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B H T T"]:
        """Return the dense weights of v, for measures only: signed with LRPE, rows do not sum to 1 (unless divided)."""
        q, k, _ = self.features(x)
        weights = q @ k.transpose(-1, -2)
        if self.causal:
            weights = weights.tril()
        if key_padding_mask is not None:
            weights = weights.masked_fill(key_padding_mask[:, None, None, :], 0.0)
        if self.denominator:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=DENOMINATOR_FLOOR)
        return weights


class LocalAttention(SelfAttention):
    """DiagAttention: attention inside blocks of ``block_size`` positions, by softmax or a pointwise activation.

    Args:
        dim, num_heads, norm, lrpe, causal: as in ``SelfAttention``; positions restart in every block.
        block_size: positions a block.
        activation: ``softmax`` or the activation of the scores.
        dropout: on the weights.

    Source: Qin et al. 2022, arXiv:2210.10340.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        norm: nn.Module | None,
        block_size: int = 64,
        activation: str = SOFTMAX,
        lrpe: str = "1d3",
        causal: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, norm, lrpe, causal, init_gain=1.0)
        if block_size < 1:
            raise ValueError(f"block size {block_size} must be at least 1; try 64")
        if activation != SOFTMAX:
            get_activation(activation)  # an unknown name fails here, not at the first batch
        self.block_size = block_size
        self.activation = str(activation)
        self.dropout = dropout

    def features(self, x: Tensor, position: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (scaled by K^-1/2) and k with their positions in the block, and v."""
        qk, v = self.project(x)
        with _wide(x):
            q, k = self.encode(qk, self.positions(x, position) % self.block_size)
        return q * q.shape[-1] ** -0.5, k, v

    def forward(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Attend over whole sequences.

        Args:
            x: layer input.
            key_padding_mask: True at padding, which no query sees; None when there is none.
        """
        q, k, v = self.features(x)
        dropout = self.dropout if self.training else 0.0
        with _wide(x):
            out = block_local_attention(
                q, k, v, self.block_size, self.activation, self.causal, key_padding_mask, dropout
            )
        return self.finish(out, x.dtype)

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Attend from T new positions, the first of which is ``position``; state: k and v of the open block."""
        q, k, v = self.features(x, position)
        begun = position % self.block_size
        if begun and state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        with _wide(x):
            # rows of zeros stand for the queries of the open block that were answered before
            out = block_local_attention(F.pad(q, (0, 0, begun, 0)), k, v, self.block_size, self.activation)
        kept = (position + x.shape[1]) % self.block_size
        state = (k[:, :, k.shape[2] - kept :], v[:, :, v.shape[2] - kept :])
        return self.finish(out[:, :, begun:], x.dtype), state

    def attention_weights(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B H T T"]:
        """Return the dense weights of v, zero outside the blocks, for measures only."""
        q, k, _ = self.features(x)
        return dense_block_local_weights(q, k, self.block_size, self.activation, self.causal, key_padding_mask)
