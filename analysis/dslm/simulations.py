"""Simulate components of a transformer at initialisation and print how far closed forms are from it.

For each component and each combination of a grid of parameters: mean, variance and covariance between positions of the
output (x), and variance and covariance of the gradient in the input (g), measured on random signals and by the closed
form. A table gives the percentiles of the error over all combinations, in percent.

Each finished combination is kept in OUT/<component>.jsonl, and the same command again goes on from there. Besides,
OUT/<component>.json has theory beside measurement of every combination, OUT/errors.json the printed table.

  python analysis/dslm/simulations.py all
  python analysis/dslm/simulations.py relu attention --combinations 20
  python analysis/dslm/simulations.py linear --grid full --device cuda --out outputs/simulations_full
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fairseq_transnorm.measure.checkpoints import check_device
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.component_errors import PERCENTILES, compare, summarise
from fairseq_transnorm.measure.component_grid import COMPONENTS, SINGLE, Reduction
from fairseq_transnorm.measure.component_runs import simulate_all
from fairseq_transnorm.plotting import at_least, format_table, save_table

ALIASES = {"ffn": "linear", "sha": "attention"}
GROUPS = {"all": tuple(COMPONENTS), "single": SINGLE}
NOTES = (
    "p50, p90, p99: of the error in percent, relative to the measurement or, where that is smaller, to the predicted "
    "variance; in brackets: always relative to the measurement, without predictions of 0. Theory and measured: where "
    "the error is largest."
)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Simulate, write the tables of the components, print their errors; return the rows of all errors."""
    limits = [Reduction(options.combinations, options.max_length, options.max_width)]
    summary = []
    for name in dict.fromkeys(n for choice in options.components for n in GROUPS.get(choice, (choice,))):
        component = COMPONENTS[name]
        reduced = [component.reduced] if options.grid == "reduced" else []
        chosen = component.select(options.seed, *limits, *reduced)
        if not chosen:
            raise ValueError(f"no combination of {name} is within --max-length and --max-width")
        trials, start = options.trials or component.trials, (time.perf_counter(), time.process_time())
        measurements = simulate_all(
            name,
            chosen,
            Path(options.out, f"{name}.jsonl"),
            trials=trials,
            seed=options.seed,
            device=options.device,
            workers=options.workers,
            title=component.title,
        )
        rows = compare(component, chosen, measurements)
        save_table(Path(options.out, f"{name}.json"), rows, seed=options.seed)
        summary += [row | {"trials": trials} for row in summarise(component, rows)]
        took = f"{time.perf_counter() - start[0]:.1f} s, {time.process_time() - start[1]:.1f} s of CPU"
        print(f"{component.title}: {len(chosen)} combinations, {trials} trials each, {took}")
        print_errors(summary[-len(component.metrics) :])
    return summary


def print_errors(rows: list[dict[str, Any]]) -> None:
    """Print the lines of the published form, then the same with all that stands beside it."""

    def triple(row: dict[str, Any], prefix: str, digits: int = 1) -> str:
        values = [row[f"{prefix}p{q}"] for q in PERCENTILES]
        return ", ".join("-" if value is None else f"{value:.{digits}f}" for value in values)

    for row in rows:
        print(f"Error {row['metric']}: [{triple(row, '')}]")
    verdicts = {True: "yes", False: "NO", None: "-"}
    lines = [
        {
            "metric": row["metric"],
            "theory": row["theory"],
            "measured": row["measured"],
            "p50, p90, p99": triple(row, "", 2),
            "[relative]": f"[{triple(row, 'relative ', 2)}]",
            "bound": triple(row, "bound ", 2) if row["within"] is not None else "none",
            "within": verdicts[row["within"]],
        }
        for row in rows
    ]
    print(f"\n{format_table(lines)}\n", flush=True)


def component_name(text: str) -> str:
    """Read a name in any case; the published tables call the linear layer FFN and the attention SHA."""
    return ALIASES.get(text.lower(), text.lower())


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "components",
        nargs="+",
        type=component_name,
        choices=[*GROUPS, *COMPONENTS],
        metavar="COMPONENT",
        help=f"{', '.join(COMPONENTS)}; single: {', '.join(SINGLE)}; all: these and the blocks; FFN and SHA, as in the "
        "published table, are linear and attention",
    )
    add = parser.add_argument
    add(
        "--grid",
        choices=("reduced", "full"),
        default="reduced",
        help="full takes hours on a CPU (default: %(default)s)",
    )
    add("--combinations", type=at_least(1), metavar="N", help="at most N combinations, drawn at random")
    add("--max-length", type=at_least(1), default=math.inf, metavar="N", help="only sequences of at most N positions")
    add("--max-width", type=at_least(1), default=math.inf, metavar="N", help="only widths of at most N features")
    add(
        "--trials",
        type=at_least(2),  # of a single one there is no variance
        metavar="N",
        help="samples of each combination (default: as published, by component)",
    )
    add("--seed", type=int, default=0, help="of combinations and all that is drawn (default: %(default)s)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 (default: %(default)s)")
    add(
        "--workers",
        type=at_least(1),
        help="combinations at a time, a thread each (default: the cores of the machine; 1 on a GPU)",
    )
    add("--out", default="outputs/simulations", metavar="FOLDER", help="(default: %(default)s)")
    add("--check", action="store_true", help="exit with status 3 when an error is above its bound")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    quiet()
    try:
        check_device(options.device)
        default = len(os.sched_getaffinity(0)) if torch.device(options.device).type == "cpu" else 1
        options.workers = options.workers or default
        rows = measure(options)
        save_table(Path(options.out, "errors.json"), rows, seed=options.seed)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    missed = [f"{row['component']}, {row['metric']}" for row in rows if row["within"] is False]
    print(NOTES)
    print("Above the bound: " + ("; ".join(missed) if missed else "none"))
    print(f"wrote {options.out}/errors.json and a table of each component beside it")
    return 3 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
