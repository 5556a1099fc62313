"""Softmax attention over the whole sequence, batch first: by torch's fused kernels, and as the formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .attention import Padding, SelfAttention, State, join_heads
from .dropout import dropout
from .length_groups import LengthGroups
from .recompute import no_autocast

Allowed = Bool[Tensor, "... keys"]  # broadcasts against B H T S: which keys (across) a query (down) may see


def masked_softmax(scores: Float[Tensor, "*B T S"], allowed: Allowed | None) -> Float[Tensor, "*B T S"]:
    """Return the softmax over the keys that are allowed, exactly 0 on the others; a row without any is 0."""
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1).masked_fill(~allowed, 0.0)


class SoftmaxAttention(SelfAttention):
    """``softmax(q k^T / sqrt(K)) v`` for each head, in the type of the projections.

    Args:
        dim, num_heads, causal: as in ``SelfAttention``; there is no norm and no positional encoding.
        dropout: on the weights.
        scale: whether to divide the scores by sqrt(K).
        bias: whether the four maps have biases.

    The state of decoding is k and v of all positions so far. Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        scale: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, None, "none", causal, init_gain=1.0, bias=bias)
        self.dropout = dropout
        self.scale = (dim // num_heads) ** -0.5 if scale else 1.0

    def heads(self, qkv: Float[Tensor, "B T threeD"]) -> Float[Tensor, "B T threeH K"]:
        """Part the heads; a softmax needs no wider type, its kernels add up in float32 by themselves."""
        return qkv.unflatten(-1, (3 * self.num_heads, -1))

    def prepare(self, heads: Tensor, positions: Tensor, *lrpe: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # B T 3H K -> 3 B H T K
        q, k, v = heads.unflatten(2, (3, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def mix(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return self.attend(*self.features(heads), key_padding_mask)

    def mix_step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        if (0 if state is None else state[0].shape[2]) != position:
            raise ValueError(f"position {position} needs the state of all {position} positions before it")
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        return self.attend(q, k, v, None), (k, v)

    def mix_group(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return self._weigh_group(heads, key_padding_mask)[0]

    def forward_groups_with_maps(
        self, x: Float[Tensor, "R D"], groups: LengthGroups
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "B H n n"], Float[Tensor, "B H n n"]]:
        """Attend as ``forward_groups`` does; return also the weights, before dropout, and the scores.

        Weights are 0, and scores minus infinity, where the key is padding or the query is outside of its group.
        """
        qkv = self.qkv(x)
        with no_autocast(x.device):
            parts = zip(groups.parts(qkv), groups.paddings, strict=True)
            found = [self._weigh_group(self.heads(part), padding) for part, padding in parts]
            read, weights, scores = zip(*found, strict=True)
            maps = groups.batched_maps(weights, 0.0), groups.batched_maps(scores, float("-inf"))
            joined = groups.joined([join_heads(out) for out in read])
        return self._finish(joined, qkv.dtype), *maps

    def _weigh_group(self, heads: Tensor, key_padding_mask: Padding | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``B H T V``, weights and scores of a group, in as few operations as there can be.

        On a CPU torch has no fused kernel with dropout, and for short sequences no faster one without.
        """
        q, k, v = (x.flatten(0, 1) for x in self.features(heads))
        size, length = heads.shape[:2]
        allowed = self.allowed(length, length, key_padding_mask, q.device)
        barrier = q.new_zeros(1, 1, 1)
        if allowed is not None:
            barrier = q.new_zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
            barrier = barrier.expand(size, self.num_heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(barrier, q, k.mT, beta=0 if allowed is None else 1, alpha=self.scale)
        weights = torch.softmax(scores, dim=-1)
        out = dropout(weights, self.dropout, self.training) @ v
        return tuple(x.unflatten(0, (-1, self.num_heads)) for x in (out, weights, scores))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Padding | None) -> Tensor:
        """Return ``B H T V``; the queries are the last positions of the keys."""
        probability = self.dropout if self.training else 0.0
        if key_padding_mask is None and q.shape[2] == k.shape[2]:
            return F.scaled_dot_product_attention(
                q, k, v, dropout_p=probability, is_causal=self.causal, scale=self.scale
            )
        allowed = self.allowed(q.shape[2], k.shape[2], key_padding_mask, q.device)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=probability, scale=self.scale)

    def dense_weights(self, q: Tensor, k: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return self.weigh(self.scores(q, k), self.allowed(q.shape[2], k.shape[2], key_padding_mask, q.device))

    def scores(self, q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H S K"]) -> Float[Tensor, "B H T S"]:
        """Return the scores, scaled but not masked."""
        return q @ k.transpose(-1, -2) * self.scale

    def weigh(self, scores: Float[Tensor, "B H T S"], allowed: Allowed | None) -> Float[Tensor, "B H T S"]:
        """Return the weights of the values."""
        return masked_softmax(scores, allowed)

    def allowed(
        self, queries: int, keys: int, key_padding_mask: Padding | None, device: torch.device
    ) -> Allowed | None:
        """Return which keys the last ``queries`` positions may see, None for all."""
        allowed = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
        if not self.causal:
            return allowed
        # the queries are the last positions
        earlier = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        return earlier if allowed is None else allowed & earlier
