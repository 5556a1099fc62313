"""Time the training of an induction-head model by fairseq-train beside a plain loop of one process, in turns.

The default is the example of the original: 512 sequences of 256 tokens an update, width 256, five fixed triggers, SGD,
loss on outputs seen before, no probes. fairseq-train holds --held sequences at once, as scripts/train_birth.sh does;
the plain loop, as the original, all. It draws with the reference sampler and computes every product, all weights and
all logits by themselves. In a first turn, untimed, both learn from the same batches and must end with the
same losses and parameters. Printed are medians over turns: sequences a second, the ratio to the plain loop, and the
share of the time spent on waiting for data (fairseq-train) or on drawing them (plain loop), beside the targets. A turn
of fairseq-train begins with starting the process that makes its data.

  python analysis/birth/throughput.py bigrams.json
  python analysis/birth/throughput.py text.txt --width 32 --length 32 --batch 16 --updates 4 --repeats 2 --threads 1
"""

import argparse
import os
import sys
from dataclasses import asdict
from typing import Any

import torch

from fairseq_transnorm.measure.birth_throughput import Setting, throughput_rows
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.paired_training import FAIRSEQ, PLAIN, medians
from fairseq_transnorm.plotting import analysis_parser, at_least, describe, legend, line_styles, panels, run_analysis

COLUMNS = ("form", "turn", "sequences_per_second", "ratio", "data_share", "loss_difference", "parameter_difference")
LEAST_RATIO, MOST_WAITING = 3.0, 0.1


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    torch.set_num_threads(options.threads)
    if len(options.inputs) != 1:
        raise ValueError(f"give one text or .json of its statistics, not {len(options.inputs)}")
    numbers = {name: getattr(options, name) for name in ("width", "length", "batch", "held", "updates", "sampler")}
    setting = Setting(str(options.inputs[0][1]), **numbers)
    about = asdict(setting) | {"threads": options.threads}
    return [row | about for row in throughput_rows(setting, options.repeats)]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    styles = line_styles((PLAIN, FAIRSEQ))
    with panels(stem, rows, ncols=2, size=(3.2, 2.8), seed=options.seed) as (speed, waiting):
        for ax, column, factor in ((speed, "sequences_per_second", 1), (waiting, "data_share", 100)):
            for form, style in styles.items():
                mine = [row for row in rows if row["form"] == form]
                ax.plot([row["turn"] + 1 for row in mine], [factor * row[column] for row in mine], **style, label=form)
            ax.set_ylim(bottom=0)
            ax.set_xticks(sorted({row["turn"] + 1 for row in rows}))
        describe(speed, x="turn", y="sequences per second", title="Training, end to end")
        describe(waiting, x="turn", y="time spent on data (%)", title="Data")
        legend(speed)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the medians, beside the targets, and how far both forms agree."""
    lines = []
    for line in medians(rows):
        goals = {"least ratio": LEAST_RATIO, "most data_share": MOST_WAITING} if line["form"] == FAIRSEQ else {}
        lines.append({"form": line["form"], "turns": line["turns"]} | line | goals)
    return [line | {key: rows[0][key] for key in ("loss_difference", "parameter_difference")} for line in lines]


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/birth_throughput", inputs="corpus")
    numbers = {
        "width": (256, "model width D"),
        "length": (256, "tokens of a sequence"),
        "batch": (512, "sequences of an update"),
        "held": (64, "most of them that fairseq-train holds at once"),
        "updates": (10, "of a turn"),
        "repeats": (3, "timed turns of each"),
        "threads": (os.cpu_count() or 1, "of torch"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument(
        "--sampler", choices=["vectorised", "reference"], default="vectorised", help="of fairseq-train (default: first)"
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
