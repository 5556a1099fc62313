"""Draw the gradients in the attention scores of trained models, layer by layer, and how far the norms bound them.

Left, the largest |dL / ds| of each layer on real text, where L is the sum over the tokens of -log p(next token), and as
a dashed line the bound that the norm behind it gives. Right, the largest and the median factor by which that norm
multiplies a gradient, 1 / (rms + eps). The closed forms are in gradient_bounds.py. Several checkpoints read the same
text.

  python analysis/transnormer/layer_gradients.py t2=runs/t2/checkpoint_last.pt vanilla=runs/vanilla/checkpoint_last.pt
  python analysis/transnormer/layer_gradients.py --table outputs/layer_gradients.json --out outputs/again
"""

import argparse
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_transnorm.measure.layer_gradients import gradient_rows
from fairseq_transnorm.measure.text import add_text_options, runs_with_text
from fairseq_transnorm.plotting import (
    LIMIT,
    analysis_parser,
    describe,
    legend,
    line_styles,
    log_axis,
    panel_title,
    panels,
    run_analysis,
)

COLUMNS = ("model", "layer", "kind", "score_gradient", "bound", "norm_gain", "median_norm_gain")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for label, run, tokens in runs_with_text(options, further=1):
        rows += gradient_rows(run, label, tokens)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    models = list(dict.fromkeys(row["model"] for row in rows))
    normed = [row for row in rows if row["norm_gain"] is not None]
    with panels(stem, rows, ncols=2 if normed else 1, size=(4.6, 3.5), seed=options.seed) as axes:
        for model, style in line_styles(models).items():
            thin = {**LIMIT, "color": style["color"], "marker": style["marker"]}
            plot(axes[0], rows, model, "score_gradient", **style, label=model)
            plot(axes[0], rows, model, "bound", **thin)
            if model in {row["model"] for row in normed}:
                plot(axes[1], normed, model, "norm_gain", **style, label=model)
                plot(axes[1], normed, model, "median_norm_gain", **thin)
        if any(row["bound"] is not None for row in rows):
            axes[0].plot([], [], **LIMIT, label="bound of the norm")
        finish(axes[0], "largest |∂ loss / ∂ score|", "gradient in a score")
        if normed:
            axes[1].plot([], [], **LIMIT, label="median token")
            axes[1].set_xlim(axes[0].get_xlim())
            finish(axes[1], "largest 1 / (rms + eps)", "factor of the norm")


def plot(ax: Axes, rows: list[dict[str, Any]], model: str, column: str, **style: Any) -> None:
    curve = [row for row in rows if row["model"] == model and row[column] is not None]
    ax.plot([row["layer"] for row in curve], [row[column] for row in curve], **style)


def finish(ax: Axes, y: str, title: str) -> None:
    describe(ax, x="layer", y=y)
    log_axis(ax, "y")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel_title(ax, title)
    legend(ax)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/layer_gradients", inputs="checkpoint", device=True)
    add_text_options(parser)
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
