"""Draw where the attention of models of bigram sequences with triggers looks: queries down, keys across.

By default the sequence is one that no training saw: number --item of the split, made with --seed; every model gets one
of its own task. Or give a --text. Its triggers are printed in colour (newline ↵, space ␣). In the layers after the
first, squares mark what an induction head looks at: tokens before which the query's trigger stood. The table tells for
the sequence drawn, and for --sequences others, in what share of positions each head looks like that:

  back      after a trigger, at that trigger, as in layer 1 of an induction head
  behind    at a trigger seen before, at a token that followed it before, as in layer 2

Weights of a softmax are drawn on a scale from 0 to 1. Those of linear attention, and of blocks without a softmax, have
signs and no sum: their map is red for positive and blue for negative weights, on a scale of its own. STEM.json and
STEM.csv have all weights that are drawn.

  python analysis/birth/attention_maps.py runs/basic/checkpoint_last.pt
  python analysis/birth/attention_maps.py runs/basic/checkpoint_last.pt --text "To be, or not to be" --window 19
  python analysis/birth/attention_maps.py early=runs/r/checkpoint_1_100.pt late=runs/r/checkpoint_last.pt --item 3
"""

import argparse
import sys
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from fairseq_transnorm.data.trigger_dataset import SPLITS
from fairseq_transnorm.measure.attention_windows import (
    SHARES,
    SIGNED,
    Window,
    check_item,
    generated,
    given,
    head_shares,
    load_trigger_run,
    window_rows,
)
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.plotting import (
    MARKED,
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    mark_ticks,
    panel_title,
    panels,
    run_analysis,
    save_csv,
    shared_legend,
    show_symbol,
)

Rows = list[dict[str, Any]]
COLUMNS = ("model", "updates", "layer", "head", "kind", "query", "query_token", "query_counter", "key", "key_token")
MEASURED = ("weight", "before_is_query", *SHARES, *(f"{name}_others" for name in SHARES), "others")
NAMES = dict(zip(("back", "behind"), SHARES, strict=True))
INCH = 0.125  # of a position
SQUARE: dict[str, Any] = {"marker": "s", "markersize": 6, "markerfacecolor": "none", "linestyle": "none"}
SQUARE |= {"markeredgecolor": MARKED["color"], "markeredgewidth": 0.9}


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_distinct(options.inputs, "checkpoints")
    if options.triggers is not None and options.text is None:
        raise ValueError("--triggers says what to count in --text; sequences of the task have triggers of their own")
    rows = []
    for label, path in options.inputs:
        run = load_trigger_run(path, options.data, options.device)
        if options.text is not None:
            sequence = given(run, options.text.replace("\\n", "\n"), options.triggers)
        else:
            check_item(run, options.item, options.split)
            sequence = generated(run, [options.item], options.split, options.seed)
        others = range(options.item + 1, options.item + 1 + options.sequences)
        drawn, many = head_shares(run, sequence), head_shares(run, generated(run, others, options.split, options.seed))
        for row in window_rows(run, label, sequence, Window(options.start, options.window)):
            head = row["layer"], row["head"]
            shares = {name: drawn.get(head, {}).get(name) for name in SHARES}
            shares |= {f"{name}_others": many.get(head, {}).get(name) for name in SHARES}
            rows.append(row | shares | {"others": options.sequences})
    return rows


def of_panels(rows: Rows) -> dict[tuple[str, int, int], Rows]:
    """Return (model, layer, head) -> its rows, in the order of the panels."""
    found: dict[tuple[str, int, int], Rows] = {}
    for row in rows:
        found.setdefault((row["model"], row["layer"], row["head"]), []).append(row)
    return found


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    maps = of_panels(rows)
    several = len({model for model, _, _ in maps}) > 1
    heads = max(head for _, _, head in maps)
    columns = heads if heads > 1 else max(layer for _, layer, _ in maps)
    places = sorted({row["query"] for row in rows})
    side = max(2.6, INCH * len(places))
    shape: dict[str, Any] = {"nrows": -(-len(maps) // columns), "ncols": columns, "count": len(maps)}
    images: list[AxesImage] = []
    with panels(stem, rows, **shape, size=(side + 0.7, side + 0.8), seed=options.seed) as axes:
        for ax, ((model, layer, head), mine) in zip(axes, maps.items(), strict=True):
            images.append(draw_map(ax, mine, layer > 1, side))
            parts = [model] * several + [f"layer {layer}"] + [f"head {head}"] * (heads > 1)
            panel_title(ax, ", ".join(parts))
        add_bars(axes, images)
        axes[0].plot([], [], marker=r"$\mathbf{a}$", color=MARKED["color"], linestyle="none", label="trigger")
        axes[0].plot([], [], **SQUARE, label="the query's trigger stood before this key")
        shared_legend(axes, below=True)
    save_csv(f"{stem}.csv", rows)


def draw_map(ax: Axes, rows: Rows, deep: bool, side: float) -> AxesImage:
    """Draw the weights of one head on a square of ``side`` inches.

    With ``deep``, what the second layer of an induction head would look at is marked.
    """
    places = sorted({row["query"] for row in rows})
    weights = np.full((len(places), len(places)), np.nan)
    for row in rows:
        weights[row["query"] - places[0], row["key"] - places[0]] = row["weight"]
    low, most = float(np.nanmin(weights)), float(np.nanmax(np.abs(weights))) or 1.0
    signed = rows[0]["kind"] == SIGNED or low < 0 or most > 1.001  # blocks without a softmax too
    scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -most, "vmax": most} if signed else {"vmin": 0.0, "vmax": 1.0}
    ends = (places[0] - 0.5, places[-1] + 0.5)
    image = ax.imshow(weights, extent=(*ends, *ends[::-1]), **{"cmap": "cividis"} | scale, interpolation="nearest")
    marked = [row for row in rows if deep and row["before_is_query"]]
    square = SQUARE | {"markersize": 0.7 * 72 * side / len(places)}
    ax.plot([row["key"] for row in marked], [row["query"] for row in marked], **square)
    own = {row["query"]: row for row in rows}
    names = [show_symbol(own[place]["query_token"]) for place in places]
    mark_ticks(ax, places, names, [bool(own[place]["query_counter"]) for place in places])
    ax.grid(False)
    ax.set_facecolor("0.94")
    describe(ax, x="key", y="query")
    return image


def add_bars(axes: list[Axes], images: list[AxesImage]) -> None:
    """Add a bar to each map of signed weights, which has a scale of its own, and one for all others."""
    plain = [ax for ax, image in zip(axes, images, strict=True) if image.norm.vmin == 0]
    for ax, image in zip(axes, images, strict=True):
        if ax not in plain:
            ax.figure.colorbar(image, ax=ax, shrink=0.6, label="weight, with sign")
    if plain:
        ax.figure.colorbar(images[axes.index(plain[0])], ax=plain, shrink=0.6, label="attention weight")


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model, layer and head: how often it looks like a part of an induction head."""
    lines = []
    for (model, layer, head), mine in of_panels(rows).items():
        row = mine[0]
        names = {"model": model, "updates": row["updates"], "layer": layer, "head": head, "attention": row["kind"]}
        drawn = {name: row[key] for name, key in NAMES.items()}
        others = {f"{name}, {row['others']} others": row[f"{key}_others"] for name, key in NAMES.items()}
        lines.append(names | drawn | others)
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/birth_attention", inputs="checkpoint", device=True)
    add = parser.add_argument
    add("--data", metavar="FILE", help="corpus or its statistics, when that of the training is gone")
    add("--text", help="sequence to draw, in characters of the corpus; \\n is a new line")
    add("--triggers", metavar="CHARACTERS", help="what to count in --text, where the run has no fixed triggers")
    add("--split", choices=list(SPLITS), default="test", help="of the sequence to draw (default: %(default)s)")
    add("--item", type=at_least(0), default=0, metavar="I", help="number of that sequence (default: %(default)s)")
    add("--start", type=at_least(0), default=0, metavar="T", help="first position to draw (default: %(default)s)")
    add("--window", type=at_least(2), default=40, metavar="N", help="positions to draw (default: %(default)s)")
    add(
        "--sequences",
        type=at_least(1),
        default=64,
        metavar="N",
        help="others, the next ones, made beyond the end of the split if need be, that are counted "
        "(default: %(default)s)",
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS + MEASURED, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
