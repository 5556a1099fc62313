"""Draw how a model's parameters moved in training: norm, direction, alignment and step size along its checkpoints.

Give save folders of fairseq-train, of any model, or folders of Hugging Face checkpoints whose names tell the step
(checkpoint-500, step1000, iter_500); single checkpoints work too, and what shares a label is one run. Steps lead from
one checkpoint to the next. STEM.json and STEM.csv have all numbers, those of each layer as well, for regression.py. A
checkpoint that cannot be read is named and left out; the exit status then is 3.

  python analysis/normgrowth/trajectory.py t2=checkpoints/alm
  python analysis/normgrowth/trajectory.py small=runs/small large=runs/large --scope layers --scope all --samples 50
"""

import argparse
import sys
from typing import Any

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.parameters import SCOPES
from fairseq_transnorm.measure.trajectory import COLUMNS, scope_series, trajectory
from fairseq_transnorm.plotting import (
    DASHES,
    analysis_parser,
    at_least,
    check_runs,
    count_axis,
    describe,
    legend,
    line_styles,
    panels,
    run_analysis,
    save_csv,
    shared_legend,
)

PANELS = {
    "norm": "parameter 2-norm",
    "direction_cosine": "cos(θ before, θ after) of a step",
    "alignment": "alignment cos(θ, step)",
    "step_norm": "step size, 2-norm",
}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    check_runs(options.inputs)
    runs: dict[str, list[Any]] = {}
    for label, path in options.inputs:
        runs.setdefault(label, []).append(path)
    rows = []
    for label, paths in runs.items():
        found = trajectory(label, paths, options.scope or ["layers"], options.samples, options.data)
        rows += found.rows
        options.skipped += found.skipped
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    series = scope_series(rows)
    scopes = list(dict.fromkeys(row["scope"] for row in rows))
    with panels(stem, rows, nrows=2, ncols=2, size=(4.4, 3.1), sharex=True, seed=options.seed) as axes:
        for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
            # scopes differ in size: side by side their norms are shown as what has become of the first
            relative = column == "norm" and len(scopes) > 1
            for (label, mine), style in zip(series.items(), looks(series, scopes), strict=True):
                points = [(row["updates"], row[column]) for row in mine if row[column] is not None]
                if relative and mine[0]["norm"]:
                    points = [(updates, norm / mine[0]["norm"]) for updates, norm in points]
                style["markevery"] = max(1, len(points) // 12)
                ax.plot([x for x, _ in points], [y for _, y in points], **style, label=label)
            of = f", {scopes[0]}" if len(scopes) == 1 else ""
            describe(ax, x="updates", y="parameter 2-norm / that of the first" if relative else title + of)
            count_axis(ax, "x")
        if len(series) > 6:
            shared_legend(axes)
        elif len(series) > 1:
            legend(axes[0])
    save_csv(f"{stem}.csv", rows)


def looks(series: dict[str, list[dict[str, Any]]], scopes: list[str]) -> list[dict[str, Any]]:
    """Return the style of each series: colour and marker of its run, and where there are several, a dash a scope."""
    of_runs = line_styles(mine[0]["run"] for mine in series.values())
    dashes = dict(zip(scopes, DASHES, strict=False)) if len(scopes) > 1 else {}
    styles = []
    for mine in series.values():
        style = dict(of_runs[mine[0]["run"]])
        style["linestyle"] = dashes.get(mine[0]["scope"], style["linestyle"])
        styles.append(style)
    return styles


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two lines a run and scope: its first and its last checkpoint."""
    names = ("updates", *PANELS, "smallest_rms", "linear_column_norm", "parameters")
    return [
        {"series": label} | {name: row[name] for name in names}
        for label, mine in scope_series(rows).items()
        for row in (mine[:1] + mine[1:][-1:])
    ]


def verdict(rows: list[dict[str, Any]], options: argparse.Namespace) -> str | None:
    if not options.skipped:
        return None
    count = len(options.skipped)
    return f"left out {count} checkpoint{'s' * (count > 1)}:\n" + "\n".join(options.skipped)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/trajectory", inputs="checkpoints")
    parser.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="which parameters; may be given several times (default: layers)",
    )
    parser.add_argument(
        "--samples", type=at_least(1), help="keep every max(1, floor(N / SAMPLES))-th of N checkpoints (default: all)"
    )
    parser.add_argument("--data", help="data folder with the dictionary, when the one of the training is gone")
    parser.set_defaults(skipped=[])
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, verdict=verdict)


if __name__ == "__main__":
    sys.exit(main())
