"""Does the parameter norm grow or fall, over learning rates and weight decays? Every cell is a training of its own.

All cells begin with the same weights and see the same batches. What stands after -- goes to fairseq-train: --arch, the
size, --tokens-per-sample, --max-update; one epoch and 16 sentences a batch unless it says otherwise. Each cell is a
file in --cells, and the same command again goes on with those that are missing; cells of other settings are refused.

The map has the change of the norm, red where it grew, and a black line where it did not change; the dashed line is
an estimate of that for Adam, lambda = eta n / (2 rho^2), with n parameters of norm rho and steps orthogonal to them.

  python analysis/normgrowth/grid.py data-bin/play-sentences --processes 2 -- --arch normgrowth_pre_norm \\
      --decoder-layers 2 --decoder-embed-dim 64 --decoder-ffn-embed-dim 64 --decoder-attention-heads 4 \\
      --tokens-per-sample 31 --max-update 124
  python analysis/normgrowth/grid.py data-bin/play-sentences --optimizer sgd --lr 0.1 0.01 --num 20 -- --arch ...
  python analysis/normgrowth/grid.py --table outputs/growth_grid.json --quantity linear --out outputs/growth_columns
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.patches import Patch

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.growth_grid import (
    OPTIMIZERS,
    QUANTITIES,
    Grid,
    change,
    demands,
    refuse_without_demands,
    run_grid,
)
from fairseq_transnorm.plotting import LIMIT, analysis_parser, at_least, describe, figure, log_axis, run_analysis
from fairseq_transnorm.theory.norm_growth import decay_threshold

Rows = list[dict[str, Any]]
NAMES = {
    "layers": "norm of the layers",
    "all": "norm of all parameters",
    "linear": "mean column norm of the linear maps",
}
DEFAULT = (1e-3, 1e-2)  # of AdamW in torch
COLOURS = "RdBu_r"
COLUMNS = ["lr", "weight_decay", "optimizer", "diverged", "layers_parameters", "all_parameters"]
COLUMNS += [f"{quantity}_{when}" for quantity in QUANTITIES for when in ("before", "after")]


def axis(values: list[float] | None, count: int) -> list[float]:
    """Return the values of an axis: those that were given, or so many from 0.1 down to 1e-5."""
    if values is not None:
        return values
    return [float(f"{10**-power:.12g}") for power in np.linspace(1, 5, count)]


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    grid = Grid(options.data, tuple(options.flags), options.optimizer, options.seed, options.device)
    axes = axis(options.lr, options.num), axis(options.weight_decay, options.num)
    if options.check:
        refuse_without_demands(options.optimizer, *axes)
    cells = options.cells or Path(f"{options.out}_cells")
    return run_grid(grid, *axes, cells, options.processes)


def plane(rows: Rows, quantity: str) -> tuple[list[float], list[float], np.ndarray]:
    """Return learning rates, weight decays, both ascending, and the changes by decay and rate, nan where diverged."""
    rates, decays = (sorted({row[name] for row in rows}) for name in ("lr", "weight_decay"))
    values = np.full((len(decays), len(rates)), np.nan)
    for row in rows:
        if (value := change(row, quantity)) is not None:
            values[decays.index(row["weight_decay"]), rates.index(row["lr"])] = value
    return rates, decays, values


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    if options.check:
        demands(rows)  # a table with nothing to check is refused before anything is written
    rates, decays, values = plane(rows, options.quantity)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    largest, smallest = (float(sizes.max()), float(sizes.min())) if sizes.size else (1.0, 1.0)
    linear = min(10.0 ** np.floor(np.log10(smallest)), largest / 10)  # near 0 a logarithm has no end
    with figure(stem, rows, size=(6.4, 4.2), seed=options.seed) as ax:
        scale = SymLogNorm(linear, vmin=-largest, vmax=largest)
        mesh = ax.pcolormesh(edges(rates), edges(decays), values, norm=scale, cmap=COLOURS, rasterized=True)
        if min(values.shape) > 1:
            draw_boundary(ax, rates, decays, np.arcsinh(values / linear))
        draw_marks(ax, rows, options.quantity)
        ax.set(xlim=edges(rates)[[0, -1]], ylim=edges(decays)[[0, -1]], facecolor="0.85")
        ax.grid(False)
        log_axis(ax, "x")
        log_axis(ax, "y")
        name = {"adam": "AdamW", "sgd": "SGD"}[rows[0]["optimizer"]]
        describe(ax, x="learning rate η", y="weight decay λ", title=f"{name}: change of the {NAMES[options.quantity]}")
        signs = [Patch(color=mesh.cmap(0.85), label="grows"), Patch(color=mesh.cmap(0.15), label="falls")]
        signs += [Patch(color="0.85", label="diverged")] * (not np.isfinite(values).all())
        entries = signs + ax.get_legend_handles_labels()[0]
        ax.legend(handles=entries, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
        bar = ax.figure.colorbar(mesh, ax=ax)
        bar.set_ticks(ticks := signed_powers(linear, largest), labels=[f"{tick:+g}" if tick else "0" for tick in ticks])
        bar.minorticks_off()
        bar.set_label(f"change (log scale both ways from ±{linear:g})")


def signed_powers(linear: float, largest: float) -> list[float]:
    """Return 0 and powers of 10 of both signs, at most five of each and all above ``linear``."""
    first, last = round(np.log10(linear)) + 1, int(np.floor(np.log10(largest) + 1e-9))
    powers = [10.0**power for power in range(last, first - 1, -max(1, -(-(last - first + 1) // 5)))]
    return [*(-power for power in powers), 0.0, *reversed(powers)]


def draw_boundary(ax: Axes, rates: list[float], decays: list[float], values: np.ndarray) -> None:
    """Draw the line where values, on their own scale, are 0, straight between cells on the scales of the axes."""
    lines = contour_generator(np.log10(rates), np.log10(decays), np.ma.masked_invalid(values)).lines(0.0)
    for number, line in enumerate(lines):
        ax.plot(*(10 ** np.asarray(line)).T, color="black", label=None if number else "no change")


def draw_marks(ax: Axes, rows: Rows, quantity: str) -> None:
    """Draw what the boundary is compared with: the estimate for Adam, and AdamW's default."""
    first, ends = rows[0], edges(sorted({row["lr"] for row in rows}))[[0, -1]]
    if first["optimizer"] == "adam" and quantity != "linear":
        of_scope = first[f"{quantity}_parameters"], first[f"{quantity}_before"]
        estimate = [decay_threshold(float(rate), 1.0, *of_scope) for rate in ends]
        ax.plot(ends, estimate, **LIMIT | {"color": "0.2", "linewidth": 1.3, "zorder": 3}, label="estimate")
    ax.plot(*DEFAULT, "^", color="black", markersize=7, label="AdamW's default (0.001, 0.01)")


def edges(values: list[float]) -> np.ndarray:
    """Return the borders of cells around values, on a logarithmic scale."""
    logs = np.log10(values)
    steps = np.diff(logs) if len(logs) > 1 else np.ones(1)
    return 10 ** np.concatenate(
        [[logs[0] - steps[0] / 2], logs[:-1] + steps[: len(logs) - 1] / 2, [logs[-1] + steps[-1] / 2]]
    )


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """Return a line a learning rate with the changes by weight decay, or with --check a line a demand."""
    if options.check:
        return demands(rows)
    rates, decays, values = plane(rows, options.quantity)
    return [
        {"η \\ λ": f"{rate:.4g}"}
        | {
            f"{decay:.4g}": None if np.isnan(x := values[j, i]) else float(x)
            for j, decay in reversed([*enumerate(decays)])
        }
        for i, rate in reversed([*enumerate(rates)])
    ]


def verdict(rows: Rows, options: argparse.Namespace) -> str | None:
    failed = [line for line in demands(rows) if line["ok"] != "yes"] if options.check else []
    return f"{len(failed)} of the demands above not met" if failed else None


def make_parser() -> argparse.ArgumentParser:
    parser = analysis_parser(str(__doc__), "outputs/growth_grid", device=True)
    add = parser.add_argument
    add("data", type=Path, nargs="?", metavar="DATA_BIN", help="data folder to train on")
    add("--cells", type=Path, metavar="FOLDER", help="gets a file a cell (default: STEM_cells)")
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="adam: decay decoupled; sgd: coupled (default: adam)")
    add("--num", type=at_least(1), default=5, help="values of each axis, from 0.1 to 1e-5 (default: %(default)s)")
    add("--lr", type=float, nargs="+", metavar="ETA", help="these learning rates instead")
    add("--weight-decay", type=float, nargs="+", metavar="LAMBDA", help="these weight decays instead")
    add("--processes", type=at_least(1), default=1, help="cells at a time, a thread each (default: %(default)s)")
    add("--quantity", choices=QUANTITIES, default="layers", help="what the map shows (default: %(default)s)")
    add("--check", action="store_true", help="compare with known behaviour of AdamW; status 3 if something differs")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    end = words.index("--") if "--" in words else len(words)
    parser.set_defaults(flags=words[end + 1 :])
    options = parser.parse_args(words[:end])
    if (options.data is None) == (options.table is None):
        parser.error("give a data folder to train on, or --table with an earlier table")
    try:
        return run_analysis(
            parser,
            words[:end],
            measure,
            draw,
            columns=COLUMNS,
            summary=summary,
            need_inputs=False,
            verdict=verdict,
        )
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on with the cells that are missing", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
