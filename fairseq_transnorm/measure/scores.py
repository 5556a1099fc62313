"""Scores of fine-tunings from their logs: the best of each run, and mean and spread over the seeds of a model."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .logs import SCORES, read_log

NOTE = "finetune.json"  # which task a folder is of; the scripts of fine-tuning write it
# What tables call splits: matched and mismatched; middle school and high school.
COLUMNS = {
    ("MNLI", "valid"): "MNLI-m",
    ("MNLI", "valid1"): "MNLI-mm",
    ("RACE", "valid1"): "RACE-m",
    ("RACE", "valid2"): "RACE-h",
}
OVERALL = {"MNLI": ("valid", "valid1")}  # accuracies whose mean, weighted by examples, is that of the task


def run_scores(
    folder: Path, metrics: Mapping[str, str] | None = None, last: bool = False, overall: bool = False
) -> list[dict[str, Any]]:
    """Return the scores of one fine-tuning, a row for each split that it was validated on.

    Args:
        folder: save folder, with its log and ``finetune.json``.
        metrics: task -> metric, where it is not the one by which the run chose its checkpoint.
        last: those of the last validation, not of the one where the metric is best on the first split (of equals the
            later one, as fairseq chooses).
        overall: add a row for the accuracy over all sets of a task that has several, MNLI; its split is their names.

    Returns:
        Rows with ``column``, ``task``, ``split``, ``metric``, ``score`` (percent, which fairseq rounds to 0.1),
        ``updates``, ``run`` (the folder), and where they are known ``start`` (the weights) and ``seed``, else None.

    Raises:
        FileNotFoundError: no log, or nothing that says which task it is.
        ValueError: the log has no validation with that metric.
    """
    note = folder / NOTE
    if not note.is_file():
        raise FileNotFoundError(
            f'no {note}, which says what was trained, as {{"task": "CoLA", "metric": "mcc"}}; '
            "the scripts of fine-tuning write it"
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
    found = [
        {
            "column": COLUMNS.get((task, row["split"]), task if row["split"] == "valid" else f"{task} {row['split']}"),
            "task": task,
            "split": row["split"],
            "metric": metric,
            "score": row[metric],
            "updates": row["updates"],
            "run": folder,
            "start": facts.get("start"),
            "seed": facts.get("seed", _seed_in_name(folder)),
        }
        for row in scored
        if row["updates"] == chosen["updates"]
    ]
    return found + (_overall(found, facts.get("rows", {})) if overall and metric == "accuracy" else [])


def _overall(rows: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return the row over all sets, where the task has several and all of them were scored and counted."""
    splits = OVERALL.get(rows[0]["task"], ())
    scores = {row["split"]: row["score"] for row in rows}
    if not splits or not set(splits) <= set(scores) & set(counts):
        return []
    score = sum(counts[split] * scores[split] for split in splits) / sum(counts[split] for split in splits)
    return [dict(rows[0]) | {"column": rows[0]["task"], "split": "+".join(splits), "score": score}]


def _seed_in_name(folder: Path) -> int | None:
    found = re.search(r"seed(\d+)$", folder.name)  # notes of before the seed was noted
    return int(found[1]) if found else None


def _rank(score: float) -> float:
    return -math.inf if math.isnan(score) else score  # a correlation with the same answer to everything


def score_runs(
    runs: Iterable[tuple[str, Path]],
    metrics: Mapping[str, str] | None = None,
    last: bool = False,
    overall: bool = False,
) -> list[dict[str, Any]]:
    """Return one row a model and column, as :func:`over_seeds` does, with ``mark`` None.

    Args:
        runs: name of the model and save folder of each.
        metrics: as of :func:`run_scores`, like the other two.
        last: see there.
        overall: see there.

    Raises:
        FileNotFoundError: a run lacks its log or its note.
        ValueError: a folder is given twice, a log lacks a metric, a metric is for a task of no run; and as of
            :func:`over_seeds`.
    """
    runs, metrics = list(runs), metrics or {}
    folders = [path.resolve() for _, path in runs]
    if twice := [path for path in folders if folders.count(path) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    scored = [(label, run_scores(path, metrics, last, overall)) for label, path in runs]
    if unknown := sorted(set(metrics) - {row["task"] for _, found in scored for row in found}):
        raise ValueError(f"--metric {unknown[0]}={metrics[unknown[0]]}: none of the runs is of the task {unknown[0]!r}")
    return [row | {"mark": None} for row in over_seeds(scored)]


def over_seeds(runs: Iterable[tuple[str, Sequence[Mapping[str, Any]]]]) -> list[dict[str, Any]]:
    """Return one row a model and column over all its runs.

    Args:
        runs: name of the model and rows of :func:`run_scores`; runs with one name are seeds of one model.

    Returns:
        Rows with ``model``, ``column``, ``metric``, ``mean``, ``std`` (of the sample; None of a single run), ``low``,
        ``high`` and ``n``, in the order in which models and columns came.

    Raises:
        ValueError: runs of one model and task report different metrics, start from different weights or have the same
            seed, so that they are no seeds of one model.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for model, rows in runs:
        for row in rows:
            groups.setdefault((model, row["column"]), []).append(row)
    table = []
    for (model, column), rows in groups.items():
        if len(metrics := {row["metric"] for row in rows}) > 1:
            raise ValueError(f"{model}, {column}: some runs report {' and some '.join(sorted(metrics))}; choose one")
        _check_seeds(f"{model}, {column}", rows)
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


def _check_seeds(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    runs = {row.get("start"): row["run"] for row in rows if row.get("start") is not None}
    if len(runs) > 1:
        found = "; ".join(f"{run} from {start}" for start, run in runs.items())
        raise ValueError(f"{name}: runs of different weights are no seeds of one model: {found}; give LABEL=FOLDER")
    runs = {}
    for row in rows:
        if (seed := row.get("seed")) is None:
            continue
        if seed in runs:
            raise ValueError(
                f"{name}: {runs[seed]} and {row['run']} both have the seed {seed}; leave one out, or give LABEL=FOLDER"
            )
        runs[seed] = row["run"]
