"""DeepScaleLM: standard deviations and residual weights that keep the variance of signals and gradients at 1.

Symbols: N layers of two residual blocks (attention, feed-forward), width d, inner width f, dropout p of embeddings and
blocks, r the correlation between two positions, lambda and beta the weights of skip and block.
Source: Kedia et al. 2024, "Transformers Get Stable", arXiv:2403.09635; the recursion is that of its released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .blocks import attention_block, ffn_block, zipf_match
from .moments import Moments, Signal, require, require_dropout, require_size

Array = NDArray[np.float64]

INPUT_CORRELATION = 0.221
"""Correlation of two positions before dropout: English text in two segments, three embeddings added."""


@dataclass(frozen=True)
class ResidualWeights:
    """``lambda^2`` and ``beta^2`` of ``x <- lambda x + beta block(x)``; both 1 in a plain transformer."""

    skip_squared: float = 1.0
    change_squared: float = 1.0

    @property
    def skip(self) -> float:
        """lambda."""
        return math.sqrt(self.skip_squared)

    @property
    def change(self) -> float:
        """beta."""
        return math.sqrt(self.change_squared)


PLAIN = ResidualWeights()


def residual_weights(
    layers: int,
    k: float = 1.0,
    alpha: float = 1.0,
    skip_squared: float | None = None,
    change_squared: float | None = None,
    any_sum: bool = False,
) -> ResidualWeights:
    """Return ``beta^2 = k / N^alpha`` and ``lambda^2 = 1 - beta^2``, or those that are given.

    Args:
        layers: N.
        k, alpha: the embedding's share of the last stream's variance is about e^(-2k) at alpha = 1.
        skip_squared, change_squared: lambda^2 and beta^2; one that is missing is 1 minus the other.
        any_sum: accept a sum that is not 1.

    Raises:
        ValueError: a weight outside (0, 1), or both given with a sum that is not 1.
    """
    for name, value in (("lambda^2", skip_squared), ("beta^2", change_squared)):
        if value is not None and not 0 < value < (math.inf if any_sum else 1):
            raise ValueError(f"{name} = {value:g} is not between 0 and 1; beta^2 = 1 / N = {1 / layers:.3g} is usual")
    if skip_squared is None and change_squared is None:
        change_squared = k * layers**-alpha
        if not 0 < change_squared < 1:
            raise ValueError(
                f"beta^2 = k / N^alpha = {k:g} / {layers}^{alpha:g} = {change_squared:g} is not between 0 and 1; take "
                "another k or alpha, or give beta^2 itself"
            )
    if change_squared is None:
        assert skip_squared is not None
        change_squared = 1 - skip_squared
    if skip_squared is None:
        skip_squared = 1 - change_squared
    if min(skip_squared, change_squared) <= 0:
        raise ValueError(f"lambda^2 = {skip_squared:g}, beta^2 = {change_squared:g}: both must be above 0; give both")
    if not any_sum and abs(skip_squared + change_squared - 1) > 1e-6:
        raise ValueError(
            f"lambda^2 + beta^2 = {skip_squared:g} + {change_squared:g} = {skip_squared + change_squared:g} is not 1: "
            "the variance of the stream would not stay the same; give one of them"
        )
    return ResidualWeights(skip_squared, change_squared)


def input_correlation(segments: int, symbols: int) -> float:
    """Return the correlation of two positions before dropout, ``(Pr[w_i = w_j] + Pr[s_i = s_j]) / tables``.

    Token and position embeddings are always there, segment embeddings (two segments) or none: two segments have the
    constant of the released code; other cases come from Zipf's law.

    Args:
        segments: segments with embeddings, 0 for none.
        symbols: size of the vocabulary.
    """
    if segments >= 2:
        return INPUT_CORRELATION
    return (zipf_match(symbols) + segments) / (2 + segments)


@dataclass(frozen=True)
class FeedForwardSizes:
    """Width d, inner width f and activation of the feed-forward; dropout between activation and second map."""

    dim: int
    inner: int
    activation: Literal["relu", "gelu"] = "relu"
    inner_dropout: float = 0.0

    def block(self, correlation: float, weight_variance: float, dropout: float) -> Moments:
        """Return the block's moments for an input of variance 1; both maps have the same weight variance."""
        return ffn_block(
            Signal(variance=1.0, correlation=correlation),
            d=self.dim,
            f=self.inner,
            first_variance=weight_variance,
            second_variance=weight_variance,
            p=dropout,
            activation=self.activation,
            activation_p=self.inner_dropout,
        )

    def weight_variance(self, dropout: float) -> float:
        """Return the variance of both maps' weights that gives the block's output variance 1.

        ``sqrt(2 (1 - p) / (d f))`` for ReLU, where 1 - p is the product of what both dropouts keep. GeLU's gain
        depends on the scale, and a fixed point is looked for.
        """
        found = math.sqrt(2 * (1 - dropout) * (1 - self.inner_dropout) / (self.dim * self.inner))
        for _ in range(60):  # the output grows with a power between 2 and 3 of it: the error halves at least
            found /= math.sqrt(float(self.block(0.0, found, dropout).variance))
        return found


def correlations(
    layers: int,
    input_corr: float,
    dropout: float,
    feed_forward: FeedForwardSizes,
    weights: ResidualWeights = PLAIN,
    post_norm: bool = False,
) -> tuple[Array, Array]:
    """Return the predicted correlation r at the input of each attention and of each feed-forward, ``N`` each.

    Both blocks have unit output variance; the correlation of attention's output is taken as 1 - p (long sequences),
    that of the feed-forward's as (1 - p) rho(r). A plain Pre-LN stream of variance S grows, a Post-LN one begins at 1.

    Args:
        layers: N.
        input_corr: of the embedding before dropout, in (0, 1].
        dropout: p, in [0, 1).
        feed_forward: its sizes and activation.
        weights: of skip and block.
        post_norm: the stream is normalised after each block; matters only when lambda^2 + beta^2 is not 1.

    Raises:
        ValueError: a value outside its domain.
    """
    require_size("layers", layers)
    require("input_corr", input_corr, lambda v: (v > 0) & (v <= 1), "must lie in (0, 1]")
    require_dropout("dropout", dropout)
    r, S = input_corr * (1 - dropout), 1.0
    at_attention, at_feed_forward = np.empty(layers), np.empty(layers)
    variance = feed_forward.weight_variance(dropout)

    def add(r: float, S: float, block: float) -> tuple[float, float]:
        total = weights.skip_squared * S + weights.change_squared
        mixed = (weights.skip_squared * S * r + weights.change_squared * block) / total
        return mixed, 1.0 if post_norm else total

    for layer in range(layers):
        at_attention[layer] = r
        r, S = add(r, S, 1 - dropout)
        at_feed_forward[layer] = r
        r, S = add(r, S, float(feed_forward.block(r, variance, dropout).covariance))
    return at_attention, at_feed_forward


def attention_gain(
    dim: int, r: Array, dropout: float, attention_dropout: float = 0.0, length: int | None = None
) -> Array:
    """Return the output variance of attention for ``d^2 sv^2 so^2 = 1``, unit queries and keys: r / (1 - p).

    Args:
        dim: d.
        r: correlation at its input.
        dropout, attention_dropout: p of the output, p_a of the weights.
        length: positions L; None leaves out what vanishes with 1 / L, and p_a with it.
    """
    if length is None:
        return r / (1 - dropout)
    each = 1 / dim
    x = Signal(variance=1.0, correlation=r)
    block = attention_block(
        x,
        length=length,
        d=dim,
        query_variance=each,
        key_variance=each,
        value_variance=each,
        output_variance=each,
        p=dropout,
        attention_p=attention_dropout,
    )
    return np.asarray(block.variance)


@dataclass(frozen=True)
class Stds:
    """Standard deviations of the initial weights, two of them one a layer; and the factor of the masked-LM head."""

    embedding: float
    query_key: float
    value: Array
    attention_out: Array
    feed_forward: float
    head: float
    pooler: float
    order: float
    head_scale: float = 1.0


def deep_scale_stds(feed_forward: FeedForwardSizes, attention_gains: Array, dropout: float, tables: int = 3) -> Stds:
    """Return DeepScaleLM's: every block has unit gain for a unit input.

    Variances: embeddings ``(1 - p) / tables``, q and k ``1 / d``, v and out ``sqrt((1 - p) / r_l) / d``, feed-forward
    ``sqrt(2 (1 - p) / (d f))``, heads and pooler ``1 / d``. The factor of the masked-LM head,
    ``1 / sqrt(d (1 - p) / tables)``, gives logits of variance 1.

    Args:
        feed_forward: its sizes and activation.
        attention_gains: of each layer, from :func:`attention_gain`.
        dropout: p.
        tables: embeddings added up.
    """
    keep, dim = 1 - dropout, feed_forward.dim
    sigma = np.sqrt(attention_gains**-0.5 / dim)
    unit = dim**-0.5
    return Stds(
        embedding=math.sqrt(keep / tables),
        query_key=unit,
        value=sigma,
        attention_out=sigma,
        feed_forward=math.sqrt(feed_forward.weight_variance(dropout)),
        head=unit,
        pooler=unit,
        order=unit,
        head_scale=(dim * keep / tables) ** -0.5,
    )


def xavier_stds(dim: int, ffn_dim: int, heads: int, layers: int) -> Stds:
    """Return Xavier's, ``sqrt(2 / (in + out))`` of each matrix, a head of q, k and v taken by itself."""
    projection = np.full(layers, math.sqrt(2 / (dim + dim / heads)))
    unit = dim**-0.5
    return Stds(
        embedding=unit,
        query_key=float(projection[0]),
        value=projection,
        attention_out=np.full(layers, unit),
        feed_forward=math.sqrt(2 / (dim + ffn_dim)),
        head=unit,
        pooler=unit,
        order=math.sqrt(2 / (dim + 2)),
    )


def constant_stds(std: float, layers: int) -> Stds:
    """Return ``std`` for everything: 0.02 in BERT."""
    each = np.full(layers, std)
    return Stds(std, std, each, each, std, std, std, std)
