"""Causal attention of the norm-growth models: masks, maps from scores to weights, and what is attended over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .attention import Padding, State
from .softmax_attention import Allowed, SoftmaxAttention

MASKS = ("causal", "multiplicative")
WEIGHT_MAPS = ("softmax", "si_norm")
AXES = ("time", "batch")
QKV_INITS = ("uniform", "xavier")


def scale_invariant_weights(scores: Float[Tensor, "*B T S"], allowed: Allowed | None) -> Float[Tensor, "*B T S"]:
    """Return ``x^2 / sum of x^2`` over the keys that are allowed, exactly 0 on the others; uniform where all x are 0.

    The weights of ``c x`` are those of ``x``, for any c but 0. A row without any allowed key is 0.
    """
    if allowed is None:
        allowed = torch.ones((), dtype=torch.bool, device=scores.device)
    x = scores.masked_fill(~allowed, 0.0)
    largest = x.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    # at most 1, so that no square overflows; the constant leaves the gradient as it is
    x = (x / largest.masked_fill(zero, 1.0)).masked_fill(zero, 1.0).masked_fill(~allowed, 0.0)
    squares = x.square()
    return squares / squares.sum(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


class GrowthAttention(SoftmaxAttention):
    """Multi-head attention with the choices of the norm-growth experiments; padding is not masked.

    Padding stands on the right, where a causal mask hides it from every real query.

    Args:
        dim, num_heads, dropout, scale, bias: as in ``SoftmaxAttention``.
        mask: ``causal`` lets a query see itself and earlier keys. ``multiplicative`` is the original code's mask: it
            multiplies the scores of later keys by 0 instead of adding minus infinity, so that a softmax gives each of
            them the weight exp(0)/Z, and the future leaks.
        weight_map: ``softmax``, or ``si_norm``, whose weights are ``scale_invariant_weights``; a score of 0 has no
            weight there, so that both masks are the same.
        axis: ``time``, or ``batch``: at each position, over the sequences of the batch and without a mask, as the
            original's ``vaswani`` did by mistake.
        qkv_init: draw of the q, k and v maps: ``uniform`` in +-1/sqrt(D), biases too (torch's default of a map), or
            ``xavier`` over all three together, biases 0 (torch's default of its own attention).

    Source: Merrill et al. 2021, arXiv:2010.09697, appendix A.

    Raises:
        ValueError: an unknown name.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float = 0.0,
        scale: bool = True,
        bias: bool = True,
        mask: str = "causal",
        weight_map: str = "softmax",
        axis: str = "time",
        qkv_init: str = "uniform",
    ) -> None:
        super().__init__(dim, num_heads, causal=axis == "time", dropout=dropout, scale=scale, bias=bias)
        choices = {"mask": (mask, MASKS), "weight map": (weight_map, WEIGHT_MAPS), "axis": (axis, AXES)}
        choices["initial values"] = (qkv_init, QKV_INITS)
        for what, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"unknown {what} of attention {value!r}; known: {', '.join(known)}")
        self.mask, self.weight_map, self.axis = mask, weight_map, axis
        self.qkv.reset_parameters()
        self.out.reset_parameters()
        if qkv_init == "xavier":
            nn.init.xavier_uniform_(self.qkv.weight)
            for linear in (self.qkv, self.out):
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)

    def extra_repr(self) -> str:
        return f"mask={self.mask}, weight_map={self.weight_map}, axis={self.axis}, scale={self.scale:.4g}"

    def forward(self, x: Float[Tensor, "B T D"], key_padding_mask: Padding | None = None) -> Float[Tensor, "B T D"]:
        """Attend over whole sequences, padded on the right."""
        if self.axis == "batch":
            return super().forward(x.transpose(0, 1)).transpose(0, 1)
        return super().forward(x)

    def attention_weights(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Padding | None = None
    ) -> Float[Tensor, "B H T T"]:
        """Return the dense weights of v.

        Raises:
            ValueError: they are weights between sequences.
        """
        if self.axis == "batch":
            raise ValueError("attention over the batch has no weights between positions; use --attention-axis time")
        return super().attention_weights(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Padding | None) -> Tensor:
        if self.weight_map == "softmax" and (self.mask == "causal" or not self.causal):
            return super().attend(q, k, v, None)
        weights = self.dense_weights(q, k, None)
        return F.dropout(weights, self.dropout, self.training) @ v

    def mix_group(self, heads: Tensor, key_padding_mask: Padding | None) -> Tensor:
        return self.mix(heads, key_padding_mask)  # its weights are not always a softmax

    def weigh(self, scores: Float[Tensor, "B H T S"], allowed: Allowed | None) -> Float[Tensor, "B H T S"]:
        if self.weight_map == "si_norm":
            return scale_invariant_weights(scores, allowed)
        if self.mask == "multiplicative" and allowed is not None:
            return torch.softmax(scores.masked_fill(~allowed, 0.0), dim=-1)
        return super().weigh(scores, allowed)

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Attend from new positions, as ``SelfAttention`` does.

        Raises:
            ValueError: what comes later, or another sequence, changes a position.
        """
        if self.axis == "batch":
            raise ValueError(
                "with --attention-axis batch a sentence depends on the others of its batch: such a model cannot "
                "generate; train one with --attention-axis time"
            )
        if self.mask == "multiplicative" and self.weight_map == "softmax":
            raise ValueError(
                "with --attn-mask multiplicative a position depends on the length of what follows it: such a model "
                "cannot generate; train one with --attn-mask causal"
            )
        return super().step(x, state, position)
