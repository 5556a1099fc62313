"""Which components are simulated, at which parameters, against which closed form, and how errors are scored."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from ..theory.blocks import TWO_SEGMENTS_MATCH, attention_block, embeddings, ffn_block, zipf_match
from ..theory.moments import (
    Moments,
    Signal,
    attention,
    dropout,
    gelu,
    layer_norm,
    layer_norm_feature_covariance,
    linear,
    relu,
    softmax,
)
from .component_moments import Parameters

Bound = tuple[float, float, float]


_ATTENTION_GRADIENT: Bound = (5.0, 40.0, 65.0)  # through the values alone: known to be no form of the same quality
_EXACT: Bound = (0.05, 0.05, 0.05)
_BLOCK: Bound = (6.0, 6.0, 6.0)
_BETTER = ("corrected", "whole")
_CORRECTED: Bound = (15.0, 15.0, 15.0)


class Metric(NamedTuple):
    """One line of a component's table.

    Attributes:
        name: as in the table.
        measured: key of the measurement.
        predicted: key of the prediction; None is that of the measurement.
        scale: key of the prediction that small values are compared with; None scores relative to the measurement.
        bound: largest 50th, 90th and 99th percentile of the error in percent; None is reported only.
    """

    name: str
    measured: str
    predicted: str | None = None
    scale: str | None = None
    bound: Bound | None = None

    @property
    def prediction(self) -> str:
        return self.predicted or self.measured


class Reduction(NamedTuple):
    """Restriction of a grid to what runs in a minute or so.

    Attributes:
        combinations: how many are drawn at random.
        length: longest.
        width: largest of d, d_in and d_out.
        weights: largest d_in x d_out.
    """

    combinations: int | None = None
    length: float = math.inf
    width: float = math.inf
    weights: float = math.inf

    def allows(self, parameters: Parameters) -> bool:
        widths = [parameters[name] for name in ("d", "d_in", "d_out") if name in parameters]
        weights = parameters.get("d_in", 0) * parameters.get("d_out", 0)
        small = parameters["length"] <= self.length and weights <= self.weights
        return small and all(width <= self.width for width in widths)


@dataclass(frozen=True)
class Component:
    """A component with its grid and closed form.

    Attributes:
        title: its real name, for headings.
        trials: samples of a combination.
        grid: parameter -> values; variances, not standard deviations.
        reduced: of the reduced grid.
        theory: parameters -> predicted quantities.
        metrics: lines of the table.
        same: parameter -> the one whose value it always has.
    """

    title: str
    trials: int
    grid: Mapping[str, Sequence[Any]]
    reduced: Reduction
    theory: Callable[[Parameters], dict[str, float]]
    metrics: Sequence[Metric]
    same: Mapping[str, str] = field(default_factory=dict)

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of the grid, the last parameter changing fastest."""
        for values in itertools.product(*self.grid.values()):
            combination = dict(zip(self.grid, values, strict=True))
            yield combination | {name: combination[other] for name, other in self.same.items()}

    def select(self, seed: int, *limits: Reduction) -> list[dict[str, Any]]:
        """Return the combinations that all limits allow, shuffled; the smallest of their numbers of them.

        A larger number begins with the same combinations.
        """
        chosen = [c for c in self.combinations() if all(limit.allows(c) for limit in limits)]
        random.Random(seed).shuffle(chosen)
        numbers = [limit.combinations for limit in limits if limit.combinations is not None]
        return chosen[: min(numbers, default=len(chosen))]


def _signal(parameters: Parameters) -> Signal:
    names = ("mean", "variance", "correlation", "gradient_variance", "gradient_correlation")
    return Signal(**{name: parameters[name] for name in names if name in parameters})


def _plain(moments: Moments) -> dict[str, float]:
    return {name: float(value) for name, value in vars(moments).items()}


def _linear(c: Parameters) -> dict[str, float]:
    weight_variance = c["weight_gain"] / c["d_in"]
    return _plain(linear(_signal(c), d_in=c["d_in"], d_out=c["d_out"], weight_variance=weight_variance))


def _layer_norm(c: Parameters) -> dict[str, float]:
    features = float(layer_norm_feature_covariance(c["d"]))
    return _plain(layer_norm(_signal(c), d=c["d"])) | {"feature_covariance": features}


def _softmax(c: Parameters) -> dict[str, float]:
    approximate = _plain(softmax(_signal(c), length=c["length"], approximate=True))
    full = _plain(softmax(_signal(c), length=c["length"]))
    return full | {f"{name} approx": value for name, value in approximate.items()}


def _attention(c: Parameters) -> dict[str, float]:
    predict = partial(
        attention,
        _signal(c),
        length=c["length"],
        d_in=c["d_in"],
        d_out=c["d_out"],
        query_variance=c["score_gain"] / c["d_in"],
        key_variance=c["score_gain"] / c["d_in"],
        value_variance=c["value_gain"] / c["d_in"],
        p=c["p"],
    )
    return _all_gradients(predict)


def _attention_block(c: Parameters) -> dict[str, float]:
    predict = partial(
        attention_block,
        _signal(c),
        length=c["length"],
        d=c["d"],
        query_variance=c["score_gain"] / c["d"],
        key_variance=c["score_gain"] / c["d"],
        value_variance=c["value_gain"] / c["d"],
        output_variance=c["output_gain"] / c["d"],
        p=c["p"],
        attention_p=c["attention_p"],
    )
    return _all_gradients(predict)


def _all_gradients(predict: Callable[..., Moments]) -> dict[str, float]:
    others = {f"gradient_variance {form}": float(predict(gradient=form).gradient_variance) for form in _BETTER}
    return _plain(predict(gradient="values")) | others


def _ffn_block(c: Parameters) -> dict[str, float]:
    first, second = c["first_gain"] / c["d"], c["second_gain"] / c["f"]
    sizes: dict[str, Any] = {"d": c["d"], "f": c["f"], "p": c["p"], "activation": c["activation"]}
    return _plain(ffn_block(_signal(c), first_variance=first, second_variance=second, **sizes))


def _embeddings(c: Parameters) -> dict[str, float]:
    moments = embeddings(
        table_variance=c["table_variance"],
        token_match=zipf_match(int(c["vocabulary"])),
        segment_match=1.0 if c["segments"] == 1 else TWO_SEGMENTS_MATCH,
        p=c["p"],
        gradient_variance=c["gradient_variance"],
        gradient_correlation=c["gradient_correlation"],
    )
    return _plain(moments)


def _metrics(bound: Bound | None, **others: Bound | None) -> tuple[Metric, ...]:
    """The five lines that most components have, all with one bound but for ``others``."""
    bounds = {
        name: others.get(name, bound) for name in ("mean", "variance", "g_variance", "covariance", "g_covariance")
    }
    return (
        Metric("x mean", "mean", scale="variance", bound=bounds["mean"]),
        Metric("x var", "variance", bound=bounds["variance"]),
        Metric("g var", "gradient_variance", bound=bounds["g_variance"]),
        Metric("x cov", "covariance", scale="variance", bound=bounds["covariance"]),
        Metric("g cov", "gradient_covariance", scale="gradient_variance", bound=bounds["g_covariance"]),
    )


def _layer_norm_metrics(bound: Bound) -> tuple[Metric, ...]:
    mean, variance, g_variance, covariance, g_covariance = _metrics(bound, variance=_EXACT)
    features = Metric("x covd", "feature_covariance", scale="variance", bound=_EXACT)
    return mean, variance, g_variance, covariance._replace(name="x covl"), features, g_covariance


def _attention_metrics(
    forward: Bound, by_value: Bound | None, g_covariance: Bound, better: Bound | None = None
) -> tuple[Metric, ...]:
    """The published lines, whose gradient is that through the values, and the better forms of it beside."""
    mean, variance, g_variance, covariance, in_gradient = _metrics(forward, g_variance=by_value)
    others = [
        Metric(f"g var {form}", "gradient_variance", f"gradient_variance {form}", None, better) for form in _BETTER
    ]
    # The published table scores this covariance relative to the measurement, whatever its size.
    return mean, variance, g_variance, *others, covariance, in_gradient._replace(scale=None, bound=g_covariance)


def _allowed(p50: float, p90: float, p99: float) -> Bound:
    """Half as much again as the errors that were seen, rounded up, in the published table and a reduced run on CPU."""
    return 1.5 * p50, 1.5 * p90, 1.5 * p99


_THIRDS, _FIFTHS, _TENFOLD = (0.0, 1 / 3, 2 / 3), (0.0, 0.2, 0.4, 0.6, 0.8), (0.1, 1.0, 10.0)
_WIDTHS, _LENGTHS = (100, 316, 1000), (100, 1000)
_VARIANCES = {"variance": _TENFOLD, "gradient_variance": _TENFOLD}
_BY_THIRDS = _VARIANCES | {"correlation": _THIRDS, "gradient_correlation": _THIRDS}
_BY_FIFTHS = _VARIANCES | {"correlation": _FIFTHS, "gradient_correlation": _FIFTHS}
_ALLOWED_SOFTMAX = _allowed(1, 2, 8)

COMPONENTS: Mapping[str, Component] = {
    "linear": Component(
        "Linear",
        trials=100,
        grid={"mean": (0.1, 1.0, 10.0), "weight_gain": (0.01, 1.0, 100.0), "d_in": _WIDTHS, "d_out": _WIDTHS}
        | _BY_THIRDS
        | {"length": _LENGTHS},
        reduced=Reduction(100, length=100, weights=316000),
        theory=_linear,
        metrics=_metrics(_allowed(0.5, 2, 3)),
    ),
    "relu": Component(
        "ReLU",
        trials=10_000,
        grid=_BY_FIFTHS | {"length": _LENGTHS},
        reduced=Reduction(length=100),
        theory=lambda c: _plain(relu(_signal(c))),
        metrics=_metrics(_allowed(0.7, 2, 4)),
    ),
    "gelu": Component(
        "GeLU",
        trials=100_000,
        grid=_BY_FIFTHS | {"length": _LENGTHS},
        reduced=Reduction(60, length=100),
        theory=lambda c: _plain(gelu(_signal(c))),
        metrics=_metrics(_allowed(0.3, 1.1, 2.5)),
    ),
    "layernorm": Component(
        "LayerNorm",
        trials=100,
        grid={"mean": (-10.0, -10 / 3, 10 / 3), "d": _WIDTHS} | _BY_FIFTHS | {"length": _LENGTHS},
        reduced=Reduction(150, length=100, width=316),
        theory=_layer_norm,
        metrics=_layer_norm_metrics(_allowed(0.8, 2, 4)),
    ),
    "dropout": Component(
        "Dropout",
        trials=100,
        grid={"mean": (-10.0, 0.0, 10.0), "p": _THIRDS, "d": _WIDTHS} | _BY_THIRDS | {"length": _LENGTHS},
        reduced=Reduction(150, length=100),
        theory=lambda c: _plain(dropout(_signal(c), p=c["p"])),
        metrics=_metrics(_allowed(0.3, 1, 2)),
    ),
    "softmax": Component(
        "Softmax",
        trials=10_000,
        grid={
            "variance": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
            "correlation": _FIFTHS,
            "gradient_variance": (10**-1, 10**-0.5, 1.0, 10**0.5, 10.0),
            "length": (300, 720, 1732, 4161, 10_000),
        },
        reduced=Reduction(100, length=720),
        theory=_softmax,
        metrics=(
            Metric("x mean", "mean", bound=_ALLOWED_SOFTMAX),
            Metric("x var full", "variance", bound=_ALLOWED_SOFTMAX),
            Metric("x var approx", "variance", "variance approx", bound=_ALLOWED_SOFTMAX),
            Metric("g var full", "gradient_variance", bound=_ALLOWED_SOFTMAX),
            Metric("g var approx", "gradient_variance", "gradient_variance approx", bound=_ALLOWED_SOFTMAX),
        ),
    ),
    "attention": Component(
        "Single-head attention",
        trials=64,
        grid={
            "value_gain": _TENFOLD,
            "score_gain": (0.01, 0.245**2, 0.36),
            "p": _THIRDS,
            "d_in": _WIDTHS,
            "d_out": (32, 64, 128, 256),
            "correlation": _THIRDS,
            "gradient_correlation": _THIRDS,
            "gradient_variance": _TENFOLD,
            "length": (300, 547, 1000),
        },
        reduced=Reduction(120, length=300, width=316),
        theory=_attention,
        metrics=_attention_metrics(_allowed(1.5, 4.5, 8.5), _ATTENTION_GRADIENT, _allowed(2, 6, 10)),
    ),
    "embeddings": Component(
        "Embeddings",
        trials=512,
        grid={
            "vocabulary": (1000, 30_522),
            "segments": (1, 2),
            "p": (0.0, 0.1, 0.3),
            "table_variance": (0.3,),
            "gradient_variance": (1.0,),
            "gradient_correlation": (0.0, 0.5),
            "d": (256,),
            "length": (64, 128),
        },
        reduced=Reduction(),
        theory=_embeddings,
        metrics=_metrics(_BLOCK),
    ),
    "ffn_block": Component(
        "Feed-forward block",
        trials=64,
        grid={
            "activation": ("relu", "gelu"),
            "p": (0.0, 0.2),
            "first_gain": (1.0,),
            "second_gain": (1.0,),
            "d": (256,),
            "f": (1024,),
            "correlation": (0.0, 0.3, 0.7),
            "gradient_correlation": (0.0, 0.3, 0.7),
            "length": (64,),
        },
        reduced=Reduction(),
        theory=_ffn_block,
        metrics=_metrics(_BLOCK),
    ),
    "attention_block": Component(
        "Attention block",
        trials=64,
        grid={
            "score_gain": (0.5, 1.0),
            "value_gain": (1.0,),
            "output_gain": (1.0,),
            "p": (0.0, 0.1),
            "d": (256,),
            "heads": (4,),
            "correlation": (0.2, 0.5, 0.8),
            "gradient_correlation": (0.2, 0.6),
            "length": (128,),
        },
        reduced=Reduction(),
        theory=_attention_block,
        metrics=_attention_metrics(_BLOCK, None, _BLOCK, better=_CORRECTED),
        same={"attention_p": "p"},
    ),
}
"""All components by the name that the command line takes, in the order of the published table."""

SINGLE = ("linear", "relu", "gelu", "layernorm", "dropout", "softmax", "attention")
