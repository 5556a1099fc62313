"""How far measurements are from closed forms, in the form of the published tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .component_grid import Component, Metric
from .component_moments import Parameters

PERCENTILES = (50, 90, 99)
ROUNDING = 1e-12  # of a closed form in float64 whose terms cancel


def lenient_error(observed: float, predicted: float, scale: float | None = None) -> float:
    """Return the error of the published tables.

    ``|o - t| / |o|``, but not more than ``|o - t| / scale`` when a scale is given (the predicted variance, for means
    and covariances, which may be next to nothing). With a scale and t = 0 the two are ``|o|`` and ``|o| / scale``.
    """
    apart = abs(observed - predicted)
    if scale is None:
        return _over(apart, abs(observed))
    return min(apart if predicted == 0 else _over(apart, abs(observed)), _over(apart, scale))


def plain_error(observed: float, predicted: float, scale: float = 0.0) -> float | None:
    """Return ``|o - t| / |o|``; None for t = 0, but for rounding beside ``scale``: it is 1 whatever was observed."""
    return None if abs(predicted) <= ROUNDING * scale else _over(abs(observed - predicted), abs(observed))


def percentiles(errors: Sequence[float]) -> list[float]:
    """Return the 50th, 90th and 99th percentile: the sorted errors at index floor(n q / 100), not interpolated."""
    ordered = sorted(errors)
    return [ordered[len(ordered) * q // 100] for q in PERCENTILES]


def compare(
    component: Component, combinations: Sequence[Parameters], measurements: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return one row a combination: its parameters, and theory, measurement and both errors (shares) of each metric."""
    rows = []
    for parameters, measured in zip(combinations, measurements, strict=True):
        predicted = component.theory(parameters)
        row = dict(parameters)
        for metric in component.metrics:
            theory, seen = predicted[metric.prediction], measured[metric.measured]
            scale = predicted[metric.scale] if metric.scale else None
            row |= {f"{metric.name}: theory": theory, f"{metric.name}: measured": seen}
            row |= {f"{metric.name}: error": lenient_error(seen, theory, scale)}
            row |= {f"{metric.name}: relative error": plain_error(seen, theory, scale or 0.0)}
        rows.append(row)
    return rows


def summarise(component: Component, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a metric: percentiles in percent, the bound, and the combination that errs most.

    Returns:
        Rows with ``component``, ``metric``, ``combinations``, ``p50``, ``p90``, ``p99``; ``relative p50`` and so on,
        without the lenience and over the combinations whose theory is not 0 (None where there are none);
        ``theory`` and ``measured`` of the largest error; ``bound p50`` and so on and ``within`` (None: no bound).
    """
    return [_summarise_metric(component, metric, rows) for metric in component.metrics]


def _summarise_metric(component: Component, metric: Metric, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = [row[f"{metric.name}: error"] for row in rows]
    relative = [error for row in rows if (error := row[f"{metric.name}: relative error"]) is not None]
    worst = rows[max(range(len(rows)), key=lambda i: errors[i])]
    found = [100 * error for error in percentiles(errors)]
    plain: list[float | None] = [100 * error for error in percentiles(relative)] if relative else [None, None, None]
    line: dict[str, Any] = {"component": component.title, "metric": metric.name, "combinations": len(rows)}
    line |= {f"p{q}": value for q, value in zip(PERCENTILES, found, strict=True)}
    line |= {f"relative p{q}": value for q, value in zip(PERCENTILES, plain, strict=True)}
    line |= {"theory": worst[f"{metric.name}: theory"], "measured": worst[f"{metric.name}: measured"]}
    bounds = metric.bound or (None,) * len(PERCENTILES)
    line |= {f"bound p{q}": bound for q, bound in zip(PERCENTILES, bounds, strict=True)}
    within = all(value <= bound for value, bound in zip(found, metric.bound, strict=True)) if metric.bound else None
    return line | {"within": within}


def _over(apart: float, size: float) -> float:
    return 0.0 if apart == 0 else apart / size if size else math.inf
