"""Evaluate causal language models sentence by sentence: perplexity beside a unigram model, accuracy, saturation, norms.

The perplexity is fairseq-eval-lm's, with the </s> of each line among the targets; the table also has that of the words
alone, and pplx_base2_upstream, 2 to the nats averaged over sentences, for comparison with old figures only. Draws the
perplexities, with the unigram model's as a dash. Checkpoints with the same name are one run, drawn over its updates.

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
    check_runs,
    count_axis,
    describe,
    figure,
    format_cell,
    legend,
    line_styles,
    log_axis,
    panels,
    run_analysis,
    shared_legend,
)

TRAINING = {"perplexity": "perplexity (words and </s>)", "saturation": "saturation", "collapse": "collapse"}
SHORT = ("updates", "perplexity", "perplexity_later_words", "accuracy", "saturation", "collapse", "norm_layers")
COLUMNS = ("model", "split", "updates", "perplexity", "unigram_perplexity", "accuracy", "saturation", "collapse")


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    check_runs(options.inputs)
    if len(set(options.inputs)) < len(options.inputs):
        raise ValueError("a checkpoint is given twice under the same name")
    return [measure_model(label, path, options.split, options.data, options.device) for label, path in options.inputs]


def runs_of(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each model, by updates."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["updates"]):
        runs.setdefault(row["model"], []).append(row)
    return {name: runs[name] for name in dict.fromkeys(row["model"] for row in rows)}


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    runs = runs_of(rows)
    if len(runs) < len(rows):
        draw_training(rows, runs, stem, options)
        return
    styles = line_styles(runs)
    with figure(stem, rows, seed=options.seed, size=(2.4 + 0.7 * len(rows), 3.2)) as ax:
        for place, row in enumerate(rows):
            dash = {**BASELINE, "label": "add-one unigram"} if not place else BASELINE
            if row["unigram_perplexity"] is not None:
                ax.hlines(row["unigram_perplexity"], place - 0.35, place + 0.35, **dash)
            ax.plot(place, row["perplexity"], **styles[row["model"]], markersize=7)
        ax.set(xlim=(-0.6, len(rows) - 0.4), xticks=range(len(rows)), xticklabels=list(runs))
        ax.set_ylim(bottom=0)
        describe(ax, x="model", y="perplexity (words and </s>)", title=f"Perplexity on {rows[0]['split']}")
        if any(row["unigram_perplexity"] is not None for row in rows):
            legend(ax)


def draw_training(
    rows: list[dict[str, Any]], runs: dict[str, list[dict[str, Any]]], stem: str, options: argparse.Namespace
) -> None:
    """Draw several checkpoints of a run as a line over its updates."""
    styles, unigram = line_styles(runs), rows[0]["unigram_perplexity"]
    with panels(stem, rows, ncols=3, size=(3.6, 3.1), seed=options.seed) as axes:
        for ax, (column, label) in zip(axes, TRAINING.items(), strict=True):
            for name, mine in runs.items():
                ax.plot([row["updates"] for row in mine], [row[column] for row in mine], **styles[name], label=name)
            describe(ax, x="updates", y=label)
            count_axis(ax, "x")
        if unigram is not None:
            axes[0].axhline(unigram, **BASELINE, label="add-one unigram")
        log_axis(axes[0], "y", plain=True)
        shared_legend(axes)


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a quantity and one column a model, which fits a terminal; of several checkpoints a line each."""
    if len(runs_of(rows)) < len(rows):
        return [{name: row[name] for name in ("model", *SHORT)} for row in rows]
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
