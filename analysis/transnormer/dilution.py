"""Draw how much attention stays near its query, layer by layer: the locality curve l(r).

A neighbourhood of r x length tokens around each query; l(r) is the share of the attention that falls into it, averaged
over queries, heads and sequences. The dotted curve is attention that looks at everything alike. Several checkpoints are
compared in one panel a layer; they read the same stretches of text.

  python analysis/transnormer/dilution.py t2=runs/t2/checkpoint_last.pt vanilla=runs/base/checkpoint_last.pt
  python analysis/transnormer/dilution.py --table outputs/dilution.json --out outputs/again
"""

import argparse
import math
import sys
from typing import Any

from fairseq_transnorm.measure.dilution import FRACTIONS, dilution_rows
from fairseq_transnorm.measure.text import add_text_options, runs_with_text
from fairseq_transnorm.plotting import (
    BASELINE,
    analysis_parser,
    describe,
    figure,
    legend,
    line_styles,
    ordered_colours,
    ordered_markers,
    panel_title,
    panels,
    run_analysis,
    shared_legend,
)

COLUMNS = ("model", "layer", "kind", "length", "fraction", "locality", "uniform")
X, Y = "r = neighbourhood / length", "share of attention within r"


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for label, run, tokens in runs_with_text(options):
        rows += dilution_rows(run, label, tokens, FRACTIONS)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    models = list(dict.fromkeys(row["model"] for row in rows))
    (draw_one if len(models) == 1 else draw_several)(rows, models, stem, options.seed)


def draw_one(rows: list[dict[str, Any]], models: list[str], stem: str, seed: int) -> None:
    """All layers of one model on the same axes, dark to light from the first to the last."""
    layers = sorted({row["layer"] for row in rows})
    with figure(stem, rows, seed=seed, size=(5.6, 3.6)) as ax:
        for layer, colour, marker in zip(
            layers, ordered_colours(len(layers)), ordered_markers(len(layers)), strict=True
        ):
            curve = [row for row in rows if row["layer"] == layer]
            label = f"layer {layer} ({curve[0]['kind']})"
            ax.plot(*points(curve), color=colour, marker=marker, label=label, markevery=2)
        ax.plot(*points(curve, "uniform"), **BASELINE, label="uniform")
        describe(ax, x=X, y=Y, title=f"Attention near its query, {models[0]}, {curve[0]['length']} tokens")
        ax.set(xlim=(0, 1), ylim=(0, 1.03))
        legend(ax, beside=True)


def draw_several(rows: list[dict[str, Any]], models: list[str], stem: str, seed: int) -> None:
    """One panel a layer, one line a model."""
    layers = sorted({row["layer"] for row in rows})
    ncols = min(len(layers), 3 if len(layers) in (3, 5, 6, 9) else 4)
    nrows = math.ceil(len(layers) / ncols)
    styles = line_styles(models)
    with panels(
        stem, rows, nrows=nrows, ncols=ncols, count=len(layers), size=(2.7, 2.5), sharex=True, sharey=True, seed=seed
    ) as axes:
        for ax, layer in zip(axes, layers, strict=True):
            for model in models:
                if curve := [row for row in rows if row["layer"] == layer and row["model"] == model]:
                    ax.plot(*points(curve), **styles[model], label=model, markevery=3)
                    baseline = curve
            ax.plot(*points(baseline, "uniform"), **BASELINE, label="uniform")
            panel_title(ax, f"layer {layer}")
            describe(ax, x=X, y=Y)
            ax.label_outer()
            ax.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.5, 1))
        shared_legend(axes)


def points(curve: list[dict[str, Any]], column: str = "locality") -> tuple[list[float], list[float]]:
    return [row["fraction"] for row in curve], [row[column] for row in curve]


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a layer at r = 0.1 and 0.4; the rest is in the figure's table."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(
            (row["model"], row["layer"]), {"model": row["model"], "layer": row["layer"], "kind": row["kind"]}
        )
        if row["fraction"] in (0.1, 0.4):
            line |= {f"l({row['fraction']})": row["locality"], f"uniform({row['fraction']})": row["uniform"]}
    return list(lines.values())


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/dilution", inputs="checkpoint", device=True)
    add_text_options(parser)
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
