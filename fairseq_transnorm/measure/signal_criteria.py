"""What a signal has to do in a BERT at initialisation, for DeepScaleLM and the vanilla model to behave as published."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
WIDE, DEEP = 256, 96
"""Width and layers from which on the bounds for 192 layers of width 256 hold."""

NO_BOUNDS = "there are bounds for dslm and xavier only, and for xavier preln only from 96 layers of width 256 on"


class Bound(NamedTuple):
    """What is measured of the layers of one model, and where it has to lie."""

    scheme: str
    placement: str | None
    quantity: str
    measure: Callable[[dict[str, Array]], float]
    low: float
    high: float


def log_fit(values: Array) -> tuple[float, float]:
    """Return the factor per layer of an exponential fit, and the R^2 of the straight line through the logarithms."""
    slope, r2 = line_fit(np.log(values))
    return math.exp(slope), r2


def line_fit(values: Array) -> tuple[float, float]:
    """Return slope and R^2 of the straight line through values at 1, 2, ..."""
    layers = np.arange(1, len(values) + 1)
    return float(np.polyfit(layers, values, 1)[0]), float(np.corrcoef(layers, values)[0, 1] ** 2)


def _median_error(c: dict[str, Array]) -> float:
    return float(np.median(np.abs(c["theory_variance"] / c["variance"] - 1)))


def _ends(name: str) -> Callable[[dict[str, Array]], float]:
    return lambda c: float(c[name][0] / c[name][-1])


_VARIANCE: tuple[tuple[str, Callable[[dict[str, Array]], float]], ...] = (
    ("smallest variance", lambda c: float(c["variance"].min())),
    ("largest variance", lambda c: float(c["variance"].max())),
)
_WEIGHTS, _GRADIENT = "weight gradient", "gradient variance, first / last"


def _within(scheme: str, placement: str, low: float, high: float) -> list[Bound]:
    return [Bound(scheme, placement, name, measure, low, high) for name, measure in _VARIANCE]


_FLAT = Bound("dslm", None, f"{_WEIGHTS}, factor per layer", lambda c: log_fit(c["weight_gradient"])[0], 0.998, 1.002)
_WIDE = [
    *_within("dslm", "postln", 0.95, 1.05),
    *_within("dslm", "preln", 0.8, 1.3),
    Bound("dslm", None, f"{_WEIGHTS}, min / max", lambda c: float(np.divide(*_span(c))), 0.65, 1),
    _FLAT,
    Bound("dslm", None, _GRADIENT, _ends("gradient_variance"), 0.3, 0.7),
    Bound("xavier", "preln", "variance, R2 of a line", lambda c: line_fit(c["variance"])[1], 0.97, 1),
    Bound("xavier", "preln", "variance, last / first", lambda c: 1 / _ends("variance")(c), 100, math.inf),
    Bound("xavier", "preln", f"{_WEIGHTS}, first / last", _ends("weight_gradient"), 8, math.inf),
    Bound("xavier", "postln", f"{_WEIGHTS}, factor per layer", lambda c: log_fit(c["weight_gradient"])[0], 1.012, 1.04),
    Bound("xavier", "postln", f"{_WEIGHTS}, R2 of its logarithm", lambda c: log_fit(c["weight_gradient"])[1], 0.9, 1),
    Bound("xavier", "postln", f"{_WEIGHTS}, first / last", _ends("weight_gradient"), 0, 0.1),
    Bound("dslm", None, "variance, median error of the theory", _median_error, 0, 0.08),
    Bound("xavier", None, "variance, median error of the theory", _median_error, 0, 0.15),
]
# what positions have in common is one draw of as many numbers as the width: 64 of them scatter by sqrt(2 / 64)
_NARROW = [
    *_within("dslm", "postln", 0.9, 1.1),
    *_within("dslm", "preln", 0.7, 1.5),
    Bound("dslm", "postln", _GRADIENT, _ends("gradient_variance"), 0.3, math.inf),
    Bound("xavier", "postln", _GRADIENT, _ends("gradient_variance"), 0, 0.2),
]


def _span(c: dict[str, Array]) -> tuple[float, float]:
    return float(c["weight_gradient"].min()), float(c["weight_gradient"].max())


def bounds_of(scheme: str, placement: str, layers: int, width: int) -> list[Bound]:
    """Return what is demanded of a model; nothing of most.

    Models of 96 layers or more and of width 256 or more have to fulfil what holds for 192 layers of width 256; others
    what holds for 48 layers of width 64, and a flat weight gradient if they have 96 layers. Schemes other than dslm and
    xavier have no bounds.
    """
    deep = layers >= DEEP
    bounds = _WIDE if deep and width >= WIDE else [*_NARROW, *([_FLAT] if deep else [])]
    return [bound for bound in bounds if bound.scheme == scheme and bound.placement in (None, placement)]


def check_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare what was measured with :func:`bounds_of`; a line a demand, with ``ok`` yes or no.

    Raises:
        ValueError: there are bounds for none of the models.
    """
    lines = []
    for scheme, placement in dict.fromkeys((row["scheme"], row["placement"]) for row in rows):
        mine = [row for row in rows if (row["scheme"], row["placement"]) == (scheme, placement)]
        names = ("variance", "theory_variance", "gradient_variance", "weight_gradient")
        columns = {name: np.asarray([row[name] for row in mine], dtype=np.float64) for name in names}
        for bound in bounds_of(scheme, placement, len(mine), mine[0]["width"]):
            value = bound.measure(columns)
            lines.append(
                {
                    "model": f"{scheme} {placement}",
                    "quantity": bound.quantity,
                    "measured": value,
                    "least": bound.low,
                    "most": bound.high,
                    "ok": "yes" if bound.low <= value <= bound.high else "NO",
                }
            )
    if not lines:
        raise ValueError(f"nothing to check: {NO_BOUNDS}")
    return lines
