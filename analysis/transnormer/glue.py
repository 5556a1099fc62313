"""Make a table of fine-tuned models: score of each task, mean and spread over seeds.

Give the folders that scripts/finetune_glue.sh wrote, each with train.log and finetune.json. Runs with the same label
and task are seeds of one model. A run counts with its best validation, by the metric that chose its checkpoint. Writes
the table as STEM.md and STEM.json and prints it.

  python analysis/transnormer/glue.py t2=runs/t2/CoLA/seed1 t2=runs/t2/CoLA/seed2 t2=runs/t2/MNLI/seed1 --published
  python analysis/transnormer/glue.py pretrained=runs/passages/seed* --metric MRPC=f1
"""

import argparse
import statistics
import sys

from fairseq_transnorm.measure.logs import SCORES
from fairseq_transnorm.measure.scores import score_runs
from fairseq_transnorm.plotting import Rows, run_score_table, score_parser

PAPER = ("MNLI-m", "MNLI-mm", "QNLI", "QQP", "SST-2", "MRPC", "CoLA")
MEAN = "mean"
ORDER = (*PAPER, MEAN, "RTE", "STS-B")
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


def measure(options: argparse.Namespace) -> Rows:
    """Return one row a model and column, and the mean of a model that has all of the paper's; see ``score_runs``."""
    rows = score_runs(options.inputs, dict(options.metric), options.last)
    for model in dict.fromkeys(row["model"] for row in rows):
        means = {row["column"]: row["mean"] for row in rows if row["model"] == model}
        if set(PAPER) <= set(means):
            mean = statistics.fmean(means[name] for name in PAPER)
            spread = {"std": None, "low": None, "high": None, "n": None}
            rows.append({"model": model, "column": MEAN, "metric": "of seven", "mean": mean, "mark": None} | spread)
    return rows


def with_published(rows: Rows, options: argparse.Namespace) -> Rows:
    """Add the paper's rows where they are asked for and not there yet."""
    return rows + published() if options.published and not any(row["mark"] for row in rows) else rows


def published() -> Rows:
    """Return the paper's table in the same form, each number with the mark of where it is from."""
    return [
        {"model": f"{model} (published)", "column": column, "metric": None, "mean": score}
        | {"std": None, "low": None, "high": None, "n": None}
        | {"mark": "[2nd]" if column in SECOND_HAND[model] else "[rec]"}
        for model, scores in PUBLISHED.items()
        for column, score in zip((*PAPER, MEAN), scores, strict=True)
    ]


def mark(rows: Rows) -> str:
    """Say where the numbers of a published row are from, as ``CoLA, mean [2nd]; rest [rec]``; "ours" of other rows."""
    if rows[0]["mark"] is None:
        return "ours"
    second_hand = [row["column"] for row in rows if row["mark"] == "[2nd]"]
    return f"{', '.join(second_hand)} [2nd]; rest [rec]" if second_hand else "[rec]"


def notes(rows: Rows) -> list[str]:
    """Say what the mean is of, and where published numbers are from."""
    mean = any(row["column"] == MEAN for row in rows)
    return [f"The mean is that of {', '.join(PAPER)}."] * mean + [MARKS] * any(row["mark"] for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = score_parser(str(__doc__), "outputs/glue", SCORES)
    parser.add_argument("--published", action="store_true", help="add the rows of the paper, as far as known")
    return run_score_table(parser, argv, measure, ORDER, with_published, mark, notes)


if __name__ == "__main__":
    sys.exit(main())
