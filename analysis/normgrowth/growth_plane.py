"""Draw the path of training between growth and decay of the parameter norm: θ · step against the size of the step.

Give save folders with a norms.jsonl of --norm-log-interval 1, or the files. In the shaded region the norm falls: below
θ · step = -step²/2, with θ before the step. A path starts at a ring and ends at a mark; it is made of moving averages.

  python analysis/normgrowth/growth_plane.py adam=runs/adam sgd=runs/sgd
  python analysis/normgrowth/growth_plane.py small=runs/lr4 large=runs/lr3 --yscale symlog --reduce median
"""

import argparse
import sys
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fairseq_transnorm.measure.growth_log import read_growth
from fairseq_transnorm.measure.growth_plane import REDUCTIONS, plane_rows
from fairseq_transnorm.plotting import (
    LIMIT,
    analysis_parser,
    at_least,
    check_runs,
    describe,
    figure,
    legend,
    line_styles,
    log_axis,
    run_analysis,
)

COLUMNS = ("run", "source", "updates", "step_norm", "product", "growing")
RING: dict[str, Any] = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.2}
FALLING: dict[str, Any] = {"color": "#d55e00", "alpha": 0.12, "linewidth": 0}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    check_runs(options.inputs)
    rows = []
    for label, path in options.inputs:
        rows += plane_rows(label, str(path), read_growth(path), options.reduce, options.window)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    styles = line_styles(row["run"] for row in rows)
    with figure(stem, rows, size=(5.6, 3.8), seed=options.seed) as ax:
        for run, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
            mine = [row for row in rows if (row["run"], row["source"]) == (run, source)]
            xs, ys = ([row[name] for row in mine] for name in ("step_norm", "product"))
            colour = styles[run]["color"]
            end = {"marker": styles[run]["marker"], "markersize": 7, "markevery": [-1]}
            ax.plot(xs, ys, color=colour, linewidth=1.1, **end, clip_on=False, label=run)
            ax.plot(xs[0], ys[0], **RING, markeredgecolor=colour, clip_on=False)
        ax.plot([], [], **RING, markeredgecolor="0.3", label="start of a path")
        if options.xscale == "log":
            log_axis(ax, "x", plain=True)
        if options.yscale == "symlog":
            ax.set_yscale("symlog", linthresh=threshold(rows))
        boundary(ax)
        symmetric = " (log scale on both sides of 0)" if options.yscale == "symlog" else ""
        describe(ax, x="step size, 2-norm", y=f"θ · step{symmetric}")
        legend(ax)


def threshold(rows: list[dict[str, Any]]) -> float:
    """Where a symmetric logarithmic axis becomes linear: among the smallest products."""
    sizes = np.abs([row["product"] for row in rows])
    return float(max(np.quantile(sizes, 0.05), sizes.max() / 1e6, 1e-12))


def boundary(ax: Axes) -> None:
    """Draw where the norm stays the same, and shade where it falls."""
    low, high = ax.get_xlim()
    bottom, top = ax.get_ylim()
    xs = np.geomspace(low, high, 400) if ax.get_xscale() == "log" else np.linspace(max(low, 0), high, 400)
    ys = -(xs**2) / 2
    bottom = min(bottom, float(ys.min()), -0.1 * max(top, 0.0))
    ax.plot(xs, ys, **LIMIT, label="norm stays: -step²/2")
    ax.fill_between(xs, ys, bottom, **FALLING, label="norm falls")
    ax.set_xlim(low, high)
    ax.set_ylim(bottom, max(top, 0.0))


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a run: the ends of its path, and how often the norm grew."""
    lines = []
    for run, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"]) == (run, source)]
        ends = {
            f"{end} {name}": row[name]
            for end, row in (("first", mine[0]), ("last", mine[-1]))
            for name in ("step_norm", "product")
        }
        growing = sum(row["growing"] for row in mine) / len(mine)
        lines.append({"run": run, "updates": mine[-1]["updates"], "share growing": growing} | ends)
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/growth_plane", inputs="norms")
    parser.add_argument(
        "--reduce",
        choices=REDUCTIONS,
        default="sum",
        help="sum over the logged scope, or the median over its parameters (default: %(default)s)",
    )
    parser.add_argument(
        "--window", type=at_least(1), default=100, help="records in a moving average (default: %(default)s)"
    )
    parser.add_argument("--xscale", choices=("log", "linear"), default="log", help="x axis (default: %(default)s)")
    parser.add_argument(
        "--yscale", choices=("linear", "symlog"), default="linear", help="y axis (default: %(default)s)"
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
