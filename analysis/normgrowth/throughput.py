"""Time layer saturation and head statistics with sentences in batches beside one sentence at a time, taking turns.

python analysis/normgrowth/throughput.py runs/control/checkpoint_best.pt --sentences 600
"""

import argparse
import logging
import sys
from typing import Any

import torch

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.sentences_file import read_sentences
from fairseq_transnorm.measure.throughput import BATCHED, HEADS, ONE_BY_ONE, SATURATION
from fairseq_transnorm.measure.throughput import measure as measure_model
from fairseq_transnorm.plotting import (
    add_sentence_options,
    analysis_parser,
    at_least,
    describe,
    figure,
    legend,
    line_styles,
    run_analysis,
)

COLUMNS = ("model", "measure", "form", "sentences_per_second", "ratio")
MEASURES = {"saturation": SATURATION, "heads": HEADS}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    logging.getLogger("fairseq_transnorm").setLevel(logging.ERROR)  # warnings of a model come anew at every turn
    torch.set_num_threads(options.threads)
    text = read_sentences(options.text, options.sentences) if options.text else options.split
    measures = [MEASURES[name] for name in options.measures]
    return [
        row
        for label, path in options.inputs
        for row in measure_model(
            label,
            path,
            data=options.data,
            text=text,
            limit=options.sentences,
            measures=measures,
            repeats=options.repeats,
            device=options.device,
        )
    ]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    names = list(dict.fromkeys(f"{row['model']}\n{row['measure']}" for row in rows))
    styles = line_styles((ONE_BY_ONE, BATCHED))
    with figure(stem, rows, seed=options.seed, size=(1.8 + 1.3 * len(names), 3.2)) as ax:
        for form, style in styles.items():
            heights = [row["sentences_per_second"] for row in rows if row["form"] == form]
            ax.plot(names, heights, **style | {"linestyle": "none", "markersize": 7}, label=form)
        ax.set_yscale("log")
        ax.set_xlim(-0.6, len(names) - 0.4)
        describe(ax, x="measure", y="sentences per second", title="Throughput")
        legend(ax)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/throughput", inputs="checkpoint", device=True)
    add_sentence_options(parser, 100)
    add = parser.add_argument
    add("--measures", nargs="+", choices=list(MEASURES), default=list(MEASURES), help="what to time (default: both)")
    add("--repeats", type=at_least(1), default=3, help="timed turns of each form (default: %(default)s)")
    add("--threads", type=at_least(1), default=1, help="threads of torch (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS)


if __name__ == "__main__":
    sys.exit(main())
