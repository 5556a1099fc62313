"""Draw how gradients in attention scores grow as the scores shrink: softmax, scaled linear attention, NormAttention.

All scores of a 16 x 16 attention are set to the same small number, the worst case of the scaled linear form. Left, the
derivative of a weight by a score, by autograd (markers) and by formula (lines). Right, the gradient of a loss by a
score, with random values and upstream gradient, and the bound of each norm. No model is needed.

The default eps of the released code, 1e-8, bounds gradients only where nobody trains: near 1e9.

  python analysis/transnormer/gradient_bounds.py
  python analysis/transnormer/gradient_bounds.py --table outputs/gradient_bounds.json --out outputs/again
"""

import argparse
import sys
from typing import Any

from matplotlib.axes import Axes

from fairseq_transnorm.measure.score_gradients import sweep_rows
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

COLUMNS = ("form", "score", "weight_derivative", "closed_form", "weight_bound", "score_gradient", "sharp_bound")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    if options.decades < 1 or options.size < 2 or options.channels < 1:
        raise ValueError("--decades and --channels must be at least 1, --size at least 2")
    epsilons = [10 ** (-k / 2) for k in range(2 * options.decades + 1)]
    return sweep_rows(epsilons, size=options.size, dim=options.channels, seed=options.seed)


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    forms = list(dict.fromkeys(row["form"] for row in rows))
    curves = {form: [row for row in rows if row["form"] == form] for form in forms}
    with panels(stem, rows, ncols=2, size=(4.6, 3.7), seed=options.seed) as (left, right):
        draw_weights(left, {form: curve for form, curve in curves.items() if curve[0]["closed_form"] is not None})
        draw_scores(right, curves)


def draw_weights(ax: Axes, curves: dict[str, list[dict[str, Any]]]) -> None:
    for form, style in line_styles(curves).items():
        scores = [row["score"] for row in curves[form]]
        ax.plot(
            scores, [row["closed_form"] for row in curves[form]], color=style["color"], linestyle=style["linestyle"]
        )
        measured = [row["weight_derivative"] for row in curves[form]]
        ax.plot(scores, measured, color=style["color"], marker=style["marker"], linestyle="none", markevery=2)
        ax.plot([], [], **style, label=form)
        bound = [row["weight_bound"] for row in curves[form]]
        ax.plot(scores, bound, **LIMIT, label=None if form == "softmax" else "bound")
    describe(ax, x="every score", y="largest |∂ weight / ∂ score|")
    finish(ax, "derivative of a weight")


def draw_scores(ax: Axes, curves: dict[str, list[dict[str, Any]]]) -> None:
    for form, style in line_styles(curves).items():
        curve = curves[form]
        scores = [row["score"] for row in curve]
        ax.plot(scores, [row["score_gradient"] for row in curve], **style, markevery=2, label=form)
        if curve[0]["sharp_bound"] is not None:
            limit = {**LIMIT, "color": style["color"]}
            ax.plot(scores, [row["sharp_bound"] for row in curve], **limit)
    ax.plot([], [], **LIMIT, label="bound of a norm")
    describe(ax, x="every score", y="largest |∂ loss / ∂ score|")
    finish(ax, "gradient of a loss, random values")


def finish(ax: Axes, title: str) -> None:
    log_axis(ax, "x")
    log_axis(ax, "y")
    ax.invert_xaxis()
    panel_title(ax, title)
    legend(ax)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a form: the gradient at the largest and the smallest score, and its growth over the last two decades."""
    lines = []
    for form in dict.fromkeys(row["form"] for row in rows):
        curve = sorted((row for row in rows if row["form"] == form), key=lambda row: -row["score"])
        last = curve[-1]
        before = next((row for row in reversed(curve) if row["score"] >= 99.9 * last["score"]), curve[0])
        lines.append(
            {
                "form": form,
                "largest score": curve[0]["score"],
                "|dL/ds| there": curve[0]["score_gradient"],
                "smallest score": last["score"],
                "|dL/ds| here": last["score_gradient"],
                "growth in last 2 decades": last["score_gradient"] / before["score_gradient"],
                "bound here": last["sharp_bound"],
            }
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/gradient_bounds")
    parser.add_argument("--size", type=int, default=16, help="queries and keys (default: %(default)s)")
    parser.add_argument("--channels", type=int, default=16, help="channels of the values (default: %(default)s)")
    parser.add_argument("--decades", type=int, default=11, help="scores from 1 to 10^-DECADES (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
