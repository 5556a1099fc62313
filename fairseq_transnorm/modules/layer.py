"""One transformer layer: an attention and a feed-forward sublayer, each with a norm and a residual connection."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .attention import SelfAttention, State
from .dropout import dropout
from .feed_forward import TwoStageFeedForward
from .length_groups import LengthGroups
from .norms import at_least_float32
from .recompute import recompute
from .softmax_attention import SoftmaxAttention


def add_with_dropout(
    x: Tensor, change: Tensor, probability: float, skip_weight: float = 1.0, change_weight: float = 1.0
) -> Tensor:
    """Return ``skip_weight * x + dropout(change_weight * change)``, keeping one byte a number for the backward pass.

    A weight near 1 would be lost in bfloat16, whose numbers lie 1/128 apart there: such sums are rounded once only.
    """
    if skip_weight != 1.0:
        dtype = torch.result_type(x, change)
        wide = skip_weight * at_least_float32(x), at_least_float32(change)
        return add_with_dropout(*wide, probability, change_weight=change_weight).to(dtype)
    if not probability:
        return torch.add(x, change, alpha=change_weight)
    dropped = torch.rand(change.shape, device=change.device) < probability
    return torch.add(x, change.masked_fill(dropped, 0.0), alpha=change_weight / (1 - probability))


NORM_PLACEMENTS = ("pre", "post", "res_post")


class TransformerLayer(nn.Module):
    """``x`` after an attention sublayer, then a feed-forward one; each, with f its function, is one of

    ``x + f(norm(x))`` (pre), ``norm(x + f(x))`` (post) or ``x + norm(f(x))`` (res_post).

    Args:
        attn: any ``SelfAttention``.
        ffn: the feed-forward sublayer.
        attn_norm, ffn_norm: norms of the two sublayers.
        dropout: on each sublayer's output, before the residual sum.
        norm_placement: one of ``NORM_PLACEMENTS``.
        skip_weight, change_weight: factors lambda of x and beta of the sublayer's output in both sums, constants.

    Raises:
        ValueError: an unknown placement of the norms.
    """

    def __init__(
        self,
        attn: SelfAttention,
        ffn: TwoStageFeedForward,
        attn_norm: nn.Module,
        ffn_norm: nn.Module,
        dropout: float = 0.0,
        norm_placement: str = "pre",
        skip_weight: float = 1.0,
        change_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if norm_placement not in NORM_PLACEMENTS:
            raise ValueError(f"unknown norm placement {norm_placement!r}; known: {', '.join(NORM_PLACEMENTS)}")
        self.attn = attn
        self.ffn = ffn
        self.attn_norm = attn_norm
        self.ffn_norm = ffn_norm
        self.dropout = dropout
        self.norm_placement = norm_placement
        self.skip_weight = skip_weight
        self.change_weight = change_weight

    def forward(
        self, x: Float[Tensor, "B T D"], key_padding_mask: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Run on whole sequences; ``key_padding_mask`` is True at padding, None when there is none."""
        random = self.training and self.attn.dropout > 0
        change = recompute(lambda x: self.attn(self._before(self.attn_norm, x), key_padding_mask), x, random=random)
        x = self._add(self.attn_norm, x, change)
        return self._add(self.ffn_norm, x, self.ffn(x, before=partial(self._before, self.ffn_norm)))

    def forward_groups(
        self, x: Float[Tensor, "R D"], groups: LengthGroups, maps: bool = False
    ) -> tuple[Float[Tensor, "R D"], list[Float[Tensor, "B H n n"]] | None]:
        """Run as ``forward`` does on a batch whose sequences stand in groups of about one length, for small models.

        Nothing is computed again in the backward pass. Dropout is :func:`dropout`'s.

        Returns:
            The rows, and with ``maps``, of softmax attention, its weights and scores.
        """
        before, both = self._before(self.attn_norm, x), None
        if maps:
            assert isinstance(self.attn, SoftmaxAttention)
            change, *both = self.attn.forward_groups_with_maps(before, groups)
        else:
            change = self.attn.forward_groups(before, groups)
        x = self._add_rows(self.attn_norm, x, change)
        wide = self.ffn.widen(self._before(self.ffn_norm, x))
        return self._add_rows(self.ffn_norm, x, self.ffn.narrow(wide, dropout)), both

    def step(
        self, x: Float[Tensor, "B T D"], state: State | None, position: int
    ) -> tuple[Float[Tensor, "B T D"], State]:
        """Run on T new positions, the first of which is ``position``, after those that ``state`` remembers."""
        change, state = self.attn.step(self._before(self.attn_norm, x), state, position)
        x = self._add(self.attn_norm, x, change)
        return self._add(self.ffn_norm, x, self.ffn(self._before(self.ffn_norm, x))), state

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.norm_placement == "pre" else x

    def _add_rows(self, norm: nn.Module, x: Tensor, change: Tensor) -> Tensor:
        return self._add(norm, x, dropout(change, self.dropout, self.training), 0.0)

    def _add(self, norm: nn.Module, x: Tensor, change: Tensor, probability: float | None = None) -> Tensor:
        if probability is None:
            probability = self.dropout if self.training else 0.0
        if self.norm_placement == "res_post":
            change, probability = norm(F.dropout(change, probability)), 0.0
        x = add_with_dropout(x, change, probability, self.skip_weight, self.change_weight)
        return norm(x) if self.norm_placement == "post" else x
