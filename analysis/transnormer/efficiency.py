"""Measure and draw time per token and peak memory against sequence length: our forms, torch's and fairseq's.

In one process and one run: attention operators (forward and backward), whole training steps of our model and of
fairseq's with as many parameters (peak memory in child processes), and, for language models, the decoding of a token.
Our models multiply matrices by oneDNN; "default BLAS" is the step without it, by the library that all else uses.
Prints a table of ratios beside the package's targets. One thread unless --threads says more.

  python analysis/transnormer/efficiency.py
  python analysis/transnormer/efficiency.py --model mlm --out outputs/efficiency_mlm
  python analysis/transnormer/efficiency.py --quick --out outputs/efficiency
"""

import argparse
import sys
from typing import Any

import torch
from matplotlib.axes import Axes

from fairseq_transnorm.measure import efficiency
from fairseq_transnorm.measure.efficiency import BY_BLAS, PAIRS
from fairseq_transnorm.plotting import (
    analysis_parser,
    describe,
    legend,
    line_styles,
    log_axis,
    panel_title,
    panels,
    run_analysis,
)

COLUMNS = ("quantity", "form", "length", "tokens", "quick", "model")
PARTS = ("operator", "step", "memory", "decoding")
FULL: dict[str, dict[str, Any]] = {
    "lm": {"lengths": [512, 2048, 4096, 8192], "tokens": 8192, "dim": 512, "layers": 6, "heads": 8, "repeats": 3},
    "mlm": {"lengths": [512, 2048, 4096, 8192], "tokens": 8192, "dim": 256, "layers": 12, "heads": 4, "repeats": 3},
}
QUICK: dict[str, Any] = {
    "lengths": [512, 1024, 2048],
    "tokens": 2048,
    "dim": 256,
    "layers": 4,
    "heads": 4,
    "repeats": 2,
}
OPERATOR_LENGTHS = [1024, 2048, 4096, 8192]
STEP_TARGETS = {
    "lm": {512: ">= 1.0", 2048: ">= 1.7", 4096: ">= 2.8", 8192: ">= 4.5"},
    "mlm": {512: ">= 1.0", 2048: ">= 2", 4096: ">= 3.5"},
}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pair, plan = PAIRS[options.model], QUICK if options.quick else FULL[options.model]
    size = {key: plan[key] for key in ("dim", "layers", "heads")} | {"vocabulary": options.vocabulary}
    lengths, tokens = options.lengths or plan["lengths"], plan["tokens"]
    repeats = options.repeats or plan["repeats"]
    steps = {
        "operator": lambda: efficiency.operator_times(OPERATOR_LENGTHS, pair.operators, repeats),
        "step": lambda: efficiency.training_times(pair, lengths, tokens, repeats, **size),
        "memory": lambda: efficiency.step_memory(pair, lengths, tokens, **size),
    }
    if options.model == "lm":
        steps["decoding"] = lambda: efficiency.decoding_times(pair, [100, 1000, 8000], 5 * repeats, **size)
    if set(steps) <= set(options.skip):
        raise ValueError("nothing to measure: --skip names every part")
    rows = []
    for part in (part for part in steps if part not in options.skip):
        print(f"measuring: {part}", file=sys.stderr, flush=True)
        about = {"tokens": tokens, "quick": options.quick, "model": options.model}
        rows += [row | about for row in steps[part]()]
    return rows


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the ratios, each beside its target."""
    value: dict[tuple[str, str, int], float] = {
        (r["quantity"], r["form"], r["length"]): r["seconds" if "seconds" in r else "mebibytes"] for r in rows
    }
    model, quick = rows[0]["model"], rows[0]["quick"]
    pair, full = PAIRS[model], not quick
    linear, softmax = pair.operators[0], pair.operators[-1]
    lines: list[dict[str, Any]] = []

    def ratio(
        what: str, over: tuple[str, str, int], under: tuple[str, str, int], target: str = "", scale: float = 1
    ) -> None:
        if over in value and under in value:
            lines.append({"quantity": what, "ratio": round(scale * value[over] / value[under], 3), "target": target})

    def at(quantity: str) -> list[int]:
        return sorted({row["length"] for row in rows if row["quantity"] == quantity})

    causal = model == "lm"
    longest = ("operator", linear, 8192)
    ratio(f"operator at 8192: {softmax} / {linear}", ("operator", softmax, 8192), longest, ">= 16" if causal else "")
    first, share = ("operator", linear, 1024), 1024 / 8192
    ratio(f"operator, time per token: {linear} at 8192 / at 1024", longest, first, "<= 1.25" if causal else "", share)
    for length in at("step"):
        target = STEP_TARGETS[model].get(length, "") if full else ""
        peer = ("step", pair.peer, length)
        ratio(f"step at {length}: {pair.peer} / {pair.ours}", peer, ("step", pair.ours, length), target)
        ratio(f"step at {length}: {pair.peer} / {BY_BLAS}", peer, ("step", BY_BLAS, length))
    if not causal and full:
        what = f"step, time per token, {pair.ours}: at 8192 / at 512"
        ratio(what, ("step", pair.ours, 8192), ("step", pair.ours, 512), "<= 1.2")
    for length in at("memory"):
        ours, peer = ("memory", pair.ours, length), ("memory", pair.peer, length)
        target = "<= 0.6" if causal and length == 8192 else ""
        ratio(f"peak memory at {length}: {pair.ours} / {pair.peer}", ours, peer, target)
    late, early = ("decoding", pair.ours, 8000), ("decoding", pair.ours, 100)
    ratio(f"decoding, {pair.ours}: at 8000 / at 100", late, early, "<= 1.1")
    ratio(f"decoding at 8000: {pair.peer} / {pair.ours}", ("decoding", pair.peer, 8000), late, ">= 5" if full else "")
    return lines


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    titles = {
        "operator": ("attention, forward + backward", "time per token (µs)"),
        "step": ("training step", "time per token (µs)"),
        "memory": ("training step", "peak memory (MiB)"),
        "decoding": ("decoding", "time of one token (ms)"),
    }
    parts = [part for part in PARTS if any(row["quantity"] == part for row in rows)]
    with panels(stem, rows, ncols=len(parts), size=(3.3, 3.1), seed=options.seed) as axes:
        for part, ax in zip(parts, axes, strict=True):
            mine = [row for row in rows if row["quantity"] == part]
            plot(ax, mine, part)
            panel_title(ax, titles[part][0])
            describe(ax, x="position" if part == "decoding" else "tokens per sample", y=titles[part][1])
            log_axis(ax, "x", plain=True)
            log_axis(ax, "y", plain=True)
            lengths = sorted({row["length"] for row in mine})
            ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
            ax.minorticks_off()
            legend(ax)


def plot(ax: Axes, rows: list[dict[str, Any]], part: str) -> None:
    forms = list(dict.fromkeys(row["form"] for row in rows))
    for form, style in line_styles(forms).items():
        mine = sorted((row for row in rows if row["form"] == form), key=lambda row: row["length"])
        scale = {"operator": lambda r: 1e6 * r["seconds"] / r["length"]}
        scale |= {"step": lambda r: 1e6 * r["seconds"] / r["tokens"]}
        scale |= {"memory": lambda r: r["mebibytes"], "decoding": lambda r: 1e3 * r["seconds"]}
        ax.plot([r["length"] for r in mine], [scale[part](r) for r in mine], **style, label=form)


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(__doc__, "outputs/efficiency")
    parser.add_argument(
        "--quick", action="store_true", help="smaller models, a minute or two; targets are for the full"
    )
    parser.add_argument(
        "--model",
        choices=sorted(PAIRS),
        default="lm",
        help="lm: causal, beside transformer_lm; mlm: bidirectional, beside roberta (default: %(default)s)",
    )
    parser.add_argument(
        "--lengths", type=int, nargs="+", metavar="N", help="tokens per sample of steps and memory (default: all)"
    )
    parser.add_argument("--repeats", type=int, help="timed turns; default 3, quick 2")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=2000, help="dictionary entries (default: %(default)s)")
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[], help="parts that are not measured")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
