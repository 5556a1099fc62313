"""Draw how soon networks at random init become the saturated one when all their parameters grow by a factor c.

The cosine is that of the encodings f(x; c theta) and f(x; 1000 theta) of 10 random sentences of 10 words, as one
vector. Lines are means over seeds, bands go from the least to the largest. Left the factors of the original figure,
right up to 1000. Biases are really there or not, in all linear maps of the layers, and in the LayerNorms too; those
begin at 0, so that the last two are the same at the start. Trained models are drawn with the biases that they have.

  python analysis/normgrowth/homogeneity.py --check
  python analysis/normgrowth/homogeneity.py --layers 12 --dim 768 --ffn-dim 512 --heads 12 --seeds 2
  python analysis/normgrowth/homogeneity.py runs/control/checkpoint_best.pt --out outputs/trained
"""

import argparse
import sys
from typing import Any

from matplotlib.axes import Axes
from tqdm import tqdm

from fairseq_transnorm.measure.checkpoints import check_device, load_run
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.homogeneity import (
    BIASES,
    CONTROL,
    LINEAR,
    LOG,
    PRE_NORM,
    SATURATED,
    SHOWN,
    Size,
    checkpoint_rows,
    lines_of,
    mean_at,
    new_model,
    variant_rows,
    violations,
)
from fairseq_transnorm.measure.layer_saturation import warn_of_positions
from fairseq_transnorm.models.normgrowth.config import PRESETS
from fairseq_transnorm.modules.growth_attention import MASKS
from fairseq_transnorm.plotting import (
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    line_styles,
    log_axis,
    panel_title,
    panels,
    run_analysis,
    shared_legend,
)
from fairseq_transnorm.plotting.styles import OKABE_ITO

Rows = list[dict[str, Any]]
COLOURS = {PRE_NORM: OKABE_ITO["orange"], CONTROL: OKABE_ITO["blue"]}  # as in the original figure
DASHES: dict[str, Any] = {"all": (0, (5.0, 1.8)), "no linear": "-", "none": (0, (1.0, 1.6)), "trained": "-"}
LABELS = {"all": " + biases", "no linear": ", no linear biases", "none": ", no biases", "trained": ""}
COLUMNS = ("model", "mask", "biases", "seed", "grid", "c", "cosine", "relative_error", "tail_exponent")


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_device(options.device)
    seeds = range(options.seed, options.seed + options.seeds)
    if options.inputs:
        check_distinct(options.inputs, "checkpoints")
        runs = [(label, load_run(path, options.data, options.device)) for label, path in options.inputs]
        for label, run in runs:
            warn_of_positions(label, run.model, options.scale_positions)
        return [
            row
            for label, run in runs
            for seed in seeds
            for row in checkpoint_rows(label, run, seed, scale_positions=options.scale_positions)
        ]
    for variant in options.variants:
        warn_of_positions(variant, new_model(variant, Size(1, 8, 8, 1), options.seed), options.scale_positions)
    size = Size(options.layers, options.dim, options.ffn_dim, options.heads)
    models = [
        (variant, biases, mask, seed)
        for mask in options.masks
        for variant in options.variants
        for biases in options.biases
        for seed in seeds
    ]
    rows = []
    for variant, biases, mask, seed in tqdm(models, desc="models", disable=None, leave=False):
        rows += variant_rows(variant, biases, mask, size, seed, options.device, scale_positions=options.scale_positions)
    return rows


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    """One line of panels a mask: the original's factors, and all up to 1000."""
    if options.check:
        violations(rows)  # a table with nothing to check is refused before anything is written
    masks = list(dict.fromkeys(row["mask"] for row in rows))
    colours = {name: style["color"] for name, style in line_styles({row["model"]: None for row in rows}).items()}
    with panels(stem, rows, nrows=len(masks), ncols=2, size=(3.6, 3.0), sharey=True, seed=options.seed) as axes:
        for number, ax in enumerate(axes):
            mask, grid = masks[number // 2], (LINEAR, LOG)[number % 2]
            for (model, of, biases), mine in lines_of(rows).items():
                if of == mask:
                    colour = COLOURS.get(model, colours[model])
                    curve(
                        ax, [row for row in mine if row["grid"] == grid], colour, DASHES[biases], model + LABELS[biases]
                    )
            describe(ax, x="scaling factor c", y="cosine to the saturated network")
            if grid == LOG:
                log_axis(ax, "x", plain=True)
            ax.label_outer() if len(masks) > 1 else None
            panel_title(ax, f"{mask} mask" if mask != "none" else "no mask")
        shared_legend(axes)


def curve(ax: Axes, rows: Rows, colour: str, dash: Any, label: str) -> None:
    """Draw the mean over the seeds and the band from the least to the largest."""
    found: dict[float, list[float]] = {}
    for row in rows:
        found.setdefault(row["c"], []).append(row["cosine"])
    seeds = len(next(iter(found.values())))
    factors = list(found)
    name = label if seeds == 1 else f"{label} (n = {seeds})"
    ax.plot(factors, [sum(v) / len(v) for v in found.values()], color=colour, linestyle=dash, label=name)
    if seeds > 1:
        lows, highs = [min(v) for v in found.values()], [max(v) for v in found.values()]
        ax.fill_between(factors, lows, highs, color=colour, alpha=0.15, linewidth=0)


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model, mask and level of biases: mean cosines, the error of c f(theta) at c = 10, the exponent."""
    return [
        {"model": model, "mask": mask, "biases": biases, "seeds": len({row["seed"] for row in mine})}
        | {f"c = {c:g}": f"{mean_at(mine, c):.3f}" for c in (*SHOWN, SATURATED) if c != SATURATED}
        | {"error (c = 10)": mean_at(mine, 10.0, "relative_error")}
        | {"tail exponent": f"{mean_at(mine, SATURATED, 'tail_exponent'):.4f}"}
        for (model, mask, biases), mine in lines_of(rows).items()
    ]


def verdict(rows: Rows, options: argparse.Namespace) -> str | None:
    found = violations(rows) if options.check else []
    return f"{len(found)} demands not met: " + "; ".join(found) if found else None


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/homogeneity", inputs="checkpoint", device=True)
    names = [name.removeprefix("normgrowth_") for name in PRESETS]
    add = parser.add_argument
    add("--data", help="data folder of a checkpoint, when not the one that it was trained on")
    add(
        "--variants",
        nargs="+",
        choices=names,
        metavar="NAME",
        default=[PRE_NORM, CONTROL],
        help=f"of {', '.join(names)}",
    )
    add("--masks", nargs="+", choices=MASKS, default=list(MASKS), help="attention masks (default: both)")
    add(
        "--biases",
        nargs="+",
        choices=list(BIASES),
        default=list(BIASES),
        help="all; not in the layers' linear maps ('no linear'); nor in the LayerNorms (default: each of these)",
    )
    add("--layers", type=at_least(1), default=4, help="layers (default: %(default)s)")
    add("--dim", type=at_least(1), default=64, help="model width (default: %(default)s)")
    add("--ffn-dim", type=at_least(1), default=64, help="width of the feed-forward (default: %(default)s)")
    add("--heads", type=at_least(1), default=4, help="attention heads (default: %(default)s)")
    add("--seeds", type=at_least(1), default=5, metavar="N", help="models, from --seed on (default: %(default)s)")
    add("--scale-positions", action="store_true", help="also scale sinusoidal positions, which are no parameters")
    add("--check", action="store_true", help="check the demands on pre_norm and control; status 3 if one is not met")
    return run_analysis(
        parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False, verdict=verdict
    )


if __name__ == "__main__":
    sys.exit(main())
