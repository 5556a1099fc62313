"""Evaluate causal language models sentence by sentence: perplexity beside a unigram model, accuracy, saturation, norms.

The perplexity is fairseq-eval-lm's, with the </s> of each line among the targets; the table also has that of the words
alone, and pplx_base2_upstream, 2 to the nats averaged over sentences, for comparison with old figures only. Draws the
perplexities, with the unigram model's as a dash.

  python analysis/normgrowth/evaluate.py runs/control/checkpoint_best.pt runs/pre_norm/checkpoint_best.pt
  python analysis/normgrowth/evaluate.py --table outputs/evaluate.json --out outputs/again
"""

import argparse
import sys
from typing import Any

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.language_scores import measure as measure_model
from fairseq_transnorm.plotting import (
    BASELINE,
    analysis_parser,
    describe,
    figure,
    format_cell,
    legend,
    line_styles,
    run_analysis,
)

COLUMNS = ("model", "split", "updates", "perplexity", "unigram_perplexity", "accuracy", "saturation", "collapse")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    labels = [label for label, _ in options.inputs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two models share a name in {labels}; write LABEL=PATH")
    return [measure_model(label, path, options.split, options.data, options.device) for label, path in options.inputs]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    names = [row["model"] for row in rows]
    styles = line_styles(names)
    with figure(stem, rows, seed=options.seed, size=(2.4 + 0.7 * len(rows), 3.2)) as ax:
        for place, row in enumerate(rows):
            dash = {**BASELINE, "label": "add-one unigram"} if not place else BASELINE
            if row["unigram_perplexity"] is not None:
                ax.hlines(row["unigram_perplexity"], place - 0.35, place + 0.35, **dash)
            ax.plot(place, row["perplexity"], **styles[row["model"]], markersize=7)
        ax.set(xlim=(-0.6, len(rows) - 0.4), xticks=range(len(rows)), xticklabels=names)
        ax.set_ylim(bottom=0)
        describe(ax, x="model", y="perplexity (words and </s>)", title=f"Perplexity on {rows[0]['split']}")
        if any(row["unigram_perplexity"] is not None for row in rows):
            legend(ax)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a quantity and one column a model, which fits a terminal."""
    return [
        {"": name} | {row["model"]: cell(row.get(name)) for row in rows}
        for name in rows[0]
        if name not in ("model", "split")
    ]


def cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else format_cell(value)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/evaluate", inputs="checkpoint", device=True)
    parser.add_argument("--data", help="data folder to read, when not the one that each model was trained on")
    parser.add_argument("--split", default="test", help="split to evaluate (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
