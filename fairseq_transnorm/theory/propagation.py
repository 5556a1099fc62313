"""What the moments of the blocks say about a whole encoder at initialisation, layer by layer.

A block of unit gain B added to a stream of variance V makes it lambda^2 V + beta^2 B: linear growth in a plain Pre-LN
model, 1 + B before each norm of a plain Post-LN one, 1 where lambda^2 + beta^2 = 1 and B = 1 (DeepScaleLM). The
gradient is multiplied by lambda^2 + beta^2 G / V going down a Pre-LN block, so that it falls hyperbolically with the
depth of a plain model, and by (lambda^2 + beta^2 G) / (lambda^2 + beta^2 B) in a Post-LN one: exponentially unless
G = B.

Nothing is fitted. Source: Kedia et al. 2024, arXiv:2403.09635; the composition, with the correlation of gradients and
the gradients of weights, is ours, as are the terms of order 1 / length, which the paper's recursion leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .blocks import TWO_SEGMENTS_MATCH, attention_parts, embeddings, ffn_parts, residual
from .deep_scale import PLAIN, ResidualWeights, Stds
from .moments import Component, Moments, Signal, attention, compose, dropout, layer_norm, require, require_size, trace

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Encoder:
    """What the theory has to know of an encoder and its batch.

    Attributes:
        dim, inner: width d and inner width f of the feed-forward.
        length: positions L of a sequence.
        stds: of the initial weights; ``value`` and ``attention_out`` have one for each of the N layers.
        weights: of skip and block.
        post_norm: norm after each sum (Post-LN) instead of before each block (Pre-LN).
        dropout, attention_dropout, activation_dropout: p of embedding and blocks, of attention probabilities, and
            between activation and second matrix.
        activation: of the feed-forward.
        token_match, segment_match: chance that two positions of a sequence have the same token, the same segment;
            the latter None without segment embeddings.
        gradient_correlation: between positions, of the gradient in the last layer's stream; 0 where each masked token
            sends back its own.
    """

    dim: int
    inner: int
    length: int
    stds: Stds
    weights: ResidualWeights = PLAIN
    post_norm: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    activation: Literal["relu", "gelu"] = "relu"
    token_match: float = 0.0
    segment_match: float | None = TWO_SEGMENTS_MATCH
    gradient_correlation: float = 0.0


@dataclass(frozen=True)
class Propagation:
    """One number a layer: of its stream (Post-LN: the sum before its last norm), and of the gradient in that.

    Attributes:
        variance, correlation: of the stream; the correlation is that between positions.
        gradient_ratio: variance of the gradient over that at the last layer.
        gradient_correlation: between positions.
        weight_gradient: 2-norm of the gradient of the layer's weight matrices, over its geometric mean: a shape.
            Queries and keys are left out: softmax of nearly equal scores leaves little for them.
    """

    variance: Array
    correlation: Array
    gradient_ratio: Array
    gradient_correlation: Array
    weight_gradient: Array


def propagate(encoder: Encoder) -> Propagation:
    """Follow the signal up the layers of an encoder, and its gradient down.

    Raises:
        ValueError: a value outside its domain, named.
    """
    _check(encoder)
    stds = encoder.stds
    embedded = embeddings(
        table_variance=stds.embedding**2,
        token_match=encoder.token_match,
        segment_match=encoder.segment_match,
        p=encoder.dropout,
    )
    x = Signal(
        variance=embedded.variance,
        correlation=embedded.correlation,
        gradient_correlation=encoder.gradient_correlation,
    )
    blocks = [parts for layer in range(len(stds.value)) for parts in (_attention_of(encoder, layer), _ffn_of(encoder))]
    unchanged = partial(dropout, p=0.0)  # stands for what follows the last layer, and is given its output
    *given, end = trace(x, *(_sublayer(encoder, parts) for parts in blocks), unchanged)
    after = [*given[2::2], end]
    squares = [_weight_gradient(encoder, signal, parts) for signal, parts in zip(given, blocks, strict=True)]
    norms = np.sqrt(np.asarray(squares, dtype=np.float64).reshape(-1, 2).sum(-1))
    back = np.asarray([signal.gradient_variance for signal in given[1::2]])
    return Propagation(
        variance=np.asarray([signal.variance for signal in after]),
        correlation=np.asarray([signal.correlation for signal in after]),
        gradient_ratio=back / back[-1],
        gradient_correlation=np.asarray([signal.gradient_correlation for signal in given[1::2]]),
        weight_gradient=norms / np.exp(np.log(norms).mean()),
    )


def _check(encoder: Encoder) -> None:
    stds = encoder.stds
    for name in ("dim", "inner", "length"):
        require_size(name, getattr(encoder, name))
    if len(stds.value) != len(stds.attention_out) or not len(stds.value):
        raise ValueError(f"stds for {len(stds.value)} values and {len(stds.attention_out)} outputs: one each a layer")
    for name in ("embedding", "query_key", "value", "attention_out", "feed_forward"):
        require(f"std of {name}", getattr(stds, name), lambda v: (v > 0) & np.isfinite(v), "must be above 0")
    for name in ("skip_squared", "change_squared"):
        require(name, getattr(encoder.weights, name), lambda v: (v > 0) & np.isfinite(v), "must be above 0")


def _attention_of(encoder: Encoder, layer: int) -> list[Component]:
    stds = encoder.stds
    return attention_parts(
        length=encoder.length,
        d=encoder.dim,
        query_variance=stds.query_key**2,
        key_variance=stds.query_key**2,
        value_variance=float(stds.value[layer]) ** 2,
        output_variance=float(stds.attention_out[layer]) ** 2,
        p=encoder.dropout,
        attention_p=encoder.attention_dropout,
    )


def _ffn_of(encoder: Encoder) -> list[Component]:
    variance = encoder.stds.feed_forward**2
    return ffn_parts(
        d=encoder.dim,
        f=encoder.inner,
        first_variance=variance,
        second_variance=variance,
        p=encoder.dropout,
        activation_p=encoder.activation_dropout,
        activation=encoder.activation,
    )


def _norm(x: Signal, dim: int) -> Moments:
    """Return the moments of LayerNorm, with covariance r, not r (1 - 1/d).

    A stream that was centred once stays centred, but such factors would add up over hundreds of layers.
    """
    return replace(layer_norm(x, d=dim), covariance=x.correlation)


def _sublayer(encoder: Encoder, parts: list[Component]) -> Component:
    """Return norm, block and sum in one, in the order of the encoder; its output is the sum."""
    norm = partial(_norm, dim=encoder.dim)
    add = partial(residual, lambda_sq=encoder.weights.skip_squared, beta_sq=encoder.weights.change_squared)

    def pre_norm(x: Signal) -> Moments:
        return add(x, compose(x, norm, *parts))

    def post_norm(x: Signal) -> Moments:
        return compose(x, norm, lambda y: add(y, compose(y, *parts)))

    return post_norm if encoder.post_norm else pre_norm


def _weight_gradient(encoder: Encoder, given: Signal, parts: list[Component]) -> float:
    """Return the expected squared norm of the gradient of a block's matrices, for one sequence, up to a factor.

    For y = x W with rows x_i and gradients g_i, ``|sum_i x_i^T g_i|^2 = sum_ij (x_i . x_j) (g_i . g_j)``: L times own
    products, and L (L - 1) times those between positions.
    """
    L = encoder.length
    y = _norm(given, encoder.dim)
    block = Signal(
        correlation=y.correlation,
        gradient_variance=given.gradient_variance,  # beta^2 times that, which all blocks have in common
        gradient_correlation=given.gradient_correlation,
    )
    inside = trace(block, *parts)

    def squared(x: Signal) -> float:
        own = (x.variance + x.mean**2) * x.gradient_variance
        between = (x.correlation * x.variance + x.mean**2) * x.gradient_correlation * x.gradient_variance
        return float(own + (L - 1) * between)

    dim, inner = encoder.dim, encoder.inner
    if len(parts) == 5:  # matrix, activation, dropout, matrix, dropout
        return dim * inner * (squared(inside[0]) + squared(inside[3]))
    # heads, matrix, dropout; the gradient in the values is that of heads whose value matrix is of unit gain
    heads = attention(
        inside[0],
        length=L,
        d_in=dim,
        d_out=dim,
        query_variance=0.0,
        key_variance=0.0,
        value_variance=1 / dim,
        p=encoder.attention_dropout,
    )
    values = Signal(
        correlation=block.correlation,
        gradient_variance=heads.gradient_variance,
        gradient_correlation=heads.gradient_correlation,
    )
    return dim * dim * (squared(values) + squared(inside[1]))


def straight_line(last: float, layers: int) -> Array:
    """Return ``a_N i / N`` of layers i = 1..N: the line through 0 and the last point, as the paper's code draws it."""
    require_size("layers", layers)
    return last * np.arange(1, layers + 1) / layers


def inverse_root(first: float, layers: int) -> Array:
    """Return ``a_1 / sqrt(i)`` of layers i = 1..N: b_i = b_(i-1) / sqrt(1 + 1 / (i - 1)) in the paper's code."""
    require_size("layers", layers)
    return first / np.sqrt(np.arange(1, layers + 1))


def exponential(first: float, layers: int, rate: float = 1.024) -> Array:
    """Return ``a_1 rate^(i - 1)`` of layers i = 1..N; the paper's code has the rate 1.024, fitted by hand."""
    require_size("layers", layers)
    require("rate", rate, lambda v: (v > 0) & np.isfinite(v), "must be above 0")
    return first * rate ** np.arange(layers)
