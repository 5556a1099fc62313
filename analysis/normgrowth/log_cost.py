"""Measure what the log of norm growth costs: the time of a training step with it over that without it.

In one process, the two taking turns: blocks of as many updates as there are between two records, of which one is logged
or none. Prints the ratios beside the package's targets, which are for the model of the paper, 12 layers of D = 768, and
what follows from the time that passes in the log itself, which is steadier on a machine with other work.
"With detail" is --norm-log-layers --norm-log-tensors, every update. One thread unless --threads says more.

  python analysis/normgrowth/log_cost.py
  python analysis/normgrowth/log_cost.py --arch transformer_lm --layers 2 --dim 64 --heads 4 --ffn 256 --intervals 1
"""

import argparse
import sys
from typing import Any

import torch

from fairseq_transnorm.measure.log_cost import cost_rows
from fairseq_transnorm.plotting import analysis_parser, at_least, describe, figure, run_analysis

COLUMNS = ("interval", "detail", "parameters", "plain", "logged", "log", "arch")
TARGETS = {1: 1.15, 20: 1.02}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    size = {"dim": options.dim, "layers": options.layers, "heads": options.heads, "vocabulary": options.vocabulary}
    rows = cost_rows(
        options.arch,
        [(1, True), *((interval, False) for interval in sorted(options.intervals))],
        options.steps,
        options.scope,
        options.sentences,
        options.length,
        **size,
        decoder_ffn_embed_dim=options.ffn,
    )
    return [row | {"arch": options.arch} for row in rows]


def named(row: dict[str, Any]) -> str:
    every = "every update" if row["interval"] == 1 else f"every {row['interval']} updates"
    return f"{every}, with detail" if row["detail"] else every


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    with figure(stem, rows, size=(5.2, 3.2), seed=options.seed) as ax:
        names = [named(row) for row in rows]
        ax.barh(names, [100 * (row["logged"] / row["plain"] - 1) for row in rows], color="#0072b2", height=0.55)
        for place, row in enumerate(rows):
            if target := TARGETS.get(row["interval"]):
                ax.plot([100 * (target - 1)] * 2, [place - 0.4, place + 0.4], color="#d55e00", linewidth=2)
        ax.invert_yaxis()
        describe(ax, x="time added to a training step (%); target in red", y="record")


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    return [
        {"record": named(row), "parameters": row["parameters"], "step (s)": row["plain"]}
        | {"ratio": row["logged"] / row["plain"], "target": TARGETS.get(row["interval"])}
        | {"1 + log / step": 1 + row["log"] / row["plain"]}
        for row in rows
    ]


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/log_cost")
    parser.add_argument("--arch", default="normgrowth_control", help="language model (default: %(default)s)")
    numbers = {
        "dim": (768, "model width D"),
        "ffn": (512, "width F of the feed-forward"),
        "layers": (12, "layers L"),
        "heads": (12, "attention heads H"),
        "vocabulary": (10000, "dictionary entries"),
        "sentences": (16, "of a batch"),
        "length": (55, "tokens per sentence"),
        "steps": (20, "timed with and without the log at each interval, in three blocks or more"),
        "threads": (1, "of torch"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(f"--{name}", type=at_least(1), default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--scope", default="layers", help="parameters, as --norm-scope (default: %(default)s)")
    parser.add_argument(
        "--intervals", type=at_least(1), nargs="+", default=[1, 20], help="updates a record (default: 1 20)"
    )
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
