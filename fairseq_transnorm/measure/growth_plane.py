"""Where training stands between growth and decay of the norm: theta . delta against |delta|, update by update.

``|theta + delta|^2 - |theta|^2 = 2 theta . delta + |delta|^2``, so that the norm falls below ``theta . delta =
-|delta|^2 / 2``. With the product of the parameters after the update, which the original code draws, the boundary would
be at ``+|delta|^2 / 2``.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from .growth_log import Record

REDUCTIONS = ("sum", "median")


def plane_rows(run: str, source: str, records: Sequence[Record], reduce: str, window: int) -> list[dict[str, Any]]:
    """Return the path of a run through the plane, as moving averages.

    Args:
        run: its name.
        source: where its records are from.
        records: of ``growth_log.read_growth``.
        reduce: ``sum``, of the whole scope, which decides whether its norm grows; ``median``, over parameters, as the
            original code has it, which mixes tensors of very different size.
        window: records in an average; there are as many rows as whole windows.

    Returns:
        Rows with ``run``, ``source``, ``updates`` (the last of the window), ``step_norm``, the root of the mean
        |delta|^2, ``product``, and ``growing``, the share of the updates after which the norm of the scope was larger.

    Raises:
        ValueError: there are fewer records than a window, or none of the single parameters.
    """
    steps = [record for record in records if "product" in record]
    if len(steps) < window:
        raise ValueError(f"{source} has {len(steps)} records of updates, fewer than the --window of {window}")
    squares, products = zip(*(_point(step, reduce, source) for step in steps), strict=True)
    grown = [2 * step["product"] + step["step_norm"] ** 2 > 0 for step in steps]
    means = (_moving(values, window) for values in (squares, products, grown))
    return [
        {"run": run, "source": source, "updates": step["updates"]}
        | {"step_norm": float(square) ** 0.5, "product": float(product), "growing": float(share)}
        for step, square, product, share in zip(steps[window - 1 :], *means, strict=True)
    ]


def _point(step: Record, reduce: str, source: str) -> tuple[float, float]:
    if reduce == "sum":
        return step["step_norm"] ** 2, step["product"]
    if not (tensors := step.get("tensors")):
        raise ValueError(
            f"{source} has no records of single parameters; train with --norm-log-tensors, or reduce by sum"
        )
    return tuple(map(statistics.median, zip(*((s**2, p) for _, s, p in tensors.values()), strict=True)))


def _moving(values: Sequence[float], window: int) -> np.ndarray:
    return np.convolve(np.asarray(values, dtype=float), np.full(window, 1 / window), mode="valid")
