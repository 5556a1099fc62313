"""The memories of a checkpoint as tables of scores, and its probes beside what training logged of the same weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .birth_run import probe_options, recomputed_probes
from .checkpoints import Run
from .memory_probes import Memories, memories_of, output_scores, position_key_scores, token_key_scores
from .probe_log import FILE, read_probes

Rows = list[dict[str, Any]]
MEMORIES = ("wo1_acc", "wk1_acc", "wk0_acc")  # probes of a table of scores
SCORE, PROBE = "score", "probe"
_NAMES = ("row", "row_name", "column", "column_name", "trigger")
COLUMNS = ("model", "updates", "kind", "name", *_NAMES, "value", "in_log", "logged")
_TOLERANCE = 1e-9  # between machines, all being in float64; a share of one token is far more
_FLIPS = 0.002  # of acc_end_test: the prediction of a few outputs, of thousands, may be another on another machine
logger = logging.getLogger(__name__)


def memory_rows(run: Run, label: str, tokens: int, positions: int | None = None) -> Rows:
    """Return the scores of the memories of a checkpoint, and its probes, as flat rows.

    Args:
        run: of a task ``bigram_icl``.
        label: name of the model.
        tokens: how many are kept, the most frequent ones, in their order.
        positions: how many are kept; None for the ``--probe-position-cutoff`` of the run.

    Returns:
        Rows of the kind ``score``, with the ``name`` of the probe of their memory, have ``row`` and ``column``, numbers
        of tokens or positions, with their names, ``trigger`` (whether the row is a fixed one) and the score as
        ``value``. Rows of the kind ``probe``, of what :func:`recomputed_probes` returns, have its ``value``, None where
        it has no meaning, and ``logged``, that of the log after as many updates, where ``in_log``; norms are there only
        where they are in the log.

    Raises:
        ValueError: the model has no such memories, as one of a single layer.
    """
    memories = memories_of(run.model)
    if memories is None or len(memories.layers) < 2:
        what = "one layer only" if memories else "weights of another kind"
        raise ValueError(f"the model of {run.path} has {what}: memories are those of its first two layers")
    cutoff = probe_options(run).probe_position_cutoff
    probes, log = recomputed_probes(run), logged_probes(run)
    if not log:
        logger.warning("no line of a log is of the weights of %s: none of its probes was checked", run.path)
    head = {"model": label, "updates": run.updates}
    none, unlogged = dict.fromkeys(_NAMES), {"in_log": False, "logged": None}
    rows: Rows = []
    for name, value in probes.items():
        logged = {"in_log": True, "logged": log[name]} if name in log else unlogged
        if name in log or not name.startswith("norm_"):
            rows.append(head | {"kind": PROBE, "name": name} | none | {"value": value} | logged)
    order = np.argsort(-run.task.statistics.unigram_counts, kind="stable")
    kept = sorted(order[:tokens].tolist())
    for name in MEMORIES:
        if probes[name] is not None:
            cells = _cells(run, name, _scores(name, memories, positions or cutoff), kept)
            rows += [head | {"kind": SCORE, "name": name} | cell | unlogged for cell in cells]
    return rows


def logged_probes(run: Run) -> dict[str, Any]:
    """Return the line of the log beside a checkpoint that is of its weights; empty where there is no line, or no log.

    A line of training comes first; of a validation, that of the first set, whose ``acc_end`` is ``acc_end_test``.
    """
    file = run.path.parent / (run.cfg.criterion.get("probe_file") or FILE)
    lines = [line for line in read_probes(file) if line["iter"] == run.updates] if file.is_file() else []
    first = run.cfg.dataset.valid_subset.split(",")[0]
    lines = [line for line in lines if line.get("split") in (None, first)]
    line = min(lines, key=lambda line: "split" in line, default={})
    return line | {"acc_end_test": line["acc_end"]} if "split" in line else line


def mismatches(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what differs between the probes of checkpoints and their logs, in words."""
    return [
        f"{row['name']} of {row['model']} after {row['updates']} updates is {row['value']}, the log has {row['logged']}"
        for row in rows
        if row["kind"] == PROBE and row["in_log"] and not _equal(row["name"], row["value"], row["logged"])
    ]


def _equal(name: str, value: float | None, logged: float | None) -> bool:
    if value is None or logged is None:
        return value is logged
    slack = _FLIPS if name == "acc_end_test" else _TOLERANCE
    return math.isclose(value, logged, rel_tol=_TOLERANCE, abs_tol=slack)


def _scores(name: str, memories: Memories, positions: int) -> Tensor:
    if name == "wk0_acc":
        return position_key_scores(memories, positions)
    return output_scores(memories) if name == "wo1_acc" else token_key_scores(memories)


def _cells(run: Run, name: str, scores: Tensor, kept: Sequence[int]) -> Iterable[dict[str, Any]]:
    symbols, triggers = run.task.source_dictionary.symbols, run.task.fixed_triggers or []
    of_tokens = name != "wk0_acc"
    places = kept if of_tokens else range(len(scores))
    table = scores.tolist()
    for row in places:
        for column in places:
            names = (symbols[row], symbols[column], row in triggers) if of_tokens else (str(row), str(column), False)
            cell = (row, names[0], column, names[1], names[2], table[row][column])
            yield dict(zip((*_NAMES, "value"), cell, strict=True))
