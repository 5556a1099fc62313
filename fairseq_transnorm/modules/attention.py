"""The two self-attentions of TransNormer, batch first: linear attention with a norm, and block-diagonal attention."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .activations import NEVER_NEGATIVE, get_activation
from .length_groups import LengthGroups
from .linear import Linear
from .linear_attention import (
    CAUSAL_FORMS,
    bidirectional_linear_attention,
    causal_linear_attention,
    chunkwise_from_rows,
    chunkwise_linear_attention,
    recurrent_linear_attention,
)
from .local_attention import SOFTMAX, block_local_attention, block_local_from_rows, dense_block_local_weights, weigh
from .lrpe import LRPE, encode
from .norms import at_least_float32
from .recompute import no_autocast

State = tuple[Tensor, ...]  # what a layer remembers between steps; every tensor has the batch first
Padding = Bool[Tensor, "B S"]  # True at padding
DENOMINATOR_FLOOR = 1e-6


def join_heads(out: Float[Tensor, "B H T V"]) -> Float[Tensor, "B T HV"]:
    """Put the channels of all heads beside each other."""
    return out.transpose(1, 2).flatten(2)


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
        bias: whether the four maps have biases.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    dropout: float = 0.0  # of the weights

    def __init__(
        self,
        dim: int,
        num_heads: int,
        norm: nn.Module | None,
        lrpe: str,
        causal: bool,
        init_gain: float,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            near = [n for n in range(1, dim + 1) if dim % n == 0]
            raise ValueError(f"{num_heads} attention heads do not divide the width {dim}; use one of {near}")
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = Linear(dim, 3 * dim, bias)
        self.out = Linear(dim, dim, bias)
        self.norm = norm
        self.lrpe = LRPE(dim // num_heads, lrpe) if lrpe != "none" else None
        for weight in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(weight, gain=init_gain)
        nn.init.xavier_uniform_(self.out.weight)
        if bias:
            nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "B T D"], key_padding_mask: Padding | None = None) -> Float[Tensor, "B T D"]:
        """Attend over whole sequences; ``key_padding_mask`` is True at padding, None when there is none."""
        qkv = self.qkv(x)
        with no_autocast(x.device):
            out = self.mix(self.heads(qkv), key_padding_mask)
        return self._finish(join_heads(out), qkv.dtype)

    def forward_groups(self, x: Float[Tensor, "R D"], groups: LengthGroups) -> Float[Tensor, "R D"]:
        """Attend as ``forward`` does over a batch whose sequences stand in groups of about one length."""
        qkv = self.qkv(x)
        with no_autocast(x.device):
            parts = zip(groups.parts(qkv), groups.paddings, strict=True)
            read = [join_heads(self.mix_group(self.heads(part), padding)) for part, padding in parts]
        return self._finish(groups.joined(read), qkv.dtype)

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Attend from T new positions, the first of which is ``position``, after those that ``state`` remembers.

        Raises:
            ValueError: the attention is not causal.
        """
        if not self.causal:
            raise ValueError("attention that is not causal cannot go on from earlier positions: later ones change them")
        qkv = self.qkv(x)
        with no_autocast(x.device):
            out, state = self.mix_step(*self.features(self.heads(qkv), position), state, position)
        return self._finish(join_heads(out), qkv.dtype), state

    def attention_weights(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Padding | None = None
    ) -> Float[Tensor, "B H T T"]:
        """Return the dense weights of v, in O(T^2) and for measures only."""
        qkv = self.qkv(x)
        with no_autocast(x.device):
            q, k, _ = self.features(self.heads(qkv))
            return self.dense_weights(q, k, key_padding_mask)

    def heads(self, qkv: Float[Tensor, "B T threeD"]) -> Float[Tensor, "B T threeH K"]:
        """Part the heads: those of q, of k, of v; float32 or wider."""
        return at_least_float32(qkv).unflatten(-1, (3 * self.num_heads, -1))

    def prepare(self, heads: Tensor, positions: Tensor, *lrpe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q and k as the products need them, and v, ``B H T K`` each.

        Args:
            heads: of q, k and v, ``B T 3H K``.
            positions: ``B T`` or ``T``, from 0.
            lrpe: parameters of the positional encoding, if there is one.
        """
        # B T 3H K -> 3 B H T K: q, k and v are then whole runs of memory after the first operation
        qkv = heads.unflatten(2, (3, -1)).permute(2, 0, 3, 1, 4)
        qk = self.feature_map(qkv[:2])
        if lrpe:
            qk = encode(qk, positions.unsqueeze(-2), *lrpe)
        return qk[0], qk[1], qkv[2]

    def shared(self) -> tuple[Tensor, ...]:
        """Return the parameters of the positional encoding, for ``prepare``."""
        return () if self.lrpe is None else self.lrpe.tensors()

    def features(self, heads: Float[Tensor, "B T threeH K"], position: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v of ``prepare``, the first at ``position``."""
        return self.prepare(heads, self.positions(heads.shape[1], heads.device, position), *self.shared())

    def _finish(self, joined: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise what all heads read, ``.. D``, return to the model's type and project."""
        return self.out((joined if self.norm is None else self.norm(joined)).to(dtype))

    def positions(self, size: int, device: torch.device, first: int = 0) -> Tensor:
        """Return the positions that ``size`` tokens have in q and k, the first being token number ``first``."""
        return torch.arange(first, first + size, device=device)

    def feature_map(self, qk: Tensor) -> Tensor:
        """Map q and k, ``2 B H T K``, before their positions."""
        raise NotImplementedError

    def mix(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        """Return ``B H T V`` from the heads of whole sequences, ``B T 3H K``."""
        raise NotImplementedError

    def mix_group(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        """Return what ``mix`` does, for a group of short sequences."""
        return self.mix(heads, key_padding_mask)

    def mix_step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        """Return ``B H T V`` from new positions, and what to remember."""
        raise NotImplementedError

    def dense_weights(self, q: Tensor, k: Tensor, key_padding_mask: Padding | None) -> Tensor:
        """Return the weights of v, ``B H T T``."""
        raise NotImplementedError


class LinearAttention(SelfAttention):
    """NormAttention: ``norm(phi(q) (sum of phi(k)^T v))`` instead of a softmax or a denominator.

    Args:
        dim, num_heads, norm, lrpe, causal: as in ``SelfAttention``; positions count over the whole sequence.
        activation: feature map phi of q and k, applied before the positional encoding.
        impl: form of the causal sum, one of ``CAUSAL_FORMS``.
        chunk_length: positions a chunk of the chunkwise form.
        denominator: divide by the sum of the weights (plain linear attention, Katharopoulos et al. 2020,
            arXiv:2006.16236), kept above 1e-6.

    The state of decoding is ``(sum of k^T v,)``, in float32. ``attention_weights`` are signed with LRPE, and their
    rows do not sum to 1 without the denominator. Source: Qin et al. 2022, arXiv:2210.10340.

    Raises:
        ValueError: a chunk length below 1, an unknown name, or a denominator of weights that can be negative.
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
        if impl not in CAUSAL_FORMS:
            raise ValueError(f"unknown causal_impl {impl!r}; known: {', '.join(CAUSAL_FORMS)}")
        self.activation = get_activation(activation)
        if denominator and (self.lrpe is not None or activation not in NEVER_NEGATIVE):
            raise ValueError(
                f"a denominator of linear attention needs weights that are never negative, not activation {activation} "
                f"with lrpe {lrpe}; use one of {', '.join(NEVER_NEGATIVE)} and lrpe none (or lrpe-layers local)"
            )
        self.impl = impl
        self.chunk_length = chunk_length
        self.denominator = denominator

    def feature_map(self, qk: Tensor) -> Tensor:
        return self.activation(qk)

    def prepare(self, heads: Tensor, positions: Tensor, *lrpe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().prepare(heads, positions, *lrpe)
        # a channel of ones sums up to the denominator
        return q, k, F.pad(v, (0, 1), value=1.0) if self.denominator else v

    def mix(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        if self.causal and self.impl == "chunk":
            positions = self.positions(heads.shape[1], heads.device).expand(heads.shape[:2])
            rows = (heads, positions) if key_padding_mask is None else (heads, positions, key_padding_mask)
            return self._divide(chunkwise_from_rows(self._prepare_real, rows, self.shared(), self.chunk_length)[0])
        q, k, v = self.features(heads)
        if key_padding_mask is not None:
            v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        form = partial(causal_linear_attention, impl=self.impl) if self.causal else bidirectional_linear_attention
        return self._divide(form(q, k, v))

    def _prepare_real(self, heads: Tensor, positions: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``prepare`` with v zero at padding: ``others`` begins with its mask, if there is any."""
        padding = others[: len(others) - len(self.shared())]
        q, k, v = self.prepare(heads, positions, *others[len(padding) :])
        return q, k, v.masked_fill(padding[0][:, None, :, None], 0.0) if padding else v

    def mix_step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        past = None if state is None else state[0]
        if q.shape[2] == 1:
            out, past = recurrent_linear_attention(q, k, v, past)
        else:
            out, past = chunkwise_linear_attention(q, k, v, self.chunk_length, past)
        return self._divide(out), (past,)

    def dense_weights(self, q: Tensor, k: Tensor, key_padding_mask: Padding | None) -> Tensor:
        weights = q @ k.transpose(-1, -2)
        if self.causal:
            weights = weights.tril()
        if key_padding_mask is not None:
            weights = weights.masked_fill(key_padding_mask[:, None, None, :], 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=DENOMINATOR_FLOOR) if self.denominator else weights

    def _divide(self, out: Tensor) -> Tensor:
        return out[..., :-1] / out[..., -1:].clamp(min=DENOMINATOR_FLOOR) if self.denominator else out


class LocalAttention(SelfAttention):
    """DiagAttention: attention inside blocks of ``block_size`` positions, by softmax or a pointwise activation.

    Args:
        dim, num_heads, norm, lrpe, causal: as in ``SelfAttention``; positions restart in every block.
        block_size: positions a block.
        activation: ``softmax`` or the activation of the scores.
        dropout: on the weights.

    q is scaled by K^-1/2. The state of decoding is k and v of the open block. ``attention_weights`` are zero outside
    the blocks. Source: Qin et al. 2022, arXiv:2210.10340.
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

    def feature_map(self, qk: Tensor) -> Tensor:
        return torch.stack([qk[0] * qk.shape[-1] ** -0.5, qk[1]])

    def positions(self, size: int, device: torch.device, first: int = 0) -> Tensor:
        return super().positions(size, device, first) % self.block_size

    def mix(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        positions = self.positions(min(self.block_size, heads.shape[1]), heads.device)
        return block_local_from_rows(
            lambda block, *lrpe: self.prepare(block, positions, *lrpe),
            (heads,),
            self.shared(),
            self.block_size,
            self.activation,
            self.causal,
            key_padding_mask,
            dropout,
        )

    def mix_step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        begun, new = position % self.block_size, q.shape[2]
        if begun:
            if state is None:
                raise ValueError(
                    f"position {position} is inside a block of {self.block_size}: pass the state before it"
                )
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        if new == 1:  # sees the open block and itself: all that there is
            out = weigh(q @ k.transpose(-1, -2), None, self.activation) @ v
        else:  # rows of zeros stand for the queries of the open block that were answered before
            padded = F.pad(q, (0, 0, begun, 0))
            out = block_local_attention(padded, k, v, self.block_size, self.activation)[:, :, begun:]
        if open_block := (begun + new) // self.block_size * self.block_size:
            # copies: a view would keep all of a long prompt alive
            k, v = k[:, :, open_block:].clone(), v[:, :, open_block:].clone()
        return out, (k, v)

    def dense_weights(self, q: Tensor, k: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return dense_block_local_weights(q, k, self.block_size, self.activation, self.causal, key_padding_mask)
