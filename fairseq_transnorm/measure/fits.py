"""Laws of norm growth fitted to a series of norms by ordinary least squares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# Merrill et al. 2021, arXiv:2010.09697, section 3 compares these; exp(-t) of updates is 1 at the start and 0 elsewhere.
_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "t": lambda t: t,
    "sqrt t": np.sqrt,
    "exp -t": lambda t: np.exp(-t),
    "t^1/4": lambda t: t**0.25,
}
SQUARED = "rho^2"  # rho^2 = a t + b, the law of steps that are orthogonal to theta and of constant length
EXPONENT = "log-log"  # log rho = a log t + b: a is the exponent
LAWS = (*_SHAPES, SQUARED, EXPONENT)
SERIES = ("run", "scope", "stack", "layer")  # the norms of each are fitted by themselves
FEWEST = 3  # a line goes through any two points
_SAME = 1e-12  # a spread below that, of phi(t), decides nothing: exp(-t) far from the start


class Fit(NamedTuple):
    """The line ``y = slope * x + intercept``.

    Attributes:
        law: of ``LAWS``.
        r_squared: 1 - SS_res / SS_tot; None where y is constant.
        points: number of points.
    """

    law: str
    slope: float
    intercept: float
    r_squared: float | None
    points: int


def fit_law(law: str, updates: Sequence[float], norms: Sequence[float], beyond: float = 0) -> Fit | None:
    """Fit one law to a series of norms.

    R^2 is that of the norm itself, but of its square for ``rho^2`` and of its logarithm for ``log-log``.

    Args:
        law: of ``LAWS``.
        updates: optimiser updates, 0 included.
        norms: as many norms.
        beyond: ``log-log`` takes what is after this update alone.

    Returns:
        The fit; None where the law decides nothing: fewer than three points for it, or all at one phi(t).

    Raises:
        ValueError: the law is unknown, the lengths differ, there are fewer than three different updates, or a number is
            not finite.
    """
    if law not in LAWS:
        raise ValueError(f"unknown law {law!r}; known: {', '.join(LAWS)}")
    t, rho = _series(updates, norms)
    if law == SQUARED:
        return _line(law, t, rho**2)
    if law == EXPONENT:
        kept = (t > max(beyond, 0)) & (rho > 0)
        return _line(law, np.log(t[kept]), np.log(rho[kept]))
    return _line(law, _SHAPES[law](t), rho)


def curve(fit: Fit, updates: Sequence[float]) -> list[float]:
    """Return the norms that a fit of ``fit_law`` predicts; 0 where ``rho^2`` would be negative."""
    t = np.asarray(updates, dtype=float)
    if fit.law == EXPONENT:
        return [float(y) for y in np.exp(fit.intercept) * t**fit.slope]
    y = fit.slope * (t if fit.law == SQUARED else _SHAPES[fit.law](t)) + fit.intercept
    return [float(value) for value in (np.sqrt(np.maximum(y, 0)) if fit.law == SQUARED else y)]


def _series(updates: Sequence[float], norms: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    t, rho = np.asarray(updates, dtype=float), np.asarray(norms, dtype=float)
    if t.shape != rho.shape or t.ndim != 1:
        raise ValueError(f"{t.size} updates and {rho.size} norms do not make a series")
    if not (np.isfinite(t).all() and np.isfinite(rho).all()):
        raise ValueError("a norm or a number of updates is not finite; leave such checkpoints out")
    if (different := len(np.unique(t))) < FEWEST:
        raise ValueError(
            f"{different} checkpoint{'s' * (different != 1)} with different numbers of updates; "
            f"a fit says something from {FEWEST} on"
        )
    return t, rho


def _line(law: str, x: np.ndarray, y: np.ndarray) -> Fit | None:
    if len(x) < FEWEST or np.ptp(x) <= _SAME:
        return None
    # without their means the two columns are orthogonal, however large t is
    design = np.stack([x - x.mean(), np.ones_like(x)], axis=1)
    (slope, height), *_ = np.linalg.lstsq(design, y, rcond=None)
    rest, total = y - design @ (slope, height), y - y.mean()
    spread = float(total @ total)
    # a constant leaves rounding errors
    constant = spread <= len(y) * (np.finfo(float).eps * np.abs(y).max()) ** 2
    r_squared = None if constant else 1 - float(rest @ rest) / spread
    return Fit(law, float(slope), float(height - slope * x.mean()), r_squared, len(x))


def fit_rows(rows: Iterable[Mapping[str, Any]], beyond: float = 0) -> list[dict[str, Any]]:
    """Fit every law to every series of a trajectory, layers included.

    Args:
        rows: of measure.trajectory, with ``run``, ``scope``, ``stack``, ``layer``, ``updates`` and ``norm``.
        beyond: as of :func:`fit_law`.

    Returns:
        Rows with ``run``, ``scope``, ``stack``, ``layer`` and the fields of :class:`Fit`; its numbers are None where a
        law decides nothing.

    Raises:
        ValueError: as of :func:`fit_law`, naming the series.
    """
    series: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        series.setdefault(tuple(row[key] for key in SERIES), []).append(row)
    nothing = dict.fromkeys(Fit._fields[1:-1]) | {"points": 0}
    fitted = []
    for key, mine in series.items():
        for law in LAWS:
            try:
                fit = fit_law(law, [r["updates"] for r in mine], [r["norm"] for r in mine], beyond)
            except ValueError as error:
                raise ValueError(f"{', '.join(str(part) for part in key if part is not None)}: {error}") from error
            fitted.append(
                dict(zip(SERIES, key, strict=True)) | ({"law": law} | nothing if fit is None else fit._asdict())
            )
    return fitted
