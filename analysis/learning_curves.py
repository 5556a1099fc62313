"""Draw validation perplexity and training loss of several runs against updates, tokens or time, from their logs.

Give logs of fairseq-train (--log-format json or simple, with --log-file or from the screen), or save folders with
such a log in them. Runs with the same label are seeds of one variant: their mean is drawn, with a band from the lowest
to the highest.

  python analysis/learning_curves.py t2=runs/t2/train.log transformer_lm=runs/base/train.log
  python analysis/learning_curves.py t2=runs/seed1 t2=runs/seed2 --x wall
"""

import argparse
import math
import sys
from typing import Any

from fairseq_transnorm.measure.logs import curve_rows, read_log
from fairseq_transnorm.plotting import (
    analysis_parser,
    count_axis,
    describe,
    legend,
    line_styles,
    log_axis,
    mean_curve,
    panel_title,
    panels,
    run_analysis,
    with_seeds,
)

COLUMNS = ("run", "source", "kind", "split", "updates", "tokens", "wall", "loss", "ppl", "gnorm_deviation")
AXES = {"updates": "updates", "tokens": "training tokens", "wall": "time since the start (s)"}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for label, path in options.inputs:
        rows += curve_rows(read_log(path), label, str(path), options.split, options.warmup)
    return rows


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    labels = list(dict.fromkeys(row["run"] for row in rows))
    styles = line_styles(labels)
    split = next(row["split"] for row in rows if row["kind"] == "validation")
    with panels(stem, rows, ncols=2, size=(4.6, 3.5), seed=options.seed) as (left, right):
        for label in labels:
            mine = [row for row in rows if row["run"] == label]
            validation, training = ([row for row in mine if row["kind"] == kind] for kind in ("validation", "training"))
            mean_curve(left, validation, options.x, "ppl", with_seeds(label, validation), styles[label])
            # the training loss is noisy enough without markers
            quiet = styles[label] | {"marker": None, "linewidth": 1.3}
            mean_curve(right, training, options.x, "loss", None, quiet)
        panel_title(left, "validation")
        describe(left, x=AXES[options.x], y="perplexity" if split == "valid" else f"perplexity on {split}")
        log_axis(left, "y", plain=True)
        panel_title(right, "training")
        describe(right, x=AXES[options.x], y="loss (bits per token)")
        for ax in (left, right):
            count_axis(ax, "x")
        legend(left)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a run: best and last validation perplexity, where, and how much the gradient norm varies."""
    lines = []
    for label, source in dict.fromkeys((row["run"], row["source"]) for row in rows):
        mine = [row for row in rows if (row["run"], row["source"], row["kind"]) == (label, source, "validation")]
        last = mine[-1]
        best = min((row for row in mine if row["ppl"] is not None), key=lambda row: row["ppl"], default=last)
        lines.append(
            {
                "run": label,
                "log": source,
                "best ppl": best["ppl"],
                "at update": best["updates"],
                "last ppl": last["ppl"],
                "last loss (nats)": None if last["loss"] is None else math.log(2) * last["loss"],
                "updates": last["updates"],
                "tokens": last["tokens"],
                "wall (s)": last["wall"],
                "std/mean of gnorm": last["gnorm_deviation"],
            }
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/learning_curves", inputs="log")
    parser.add_argument("--x", choices=sorted(AXES), default="updates", help="x axis (default: %(default)s)")
    parser.add_argument("--split", help="validation set to draw (default: the first in the log)")
    parser.add_argument(
        "--warmup",
        type=int,
        default=0,
        help="updates left out of the variation of the gradient norm (default: %(default)s)",
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
