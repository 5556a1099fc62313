"""Make a table of fine-tuned models: score of each task, mean and spread over seeds.

Give the folders that scripts/finetune_glue.sh wrote, each with train.log and finetune.json. Runs with the same label
and task are seeds of one model. A run counts with its best validation, by the metric that chose its checkpoint. Writes
the table as STEM.md and STEM.json and prints it.

  python analysis/transnormer/glue.py t2=runs/t2/CoLA/seed1 t2=runs/t2/CoLA/seed2 t2=runs/t2/MNLI/seed1 --published
  python analysis/transnormer/glue.py pretrained=runs/passages/seed* --metric MRPC=f1
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from fairseq_transnorm.measure.logs import SCORES
from fairseq_transnorm.measure.scores import over_seeds, run_scores
from fairseq_transnorm.plotting import analysis_parser, format_cell, format_markdown, load_table, save_table
from fairseq_transnorm.whole_file import whole_file

PAPER = ("MNLI-m", "MNLI-mm", "QNLI", "QQP", "SST-2", "MRPC", "CoLA")
MEAN = "mean"
ORDER = (*PAPER, MEAN, "RTE", "STS-B")
COLUMNS = ("model", "column", "metric", "mean", "std", "low", "high", "n", "mark")
# Qin et al. 2022, arXiv:2210.10340, as far as known: the seven of PAPER and their mean, then which of them were read.
PUBLISHED = {
    "vanilla": (79.37, 79.07, 87.79, 88.04, 90.25, 88.35, 38.63, 78.79),
    "FLASH-quad": (78.71, 79.43, 86.36, 88.95, 90.94, 81.73, 41.28, 78.20),
    "FLASH": (79.45, 80.08, 87.10, 88.83, 90.71, 82.50, 29.40, 76.87),
    "LS": (77.01, 76.78, 84.86, 86.85, 90.25, 82.65, 40.65, 77.01),
    "Performer": (58.85, 59.52, 63.44, 79.10, 81.42, 82.11, 19.41, 63.41),
    "1+elu": (74.87, 75.37, 82.59, 86.90, 87.27, 83.03, 0.00, 70.00),
    "TransNormer t1": (79.06, 79.93, 87.00, 88.61, 91.17, 84.50, 45.38, 79.38),
    "TransNormer t2": (77.28, 78.53, 85.39, 88.56, 90.71, 85.06, 45.90, 78.78),
}
SECOND_HAND = {
    "vanilla": ("CoLA", MEAN),
    "FLASH-quad": (),
    "FLASH": (MEAN,),
    "LS": (),
    "Performer": (MEAN,),
    "1+elu": (MEAN,),
    "TransNormer t1": ("CoLA", MEAN),
    "TransNormer t2": (MEAN,),
}
MARKS = (
    "Published rows: [2nd] was read in a second-hand, machine-written summary of the paper, [rec] is recalled and was "
    "not read in any text. Neither is checked against the paper, and which metrics they are of is not known for sure."
)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row a model and column.

    Raises:
        FileNotFoundError: a run lacks its log or its note.
        ValueError: a folder is given twice, a log lacks a metric, or a metric is for a task of no run.
    """
    folders = [path.resolve() for _, path in options.inputs]
    if twice := [path for path in folders if folders.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    metrics = dict(options.metric)
    runs = [(label, run_scores(path, metrics, options.last)) for label, path in options.inputs]
    if unknown := sorted(set(metrics) - {row["task"] for _, found in runs for row in found}):
        raise ValueError(f"--metric {unknown[0]}={metrics[unknown[0]]}: none of the runs is of the task {unknown[0]!r}")
    rows = over_seeds(runs)
    for model in dict.fromkeys(row["model"] for row in rows):
        means = {row["column"]: row["mean"] for row in rows if row["model"] == model}
        if set(PAPER) <= set(means):
            mean = statistics.fmean(means[name] for name in PAPER)
            spread = {"std": None, "low": None, "high": None, "n": None}
            rows.append({"model": model, "column": MEAN, "metric": "of seven", "mean": mean} | spread)
    return [row | {"mark": None} for row in rows]


def published() -> list[dict[str, Any]]:
    """Return the paper's table in the same form, each number with the mark of where it is from."""
    return [
        {"model": f"{model} (published)", "column": column, "metric": None, "mean": score}
        | {"std": None, "low": None, "high": None, "n": None}
        | {"mark": "[2nd]" if column in SECOND_HAND[model] else "[rec]"}
        for model, scores in PUBLISHED.items()
        for column, score in zip((*PAPER, MEAN), scores, strict=True)
    ]


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a model, with the columns of the paper first and in its order."""
    known = list(dict.fromkeys(row["column"] for row in rows))
    columns = sorted(known, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), known.index(name)))
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = {row["column"]: row for row in rows if row["model"] == model}
        line = {"model": model} | {name: cell(mine.get(name)) for name in columns}
        lines.append(line | {"mark": mark(list(mine.values()))} if any(row["mark"] for row in rows) else line)
    return lines


def cell(row: dict[str, Any] | None) -> str:
    """Say one score: the mean, and for several seeds its standard deviation, range and number."""
    if row is None:
        return "-"
    spread = "" if row["std"] is None else f" ± {row['std']:.2f} ({row['low']:.1f} to {row['high']:.1f}, n={row['n']})"
    return format_cell(row["mean"]) + spread


def mark(rows: list[dict[str, Any]]) -> str:
    """Say where the numbers of a published row are from, as ``CoLA, mean [2nd]; rest [rec]``; "ours" of other rows."""
    if rows[0]["mark"] is None:
        return "ours"
    second_hand = [row["column"] for row in rows if row["mark"] == "[2nd]"]
    return f"{', '.join(second_hand)} [2nd]; rest [rec]" if second_hand else "[rec]"


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """Say what the numbers are."""
    metrics = {row["column"]: row["metric"] for row in rows if row["metric"] and row["column"] != MEAN}
    scored = ", ".join(f"{name} {metric}" for name, metric in metrics.items())
    text = [
        f"In percent, on the validation sets: {scored}. Mean ± standard deviation of the sample (lowest to highest, "
        "n seeds); fairseq rounds the score of a run to 0.1."
    ]
    if any(row["column"] == MEAN for row in rows):
        text.append(f"The mean is that of {', '.join(PAPER)}.")
    return [*text, MARKS] if any(row["mark"] for row in rows) else text


def task_metric(text: str) -> tuple[str, str]:
    """Read ``TASK=METRIC``."""
    task, _, metric = text.partition("=")
    if metric not in SCORES:
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=METRIC with a metric of {', '.join(SCORES)}")
    return task, metric


def main(argv: list[str] | None = None) -> int:
    parser = analysis_parser(str(__doc__), "outputs/glue", inputs="run")
    parser.add_argument("--last", action="store_true", help="scores of the last validation, not of the best")
    parser.add_argument(
        "--metric", type=task_metric, action="append", default=[], metavar="TASK=METRIC", help="score a task by another"
    )
    parser.add_argument("--published", action="store_true", help="add the rows of the paper, as far as known")
    options = parser.parse_args(argv)
    logging.getLogger().setLevel(logging.WARNING)  # fairseq's imports set it to DEBUG
    if bool(options.inputs) == bool(options.table):
        parser.error("give the folders of fine-tunings, or --table with an earlier table")
    try:
        rows = load_table(options.table, COLUMNS) if options.table else measure(options)
        if options.published and not any(row["mark"] for row in rows):
            rows += published()
        save_table(f"{options.out}.json", rows)
        text = "\n\n".join([format_markdown(table(rows), ("model", "mark")), *notes(rows)]) + "\n"
        with whole_file(f"{options.out}.md") as unfinished:
            unfinished.write_text(text)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(text, end="")
    print(f"wrote {options.out}.md and .json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
