"""Runs of the task ``rasp_lang`` from their save folders: where they are, what their settings and results are."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .checkpoints import read_mapped
from .epoch_log import FILE, RESULTS, read_epochs, run_arguments

CHECKPOINTS = {"best": "checkpoint_best.pt", "last": "checkpoint_last.pt"}
TASK = "rasp_lang"
_SETTINGS = {"layers": "rasp_layers", "heads": "rasp_heads", "dim": "rasp_dim", "ffn_dim": "rasp_ffn_dim"}
_SETTINGS |= {"attention": "rasp_attention", "position": "positional_encoding", "model_bos": "model_bos"}
_SETTINGS |= {name: name for name in ("dropout", "attn_loss_weight", "lr", "gamma", "batch_size", "seed")}
_GROUP = ("language", "layers", "heads", "dim", "attention", "position", "model_bos")  # what makes another model

Row = dict[str, Any]


class Found(NamedTuple):
    """A model that was found.

    Attributes:
        name: the last folders of its path, as many as tell it from the others.
        path: a checkpoint, or a save folder.
    """

    name: str
    path: Path


class Runs(NamedTuple):
    """What was read of some runs: rows, and what is wrong with each of those that are left out."""

    rows: list[Row]
    skipped: list[str]


def save_folders(path: Path) -> list[Path]:
    """Return the save folders at a path and below it, in the order of their names.

    Raises:
        FileNotFoundError: there is none.
    """
    signs = (RESULTS, FILE, "checkpoint*.pt")
    found = sorted({file.parent for sign in signs for file in path.rglob(sign)}) if path.is_dir() else []
    if not found:
        place = path if path.is_dir() else path.parent
        there = sorted(each.name for each in place.iterdir())[:12] if place.is_dir() else []
        raise FileNotFoundError(
            f"no save folder at or below {path}: none with {', '.join(signs)}; {place}/ holds {there or 'nothing'}"
        )
    return found


def find_folders(paths: Iterable[Path], must_contain: str = "") -> list[Found]:
    """Return all save folders at or below some paths, each once, those whose path contains a text.

    Raises:
        FileNotFoundError: a path has none, or none contains the text.
    """
    found = list(dict.fromkeys(folder for path in paths for folder in save_folders(path)))
    return _named(_containing(found, must_contain))


def find_checkpoints(paths: Iterable[Path], select: str = "best", must_contain: str = "") -> list[Found]:
    """Return the checkpoints that paths name: files as they are, and of each save folder below a folder one.

    Args:
        paths: files and folders.
        select: ``best`` or ``last``, of ``CHECKPOINTS``; the file of a folder need not be there.
        must_contain: text that the path of the folder must contain.

    Raises:
        FileNotFoundError: a path is not there, a folder has no save folder, or none contains the text.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
        else:
            found += [folder / CHECKPOINTS[select] for folder in save_folders(path)]
    return _named(_containing(list(dict.fromkeys(found)), must_contain))


def language_of(checkpoint: Path) -> str:
    """Return the language of a checkpoint's task without building its model.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it cannot be read, or is of another task.
    """
    return str(_configuration(checkpoint)["task"]["language"])


def read_results(folder: Path) -> Row | None:
    """Return what a run wrote at its end; None where it did not come to it.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / RESULTS
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["arguments"]["language"], results["epochs"], results["best_epoch"], results["stop_reason"]
        results["evaluated"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of results ({error!r}); evaluate the run again") from error
    return results


def evaluated(results: Row | None, split: str, name: str) -> float | None:
    """Return a number of the evaluation at the end; None where there was none."""
    numbers = ((results or {}).get("evaluated") or {}).get(split) or {}
    return numbers.get(name)


def accuracy_text(value: float | None) -> str:
    """Say an accuracy with 5 digits; one that rounds to 1 but is below it as ``1.0-``.

    >>> accuracy_text(0.999997), accuracy_text(1.0), accuracy_text(0.25), accuracy_text(None)
    ('1.0-', '1.0', '0.25', 'not evaluated')
    """
    if value is None:
        return "not evaluated"
    text = f"{value:.5f}".rstrip("0")
    return "1.0-" if value < 1 and text == "1." else text + "0" * text.endswith(".")


def run_rows(found: Iterable[Found], at_epoch: int, group_epoch: int) -> Runs:
    """Return a row a run, by language and size.

    Args:
        found: save folders.
        at_epoch: an epoch, from 1, after which rows have the accuracies of training and validation.
        group_epoch: another, after which they have the loss and accuracy of validation, for :func:`group_rows`.

    Returns:
        Rows with settings, epochs and results, None for what a run does not have; and what is wrong with those that
        cannot be read.

    Raises:
        ValueError: none can be read.
    """
    rows, skipped = [], []
    for name, folder in found:
        try:
            rows.append({"id": name} | _run_row(folder, at_epoch, group_epoch))
        except (OSError, ValueError) as error:
            skipped.append(f"{folder}: {error}")
    if not rows:
        raise ValueError("no run can be read: " + "; ".join(skipped))
    rows.sort(key=lambda row: (row["language"], row["layers"] or 0, row["heads"] or 0, row["id"]))
    return Runs(rows, skipped)


def group_rows(rows: Iterable[Row], group_epoch: int) -> list[Row]:
    """Return a row for each language and kind of model, with the best, mean and worst of the runs that have a number.

    Args:
        rows: of :func:`run_rows`.
        group_epoch: as there.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _GROUP), []).append(row)
    columns = ["test_loss", "test_accuracy", *(f"valid_{name}_epoch_{group_epoch}" for name in ("loss", "accuracy"))]
    lines = []
    for key, mine in groups.items():
        line = dict(zip(_GROUP, key, strict=True)) | {"runs": len(mine)}
        line |= {"evaluated": sum(row["test_accuracy"] is not None for row in mine)}
        line |= {f"runs_to_epoch_{group_epoch}": sum(row[columns[-1]] is not None for row in mine)}
        for column in columns:
            line |= _spread([row[column] for row in mine if row[column] is not None], column)
        lines.append(line)
    return lines


def _spread(values: Sequence[float], column: str) -> Row:
    best, worst = (min, max) if "loss" in column else (max, min)
    statistic: dict[str, Callable[..., float]] = {"best": best, "mean": statistics.fmean, "worst": worst}
    return {f"{column}_{name}": function(values) if values else None for name, function in statistic.items()}


def _run_row(folder: Path, at_epoch: int, group_epoch: int) -> Row:
    results = read_results(folder)
    arguments = results["arguments"] if results else _arguments(folder)
    records = {record["epoch"]: record for record in read_epochs(folder)} if (folder / FILE).is_file() else {}

    def after(epoch: int, split: str, name: str) -> Row:
        return {f"{split}_{name}_epoch_{epoch}": records[epoch][split][name] if epoch in records else None}

    row: Row = {"language": arguments["language"]}
    row |= {name: arguments.get(key) for name, key in _SETTINGS.items()}
    row |= {f"test_{name}": evaluated(results, "test", name) for name in ("accuracy", "seq_accuracy", "loss")}
    best = [epoch for epoch, record in records.items() if record["best"]]
    row |= {"epochs": results["epochs"] if results else max(records, default=None)}
    row |= {"best_epoch": results["best_epoch"] if results else max(best, default=None)}
    row |= {"stop_reason": results["stop_reason"] if results else None}
    row |= after(at_epoch, "train", "accuracy") | after(at_epoch, "valid", "accuracy")
    return row | after(group_epoch, "valid", "loss") | after(group_epoch, "valid", "accuracy")


def _arguments(folder: Path) -> Row:
    """Return the settings of a run that wrote no results, from a checkpoint of it."""
    paths = [folder / name for name in CHECKPOINTS.values() if (folder / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"neither {RESULTS} nor {' nor '.join(CHECKPOINTS.values())}: its settings are unknown")
    return run_arguments(_configuration(paths[-1]))


def _configuration(checkpoint: Path) -> Mapping[str, Any]:
    config = read_mapped(checkpoint).get("cfg") or {}
    task = (config.get("task") or {}).get("_name")
    if task != TASK:
        raise ValueError(f"checkpoint {checkpoint} is of the task {task!r}, not of {TASK}")
    return config


def _containing(found: list[Path], text: str) -> list[Path]:
    kept = [path for path in found if text in str(path)]
    if not kept:
        raise FileNotFoundError(
            f"no path contains {text!r}: {', '.join(map(str, found[:6]))}{' ..' * (len(found) > 6)}"
        )
    return kept


def _named(paths: Sequence[Path]) -> list[Found]:
    """Name each path by its last folders, as many as it takes, and files of one folder by their own names too."""
    homes = [path.absolute().parent if path.suffix == ".pt" else path.absolute() for path in paths]
    parts = [
        (*home.parts[1:], *([path.stem] if homes.count(home) > 1 else []))
        for path, home in zip(paths, homes, strict=True)
    ]
    named = []
    for path, mine in zip(paths, parts, strict=True):
        depths = range(1, len(mine) + 1)
        depth = next((n for n in depths if sum(other[-n:] == mine[-n:] for other in parts) == 1), len(mine))
        named.append(Found("/".join(mine[-depth:]), path))
    return named
