"""Tables of scores: a model a line, a task a column, mean and spread over seeds in each cell."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .command import analysis_parser
from .tables import format_cell, format_markdown, load_table, save_table, save_text

SCORE_COLUMNS = ("model", "column", "metric", "mean", "std", "low", "high", "n", "mark")
Rows = list[dict[str, Any]]


def score_parser(description: str, out: str, metrics: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of a file that makes such a table.

    Args:
        description: the docstring of the file.
        out: default of ``--out``.
        metrics: those that there are.
    """

    def task_metric(text: str) -> tuple[str, str]:
        task, _, metric = text.partition("=")
        if metric not in metrics:
            raise argparse.ArgumentTypeError(f"{text!r} is not TASK=METRIC with a metric of {', '.join(metrics)}")
        return task, metric

    parser = analysis_parser(description, out, inputs="run")
    parser.add_argument("--last", action="store_true", help="scores of the last validation, not of the best")
    parser.add_argument(
        "--metric", type=task_metric, action="append", default=[], metavar="TASK=METRIC", help="score a task by another"
    )
    return parser


def run_score_table(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], Rows],
    order: Sequence[str],
    extend: Callable[[Rows, argparse.Namespace], Rows] | None = None,
    mark: Callable[[Rows], str] = str,
    notes: Callable[[Rows], list[str]] | None = None,
) -> int:
    """Parse, measure or load the rows, write ``STEM.md`` and ``STEM.json``, print the table; return the exit status.

    A wrong file or value ends in one line on standard error and status 1.

    Args:
        parser: of :func:`score_parser`, with the file's own options added.
        argv: command line; None for that of the process.
        measure: options -> rows with ``SCORE_COLUMNS``.
        order: columns that come first.
        extend: rows that were measured or loaded, and options -> rows of the table.
        mark: rows of a model -> where its numbers are from, for tables in which some row has a ``mark``.
        notes: rows -> texts below the table.
    """
    options = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's imports set it to DEBUG
    if bool(options.inputs) == bool(options.table):
        parser.error("give the folders of fine-tunings, or --table with an earlier table")
    try:
        rows = load_table(options.table, SCORE_COLUMNS) if options.table else measure(options)
        rows = extend(rows, options) if extend else rows
        save_table(f"{options.out}.json", rows)
        below = [score_note(rows), *(notes(rows) if notes else [])]
        text = "\n\n".join([format_markdown(score_table(rows, order, mark), ("model", "mark")), *below]) + "\n"
        save_text(f"{options.out}.md", text)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    print(f"wrote {options.out}.md and .json")
    return 0


def score_table(rows: Rows, order: Sequence[str], mark: Callable[[Rows], str] = str) -> Rows:
    """Return one row a model, with the columns of ``order`` first."""
    known = list(dict.fromkeys(row["column"] for row in rows))
    columns = sorted(known, key=lambda name: (order.index(name) if name in order else len(order), known.index(name)))
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["column"]: row for row in rows if row["model"] == model}
        line = {"model": model} | {name: score_cell(mine.get(name)) for name in columns}
        lines.append(line | {"mark": mark(list(mine.values()))} if any(row["mark"] for row in rows) else line)
    return lines


def score_cell(row: Mapping[str, Any] | None) -> str:
    """Say one score: the mean, and for several seeds its standard deviation, range and number."""
    if row is None:
        return "-"
    spread = "" if row["std"] is None else f" ± {row['std']:.2f} ({row['low']:.1f} to {row['high']:.1f}, n={row['n']})"
    return format_cell(row["mean"]) + spread


def score_note(rows: Rows) -> str:
    """Say what the numbers are; rows without spread or number of runs are of no run and are left out."""
    metrics = {row["column"]: row["metric"] for row in rows if row["n"]}
    return (
        f"In percent, on the validation sets: {', '.join(' '.join(pair) for pair in metrics.items())}. Mean ± standard "
        "deviation of the sample (lowest to highest, n seeds); fairseq rounds the score of a run to 0.1."
    )
