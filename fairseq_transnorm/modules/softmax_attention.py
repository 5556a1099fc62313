"""Softmax attention over the whole sequence, batch first: by torch's fused kernels, and as the formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from .attention import Padding, SelfAttention, State, join_heads
from .dropout import dropout
from .length_groups import LengthGroups

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

    def feature_map(self, qk: Tensor) -> Tensor:
        return qk

    def mix(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return self.attend(*self.features(heads), key_padding_mask)

    def mix_step(self, q: Tensor, k: Tensor, v: Tensor, state: State | None, position: int) -> tuple[Tensor, State]:
        if (0 if state is None else state[0].shape[2]) != position:
            raise ValueError(f"position {position} needs the state of all {position} positions before it")
        if state is not None:
            k, v = torch.cat([state[0], k], dim=2), torch.cat([state[1], v], dim=2)
        return self.attend(q, k, v, None), (k, v)

    def mix_group(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        if not (self.training and self.dropout):
            return self.mix(heads, key_padding_mask)
        q, k, v = self.features(heads)  # torch has no fused kernel with dropout for a CPU
        return dropout(self.dense_weights(q, k, key_padding_mask), self.dropout) @ v

    def forward_groups_with_maps(
        self, x: Float[Tensor, "R D"], groups: LengthGroups
    ) -> tuple[Float[Tensor, "R D"], Float[Tensor, "B H n n"], Float[Tensor, "B H n n"]]:
        """Attend as ``forward_groups`` does; return also the weights, before dropout, and the scores.

        Weights are 0, and scores minus infinity, where the key is padding or the query is outside of its group.
        """
        qkv = self.qkv(x)
        read, weights, scores = [], [], []
        for part, padding in zip(groups.parts(qkv), groups.paddings, strict=True):
            q, k, v = self.features(self.heads(part))
            allowed = self.allowed(q.shape[2], k.shape[2], padding, q.device)
            raw = self.scores(q, k)
            scores.append(raw if allowed is None else raw.masked_fill(~allowed, float("-inf")))
            weights.append(self.weigh(scores[-1], None))  # each query has a key
            read.append(join_heads(dropout(weights[-1], self.dropout, self.training) @ v))
        maps = groups.batched_maps(weights, 0.0), groups.batched_maps(scores, float("-inf"))
        return self._finish(groups.joined(read), qkv.dtype), *maps

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
