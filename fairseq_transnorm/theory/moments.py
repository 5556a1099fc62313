"""Mean, variance and covariance of a transformer's components at initialisation, forward and backward.

A :class:`Signal` is what a component is given: L positions of d features. Every entry of x has mean mu and variance
sigma^2; two positions have covariance r sigma^2 in the same feature; features are independent. The gradient g of a
scalar loss in the component's *output* has mean 0, variance sg^2 and correlation rg between positions, and is
independent of x. :class:`Moments` are what comes out: the same statistics of the output, and those of the gradient in
the component's *input*. All functions take numbers or numpy arrays and broadcast.

Symbols in formulas: mu, sigma^2, r, sg^2, rg as above; mu', V', C' mean, variance and covariance between positions of
the output; G', H' variance and covariance between positions of the gradient in the input; p probability of dropout.
Source: Kedia et al. 2024, arXiv:2403.09635 (DeepScaleLM), as realised in its authors' simulations; the softmax's
covariances follow from its rows adding up to one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .attention_gradient import AttentionGradient, attention_gradient

Values = float | npt.NDArray[np.float64]
"""A number, or an array that broadcasts against the others."""


@dataclass(frozen=True)
class Signal:
    """Statistics of a component's input x and of the gradient g in its output.

    Attributes:
        mean: mu, any finite number.
        variance: sigma^2 >= 0.
        correlation: r between two positions, -1 <= r <= 1. That is enough for two positions; L of them can only be
            equally correlated with r >= -1 / (L - 1), which the functions that take a length check.
        gradient_variance: sg^2 >= 0.
        gradient_correlation: rg, -1 <= rg <= 1.

    Raises:
        ValueError: a value outside its domain, named.
    """

    mean: Values = 0.0
    variance: Values = 1.0
    correlation: Values = 0.0
    gradient_variance: Values = 1.0
    gradient_correlation: Values = 0.0

    def __post_init__(self) -> None:
        require("mean", self.mean, np.isfinite, "must be finite")
        for name in ("variance", "gradient_variance"):
            require(name, getattr(self, name), lambda v: (v >= 0) & np.isfinite(v), "must be finite and at least 0")
        for name in ("correlation", "gradient_correlation"):
            require(name, getattr(self, name), lambda v: np.abs(v) <= 1, "must lie in [-1, 1]")


@dataclass(frozen=True)
class Moments:
    """Statistics of a component's output (mu', V', C') and of the gradient in its input (G', H').

    Attributes:
        mean, variance, covariance: of the output; the covariance is that between positions.
        gradient_variance, gradient_covariance: of the gradient in the input, between positions.
    """

    mean: Values
    variance: Values
    covariance: Values
    gradient_variance: Values
    gradient_covariance: Values

    @property
    def correlation(self) -> Values:
        """C' / V' between positions, nan where V' = 0."""
        return _ratio(self.covariance, self.variance)

    @property
    def gradient_correlation(self) -> Values:
        """H' / G' between positions, nan where G' = 0."""
        return _ratio(self.gradient_covariance, self.gradient_variance)


Component = Callable[[Signal], Moments]


def compose(x: Signal, *components: Component) -> Moments:
    """Return the moments of components one after the other: statistics go forward, gradients back.

    ``compose(x, relu, lambda h: dropout(h, p=0.1))`` is dropout of ReLU of x; ``x`` holds the statistics of the first
    component's input and of the gradient in the last one's output.
    """
    return _through(x, components)[1]


def trace(x: Signal, *components: Component) -> list[Signal]:
    """Return what each component is given when they follow each other: its input, and the gradient in its output.

    Arguments as of :func:`compose`.
    """
    return _through(x, components)[0]


def _through(x: Signal, components: tuple[Component, ...]) -> tuple[list[Signal], Moments]:
    """Return what :func:`trace` and what :func:`compose` returns."""
    inputs, out = [x], Moments(x.mean, x.variance, x.correlation * x.variance, 0.0, 0.0)
    for component in components:
        out = component(inputs[-1])
        inputs.append(replace(x, mean=out.mean, variance=out.variance, correlation=_settled(out.correlation)))
    signals: list[Signal] = []
    variance, covariance = x.gradient_variance, x.gradient_correlation * x.gradient_variance
    for component, given in zip(reversed(components), reversed(inputs[:-1]), strict=True):
        correlation = _settled(_ratio(covariance, variance))
        signals.append(replace(given, gradient_variance=variance, gradient_correlation=correlation))
        back = component(signals[-1])
        variance, covariance = back.gradient_variance, back.gradient_covariance
    return signals[::-1], replace(out, gradient_variance=variance, gradient_covariance=covariance)


def linear(x: Signal, *, d_in: Values, d_out: Values, weight_variance: Values) -> Moments:
    """Return the moments of y = x W, W of size d_in x d_out with independent entries of mean 0.

    ``V' = d_in sw^2 (sigma^2 + mu^2)``, ``C' = d_in sw^2 (mu^2 + r sigma^2)``, ``G' = d_out sw^2 sg^2``,
    ``H' = rg G'``. The entries of x may have any distribution.

    Args:
        x: input.
        d_in, d_out: features of input and output, at least 1.
        weight_variance: sw^2 >= 0.
    """
    require_size("d_in", d_in)
    require_size("d_out", d_out)
    require_variance("weight_variance", weight_variance)
    forward, backward = d_in * weight_variance, d_out * weight_variance * x.gradient_variance
    return Moments(
        mean=0.0 * forward * x.mean,
        variance=forward * (x.variance + x.mean**2),
        covariance=forward * (x.mean**2 + x.correlation * x.variance),
        gradient_variance=backward,
        gradient_covariance=x.gradient_correlation * backward,
    )


def relu(x: Signal) -> Moments:
    """Return the moments of y = max(x, 0) for normal x with mu = 0.

    ``mu' = sigma / sqrt(2 pi)``, ``V' = sigma^2 (pi - 1) / (2 pi)``,
    ``C' = sigma^2 / (2 pi) (sqrt(1 - r^2) + r (pi - arccos r) - 1)``, ``G' = sg^2 / 2``,
    ``H' = (1/4 + arcsin(r) / (2 pi)) rg sg^2``.
    """
    _require_centred("relu", x)
    r, s = x.correlation, x.variance
    pairs = np.sqrt(1 - r**2) + r * (np.pi - np.arccos(r))
    return Moments(
        mean=np.sqrt(s / (2 * np.pi)),
        variance=s * (np.pi - 1) / (2 * np.pi),
        covariance=s / (2 * np.pi) * (pairs - 1),
        gradient_variance=x.gradient_variance / 2,
        gradient_covariance=(0.25 + np.arcsin(r) / (2 * np.pi)) * x.gradient_correlation * x.gradient_variance,
    )


def gelu(x: Signal) -> Moments:
    """Return the moments of y = x Phi(x), the exact (erf) GeLU, for normal x with mu = 0.

    With s = sigma^2 and a = s / (1 + s)::

        mu' = s / sqrt(2 pi (1 + s))
        V'  = s / (2 pi) (pi - a - arccos a + 2 a sqrt((1 - a) / (1 + a)))
        C'  = s / 4 (r + 2/pi r arcsin(r a)
                     + 2 s / pi (s (1 - r^2) + 1 + r^2) / ((1 + s) sqrt((1 + s)^2 - (r s)^2))) - mu'^2
        G'  = sg^2 (1/2 + (-arccos a + a (5 s + 3) / (1 + 2 s)^(3/2)) / (2 pi))
        H'  = rg sg^2 (1/2 + (-arccos(r a)
                     + r a ((s + 1) (2 s + 3) - 2 (r s)^2) / ((1 + s)^2 - (r s)^2)^(3/2)) / (2 pi))
    """
    _require_centred("gelu", x)
    s, r, sg = x.variance, x.correlation, x.gradient_variance
    a = s / (1 + s)
    mean = s / np.sqrt(2 * np.pi * (1 + s))
    root = np.sqrt((1 + s) ** 2 - (r * s) ** 2)
    same = np.pi - a - np.arccos(a) + 2 * a * np.sqrt((1 - a) / (1 + a))
    pairs = r + 2 / np.pi * r * np.arcsin(r * a)
    pairs = pairs + 2 * s / np.pi * (s * (1 - r**2) + 1 + r**2) / ((1 + s) * root)
    back = -np.arccos(a) + a * (5 * s + 3) / (1 + 2 * s) ** 1.5
    back_pairs = -np.arccos(r * a) + r * a * ((s + 1) * (2 * s + 3) - 2 * (r * s) ** 2) / root**3
    return Moments(
        mean=mean,
        variance=s / (2 * np.pi) * same,
        covariance=s / 4 * pairs - mean**2,
        gradient_variance=sg * (0.5 + back / (2 * np.pi)),
        gradient_covariance=x.gradient_correlation * sg * (0.5 + back_pairs / (2 * np.pi)),
    )


def layer_norm(x: Signal, *, d: Values) -> Moments:
    """Return the moments of LayerNorm over d features, without gain, bias and eps, leaving out terms of order 1 / d.

    ``mu' = 0``, ``V' = 1``, ``C' = r (1 - 1/d)``, ``G' = sg^2 / sigma^2``, ``H' = rg sg^2 / sigma^2``. The features of
    a position get correlated: :func:`layer_norm_feature_covariance`.

    Args:
        x: input, with a variance above 0.
        d: features, at least 2.
    """
    require_size("d", d, least=2)
    require("variance", x.variance, lambda v: v > 0, "must be above 0 for a LayerNorm")
    backward = x.gradient_variance / x.variance
    zero = 0.0 * (x.variance + x.correlation + d)
    return Moments(
        mean=zero,
        variance=zero + 1.0,
        covariance=x.correlation * (1 - 1 / d),
        gradient_variance=backward,
        gradient_covariance=x.gradient_correlation * backward,
    )


def layer_norm_feature_covariance(d: Values) -> Values:
    """Return ``-1 / (d - 1)``, the covariance of two of d >= 2 features of one position after LayerNorm."""
    require_size("d", d, least=2)
    return -1 / (d - 1)


def dropout(x: Signal, *, p: Values) -> Moments:
    """Return the moments of dropout that multiplies what it keeps by 1 / (1 - p), masks independent between positions.

    ``mu' = mu``, ``V' = (sigma^2 + p mu^2) / (1 - p)``, ``C' = r sigma^2``, ``G' = sg^2 / (1 - p)``, ``H' = rg sg^2``.

    Args:
        x: input, of any distribution.
        p: probability that an entry is dropped, 0 <= p < 1.
    """
    require_dropout("p", p)
    return Moments(
        mean=x.mean,
        variance=(x.variance + p * x.mean**2) / (1 - p),
        covariance=x.correlation * x.variance,
        gradient_variance=x.gradient_variance / (1 - p),
        gradient_covariance=x.gradient_correlation * x.gradient_variance,
    )


def softmax(x: Signal, *, length: Values, approximate: bool = False) -> Moments:
    """Return the moments of softmax over L normal logits; here the "positions" are the entries of a row.

    With v = (1 - r) sigma^2 and u = v L / (L - 1), ``mu' = 1 / L`` and::

        full         V' = exp(2 u) (exp(u) - 1) / ((L - 1) exp(v) + 1)^2,   G' = sg^2 (1 - rg) (V' + 1 / L^2)
        approximate  V' = (exp(v) - 1) / L^2,                               G' = sg^2 (1 - rg) exp(v) / L^2

    The full form uses u above and v below the line, as the paper's authors do. What a row's logits or its gradients
    have in common does not matter to a softmax, hence 1 - r and 1 - rg. Probabilities add up to 1 and the gradients in
    the logits to 0, hence ``C' = -V' / (L - 1)`` and ``H' = -G' / (L - 1)``.

    Args:
        x: the logits and the gradient in the probabilities; the mean is of no effect.
        length: logits of a row, L >= 2.
        approximate: take the second form.
    """
    require_size("length", length, least=2)
    _require_equal_correlation(x, length)
    v = (1 - x.correlation) * x.variance
    if approximate:
        variance, second = np.expm1(v) / length**2, np.exp(v) / length**2
    else:
        u = v * length / (length - 1)
        variance = np.exp(2 * u) * np.expm1(u) / ((length - 1) * np.exp(v) + 1) ** 2
        second = variance + 1 / length**2
    backward = x.gradient_variance * (1 - x.gradient_correlation) * second
    return Moments(
        mean=1 / length + 0.0 * v,
        variance=variance,
        covariance=-variance / (length - 1),
        gradient_variance=backward,
        gradient_covariance=-backward / (length - 1),
    )


def attention(
    x: Signal,
    *,
    length: Values,
    d_in: Values,
    d_out: Values,
    query_variance: Values,
    key_variance: Values,
    value_variance: Values,
    p: Values = 0.0,
    gradient: AttentionGradient = "values",
) -> Moments:
    """Return the moments of single-head self-attention without output projection.

    y = P V with P = dropout_p(softmax(Q K^T / sqrt(d_out))), Q = x Wq, K = x Wk, V = x Wv, each W of size
    d_in x d_out with normal entries of variance sq^2, sk^2, sv^2, and mu = 0. With w = d_in sv^2, q = sq^2 sk^2::

        V' = w (r sigma^2 + 1/L ((1 - r)^2 (L - 1) d_in q sigma^6
                + exp((1 - r) d_in^2 q sigma^4) / (1 - p) (4 (1 - r)^2 d_in q sigma^6 + (1 - r) sigma^2)))
        C' = w (r sigma^2 + 1/L (2 (1 - r)^2 d_in q sigma^6 + (1 - r) sigma^2))
        G' = sg^2 d_out sv^2 (1 + (L - 1) rg (1 - p)) / (L (1 - p))
        H' = sg^2 d_out sv^2 (1 + (L - 1) rg) / L

    G' and H' count the path through V alone; :mod:`.attention_gradient` has two forms of G' that err less.

    Args:
        x: input with mean 0.
        length: positions L >= 1.
        d_in, d_out: features of the input, and of queries, keys and values; both at least 1.
        query_variance, key_variance, value_variance: sq^2, sk^2, sv^2 of the *weights*, at least 0.
        p: dropout of the attention probabilities, 0 <= p < 1.
        gradient: form of G': ``values``, ``corrected`` or ``whole``.
    """
    _require_centred("attention", x)
    for name, size in (("length", length), ("d_in", d_in), ("d_out", d_out)):
        require_size(name, size)
    for name, value in (("query", query_variance), ("key", key_variance), ("value", value_variance)):
        require_variance(f"{name}_variance", value)
    require_dropout("p", p)
    _require_equal_correlation(x, length)
    s, r, rg = x.variance, x.correlation, x.gradient_correlation
    q = query_variance * key_variance
    scores = d_in**2 * q * s**2
    apart, product = (1 - r) * s, (1 - r) ** 2 * d_in * q * s**3
    peaks = np.exp((1 - r) * scores) / (1 - p) * (4 * product + apart)
    values, back = d_in * value_variance, x.gradient_variance * d_out * value_variance
    return Moments(
        mean=0.0 * values * s,
        variance=values * (r * s + ((length - 1) * product + peaks) / length),
        covariance=values * (r * s + (2 * product + apart) / length),
        gradient_variance=back * attention_gradient(gradient, r, rg, p, scores, length, d_in),
        gradient_covariance=back * (1 + (length - 1) * rg) / length,
    )


def require(name: str, value: Values, valid: Callable[[Any], Any], wanted: str) -> None:
    """Raise a ValueError with the argument's name and its first wrong value; nan is always wrong."""
    values = np.asarray(value, dtype=float)
    wrong = values[~np.asarray(valid(values), dtype=bool)]
    if wrong.size:
        raise ValueError(f"{name} {wrong.flat[0]:g} {wanted}")


def require_variance(name: str, value: Values) -> None:
    require(name, value, lambda v: (v >= 0) & np.isfinite(v), "must be finite and at least 0")


def require_dropout(name: str, value: Values) -> None:
    require(name, value, lambda v: (v >= 0) & (v < 1), "must lie in [0, 1)")


def require_size(name: str, value: Values, least: int = 1) -> None:
    require(name, value, lambda v: (v >= least) & np.isfinite(v), f"must be at least {least}")


def _require_centred(component: str, x: Signal) -> None:
    require("mean", x.mean, lambda v: v == 0, f"must be 0: the closed form of {component} holds for nothing else")


def _require_equal_correlation(x: Signal, length: Values) -> None:
    lowest = -1 / np.maximum(np.asarray(length, dtype=float) - 1, 1) - 1e-12  # 1e-12: rounding of the caller's own
    for name, r in (("correlation", x.correlation), ("gradient_correlation", x.gradient_correlation)):
        if (r < lowest).any():
            require(name, r, lambda v: v >= np.max(lowest), "is below -1 / (L - 1) of L equally correlated positions")


def _ratio(covariance: Values, variance: Values) -> Values:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(np.divide(covariance, variance), -1.0, 1.0)


def _settled(correlation: Values) -> Values:
    """A constant has no correlation; where the variance is 0 the product with it is 0 whatever stands here."""
    return np.where(np.isnan(correlation), 0.0, correlation)[()]
