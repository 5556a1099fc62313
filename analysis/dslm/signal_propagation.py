"""Draw how signal and gradients travel through deep BERTs: DeepScaleLM and the vanilla model, Pre-LN and Post-LN.

Builds each model with random weights, sends one batch through it and back in training mode, and draws, layer by layer:
the variance of the stream (forward), the norm of the gradient of the layer's weight matrices (backward), the variance
of the gradient in the stream over that at the last layer (gradient), and the correlation between positions. Post-LN
streams are taken before the layer's last norm. Dotted is the theory, with nothing fitted but the height of the weight
gradient; dashed the line that the paper's code draws through one measured point.
STEM.json has all numbers, STEM.png an overview, and STEM/SCHEME/ a figure for each quantity: preln_forward.png, ...

The batch is made up by Zipf's law unless --data names a folder of documents. --model-from draws a trained model on data
of its own task instead, of this package or of fairseq; the theory then is that of its initialisation, where it has one.

  python analysis/dslm/signal_propagation.py --check
  python analysis/dslm/signal_propagation.py --layers 768 --dim 64 --heads 2 --length 64 --schemes dslm --check
  python analysis/dslm/signal_propagation.py --schemes initialisation scaling normal --out outputs/partial
  python analysis/dslm/signal_propagation.py --model-from t2=runs/t2/checkpoint_last.pt --out outputs/trained
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from fairseq_transnorm.data.synthetic import VOCABULARY
from fairseq_transnorm.measure.bert_signal import (
    PLACEMENTS,
    SCHEMES,
    checkpoint_rows,
    made_up_batch,
    scheme_rows,
    text_batch,
)
from fairseq_transnorm.measure.checkpoints import load_run
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.signal_criteria import NO_BOUNDS, bounds_of, check_rows
from fairseq_transnorm.plotting import (
    BASELINE,
    LIMIT,
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    figure,
    file_names,
    labelled,
    legend,
    line_style,
    log_axis,
    panel_title,
    panels,
    run_analysis,
    same_origin,
)

Rows = list[dict[str, Any]]


class Quantity(NamedTuple):
    """A column of the table, and its name in files and on axes."""

    column: str
    file: str
    axis: str


QUANTITIES = (
    Quantity("variance", "forward", "stream variance"),
    Quantity("weight_gradient", "backward", "weight-gradient norm"),
    Quantity("gradient_ratio", "gradient", "relative gradient variance"),
    Quantity("correlation", "correlation", "correlation between positions"),
)
NAMES = {"preln": "Pre-LN", "postln": "Post-LN"}
OF_NEW_MODELS = (
    *("word_kind", "layers", "dim", "heads", "length", "dropout", "attention_dropout", "vocabulary"),
    *("schemes", "placements", "k", "beta_sq", "input_corr"),
)
OF_MEASURING = (*OF_NEW_MODELS, "model_from", "data", "split", "sequences", "device")
COLUMNS = ("scheme", "placement", "part", "layer", "width", "scaled", *(quantity.column for quantity in QUANTITIES))


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    if options.model_from:
        check_distinct(options.model_from, "checkpoints")
        rows = []
        for label, path in options.model_from:
            run = load_run(path, options.data, options.device)
            rows += checkpoint_rows(label, run, options.split, options.sequences, options.seed, options.device)
        return rows
    if options.data:
        where = (options.data, options.split, options.word_kind)
        batch = text_batch(*where, options.sequences, options.length, options.seed)
    else:
        batch = made_up_batch(options.sequences, options.length, options.seed, options.vocabulary)
    fields = {
        "encoder_layers": options.layers,
        "encoder_embed_dim": options.dim,
        "encoder_attention_heads": options.heads,
        "dropout": options.dropout,
        "attention_dropout": options.dropout if options.attention_dropout is None else options.attention_dropout,
        "dslm_k": options.k,
        "dslm_beta_sq": options.beta_sq,
        "dslm_input_corr": options.input_corr,
    }
    models = [(scheme, placement) for scheme in options.schemes for placement in options.placements]
    rows = []
    for scheme, placement in tqdm(models, desc="models", disable=None, leave=False):
        rows += scheme_rows(scheme, placement, *batch, options.seed, options.device, fields)
    return rows


def models_of(rows: Rows) -> dict[tuple[str, str, str], Rows]:
    """Return the rows of each scheme, placement and part of a model."""
    keys = ("scheme", "placement", "part")
    found: dict[tuple[str, str, str], Rows] = {}
    for row in rows:
        found.setdefault((row[keys[0]], row[keys[1]], row[keys[2]]), []).append(row)
    return found


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> list[str]:
    if options.check:
        check_rows(rows)  # a table with nothing to check is refused before anything is written
    models = models_of(rows)
    folders = file_names(scheme for scheme, *_ in models)  # the label of a checkpoint may have slashes
    draw_overview(rows, stem, options)
    stems = [stem]
    for (scheme, placement, part), mine in models.items():
        several = sum((scheme, placement) == key[:2] for key in models) > 1
        for quantity in QUANTITIES:
            if mine[0][quantity.column] is None:
                continue
            name = "_".join([placement, *([part] if several else []), quantity.file])
            stems.append(str(Path(stem) / folders[scheme] / name))
            with figure(stems[-1], same_origin(rows, mine), seed=options.seed) as ax:
                draw_one(ax, mine, quantity)
                ax.set_title(f"{scheme}, {NAMES[placement]}, {part}", fontsize="medium")
    return stems


def draw_one(ax: Axes, rows: Rows, quantity: Quantity) -> None:
    curve(ax, rows, quantity.column, color=line_style("transnormer_t2")["color"], label="measured")
    curve(ax, rows, f"paper_{quantity.column}", **LIMIT, label="the paper's line")
    curve(ax, rows, f"theory_{quantity.column}", **BASELINE | {"zorder": 3}, label="theory")
    describe(ax, x="layer", y=quantity.axis)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    first = rows[0]
    if quantity.column == "correlation":
        ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1)
    elif first["scaled"]:
        # the range that the paper's figures have: flat means flat
        middle = first[quantity.column] if quantity.file == "backward" else 1.0
        ax.set_ylim(0, max(2 * middle, 1.1 * max(row[quantity.column] for row in rows)))
    elif quantity.file == "gradient" or (quantity.file == "backward" and first["placement"] == "postln"):
        log_axis(ax, "y")
    else:
        ax.set_ylim(bottom=0)
    legend(ax)


def draw_overview(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    models = models_of(rows)
    schemes = list(dict.fromkeys(scheme for scheme, _, _ in models))
    styles = {"preln": line_style("transnormer_t2"), "postln": line_style("transformer_lm")}
    rows_of_panels, columns = len(schemes), len(QUANTITIES)
    with panels(stem, rows, nrows=rows_of_panels, ncols=columns, size=(3.4, 3.1), seed=options.seed) as axes:
        for number, ax in enumerate(axes):
            scheme, quantity = schemes[number // columns], QUANTITIES[number % columns]
            for (of, placement, part), mine in models.items():
                if of != scheme:
                    continue
                several = sum((of, placement) == key[:2] for key in models) > 1
                label = NAMES[placement] + (f", {part}" if several else "")
                style = {"color": styles[placement]["color"], "linestyle": "-" if part == "encoder" else "--"}
                curve(ax, mine, quantity.column, **style, label=label)
                curve(ax, mine, f"theory_{quantity.column}", **BASELINE | {"zorder": 3})
            describe(ax, x="layer", y=quantity.axis)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            if quantity.column == "correlation":
                ax.set_ylim(min(0.0, ax.get_ylim()[0]), 1)
            elif any(row["scaled"] for row in rows if row["scheme"] == scheme):
                ax.set_ylim(0, 2 * max(row[quantity.column] or 0 for row in rows if row["scheme"] == scheme))
            else:
                log_axis(ax, "y")
            panel_title(ax, scheme)
        axes[0].plot([], [], **BASELINE, label="theory")
        legend(axes[0])


def curve(ax: Axes, rows: Rows, column: str, **style: Any) -> None:
    """Draw a column where there are numbers; a single layer gets a dot."""
    points = [(row["layer"], row[column]) for row in rows if row.get(column) is not None]
    if points:
        ax.plot(*zip(*points, strict=True), **{"marker": "o" if len(points) == 1 else None, **style})


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """Return a line a model, or with --check a line a demand."""
    if options.check:
        return check_rows(rows)
    lines = []
    for (scheme, placement, part), mine in models_of(rows).items():
        first, last = mine[0], mine[-1]
        line = {"model": f"{scheme} {placement} {part}", "layers": len(mine), "loss (nats)": first["loss"]}
        line |= {"least variance": min(row["variance"] for row in mine)}
        line |= {"most variance": max(row["variance"] for row in mine)}
        if first["weight_gradient"] is not None and last["weight_gradient"] is not None:
            line["weight gradient, first / last"] = first["weight_gradient"] / last["weight_gradient"]
        line |= {"gradient, first / last": first["gradient_ratio"]}
        line |= {"correlation, first": first["correlation"], "last": last["correlation"]}
        lines.append(line)
    return lines


def verdict(rows: Rows, options: argparse.Namespace) -> str | None:
    failed = [line for line in check_rows(rows) if line["ok"] != "yes"] if options.check else []
    return f"{len(failed)} of the demands above not met" if failed else None


def share(text: str) -> float:
    if not 0 <= float(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} does not lie in [0, 1)")
    return float(text)


def refuse(parser: argparse.ArgumentParser, argv: list[str] | None) -> None:
    """End with a line and status 2 where options contradict each other, in the names that they have here."""
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(OF_MEASURING)))  # None: not given
    options = parser.parse_args(argv)
    for without, names in (("table", OF_MEASURING), ("model_from", OF_NEW_MODELS)):
        idle = [f"--{name.replace('_', '-')}" for name in names if getattr(given, name) is not None]
        if getattr(options, without) and idle:
            parser.error(f"--{without.replace('_', '-')} draws what is there; leave out {', '.join(idle)}")
    if options.table:
        return
    if options.model_from:
        if options.check:
            parser.error("--check compares untrained models with published behaviour, not those of --model-from")
        return
    if options.dim % options.heads:
        parser.error(f"--heads {options.heads} does not divide --dim {options.dim}")
    if given.k is not None and given.beta_sq is not None:
        parser.error(f"--k {given.k:g} would give beta^2, and so does --beta-sq {given.beta_sq:g}; give one of them")
    scaled = any("dslm_residual_scaling" in SCHEMES[scheme] for scheme in options.schemes)
    if scaled and options.beta_sq is None and not 0 < options.k < options.layers:
        parser.error(f"--k {options.k:g} is not between 0 and --layers {options.layers}; take another, or --beta-sq")
    if options.beta_sq is not None and not 0 < options.beta_sq < 1:
        parser.error(f"--beta-sq {options.beta_sq:g} is not between 0 and 1")
    if options.input_corr is not None and not 0 < options.input_corr <= 1:
        parser.error(f"--input-corr {options.input_corr:g} does not lie in (0, 1]")
    models = [(scheme, placement) for scheme in options.schemes for placement in options.placements]
    if options.check and not any(bounds_of(*model, options.layers, options.dim) for model in models):
        parser.error(f"nothing to --check: {NO_BOUNDS}")


def make_parser() -> argparse.ArgumentParser:
    parser = analysis_parser(str(__doc__), "outputs/signal_propagation", device=True)
    add = parser.add_argument
    add("--model-from", type=labelled, nargs="+", metavar="[LABEL=]CHECKPOINT", help="draw these instead of new models")
    add("--data", help="folder of documents; with --model-from a data folder of the model's task")
    add("--split", default="train", help="split to read (default: %(default)s)")
    add("--word-kind", help="kind of tokenizer of --data (default: that in the folder's tokenizer.json)")
    add("--layers", type=at_least(1), default=192, help="layers N (default: %(default)s)")
    add("--dim", type=at_least(1), default=256, help="width d (default: %(default)s)")
    add("--heads", type=at_least(1), default=4, help="attention heads (default: %(default)s)")
    add("--length", type=at_least(16), default=128, help="tokens of a sequence (default: %(default)s)")
    add("--sequences", type=at_least(1), default=4, help="sequences of the batch (default: %(default)s)")
    add("--dropout", type=share, default=0.1, help="of embedding and blocks (default: %(default)s)")
    add("--attention-dropout", type=share, help="of attention weights (default: --dropout)")
    add(
        "--vocabulary", type=at_least(6), default=VOCABULARY, help="symbols of the made-up batch (default: %(default)s)"
    )
    add(
        "--schemes",
        nargs="+",
        choices=list(SCHEMES),
        default=["dslm", "xavier"],
        help="initialisation: that of dslm without its residual weights; scaling: these with standard deviation 0.02; "
        "normal: 0.02 and no residual weights (default: dslm xavier)",
    )
    add("--placements", nargs="+", choices=list(PLACEMENTS), default=list(PLACEMENTS), help="of the norms")
    add("--k", type=float, default=1.0, help="of beta^2 = k / N (default: %(default)s)")
    add("--beta-sq", type=float, help="beta^2 itself")
    add("--input-corr", type=float, help="correlation that the initialisation of dslm takes for the embedding's")
    add("--check", action="store_true", help="compare with the published behaviour; status 3 if something differs")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    refuse(parser, argv)
    return run_analysis(
        parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False, verdict=verdict
    )


if __name__ == "__main__":
    sys.exit(main())
