"""Curves of several seeds of one variant: their mean, with a band from the lowest to the highest."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

BAND: dict[str, Any] = {"alpha": 0.18, "linewidth": 0}


def mean_curve(
    ax: Axes,
    rows: Sequence[Mapping[str, Any]],
    x: str,
    y: str,
    label: str | None,
    style: Mapping[str, Any],
    *,
    band: bool = True,
) -> None:
    """Draw one variant: a line, or for several seeds their mean and a band from the lowest to the highest.

    Points without a value are left out, and those that some of the seeds lack: a mean over the others would jump.

    Args:
        ax: the axes.
        rows: points with ``updates`` and ``source``, the seed that they are of.
        x: column across.
        y: column up.
        label: name in the legend; None for no entry.
        style: keywords of ``plot``.
        band: False leaves the band out, of a curve that only goes with another.

    Raises:
        ValueError: there are values, and no update at which all seeds have one.
    """
    seeds = count_seeds(rows)
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row[y] is not None and row[x] is not None:
            by_update.setdefault(row["updates"], []).append(row)
    points = [group for _, group in sorted(by_update.items()) if len(group) == seeds]
    if by_update and not points:
        raise ValueError(
            f"the {seeds} seeds {sorted({row['source'] for row in rows})} have no update in common at which all have "
            f"{y}: no mean can be drawn; give each a label of its own"
        )
    xs = [statistics.fmean(row[x] for row in group) for group in points]
    if band and seeds > 1:
        low, high = ([pick(row[y] for row in group) for group in points] for pick in (min, max))
        ax.fill_between(xs, low, high, color=style["color"], **BAND)
    means = [statistics.fmean(row[y] for row in group) for group in points]
    ax.plot(xs, means, **style, label=label, markevery=max(1, len(xs) // 8))


def count_seeds(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return how many seeds of a variant there are."""
    return len({row["source"] for row in rows})


def with_seeds(label: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of a variant, and of how many seeds its curve is, where there are several."""
    seeds = count_seeds(rows)
    return label if seeds < 2 else f"{label} (mean and range, n={seeds})"
