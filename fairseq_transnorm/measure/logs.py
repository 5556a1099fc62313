"""Reading what fairseq-train writes while it trains: losses, perplexities, gradient norms, times."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

# Scores of fairseq's criterion sentence_prediction, in percent.
SCORES = ("accuracy", "mcc", "f1", "acc_and_f1", "pearson", "spearman", "pearson_and_spearman")
# Short names for the columns of fairseq's that are kept; every other one is of the machine, not of the run.
_KEPT = {"loss", "nll_loss", "ppl", "lr", "gnorm", "wall", "wpb", "ups", *SCORES}
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d+)? \| \w+ \| [\w.]+ \| ")
_INNER = re.compile(r"^epoch (\d+):\s+\d+ / \d+ (\S+=.*)$")
_SUBSET = re.compile(r"^epoch (\d+) \| valid on '([^']+)' subset \| (.*)$")
_EPOCH = re.compile(r"^epoch (\d+) \| (loss .*)$")


def read_log(path: str | Path, more: Collection[str] = ()) -> list[dict[str, Any]]:
    """Read a log of fairseq-train into rows, one a log line, in order of time.

    Understands ``--log-format json`` and ``simple``, written with ``--log-file`` or caught from the screen. Lines that
    a killed run wrote after its last checkpoint are dropped when the log shows that the run went on from there.

    Args:
        path: the log, or a save folder with one log in it.
        more: names of further scalars to keep, such as ``sat``.

    Returns:
        Rows with ``split`` (``train_inner`` is the mean since the last such line, ``train`` the mean of an epoch, any
        other name a validation set), ``updates``, ``epoch`` and what the line has of: ``loss`` (bits per token),
        ``nll_loss`` (the same without label smoothing), ``ppl``, ``lr``, ``gnorm`` (before clipping), ``wall``
        (seconds since the start, validation included), ``wpb`` (tokens per update), ``ups`` (updates per second) and
        the ``SCORES`` of a classification; and ``tokens``, those trained on so far. ``wall``, which fairseq rounds to
        seconds, and ``tokens`` of validation lines are interpolated between the training lines around them.

    Raises:
        FileNotFoundError: no such file, or no log in the folder.
        ValueError: several logs in the folder, or no line of fairseq-train in the file.
    """
    path = find_log(path)
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if row := _parse(line, _KEPT.union(more)):
            _append(rows, row)
    if not rows:
        raise ValueError(
            f"{path} holds no line of fairseq-train with a loss; "
            "train with --log-format json --log-file FILE (and --log-interval for the training loss)"
        )
    _add_tokens(rows)
    return rows


def find_log(path: str | Path) -> Path:
    """Return the log itself, or the only log in a save folder.

    Raises:
        FileNotFoundError: no such file, or no log in the folder.
        ValueError: several logs in the folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        beside = sorted(p.name for p in path.parent.glob("*"))[:12] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no log {path}; in {path.parent}/ there are {beside or 'no files'}")
    # command.log is what the scripts of this package write: the command, not its output.
    logs = [p for p in sorted(path.glob("*.log")) if p.name != "command.log"]
    if not logs:
        raise FileNotFoundError(
            f"no *.log in {path}/, there are {sorted(p.name for p in path.iterdir())[:12] or 'no files'}; "
            "train with --log-format json --log-file SAVE_DIR/train.log"
        )
    if len(logs) > 1 and (train := path / "train.log") in logs:
        return train
    if len(logs) > 1:
        raise ValueError(f"{path}/ has several logs, {[p.name for p in logs]}; name one of them")
    return logs[0]


def relative_deviation(rows: Iterable[Mapping[str, Any]], warmup: int) -> dict[str, float | int]:
    """Return how much the gradient norm varies from update to update after warm-up, std(g) / mean(g).

    The claim of unstable gradients is about this number: Qin et al. 2022, arXiv:2210.10340. fairseq logs the mean norm
    since the last line, so ``interval`` must be 1 (``--log-interval 1``) for runs to be comparable.

    Args:
        rows: rows of :func:`read_log`.
        warmup: updates to leave out at the start.

    Returns:
        ``mean``, ``std`` (of the sample), ``relative_deviation``, ``count`` of norms, ``interval`` (updates per norm).

    Raises:
        ValueError: fewer than two gradient norms after warm-up, or one that is not finite.
    """
    points = [
        (int(r["updates"]), float(r["gnorm"]))
        for r in rows
        if r["split"] == "train_inner" and r["updates"] > warmup and r.get("gnorm") is not None
    ]
    if len(points) < 2:
        raise ValueError(
            f"{len(points)} gradient norms after {warmup} updates of warm-up, two are needed; "
            "train with --log-interval 1, and longer than the warm-up"
        )
    norms = [norm for _, norm in points]
    if bad := [u for u, norm in points if not math.isfinite(norm)]:
        raise ValueError(f"the gradient norm is not finite at update {bad[0]} ({len(bad)} such updates)")
    mean, std = statistics.fmean(norms), statistics.stdev(norms)
    interval = max(b - a for (a, _), (b, _) in pairwise(points))
    return {
        "mean": mean,
        "std": std,
        "relative_deviation": std / mean if mean else math.inf,
        "count": len(norms),
        "interval": interval,
    }


def curve_rows(
    log: Sequence[Mapping[str, Any]],
    run: str,
    source: str,
    split: str | None = None,
    warmup: int = 0,
    points: int = 60,
) -> list[dict[str, Any]]:
    """Return the learning curves of one log as flat rows.

    Args:
        log: rows of :func:`read_log`.
        run: name of the variant; several logs may share it.
        source: what tells them apart, such as the path.
        split: validation set; None for the first in the log.
        warmup: updates left out of ``gnorm_deviation``.
        points: most points of the training curve; consecutive lines are averaged down to that.

    Returns:
        Rows with ``run``, ``source``, ``kind`` (``training`` or ``validation``), ``split``, ``updates``, ``tokens``,
        ``wall`` (seconds), ``loss`` (bits per token), ``ppl``, and ``gnorm_deviation``, std / mean of the gradient norm
        after ``warmup``, the same in all rows; None where updates were not logged one by one.

    Raises:
        ValueError: no validation line, or none of ``split``.
    """
    names = dict.fromkeys(r["split"] for r in log)
    valid = [name for name in names if name not in ("train", "train_inner")]
    if not valid:
        raise ValueError(f"{source} has no validation line, only {list(names)}; train without --disable-validation")
    if split is not None and split not in valid:
        raise ValueError(f"{source} has no validation on {split!r}, only on {valid}")
    training = [r for r in log if r["split"] == ("train_inner" if "train_inner" in names else "train")]
    try:
        deviation = relative_deviation(log, warmup)
    except ValueError:
        deviation = {"interval": 0}
    # a mean over several updates varies less than the norms themselves: not comparable
    common = {"gnorm_deviation": deviation["relative_deviation"] if deviation["interval"] == 1 else None}
    chosen = [r for r in log if r["split"] == (split or valid[0])]
    return [
        {"run": run, "source": source, "kind": kind, "split": row["split"], "updates": row["updates"]}
        | {name: row.get(name) for name in ("tokens", "wall", "loss", "ppl")}
        | common
        for kind, rows in (("training", _thin(training, points)), ("validation", chosen))
        for row in rows
    ]


def _thin(rows: Sequence[Mapping[str, Any]], points: int) -> list[dict[str, Any]]:
    """Average the loss of consecutive lines, so that at most ``points`` are left; perplexity follows from it."""
    size = math.ceil(len(rows) / points)
    groups = [rows[i : i + size] for i in range(0, len(rows), size or 1)]
    means = [statistics.fmean(r["loss"] for r in group) for group in groups]
    return [
        {**group[-1], "loss": mean, "ppl": 2**mean if mean < 100 else math.inf} if size > 1 else dict(group[-1])
        for group, mean in zip(groups, means, strict=True)
    ]


def _append(rows: list[dict[str, Any]], row: dict[str, Any]) -> None:
    # A resumed run goes back to its checkpoint: what was logged later than that never happened.
    while rows and rows[-1]["updates"] > row["updates"]:
        rows.pop()
    # fairseq adds one more handler to the log file each epoch, so lines come several times; the last one counts.
    first = len(rows)
    while first and rows[first - 1]["updates"] == row["updates"]:
        first -= 1
    rows[first:] = [r for r in rows[first:] if r["split"] != row["split"]]
    rows.append(row)


def _parse(line: str, kept: Collection[str]) -> dict[str, Any] | None:
    text = _STAMP.sub("", line.strip())
    if text.startswith("{"):
        return _parse_json(text, kept)
    if match := _INNER.match(text):
        stats = dict(part.split("=", 1) for part in match[2].split(", ") if "=" in part)
        return _row("train_inner", match[1], stats, kept)
    if match := _SUBSET.match(text):
        return _row(match[2], match[1], _piped(match[3]), kept)
    if match := _EPOCH.match(text):
        return _row("train", match[1], _piped(match[2]), kept)
    return None


def _parse_json(text: str, kept: Collection[str]) -> dict[str, Any] | None:
    try:
        stats = json.loads(text)
    except ValueError:
        return None  # the config, which fairseq prints as a Python dict, or a line cut by a kill
    if not isinstance(stats, dict):
        return None
    if "num_updates" in stats:
        return _row("train_inner", stats.get("epoch"), stats, kept)
    # A summary has its split before every name: valid_loss, valid1_ppl, train_gnorm.
    prefix = next((key.removesuffix("_num_updates") for key in stats if key.endswith("_num_updates")), None)
    if prefix is None:
        return None
    return _row(prefix, stats.get("epoch"), {k.removeprefix(f"{prefix}_"): v for k, v in stats.items()}, kept)


def _piped(text: str) -> dict[str, str]:
    return dict(part.split(" ", 1) for part in text.split(" | ") if " " in part)


def _row(split: str, epoch: Any, stats: Mapping[str, Any], kept: Collection[str]) -> dict[str, Any] | None:
    try:
        row = {"split": split, "updates": int(stats["num_updates"]), "epoch": int(epoch) if epoch else None}
        numbers = {key: float(value) for key, value in stats.items() if key in kept and value not in (None, "None")}
    except (KeyError, ValueError):
        return None  # a line cut by a kill
    return {**row, **numbers} if "loss" in numbers else None


def _add_tokens(rows: Sequence[dict[str, Any]]) -> None:
    """Sum tokens up over the training lines, and read tokens and time of the others off between those."""
    inner = [r for r in rows if r["split"] == "train_inner" and "wpb" in r]
    training = inner or [r for r in rows if r["split"] == "train" and "wpb" in r]
    if not training:
        return
    updates = np.array([0, *(r["updates"] for r in training)], dtype=float)
    tokens = np.array([0.0, *np.cumsum(np.diff(updates) * [r["wpb"] for r in training])])
    # Time is logged in whole seconds: many updates have the same. The first of them, and the very last, have it right.
    walls = [(0.0, 0.0), *((float(r["updates"]), r["wall"]) for r in training if "wall" in r)]
    changes = [b for a, b in pairwise(walls) if b[1] > a[1]]
    times = np.array(sorted({walls[0], *changes, walls[-1]}))
    for row in rows:
        beyond = max(0.0, row["updates"] - updates[-1]) * training[-1]["wpb"]
        row["tokens"] = round(float(np.interp(row["updates"], updates, tokens)) + beyond)
        if len(walls) > 1:
            row["wall"] = float(np.interp(row["updates"], *times.T))
