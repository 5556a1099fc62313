"""Scores of fine-tunings from their logs: the best of each run, and mean and spread over the seeds of a model."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .logs import SCORES, read_log

NOTE = "finetune.json"  # which task a folder is of; scripts/finetune_glue.sh writes it
# What the paper's table calls the splits of MNLI.
COLUMNS = {("MNLI", "valid"): "MNLI-m", ("MNLI", "valid1"): "MNLI-mm"}


def run_scores(folder: Path, metrics: Mapping[str, str] | None = None, last: bool = False) -> list[dict[str, Any]]:
    """Return the scores of one fine-tuning, a row for each split that it was validated on.

    Args:
        folder: save folder, with its log and ``finetune.json``.
        metrics: task -> metric, where it is not the one by which the run chose its checkpoint.
        last: those of the last validation, not of the one where the metric is best on the first split (of equals the
            later one, as fairseq chooses).

    Returns:
        Rows with ``column``, ``task``, ``split``, ``metric``, ``score`` (percent, which fairseq rounds to 0.1) and
        ``updates``.

    Raises:
        FileNotFoundError: no log, or nothing that says which task it is.
        ValueError: the log has no validation with that metric.
    """
    note = folder / NOTE
    if not note.is_file():
        raise FileNotFoundError(
            f'no {note}, which says what was trained, as {{"task": "CoLA", "metric": "mcc"}}; '
            "scripts/finetune_glue.sh writes it"
        )
    facts = json.loads(note.read_text())
    task = facts["task"]
    metric = (metrics or {}).get(task, facts["metric"])
    rows = [row for row in read_log(folder) if row["split"] not in ("train", "train_inner")]
    scored = [row for row in rows if metric in row]
    if not scored:
        there = sorted({name for row in rows for name in SCORES if name in row})
        raise ValueError(f"{folder}: no validation reports {metric!r}, only {there or 'a loss'}")
    first = [row for row in scored if row["split"] == scored[0]["split"]]
    chosen = first[-1] if last else max(first, key=lambda row: (_rank(row[metric]), row["updates"]))
    return [
        {
            "column": COLUMNS.get((task, row["split"]), task if row["split"] == "valid" else f"{task} {row['split']}"),
            "task": task,
            "split": row["split"],
            "metric": metric,
            "score": row[metric],
            "updates": row["updates"],
        }
        for row in scored
        if row["updates"] == chosen["updates"]
    ]


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score  # a correlation with the same answer to everything


def over_seeds(runs: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Return one row a model and column over all its runs.

    Args:
        runs: name of the model and rows of :func:`run_scores`; runs with one name are seeds of one model.

    Returns:
        Rows with ``model``, ``column``, ``metric``, ``mean``, ``std`` (of the sample; None of a single run), ``low``,
        ``high`` and ``n``, in the order in which models and columns came.

    Raises:
        ValueError: runs of one model and task report different metrics.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model, rows in runs:
        for row in rows:
            groups.setdefault((model, row["column"]), []).append(row)
    table = []
    for (model, column), rows in groups.items():
        if len(metrics := {row["metric"] for row in rows}) > 1:
            raise ValueError(f"{model}, {column}: some runs report {' and some '.join(sorted(metrics))}; choose one")
        scores = [row["score"] for row in rows]
        table.append(
            {
                "model": model,
                "column": column,
                "metric": rows[0]["metric"],
                "mean": statistics.fmean(scores),
                "std": statistics.stdev(scores) if len(scores) > 1 else None,
                "low": min(scores),
                "high": max(scores),
                "n": len(scores),
            }
        )
    return table
