"""Draw how well models copy in context without one kind of look: what their induction heads cannot do without.

In one layer at a time, the weights of some keys become 0, the others stay as they are: those of the position before,
those behind tokens that equal the query's own (up to the query), and, for comparison, those of the position itself. An
induction head cannot do without the first in layer 1, nor without the second in layer 2. Each bar is the accuracy on
outputs of triggers seen before, in sequences that no training saw, with the range of several seeds (paths with the same
LABEL). The table also has the share of the weight that is cut, in absolute values: in layer 1 of positions after a
trigger's first occurrence, in layer 2 of triggers that came before.

  python analysis/birth/ablation.py softmax=runs/full/checkpoint_last.pt linear=runs/linear/checkpoint_last.pt
"""

import argparse
import statistics
import sys
from typing import Any

from fairseq_transnorm.measure.birth_ablation import CUTS, NOTHING, ablation_rows
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.plotting import (
    analysis_parser,
    at_least,
    check_runs,
    describe,
    figure,
    legend,
    line_styles,
    run_analysis,
)

Rows = list[dict[str, Any]]
COLUMNS = ("model", "source", "cut", "accuracy", "share")
WIDTH = 0.8  # of the bars of a model, of 1
LEGEND = 3.4  # inches, with the names of the axis


def measure(options: argparse.Namespace) -> Rows:
    quiet()
    check_runs(options.inputs)
    return [
        row
        for label, path in options.inputs
        for row in ablation_rows(label, path, options.sequences, options.seed, device=options.device, data=options.data)
    ]


def grouped(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Return (model, cut) -> its rows, one a seed."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        found.setdefault((row["model"], row["cut"]), []).append(row)
    return found


def draw(rows: Rows, stem: str, options: argparse.Namespace) -> None:
    models, cuts = list(dict.fromkeys(row["model"] for row in rows)), [NOTHING, *CUTS]
    styles, step = line_styles(cuts), WIDTH / len(cuts)
    with figure(stem, rows, size=(LEGEND + 1.3 * len(models), 3.2), seed=options.seed) as ax:
        for number, cut in enumerate(cuts):
            found = [(i, grouped(rows)[model, cut]) for i, model in enumerate(models) if (model, cut) in grouped(rows)]
            values = [[row["accuracy"] for row in mine] for _, mine in found]
            means = [statistics.fmean(some) for some in values]
            ends = [
                [mean - min(some) for mean, some in zip(means, values, strict=True)],
                [max(some) - mean for mean, some in zip(means, values, strict=True)],
            ]
            places = [i + (number - (len(cuts) - 1) / 2) * step for i, _ in found]
            ax.bar(places, means, step, yerr=ends, color=styles[cut]["color"], label=cut, ecolor="0.2")
        ax.set_xticks(range(len(models)), [name.replace(", ", ",\n") for name in models])
        ax.set_ylim(0, 1.02)
        describe(ax, x="", y="in-context accuracy", title="Without the weights of")
        legend(ax, beside=True)


def summary(rows: Rows, options: argparse.Namespace) -> Rows:
    """One line a model and cut: means over seeds."""
    lines = []
    for (model, cut), mine in grouped(rows).items():
        shares = [row["share"] for row in mine if row["share"] is not None]
        values = {"accuracy": statistics.fmean(row["accuracy"] for row in mine)}
        values |= {"lowest": min(row["accuracy"] for row in mine), "highest": max(row["accuracy"] for row in mine)}
        line = {"model": model, "seeds": len(mine), "without": cut} | values
        lines.append(line | {"share of the weight": statistics.fmean(shares) if shares else None})
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/birth_ablation", inputs="checkpoint", device=True)
    parser.add_argument("--data", metavar="FILE", help="corpus or its statistics, when that of the training is gone")
    parser.add_argument("--sequences", type=at_least(1), default=256, metavar="N", help="default: %(default)s")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary)


if __name__ == "__main__":
    sys.exit(main())
