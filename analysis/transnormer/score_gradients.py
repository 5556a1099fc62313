"""Draw the gradients in the attention scores of trained models, layer by layer, and how far the norms bound them.

Left, the largest |dL / ds| of each layer on real text, where L is the sum over the tokens of -log p(next token), and as
a dashed line the bound that the norm behind it gives. Right, the largest and the median factor by which that norm
multiplies a gradient, 1 / (rms + eps). The closed forms are in gradient_bounds.py. Several checkpoints read the same
text.

  python analysis/transnormer/score_gradients.py t2=runs/t2/checkpoint_last.pt vanilla=runs/vanilla/checkpoint_last.pt
  python analysis/transnormer/score_gradients.py --table outputs/score_gradients.json --out outputs/again
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
    with panels(stem, rows, ncols=2, size=(4.6, 3.5), seed=options.seed) as (left, right):
        for model, style in line_styles(models).items():
            curve = [row for row in rows if row["model"] == model]
            normed = [row for row in curve if row["bound"] is not None]
            layers = [row["layer"] for row in normed]
            left.plot([r["layer"] for r in curve], [r["score_gradient"] for r in curve], **style, label=model)
            left.plot(
                layers, [r["bound"] for r in normed], **{**LIMIT, "color": style["color"]}, marker=style["marker"]
            )
            right.plot(layers, [r["norm_gain"] for r in normed], **style, label=model if normed else None)
            middle = [r["median_norm_gain"] for r in normed]
            right.plot(layers, middle, **{**LIMIT, "color": style["color"]}, marker=style["marker"])
        left.plot([], [], **LIMIT, label="bound of the norm")
        right.plot([], [], **LIMIT, label="median token")
        right.set_xlim(left.get_xlim())
        finish(left, "largest |∂ loss / ∂ score|", "gradient in a score")
        finish(right, "largest 1 / (rms + eps)", "factor of the norm")


def finish(ax: Axes, y: str, title: str) -> None:
    describe(ax, x="layer", y=y)
    log_axis(ax, "y")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel_title(ax, title)
    legend(ax)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/score_gradients", inputs="checkpoint", device=True)
    add_text_options(parser)
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
