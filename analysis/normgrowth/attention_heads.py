"""Draw how many positions the attention heads of saturated models attend to: three histograms over the heads.

The saturated network is the one with all parameters times c = 1000; n counts the positions to which a query gives a
weight above 1e-5. Filled: its softmax, in grey outline: the exact hardmax with ties in place of every softmax. By
default the queries are the tokens of the first 200 sentences, without padding. The dotted and dashed lines are heads
that attend uniformly to the future, as the multiplicative mask of the original code has them, and to the prefix.
STEM.json has all numbers, STEM.png an overview, STEM/MODEL/ a figure for each statistic.

  python analysis/normgrowth/attention_heads.py control=runs/control/checkpoint_best.pt
  python analysis/normgrowth/attention_heads.py runs/mult/checkpoint_best.pt --length 31 --all-positions
  python analysis/normgrowth/attention_heads.py --table outputs/attention_heads.json --out outputs/again
"""

import argparse
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_transnorm.measure.batches import sentence_batches
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.saturated_heads import FUTURE, HARDMAX, PREFIX, THRESHOLD, head_rows, set_mask
from fairseq_transnorm.measure.scaling import SATURATED
from fairseq_transnorm.measure.sentences_file import read_sentences
from fairseq_transnorm.modules.growth_attention import MASKS
from fairseq_transnorm.plotting import (
    BASELINE,
    LIMIT,
    add_sentence_options,
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    figure,
    file_names,
    legend,
    line_style,
    panel_title,
    panels,
    run_analysis,
    same_origin,
)

Rows = list[dict[str, Any]]
BINS = 100


class Statistic(NamedTuple):
    """A column of the table, its file, its name on axes, and its title."""

    column: str
    file: str
    axis: str


STATISTICS = (
    Statistic("positions_attended", "positions_attended", "# positions attended"),
    Statistic("split_probability", "split_probability", "split attention probability"),
    Statistic("std_attended", "std_attended", "std(# positions attended)"),
)
LINES = {FUTURE: BASELINE | {"zorder": 3}, PREFIX: LIMIT | {"zorder": 3}}
# one shape each: a hundred bars take long to draw
FILLED: dict[str, Any] = {"histtype": "stepfilled", "color": line_style("transnormer_t2")["color"], "alpha": 0.8}
OUTLINE: dict[str, Any] = {"histtype": "step", "color": "0.35", "linewidth": 0.9}
COLUMNS = ("model", "network", "layer", "head", "forbidden_weight", "mean_share", *(s.column for s in STATISTICS))


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_distinct(options.inputs, "checkpoints")
    text = read_sentences(options.text, options.sentences) if options.text else options.split
    rows = []
    for label, path in options.inputs:
        run = load_run(path, options.data, options.device)
        if options.attn_mask:
            set_mask(run.model, options.attn_mask)
        if options.float64:
            run.model.double()
        rows += head_rows(
            run,
            label,
            sentence_batches(run, text, options.sentences, options.batch_tokens),
            options.length,
            options.all_positions,
            c=options.c,
            threshold=options.threshold,
            tolerance=options.tolerance,
            scale_positions=options.scale_positions,
        )
    return rows


def of_models(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["model"], []).append(row)
    return found


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> list[str]:
    models, stems = of_models(rows), [stem]
    folders = file_names(models)  # a label may have slashes
    with panels(stem, rows, nrows=len(models), ncols=len(STATISTICS), size=(3.6, 2.8), seed=options.seed) as axes:
        for number, ax in enumerate(axes):
            label = list(models)[number // len(STATISTICS)]
            draw_one(ax, models[label], STATISTICS[number % len(STATISTICS)])
            panel_title(ax, label)
        legend(axes[0])
    for label, mine in models.items():
        for statistic in STATISTICS:
            stems.append(str(Path(stem) / folders[label] / statistic.file))
            with figure(stems[-1], same_origin(rows, mine), seed=options.seed) as ax:
                draw_one(ax, mine, statistic)
                ax.set_title(
                    f"{statistic.axis[0].upper()}{statistic.axis[1:]} for all attention heads, {label}",
                    fontsize="medium",
                )
                legend(ax)
    return stems


def draw_one(ax: Axes, rows: Rows, statistic: Statistic) -> None:
    """Draw the histogram of one statistic over the heads of one model."""
    values = [row[statistic.column] for row in rows]  # those of uniform heads too, so that all is in sight
    low, high = min(values), max(values)
    span = (low, high if high > low else low + 1.0)
    for network in dict.fromkeys(row["network"] for row in rows):
        mine = [row[statistic.column] for row in rows if row["network"] == network]
        if network in LINES:
            ax.axvline(mine[0], **LINES[network], label=network)
        else:
            ax.hist(mine, bins=BINS, range=span, label=network, **(OUTLINE if network == HARDMAX else FILLED))
    describe(ax, x=statistic.axis, y="# of attention heads")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model and network; the heads are in the figure's table."""
    lines = []
    for label, mine in of_models(rows).items():
        for network in dict.fromkeys(row["network"] for row in mine):
            some = [row for row in mine if row["network"] == network]
            n = [row["positions_attended"] for row in some]
            lines.append(
                {"model": label, "mask": some[0]["mask"], "network": network, "heads": len(some)}
                | {
                    "least n": min(n),
                    "median n": statistics.median(n),
                    "most n": max(n),
                    "heads with n < 2": sum(x < 2 for x in n),
                }
                | {"most split": max(row["split_probability"] for row in some)}
                | {"most forbidden": max(row["forbidden_weight"] for row in some)}
                | {"most mean": max((row["mean_share"] or 0.0) for row in some), "queries": some[0]["queries"]}
            )
    return lines


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not positive and finite")
    return float(text)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/attention_heads", inputs="checkpoint", device=True)
    add_sentence_options(parser, 200)
    add = parser.add_argument
    add("--length", type=int, metavar="T", help="cut or pad every sentence to T positions, as the original code does")
    add(
        "--all-positions",
        action="store_true",
        help="as the original: fill sentences up with a word, and count the queries there too",
    )
    add("--attn-mask", choices=MASKS, help="look through this mask, not the one that a norm-growth model has")
    add("--c", type=positive, default=SATURATED, help="factor that stands for infinity (default: %(default)g)")
    add("--threshold", type=positive, default=THRESHOLD, help="weight of an attended position (default: %(default)g)")
    add("--tolerance", type=float, default=0.0, help="of ties of the hardmax, in scores (default: %(default)g)")
    add("--scale-positions", action="store_true", help="also scale sinusoidal positions, which are no parameters")
    add("--float64", action="store_true", help="run the models in double precision")
    add("--batch-tokens", type=at_least(1), default=512, help="positions of a batch (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
