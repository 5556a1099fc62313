"""Moments of a transformer's blocks at initialisation, put together from those of their components.

Statistics, symbols and domains are those of :mod:`.moments`; a :class:`Signal` goes in, :class:`Moments` come out.
Blocks are given what a LayerNorm puts out, of mean 0; a whole sub-layer of a Pre-LN model is
``residual(x, compose(x, norm, block), ...)``.

Source: derived by composition from the components of Kedia et al. 2024, arXiv:2403.09635, and checked by simulation
(``analysis/dslm/simulations.py``).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np

from .attention_gradient import AttentionGradient
from .moments import (
    Component,
    Moments,
    Signal,
    Values,
    attention,
    compose,
    dropout,
    gelu,
    linear,
    relu,
    require,
    require_size,
    require_variance,
)

ACTIVATIONS: dict[str, Component] = {"relu": relu, "gelu": gelu}
TWO_SEGMENTS_MATCH = 2 / 3
"""Chance that two positions lie in one segment, of two cut at a uniform position."""


def zipf_match(vocabulary: int) -> float:
    """Return the chance that two tokens are the same, drawn independently with p_k = (1 / k) / sum_j (1 / j).

    Close to ``(pi^2 / 6) / (ln V + 0.5772)^2``; 0.0138 for V = 30522.

    Args:
        vocabulary: number of types V >= 1.
    """
    require_size("vocabulary", vocabulary)
    shares = 1 / np.arange(1, vocabulary + 1)
    return float(np.sum(shares**2) / np.sum(shares) ** 2)


def embeddings(
    *,
    table_variance: Values,
    token_match: Values,
    segment_match: Values | None = TWO_SEGMENTS_MATCH,
    p: Values = 0.0,
    gradient_variance: Values = 1.0,
    gradient_correlation: Values = 0.0,
) -> Moments:
    """Return the moments of dropout_p(T[w] + P[i] + S[s]), tables with independent entries of mean 0, variance se^2.

    ``V' = 3 se^2 / (1 - p)`` and ``C' = se^2 (Pr[w_i = w_j] + Pr[s_i = s_j])``, so that r' is
    ``(1 - p) (Pr[w_i = w_j] + Pr[s_i = s_j]) / 3``. Without a segment table, 2 takes the place of 3 and its chance that
    of 0. The gradient is that in the sum before dropout.

    Args:
        table_variance: se^2 >= 0.
        token_match: Pr[w_i = w_j] of two positions of a sequence, in [0, 1]; :func:`zipf_match`.
        segment_match: Pr[s_i = s_j], in [0, 1]; 1 for a single segment, None without a segment table.
        p: dropout, 0 <= p < 1.
        gradient_variance, gradient_correlation: of the gradient in the output.
    """
    require_variance("table_variance", table_variance)
    matches = [("token_match", token_match)]
    if segment_match is not None:
        matches.append(("segment_match", segment_match))
    for name, value in matches:
        require(name, value, lambda v: (v >= 0) & (v <= 1), "must lie in [0, 1]")
    tables = 1 + len(matches)
    x = Signal(
        variance=tables * table_variance,
        correlation=sum(value for _, value in matches) / tables,
        gradient_variance=gradient_variance,
        gradient_correlation=gradient_correlation,
    )
    return dropout(x, p=p)


def ffn_block(
    x: Signal,
    *,
    d: Values,
    f: Values,
    first_variance: Values,
    second_variance: Values,
    p: Values = 0.0,
    activation_p: Values = 0.0,
    activation: Literal["relu", "gelu"] = "relu",
) -> Moments:
    """Return the moments of y = dropout_p(dropout_pa(act(x W1)) W2), W1 of size d x f, variance s1^2, W2 f x d, s2^2.

    For ReLU and sigma = 1, with K = d f s1^2 s2^2 / 2 and q = (1 - p) (1 - pa)::

        V' = K / q             C' = K (r + (sqrt(1 - r^2) - r arccos r) / pi)
        G' = K sg^2 / q        H' = K rg sg^2 (1/2 + arcsin(r) / pi)

    For GeLU, whose gain depends on the scale, E[gelu^2] = V + mu^2 at variance s = d s1^2 sigma^2 takes the place of
    s / 2, and so on: the components composed.

    Args:
        x: input with mean 0; variance 1 after a LayerNorm.
        d, f: width and inner width, at least 1.
        first_variance, second_variance: s1^2 and s2^2 of the weights, at least 0.
        p, activation_p: dropout of the output and of what the activation puts out, in [0, 1).
        activation: ``relu`` or ``gelu``.
    """
    return compose(
        x,
        *ffn_parts(
            d=d,
            f=f,
            first_variance=first_variance,
            second_variance=second_variance,
            p=p,
            activation_p=activation_p,
            activation=activation,
        ),
    )


def ffn_parts(
    *,
    d: Values,
    f: Values,
    first_variance: Values,
    second_variance: Values,
    p: Values = 0.0,
    activation_p: Values = 0.0,
    activation: Literal["relu", "gelu"] = "relu",
) -> list[Component]:
    """Return the components of :func:`ffn_block`: first matrix, activation, dropout, second matrix, dropout."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} must be one of {', '.join(ACTIVATIONS)}")
    return [
        partial(linear, d_in=d, d_out=f, weight_variance=first_variance),
        ACTIVATIONS[activation],
        partial(dropout, p=activation_p),
        partial(linear, d_in=f, d_out=d, weight_variance=second_variance),
        partial(dropout, p=p),
    ]


def attention_block(
    x: Signal,
    *,
    length: Values,
    d: Values,
    query_variance: Values,
    key_variance: Values,
    value_variance: Values,
    output_variance: Values,
    p: Values = 0.0,
    attention_p: Values = 0.0,
    gradient: AttentionGradient = "whole",
) -> Moments:
    """Return the moments of y = dropout_p(concat_h(P_h V_h) Wo), P_h = dropout_pa(softmax(Q_h K_h^T / sqrt(d / H))).

    They do not depend on the number of heads H. For sigma = 1, with K = d^2 sv^2 so^2 and q2 = d^2 sq^2 sk^2::

        V' = K / (1 - p) (r + 1/L ((1 - r)^2 (L - 1) q2 / d
                + exp((1 - r) q2) / (1 - pa) (4 (1 - r)^2 q2 / d + 1 - r)))
        C' = K (r + 1/L (2 (1 - r)^2 q2 / d + 1 - r))
        H' = K sg^2 (1 + (L - 1) rg (1 - p)) / (L (1 - p))

    and G' by one of three forms: through the ``values`` alone, as the paper has it; ``corrected`` for uneven weights
    and the path through the keys, in long sequences; and ``whole``, the last line, with kappa = exp(r (1 - r) q2),
    e = exp((1 - r) q2) and n = (1 - r + r pa) / (1 - pa)::

        K sg^2 (1 + (L - 1) rg (1 - p) (1 - pa)) / (L (1 - pa) (1 - p))
        K sg^2 (1 / (L (1 - pa) (1 - p)) + rg kappa (1 + r (1 - r) q2))
        K sg^2 (rg kappa ((L - 1) / L + r (1 - r) q2)
                + (e / L (1 / (1 - pa) + (2 - r) n q2) + (1 - r)^2 q2 / d) / (1 - p))

    For r in [0.2, 0.8], rg in [0.2, 0.6], q2 in [0.25, 1] and L = 128 they were seen to err by at most 41, 13 and 4 %.

    Args:
        x: input with mean 0; variance 1 after a LayerNorm.
        length: positions L >= 1.
        d: width, at least 1.
        query_variance, key_variance, value_variance, output_variance: sq^2, sk^2, sv^2, so^2 of the weights.
        p, attention_p: dropout of the output and of the attention probabilities, in [0, 1).
        gradient: form of G', see above.
    """
    return compose(
        x,
        *attention_parts(
            length=length,
            d=d,
            query_variance=query_variance,
            key_variance=key_variance,
            value_variance=value_variance,
            output_variance=output_variance,
            p=p,
            attention_p=attention_p,
            gradient=gradient,
        ),
    )


def attention_parts(
    *,
    length: Values,
    d: Values,
    query_variance: Values,
    key_variance: Values,
    value_variance: Values,
    output_variance: Values,
    p: Values = 0.0,
    attention_p: Values = 0.0,
    gradient: AttentionGradient = "whole",
) -> list[Component]:
    """Return the components of :func:`attention_block`: the heads together, output matrix, dropout."""
    heads = partial(
        attention,
        length=length,
        d_in=d,
        d_out=d,
        query_variance=query_variance,
        key_variance=key_variance,
        value_variance=value_variance,
        p=attention_p,
        gradient=gradient,
    )
    return [heads, partial(linear, d_in=d, d_out=d, weight_variance=output_variance), partial(dropout, p=p)]


def residual(x: Signal, block: Moments, *, lambda_sq: Values = 1.0, beta_sq: Values = 1.0) -> Moments:
    """Return the moments of lambda x + beta block(x), the block's output taken as independent of x.

    ``V' = lambda^2 sigma^2 + beta^2 V_block``, covariances likewise; ``G' = lambda^2 sg^2 + beta^2 G_block``.

    Args:
        x: the skip, and the gradient in the sum.
        block: of the block for the same ``x``, its norm included.
        lambda_sq, beta_sq: squares of the weights, at least 0.
    """
    require_variance("lambda_sq", lambda_sq)
    require_variance("beta_sq", beta_sq)
    skip, branch = np.sqrt(lambda_sq), np.sqrt(beta_sq)
    back = x.gradient_variance
    return Moments(
        mean=skip * x.mean + branch * block.mean,
        variance=lambda_sq * x.variance + beta_sq * block.variance,
        covariance=lambda_sq * x.correlation * x.variance + beta_sq * block.covariance,
        gradient_variance=lambda_sq * back + beta_sq * block.gradient_variance,
        gradient_covariance=lambda_sq * x.gradient_correlation * back + beta_sq * block.gradient_covariance,
    )
