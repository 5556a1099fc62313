"""``python -m fairseq_transnorm.measure.describe CHECKPOINT [DATA]``: say what a checkpoint is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from .checkpoints import Run, load_run
from .commands import run_command

PROG = "describe"


def describe(run: Run) -> dict[str, Any]:
    """Return the facts of a run that decide how its model can be used.

    ``tokens_per_sample`` is the length of the training sequences, None where there is no such option;
    ``max_positions`` the longest sequence that the model takes as it is, ``learned_positions`` whether that limit is in
    its parameters; else it can be raised.
    """
    positions = [parameter for name, parameter in run.model.named_parameters() if "embed_positions" in name]
    return {
        "arch": run.cfg.model._name,
        "task": run.cfg.task._name,
        "updates": run.updates,
        "epochs": run.epochs,
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "symbols": len(run.task.target_dictionary),
        "tokens_per_sample": run.cfg.task.get("tokens_per_sample"),
        "max_positions": run.model.max_positions(),
        "learned_positions": bool(positions),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Print the facts, or only the values asked for; see ``--help``."""
    parser = argparse.ArgumentParser(prog=PROG, description="Load a model's checkpoint and say what it is.")
    parser.add_argument("checkpoint")
    parser.add_argument("data", nargs="?", help="data folder that it is to be used with; default that of its training")
    parser.add_argument("--only", metavar="NAME,...", help="print these values and no names, one a line")
    parser.add_argument("--to-go-on", action="store_true", help="fail where training would not go on with this data")
    options = parser.parse_args(argv)
    run = load_run(options.checkpoint, options.data)
    if options.to_go_on and hasattr(run.task, "check_going_on"):
        run.task.check_going_on(options.checkpoint)
    facts = describe(run)
    if options.only is None:
        print("\n".join(f"{name}: {value}" for name, value in facts.items()))
        return
    names = options.only.split(",")
    if unknown := sorted(set(names) - set(facts)):
        parser.error(f"--only {unknown[0]}: known are {', '.join(facts)}")
    print("\n".join(str(facts[name]) for name in names))


if __name__ == "__main__":
    sys.exit(run_command(PROG, main))
