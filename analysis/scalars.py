"""Draw numbers that training logged, of several runs in one figure, a panel for each: norms, losses, learning rates.

Give save folders, or a norms.jsonl (--norm-log-interval) or train.log (--log-format json --log-file) in them. Names of
norm growth: norm, step_norm, product, direction_cosine, alignment, gradient_norm, gradient_product, gradient_cosine,
lr, and of a layer norm_decoder_3; of fairseq's log: loss, ppl, accuracy, sat, collapse, gnorm and all others that it
has. Runs with the same label look the same.

  python analysis/scalars.py constant=runs/constant linear=runs/linear --scalars norm lr
  python analysis/scalars.py control=runs/control pre=runs/pre --scalars loss accuracy ppl sat norm --x epoch
"""

import argparse
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_transnorm.measure.scalars import by_epoch, scalar_rows
from fairseq_transnorm.plotting import (
    analysis_parser,
    check_runs,
    count_axis,
    describe,
    legend,
    line_styles,
    log_axis,
    panels,
    run_analysis,
)

DENSE = 60  # points from which dashes are lost in the noise
COLUMNS = ("run", "source", "scalar", "split", "updates", "epoch", "value")
NAMES = {
    "norm": "parameter 2-norm",
    "step_norm": "step size, 2-norm",
    "product": "θ · step",
    "direction_cosine": "cos(θ before, θ after)",
    "alignment": "alignment cos(θ, step)",
    "gradient_norm": "gradient 2-norm",
    "gradient_product": "θ · gradient",
    "gradient_cosine": "cos(θ, gradient)",
    "lr": "learning rate",
    "loss": "loss (bits)",
    "nll_loss": "loss (bits per token)",
    "ppl": "perplexity",
    "accuracy": "accuracy (%)",
    "sat": "saturation",
    "collapse": "mean cosine of two tokens",
    "gnorm": "gradient norm before clipping",
}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    check_runs(options.inputs)
    rows = []
    for label, path in options.inputs:
        rows += scalar_rows(label, path, options.scalars, options.split)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    scalars = list(dict.fromkeys(row["scalar"] for row in rows))
    styles = line_styles(row["run"] for row in rows)
    columns = 2 if len(scalars) == 4 else min(3, len(scalars))
    lines = -(-len(scalars) // columns)
    with panels(stem, rows, nrows=lines, ncols=columns, count=len(scalars), size=(4.0, 3.1), seed=options.seed) as axes:
        for scalar, ax in zip(scalars, axes, strict=True):
            plot(ax, [row for row in rows if row["scalar"] == scalar], styles, options)
            mine = [row for row in rows if row["scalar"] == scalar]
            splits = sorted({row["split"] for row in mine} - {"norms"})
            # a learning rate has no scope, and tables of earlier versions tell none
            scopes = sorted({row["scope"] for row in mine if row.get("scope")} if scalar not in ("lr", "loss") else ())
            describe(ax, x=options.x.removesuffix("s") + "s", y=NAMES.get(scalar, scalar) + named([*scopes, *splits]))
        if len(styles) > 1:
            legend(axes[0])


def plot(ax: Axes, rows: list[dict[str, Any]], styles: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw one scalar: a line for each source, one entry of the legend for each run."""
    shown: set[str] = set()
    for run, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"]) == (run, source)]
        points = by_epoch(mine) if options.x == "epoch" else [(row["updates"], row["value"]) for row in mine]
        points = [point for point in points if point[0] or "x" not in options.log]
        style = styles[run] | {"markevery": max(1, len(points) // 8), "linewidth": 1.3}
        if len(points) > DENSE:
            style["linestyle"] = "-"
        ax.plot([x for x, _ in points], [y for _, y in points], **style, label=None if run in shown else run)
        shown.add(run)
    for which in options.log:
        if which == "x" or min(row["value"] for row in rows) > 0:
            log_axis(ax, which, plain=which == "y")
    if options.x == "epoch":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif "x" not in options.log:
        count_axis(ax, "x")


def named(parts: list[str]) -> str:
    """Say of which parameters, or of which lines of the log, a scalar is."""
    return f", {' and '.join(name.replace('train_inner', 'train') for name in parts)}" if parts else ""


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a run and scalar: its ends and its range."""
    lines = []
    for key in dict.fromkeys((row["run"], row["source"], row["scalar"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"], row["scalar"]) == key]
        values = [row["value"] for row in mine]
        lines.append(
            {"run": key[0], "scalar": key[2], "points": len(mine), "updates": mine[-1]["updates"]}
            | {"first": values[0], "last": values[-1], "lowest": min(values), "highest": max(values)}
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/scalars", inputs="log")
    parser.add_argument(
        "--scalars", nargs="+", default=["norm", "lr"], metavar="NAME", help="what to draw (default: norm lr)"
    )
    parser.add_argument("--split", help="lines of the log: valid, train_inner, train (default: the first that has it)")
    parser.add_argument(
        "--x", choices=("updates", "epoch"), default="updates", help="x axis; of an epoch the last value is drawn"
    )
    parser.add_argument(
        "--log", nargs="+", choices=("x", "y"), default=[], help="logarithmic axes; y where all are positive"
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
