"""Time the training of a transformer on a formal language by fairseq-train beside a loop over samples, in turns.

The default is an epoch of the original's example, reverse_100: 1,000 updates of 50 sequences of 1 to 100 symbols, two
layers of width 50 and one head, dropout 0.1. The plain loop goes through the sequences one by one, which so have no
padding, with the usual operations of torch; its data lie ready. Before, both learn without dropout, by SGD, from the
same batches, and must end with the same losses and parameters. Printed are medians over turns: sequences a second, the
ratio to the plain loop beside its target, and the share of the time that fairseq-train spent on waiting for data.

  python analysis/rasp/throughput.py
  python analysis/rasp/throughput.py --updates 100 --repeats 5 --threads 1 --language hist_26 --max-length 20
"""

import argparse
import os
import sys
from dataclasses import asdict
from typing import Any

import torch

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.paired_training import FAIRSEQ, PLAIN, medians
from fairseq_transnorm.measure.rasp_throughput import Setting, throughput_rows
from fairseq_transnorm.plotting import analysis_parser, at_least, describe, legend, line_styles, panels, run_analysis

COLUMNS = ("form", "turn", "sequences_per_second", "ratio", "data_share", "loss_difference", "parameter_difference")
LEAST_RATIO = 2.0


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    torch.set_num_threads(options.threads)
    names = ("language", "layers", "heads", "width", "dropout", "max_length", "batch", "updates")
    setting = Setting(**{name: getattr(options, name) for name in names})
    about = asdict(setting) | {"threads": options.threads}
    return [row | about for row in throughput_rows(setting, options.repeats)]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    styles = line_styles((PLAIN, FAIRSEQ))
    with panels(stem, rows, ncols=1, size=(3.2, 2.8), seed=options.seed) as (ax,):
        for form, style in styles.items():
            mine = [row for row in rows if row["form"] == form]
            ax.plot(
                [row["turn"] + 1 for row in mine], [row["sequences_per_second"] for row in mine], **style, label=form
            )
        ax.set_ylim(bottom=0)
        ax.set_xticks(sorted({row["turn"] + 1 for row in rows}))
        describe(ax, x="turn", y="sequences per second", title=f"Training on {rows[0]['language']}")
        legend(ax)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the medians, beside the target, and how far both forms agree."""
    lines = []
    for line in medians(rows):
        goals = {"least ratio": LEAST_RATIO} if line["form"] == FAIRSEQ else {}
        lines.append(line | goals | {key: rows[0][key] for key in ("loss_difference", "parameter_difference")})
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/rasp_throughput")
    example = Setting()
    parser.add_argument("--language", default=example.language, help="without _with_attns (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=example.dropout, help="(default: %(default)s)")
    numbers = {
        "layers": (example.layers, "of the model"),
        "heads": (example.heads, "of each layer"),
        "width": (example.width, "model width D"),
        "max-length": (example.max_length, "most symbols of a sequence"),
        "batch": (example.batch, "sequences of an update"),
        "updates": (example.updates, "of a turn"),
        "repeats": (3, "timed turns of each"),
        "threads": (os.cpu_count() or 1, "of torch"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=f"{meaning} (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
