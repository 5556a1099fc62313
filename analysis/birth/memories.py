"""Draw the weights of models of bigram sequences with triggers as associative memories, and check their probes.

A panel for each memory, with the score of every candidate (across) for every query (down): what recalls perfectly has
the largest score of each row on the diagonal.

  W_O of layer 2   tokens that layer 2 attends to, and what they speak for
  W_K of layer 2   tokens that layer 2 looks for, and tokens that stood before a key
  W_K of layer 1   positions that layer 1 looks from and at: the largest should be on the line below the diagonal

Fixed triggers are printed in colour; the probe of W_K of layer 2 is of those alone. The probes, the accuracy on the
evaluation sequences and the norms of parameters, where --log-norms noted them, are measured again and printed beside
those that training logged of the same weights; where they differ, nothing is drawn and the exit status is 1. STEM.json
and STEM.csv have all numbers.

  python analysis/birth/memories.py runs/basic/checkpoint_last.pt
  python analysis/birth/memories.py early=runs/r/checkpoint_1_100.pt late=runs/r/checkpoint_last.pt --tokens 30
"""

import argparse
import re
import sys
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from fairseq_transnorm.measure.attention_windows import load_trigger_run
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.memory_maps import COLUMNS, PROBE, SCORE, memory_rows, mismatches
from fairseq_transnorm.plotting import (
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    format_table,
    mark_ticks,
    panel_title,
    panels,
    run_analysis,
    save_csv,
    show_symbol,
)

Rows = list[dict[str, Any]]
INCH = 0.075  # of a token or position
# title, rows, columns
PANELS = {
    "wo1_acc": ("$W_O^2$", "token attended to", "token it speaks for"),
    "wk1_acc": ("$W_K^2$", "token of the query", "token before the key"),
    "wk0_acc": ("$W_K^1$", "position of the query", "position of the key"),
}


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_distinct(options.inputs, "checkpoints")
    rows = []
    for label, path in options.inputs:
        rows += memory_rows(
            load_trigger_run(path, options.data, options.device), label, options.tokens, options.positions
        )
    return rows


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    if found := mismatches(rows):
        print(format_table(summary(rows, options)))
        raise ValueError("probes differ from those in the log, is it of another run?\n" + "\n".join(found))
    maps: dict[tuple[str, str], Rows] = {}
    for row in rows:
        if row["kind"] == SCORE:
            maps.setdefault((row["model"], row["name"]), []).append(row)
    models = dict.fromkeys(model for model, _ in maps)
    columns = max(sum(model == each for model, _ in maps) for each in models)
    probes: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["kind"] == PROBE:
            probes.setdefault(row["model"], {})[row["name"]] = row["value"]
    shape: dict[str, Any] = {"nrows": -(-len(maps) // columns), "ncols": columns, "count": len(maps)}
    side = max(4.0, INCH * max(len(mine) ** 0.5 for mine in maps.values()))
    with panels(stem, rows, **shape, size=(side + 0.9, side + 0.5), seed=options.seed) as axes:
        for ax, ((model, name), mine) in zip(axes, maps.items(), strict=True):
            draw_map(ax, mine, name, side)
            title = f"{PANELS[name][0]}, {recall(probes[model], name)}"
            panel_title(ax, f"{model}: {title}" if len(models) > 1 else title)
    save_csv(f"{stem}.csv", rows)


def recall(probes: dict[str, float], name: str) -> str:
    """Say what a memory recalls; that of positions, also of the first ones alone."""
    text = f"recall {probes[name]:.2f}"
    early = {match[1]: probes[other] for other in probes if (match := re.fullmatch(r"wk0_(\d+)_acc", other))}
    return text + "".join(f" ({value:.2f} of t < {n})" for n, value in early.items() if name == "wk0_acc")


def draw_map(ax: Axes, rows: Rows, name: str, side: float) -> None:
    """Draw the scores of one memory on a square of ``side`` inches."""
    own = {row["row"]: row for row in rows}
    places = {place: number for number, place in enumerate(own)}
    scores = np.empty((len(places), len(places)))
    for row in rows:
        scores[places[row["row"]], places[row["column"]]] = row["value"]
    most = float(np.abs(scores).max()) or 1.0
    image = ax.imshow(scores, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    if name != "wk0_acc":
        names = [show_symbol(row["row_name"]) for row in own.values()]
        size = min(8.0, 0.9 * 72 * side / len(names))
        mark_ticks(ax, range(len(names)), names, [row["trigger"] for row in own.values()], size)
    ax.grid(False)
    describe(ax, x=PANELS[name][2], y=PANELS[name][1])
    ax.figure.colorbar(image, ax=ax, shrink=0.6, label="score")


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model and probe: measured again, and logged."""
    return [
        {"model": row["model"], "updates": row["updates"], "probe": row["name"], "recomputed": row["value"]}
        | {"logged": row["logged"] if row["in_log"] else "not in the log"}
        for row in rows
        if row["kind"] == PROBE
    ]


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/birth_memories", inputs="checkpoint", device=True)
    add = parser.add_argument
    add("--data", metavar="FILE", help="corpus or its statistics, when that of the training is gone")
    add("--tokens", type=at_least(2), default=80, metavar="N", help="the most frequent to draw (default: %(default)s)")
    add("--positions", type=at_least(2), metavar="N", help="first to draw (default: the run's probe cutoff)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
