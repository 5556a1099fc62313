"""Draw losses and accuracies of training and validation, epoch by epoch, of runs on formal languages.

Give save folders with an epochs.jsonl, which every training of --task rasp_lang writes. Paths with the same LABEL are
seeds of one run: their mean is drawn, with a band from the lowest to the highest. Values of training are means over an
epoch, with dropout and while the weights change; those of validation are of the weights at its end, without dropout, so
that training can look worse. A ring marks the last epoch whose model was saved as the best.

  losses      in nats, that of the attention included with its weight
  accuracies  shares of all tokens

  python analysis/rasp/curves.py runs/reverse
  python analysis/rasp/curves.py plain=runs/hist2 supervised=runs/hist2_attns --out outputs/hist2
"""

import argparse
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.language_curves import COLUMNS, epoch_rows
from fairseq_transnorm.plotting import (
    DASHES,
    analysis_parser,
    check_runs,
    describe,
    line_styles,
    log_axis,
    mean_curve,
    panel_title,
    panels,
    run_analysis,
    save_csv,
    shared_legend,
    with_seeds,
)

Rows = list[dict[str, Any]]
PANELS = {"loss": ("losses", "loss (nats)"), "accuracy": ("accuracies", "share of right tokens")}
TRAINING: dict[str, Any] = {"linestyle": DASHES[1], "marker": None, "linewidth": 1.1}
RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 9,
    "fillstyle": "none",
    "markeredgewidth": 1.2,
    "linestyle": "none",
}
NOTES = {"valid": "validation: weights at the\nend of the epoch, no dropout", "best": "best model"}
NOTES |= {"train": "training: mean of the epoch,\ndropout on, changing weights"}


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_runs(options.inputs)
    return [row for label, path in options.inputs for row in epoch_rows(label, path)]


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    runs = {label: [row for row in rows if row["run"] == label] for label in dict.fromkeys(row["run"] for row in rows)}
    with panels(stem, rows, ncols=2, size=(4.7, 3.2), seed=options.seed) as axes:
        for ax, (metric, (title, name)) in zip(axes, PANELS.items(), strict=True):
            draw_panel(ax, runs, metric)
            panel_title(ax, title)
            describe(ax, x="epoch", y=name)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        log_axis(axes[0], "y", plain=True)
        axes[1].set_ylim(-0.02, 1.02)
        shared_legend(axes)
    save_csv(f"{stem}.csv", rows)


def draw_panel(ax: Axes, runs: dict[str, Rows], metric: str) -> None:
    """Draw one metric of all runs: a colour a run, solid for validation, dashed for training."""
    styles = line_styles(runs)
    for label, rows in runs.items():
        points = [row | {"updates": row["epoch"]} for row in rows]  # of the mean over seeds
        solid = styles[label] | {"linestyle": DASHES[0]}
        mean_curve(ax, points, "epoch", f"valid_{metric}", with_seeds(label, rows), solid)
        mean_curve(ax, points, "epoch", f"train_{metric}", None, styles[label] | TRAINING, band=False)
        for source in dict.fromkeys(row["source"] for row in rows):
            for row in [row for row in rows if row["best"] and row["source"] == source][-1:]:
                ax.plot(row["epoch"], row[f"valid_{metric}"], **RING, color=solid["color"])
    ax.plot([], [], color="0.3", label=NOTES["valid"])
    ax.plot([], [], **TRAINING, color="0.3", label=NOTES["train"])
    ax.plot([], [], **RING, color="0.3", label=NOTES["best"])


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a run and seed: its best and last epoch."""
    lines = []
    for run, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"]) == (run, source)]
        best: dict[str, Any] = next((row for row in reversed(mine) if row["best"]), {})
        line = {"run": run, "folder": source, "epochs": mine[-1]["epoch"], "best epoch": best.get("epoch")}
        line |= {f"best valid {metric}": best.get(f"valid_{metric}") for metric in PANELS}
        lines.append(line | {f"last {name.replace('_', ' ')}": mine[-1][name] for name in COLUMNS if "_" in name})
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/rasp_curves", inputs="run")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
