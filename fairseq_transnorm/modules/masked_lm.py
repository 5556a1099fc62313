"""What stands on top of a bidirectional encoder: masked-LM head, pooling, classification heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .activations import get_activation
from .initialisation import BERT_STD, draw_normal
from .linear import Linear, linear
from .norms import LayerNorm


def first_token(features: Float[Tensor, "B T D"], padding: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B D"]:
    """Return the state of ``<s>``, which stands first."""
    return features[:, 0]


def mean_of_tokens(
    features: Float[Tensor, "B T D"], padding: Bool[Tensor, "B T"] | None = None
) -> Float[Tensor, "B D"]:
    """Return ``sum_t x_t / T`` over the tokens that are no padding, ``<s>`` and ``</s>`` included.

    Added up in float32 or wider; a row of nothing but padding gives 0.
    """
    if padding is None:
        return features.mean(1)
    kind = torch.promote_types(features.dtype, torch.float32)
    lengths = (~padding).sum(1, keepdim=True).clamp(min=1)
    return (features.masked_fill(padding[..., None], 0.0).sum(1, dtype=kind) / lengths).to(features.dtype)


POOLINGS = {"first": first_token, "mean": mean_of_tokens}


class MaskedLMHead(nn.Module):
    """``scale * LayerNorm(act(x W^T + b)) E^T + b_out``, E being the token embedding unless the head has its own.

    Args:
        dim: model width D.
        symbols: size of the vocabulary N.
        activation: name of act.
        tied: the embedding is given to ``forward``; else the head has a matrix of its own.
        scale: a constant, which the checkpoint keeps.

    Source: Liu et al. 2019 (RoBERTa), arXiv:1907.11692, as in fairseq.
    """

    scale: Tensor | None

    def __init__(self, dim: int, symbols: int, activation: str = "gelu", tied: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.dense = Linear(dim, dim)
        self.activation = get_activation(activation)
        self.norm = LayerNorm(dim)
        self.bias = nn.Parameter(torch.zeros(symbols))
        self.projection = None if tied else Linear(dim, symbols, bias=False)
        self.register_buffer("scale", None if scale == 1.0 else torch.tensor(scale))

    def forward(self, features: Float[Tensor, "*rows D"], embedding: Float[Tensor, "N D"]) -> Float[Tensor, "*rows N"]:
        """Return logits; ``embedding`` counts only when the head is tied."""
        weight = embedding if self.projection is None else self.projection.weight
        x = self.norm(self.activation(self.dense(features)))
        return linear(x if self.scale is None else self.scale * x, weight, self.bias)


class ClassificationHead(nn.Module):
    """``pool, dropout, dense D -> I, act, dropout, linear I -> N``: RoBERTa's sentence classification, on any pooling.

    Args:
        dim: model width D.
        inner_dim: width I.
        num_classes: classes N, or regression targets.
        activation: name of act.
        dropout: before both maps.
        pooling: name of what makes one vector of a sequence: RoBERTa's ``first``, or ``mean``.
    """

    def __init__(
        self,
        dim: int,
        inner_dim: int,
        num_classes: int,
        activation: str = "tanh",
        dropout: float = 0.0,
        pooling: str = "first",
    ) -> None:
        super().__init__()
        self.dense = Linear(dim, inner_dim)
        self.activation = get_activation(activation)
        self.dropout = dropout
        self.out_proj = Linear(inner_dim, num_classes)
        self.pool = POOLINGS[pooling]
        self.sizes = (num_classes, inner_dim)

    def forward(
        self, features: Float[Tensor, "B T D"], padding: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B N"]:
        """Return logits of the sequences; ``padding`` is True at what is no token."""
        x = F.dropout(self.pool(features, padding), self.dropout, self.training)
        return self.out_proj(F.dropout(self.activation(self.dense(x)), self.dropout, self.training))


class PooledHead(nn.Module):
    """``dropout, linear D -> N`` on a pooled vector, BERT's: the pooler itself is the encoder's and pretrained.

    Args:
        dim: model width D.
        num_classes: classes N, or regression targets.
        dropout: before the map.

    Source: Devlin et al. 2019, arXiv:1810.04805.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_proj = Linear(dim, num_classes)
        draw_normal(self.out_proj, BERT_STD)
        self.dropout = dropout
        self.sizes = (num_classes,)

    def forward(self, pooled: Float[Tensor, "B D"]) -> Float[Tensor, "B N"]:
        """Return logits."""
        return self.out_proj(F.dropout(pooled, self.dropout, self.training))
