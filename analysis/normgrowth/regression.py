"""Fit laws of growth to the norms of a model along its training, and draw the norms with the fit of the paper.

Give tables of trajectory.py (.json or .csv), any CSV with step and norm, or save folders with the norms.jsonl of a
training; --t5 takes the norms of T5-base that the paper's figures show. Fitted by least squares, for each run, scope
and layer, are rho = a phi(t) + b, phi one of t, sqrt t, exp -t and t^1/4; rho^2 = a t + b, the law of steps orthogonal
to the parameters; and the exponent a of rho = e^b t^a. STEM has the norms with a sqrt t + b, the folder STEM/ the fits
and the other figures: norms by layer, directions, alignment and step size, squared norms.

  python analysis/normgrowth/regression.py --t5
  python analysis/normgrowth/regression.py outputs/trajectory.json --beyond 1000
"""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from fairseq_transnorm.measure.fits import EXPONENT, LAWS, SERIES, SQUARED, curve, fit_law, fit_rows
from fairseq_transnorm.measure.t5_norms import t5_rows
from fairseq_transnorm.measure.trajectory import COLUMNS, check_points, complete_rows, read_norms, scope_series
from fairseq_transnorm.plotting import (
    analysis_parser,
    check_runs,
    count_axis,
    describe,
    legend,
    line_styles,
    load_table,
    panel_title,
    panels,
    run_analysis,
    same_origin,
    save_csv,
    save_table,
)

Rows = list[dict[str, Any]]
COSINE = "cos(θ before, θ after) of a step"


def measure(options: argparse.Namespace) -> Rows:
    check_runs(each for each in options.inputs if each.path.suffix != ".json")  # tables name their runs themselves
    rows = t5_rows() if options.t5 else []
    for label, path in options.inputs:
        found = load_table(path, ("updates", "norm")) if path.suffix == ".json" else read_norms(path)
        rows += complete_rows(label, found)
    check_points(rows)
    return rows


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> list[str]:
    fits = fit_rows(rows, options.beyond)
    stems = [stem, f"{stem}/squared_norm"]
    draw_fits(rows, stems[0], "sqrt t", "parameter norm ρ(t)", options)
    draw_fits(rows, stems[1], SQUARED, "squared parameter norm ρ(t)²", options)
    stems += draw_by_layer(rows, f"{stem}/norm_by_layer", "norm", "parameter norm of a layer", options)
    stems += draw_by_layer(rows, f"{stem}/direction_by_layer", "direction_cosine", COSINE, options)
    stems += draw_steps(rows, f"{stem}/direction", {"direction_cosine": COSINE}, options)
    steps = {"alignment": "alignment cos(θ, step)", "step_norm": "step size, 2-norm"}
    stems += draw_steps(rows, f"{stem}/steps", steps, options)
    kept = same_origin(rows, fits)
    save_table(f"{stem}/fits.json", kept, seed=options.seed)
    save_csv(f"{stem}/fits.csv", kept)
    return stems


def draw_fits(rows: Rows, stem: str, law: str, y: str, options: argparse.Namespace) -> None:
    """Draw norms and a law fitted to them, a panel for each scope: their sizes differ too much for one."""
    scopes = list(dict.fromkeys(row["scope"] for row in rows))
    with panels(stem, rows, ncols=len(scopes), size=(5.2, 3.4), seed=options.seed) as axes:
        for ax, scope in zip(axes, scopes, strict=True):
            mine = scope_series([row for row in rows if row["scope"] == scope])
            if law == SQUARED:
                draw_norms(ax, mine, law, "{a:.4g} t {b:+.4g}", lambda norm: norm**2)
            else:
                draw_norms(ax, mine, law, "{a:.4g} √t {b:+.4g}", lambda norm: norm)
            describe(ax, x="updates t", y=y)
            if len(scopes) > 1:
                panel_title(ax, scope)


def draw_norms(ax: Axes, series: dict[str, Rows], law: str, formula: str, shown: Callable[[float], float]) -> None:
    """Draw norms as dots and a law fitted to them as a line."""
    for label, style in line_styles(series).items():
        t, norms = ([row[name] for row in series[label]] for name in ("updates", "norm"))
        dots = style | {"linestyle": "none", "markersize": 3.5, "alpha": 0.8}
        ax.plot(t, [shown(norm) for norm in norms], **dots, label=f"{label}, ρ{'²' if law == SQUARED else ''}(t)")
        if (fit := fit_law(law, t, norms)) is None:
            continue
        grid = [float(x) for x in np.linspace(min(t), max(t), 200)]
        r_squared = "" if fit.r_squared is None else f", R² = {fit.r_squared:.4f}"
        name = formula.format(a=fit.slope, b=fit.intercept) + r_squared
        ax.plot(grid, [shown(norm) for norm in curve(fit, grid)], color=style["color"], linewidth=1.1, label=name)
    count_axis(ax, "x")
    legend(ax)


def draw_by_layer(rows: Rows, stem: str, column: str, y: str, options: argparse.Namespace) -> list[str]:
    """Draw a column of each layer, a panel for each run, scope and stack."""
    of_layers = [row for row in rows if row["layer"] is not None and row[column] is not None]
    stacks = scope_series(of_layers, stacks=True)
    if not stacks:
        return []
    with panels(
        stem,
        same_origin(rows, of_layers),
        nrows=math.ceil(len(stacks) / 3),
        ncols=min(3, len(stacks)),
        count=len(stacks),
        size=(4.6, 3.4),
        seed=options.seed,
    ) as axes:
        for ax, (label, mine) in zip(axes, stacks.items(), strict=True):
            layers = sorted({row["layer"] for row in mine}, reverse=True)
            # the colours of the paper's figures, last layer red and first violet, for laying the two side by side
            colours = matplotlib.colormaps["hsv"](np.linspace(0, 0.8, len(layers)))
            for layer, colour in zip(layers, colours, strict=True):
                points = [(row["updates"], row[column]) for row in mine if row["layer"] == layer]
                style = {"color": colour, "marker": "o", "markersize": 3.5, "linestyle": "none"}
                ax.plot([t for t, _ in points], [value for _, value in points], **style, label=f"layer {layer}")
            panel_title(ax, label)
            describe(ax, x="updates t", y=y)
            count_axis(ax, "x")
            legend(ax, beside=True)
    return [stem]


def draw_steps(rows: Rows, stem: str, columns: dict[str, str], options: argparse.Namespace) -> list[str]:
    """Draw columns of the steps of whole scopes, a panel for each."""
    steps = [row for row in rows if row["layer"] is None and any(row[name] is not None for name in columns)]
    if not steps:
        return []
    with panels(stem, same_origin(rows, steps), ncols=len(columns), size=(4.4, 3.2), seed=options.seed) as axes:
        for ax, (column, y) in zip(axes, columns.items(), strict=True):
            series = scope_series(rows)
            for label, style in line_styles(series).items():
                points = [(row["updates"], row[column]) for row in series[label] if row[column] is not None]
                dots = style | {"linestyle": "none", "markersize": 3.5}
                if points:
                    ax.plot([t for t, _ in points], [value for _, value in points], **dots, label=label)
            describe(ax, x="updates t", y=y)
            count_axis(ax, "x")
            legend(ax)
    return [stem]


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a series: R^2 of each law, and the numbers of those that the paper speaks of."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for fit in fit_rows(rows, options.beyond):
        key = tuple(fit[name] for name in SERIES)
        line = lines.setdefault(key, dict(zip(SERIES, key, strict=True)))
        line[f"R² {fit['law']}"] = fit["r_squared"]
        if fit["law"] in ("sqrt t", SQUARED):
            line |= {f"a {fit['law']}": fit["slope"], f"b {fit['law']}": fit["intercept"]}
        if fit["law"] == EXPONENT:
            line["exponent"] = fit["slope"]
    order = [*SERIES, *(f"R² {law}" for law in LAWS)]
    return [{name: line[name] for name in [*order, *(n for n in line if n not in order)]} for line in lines.values()]


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/regression", inputs="trajectory")
    parser.add_argument("--t5", action="store_true", help="the norms of T5-base, as the paper's figures show them")
    parser.add_argument(
        "--beyond", type=float, default=0, help="the exponent is that after this update (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    if not (given.inputs or given.table or given.t5):
        parser.error("nothing to fit: give a trajectory, or --t5, or --table with an earlier table")
    if given.t5 and given.table:
        parser.error("give --t5 or --table, not both")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
