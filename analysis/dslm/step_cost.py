"""Measure what DeepScaleLM costs: time of a training step beside the vanilla model's, and peak memory.

In one process and one run, the models taking turns: the step of dslm_bert, of vanilla_bert and of fairseq's roberta of
the same shape. Then, each in a process of its own, the memory of a step of many layers, with and without
--checkpoint-activations. Prints the ratios beside the package's targets.

  python analysis/dslm/step_cost.py
  python analysis/dslm/step_cost.py --layers 12 --memory-layers 24 --repeats 2
"""

import argparse
import sys
from typing import Any

import torch

from fairseq_transnorm.measure import efficiency
from fairseq_transnorm.plotting import analysis_parser, describe, panels, run_analysis

COLUMNS = ("quantity", "model", "layers", "width", "length", "tokens", "value", "parameters")
VANILLA, OURS, STOCK = "vanilla_bert", "dslm_bert", "roberta"
NO_CHECKPOINTS, CHECKPOINTS = "all activations kept", "checkpoint activations"
WHOLE = {192: 4096.0}  # MiB of a process, by layers of 256 channels


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    shape = {"dim": options.width, "heads": options.heads, "vocabulary": options.vocabulary}
    common = {"width": options.width, "length": options.length, "tokens": options.tokens}
    print("measuring: steps", file=sys.stderr, flush=True)
    models = {
        name: efficiency.build_model(name, options.length, layers=options.layers, **shape)
        for name in (OURS, VANILLA, STOCK)
    }
    steps = {name: efficiency.TrainingStep(model, options.length, options.tokens) for name, model in models.items()}
    rows = [
        {"quantity": "step", "model": name, "layers": options.layers, "value": seconds}
        | {"parameters": sum(p.numel() for p in models[name].parameters())}
        for name, seconds in efficiency.median_times(steps, options.repeats).items()
    ]
    for label, checkpoint in ((NO_CHECKPOINTS, False), (CHECKPOINTS, True)):
        print(f"measuring: memory, {label}", file=sys.stderr, flush=True)
        peaks = efficiency.peak_of_step(
            OURS,
            options.length,
            options.tokens,
            layers=options.memory_layers,
            checkpoint_activations=checkpoint,
            **shape,
        )
        if peaks is not None:
            about = {"model": label, "layers": options.memory_layers, "parameters": None}
            rows += [{"quantity": "memory of the step", "value": peaks.step} | about]
            rows += [{"quantity": "memory of the process", "value": peaks.process} | about]
    return [row | common for row in rows]


def summary(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return times as ratios and memory in MiB, each beside its target."""
    found = {(row["quantity"], row["model"]): row["value"] for row in rows}
    lines = [
        {
            "what": f"step: {OURS} / {VANILLA}",
            "value": found["step", OURS] / found["step", VANILLA],
            "target": "<= 1.05",
        },
        {"what": f"step: {OURS} / {STOCK}", "value": found["step", OURS] / found["step", STOCK], "target": ""},
    ]
    for row in rows:
        if row["quantity"] != "step":
            limit = WHOLE.get(row["layers"]) if row["width"] == 256 else None
            wanted = limit and row["quantity"].endswith("process") and row["model"] == CHECKPOINTS
            what = f"{row['quantity']}, {row['layers']} layers, {row['model']} (MiB)"
            lines.append({"what": what, "value": row["value"], "target": f"<= {limit:.0f}" if wanted else ""})
    return lines


def draw(rows: list[dict[str, Any]], stem: str, options: argparse.Namespace) -> None:
    with panels(stem, rows, ncols=2, size=(3.4, 2.6), seed=options.seed) as (left, right):
        steps = [row for row in rows if row["quantity"] == "step"]
        left.bar([row["model"] for row in steps], [1e6 * row["value"] / row["tokens"] for row in steps], color="0.4")
        describe(left, x="", y="time per token (µs)", title=f"step, {steps[0]['layers']} layers")
        memory = [row for row in rows if row["quantity"] == "memory of the process"]
        right.bar([row["model"].replace(" ", "\n", 1) for row in memory], [row["value"] for row in memory], color="0.4")
        layers = memory[0]["layers"] if memory else ""
        describe(right, x="", y="peak memory (MiB)", title=f"process, {layers} layers")


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/dslm_step_cost")
    parser.add_argument("--layers", type=int, default=48, help="of the models whose steps are timed (default: 48)")
    parser.add_argument("--memory-layers", type=int, default=192, help="of the model in memory (default: 192)")
    parser.add_argument("--width", type=int, default=256, help="model width D (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="attention heads H (default: %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens per sample (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1024, help="of a batch (default: %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=30522, help="dictionary entries (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="timed turns (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    return run_analysis(parser, argv, measure, draw, columns=COLUMNS, summary=summary, need_inputs=False)


if __name__ == "__main__":
    sys.exit(main())
