"""Draw how ReLU and a feed-forward block raise the correlation of two positions: closed forms and approximations.

Left, the correlation after ReLU against that of its input; right, after two linear layers with ReLU between, which also
keep part of the mean. Neither needs a model or random numbers.

  python analysis/dslm/approximations.py
  python analysis/dslm/approximations.py --points 101 --out outputs/approximations
"""

import argparse
import sys
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fairseq_transnorm.plotting import (
    BASELINE,
    analysis_parser,
    describe,
    legend,
    line_styles,
    panel_title,
    panels,
    run_analysis,
)
from fairseq_transnorm.theory import approximations
from fairseq_transnorm.theory.blocks import ffn_block
from fairseq_transnorm.theory.moments import Signal, relu

COLUMNS = ("input", "relu", "relu_approximate", "ffn", "ffn_approximate")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.points < 2:
        raise ValueError(f"--points {options.points} must be at least 2")
    r = np.linspace(0, 1, options.points)
    curves = {
        "input": r,
        "relu": relu(Signal(correlation=r)).correlation,
        "relu_approximate": approximations.relu_correlation(r),
        "ffn": ffn_block(Signal(correlation=r), d=1, f=1, first_variance=1.0, second_variance=1.0).correlation,
        "ffn_approximate": approximations.ffn_correlation(r),
    }
    table = np.column_stack([curves[name] for name in COLUMNS]).tolist()
    return [dict(zip(COLUMNS, values, strict=True)) for values in table]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    with panels(stem, rows, ncols=2, size=(4.2, 3.6), seed=options.seed) as axes:
        for ax, key, name, title in zip(
            axes, ("relu", "ffn"), ("Relu", "FFN"), ("relu correlation forward", "FFN correlation forward"), strict=True
        ):
            draw_one(ax, rows, key, name)
            panel_title(ax, title)
            describe(ax, x="correlation of the input", y="correlation of the output")
            ax.set(xlim=(0, 1), ylim=(0, 1.02))
            legend(ax)


def draw_one(ax: Axes, rows: list[dict[str, Any]], key: str, name: str) -> None:
    r = [row["input"] for row in rows]
    ax.plot(r, r, **BASELINE, label="Input Correlation")
    styles = line_styles(("Full", "Approximate"))
    # Marks of the two in turn: the curves cannot be told apart where they are closest.
    gap = max(2, len(rows) // 10)
    for (form, style), column, first in zip(styles.items(), (key, f"{key}_approximate"), (0, gap // 2), strict=True):
        ax.plot(r, [row[column] for row in rows], **style, markevery=(first, gap), label=f"{form} {name} Correlation")


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the largest distance of each approximation, and where it is."""
    lines = []
    for key in ("relu", "ffn"):
        worst = max(rows, key=lambda row: abs(row[f"{key}_approximate"] - row[key]))
        apart = abs(worst[f"{key}_approximate"] - worst[key])
        lines.append({"form": key, "largest error of the approximation": apart, "at input correlation": worst["input"]})
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/approximations")
    parser.add_argument("--points", type=int, default=5000, help="values of the correlation (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
