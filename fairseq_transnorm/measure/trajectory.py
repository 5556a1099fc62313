"""A model's parameters along its checkpoints: norms, directions and steps, of a scope and of each layer in it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint_series import collect, read_checkpoint
from .checkpoints import check_sums
from .fits import SERIES
from .growth_log import read_growth
from .parameters import by_layer, linear_column_norm, select, step_of, step_sums

COLUMNS = (
    *("run", "scope", "stack", "layer", "updates", "norm"),
    *("step_norm", "product", "direction_cosine", "alignment"),
    *("smallest_rms", "linear_column_norm", "parameters", "checkpoint"),
)
_TEXT = {"run", "scope", "stack", "checkpoint"}
_WHOLE = {"layer", "updates", "parameters"}
Sums = Mapping[str, tuple[float, float, float, float]]  # of parameters.step_sums, by name


class Trajectory(NamedTuple):
    """What the checkpoints of a run show.

    Attributes:
        rows: with ``COLUMNS``, see :func:`trajectory`.
        skipped: what is wrong with each checkpoint that could not be measured.
        notes: what else the reader should know.
    """

    rows: list[dict[str, Any]]
    skipped: list[str]
    notes: list[str]


class Group(NamedTuple):
    """Parameters that are measured as one vector: a scope, or a layer in it."""

    scope: str
    stack: str | None
    layer: int | None
    names: list[str]


def trajectory(
    run: str,
    paths: Iterable[Path],
    scopes: Sequence[str] = ("layers",),
    samples: int | None = None,
    data: str | Path | None = None,
) -> Trajectory:
    """Measure the checkpoints of one run in the order of their updates.

    Numbers are read from the disk once, and of at most two checkpoints at a time; the optimiser's not at all.

    Args:
        run: name of the run.
        paths: folders or single checkpoints, of fairseq or Hugging Face; see ``find_checkpoints``.
        scopes: of ``parameters.SCOPES``.
        samples: keep every max(1, floor(N / samples))-th of N checkpoints, so that somewhat more may remain.
        data: data folder with the dictionary, where the one that the checkpoints name is gone.

    Returns:
        One row for each checkpoint, scope and layer, ``stack`` and ``layer`` None for the whole scope. ``norm`` is that
        of the checkpoint; ``step_norm``, ``product`` (theta . delta), ``direction_cosine`` and ``alignment`` belong to
        the step from the one before it and are None in the first. ``smallest_rms`` is the least root mean square of
        the entries of a matrix, ``linear_column_norm`` that of the whole model and in the rows of whole scopes only,
        ``parameters`` their number. Norms are 2-norms.

    Raises:
        FileNotFoundError, ImportError, ValueError: as of ``collect`` and ``select``.
    """
    series = collect(paths, data)
    kept = series.saved[:: max(1, len(series.saved) // samples)] if samples else series.saved
    rows: list[dict[str, Any]] = []
    skipped = list(series.unreadable)
    before: dict[str, Tensor] | None = None
    for updates, paths in tqdm(kept, desc=run, unit="checkpoint", disable=None, leave=False):
        chosen, problems = _choose(updates, paths, series.names)
        skipped += problems
        if chosen is None:
            continue
        path, theta = chosen
        if before is None:
            groups = _groups(theta, scopes)
        sums = {name: step_sums((before or theta)[name], tensor) for name, tensor in theta.items()}
        column_norm = _column_norm(theta)
        for group in groups:
            values = _measure(group, theta, sums, first=before is None)
            values["linear_column_norm"] = column_norm if group.layer is None else None
            place = {"run": run, "updates": updates, "checkpoint": path.name, **group._asdict(), **values}
            rows.append({name: place[name] for name in COLUMNS})
        before = theta
    if not rows:
        raise ValueError("; ".join(skipped))
    return Trajectory(rows, skipped, [series.note] if series.note else [])


def _choose(
    updates: int, paths: Sequence[Path], names: Sequence[str]
) -> tuple[tuple[Path, dict[str, Tensor]] | None, list[str]]:
    """Return the first intact one of the files with the same updates, and what is wrong with others."""
    chosen: tuple[Path, dict[str, Tensor]] | None = None
    problems = []
    for path in paths:
        _, found, _ = read_checkpoint(path)
        theta = {name: found[name] for name in names}
        if chosen and all(torch.equal(theta[name], chosen[1][name]) for name in names):
            continue
        if problem := _problem(path, theta):
            problems.append(problem)
        elif chosen is None:
            chosen = path, theta
        else:
            problems.append(
                f"checkpoint {path} has other parameters than {chosen[0]}, though both were saved after {updates} "
                "updates; if they are of two runs, measure them as two (LABEL=PATH)"
            )
    return chosen, problems


def _problem(path: Path, theta: Mapping[str, Tensor]) -> str | None:
    """Say what is wrong with the numbers of a checkpoint that could be read."""
    try:
        if path.is_file():
            check_sums(path, theta)
    except ValueError as error:
        return str(error)
    bad = next((name for name, tensor in theta.items() if not tensor.isfinite().all()), None)
    return None if bad is None else f"checkpoint {path} has numbers that are not finite, in {bad}"


def _groups(theta: Mapping[str, Tensor], scopes: Sequence[str]) -> list[Group]:
    groups = []
    for scope in dict.fromkeys(scopes):
        chosen = select(theta, scope)
        groups.append(Group(scope, None, None, list(chosen)))
        groups += [Group(scope, *layer, list(names)) for layer, names in by_layer(chosen).items()]
    return groups


def _measure(group: Group, theta: Mapping[str, Tensor], sums: Sums, first: bool) -> dict[str, Any]:
    step = step_of(sums[name] for name in group.names)
    matrices = [math.sqrt(sums[name][1] / theta[name].numel()) for name in group.names if theta[name].dim() == 2]
    return {
        "norm": step.norm_after,
        "step_norm": None if first else step.step_norm,
        "product": None if first else step.product,
        "direction_cosine": None if first else step.direction_cosine,
        "alignment": None if first else step.alignment,
        "smallest_rms": min(matrices, default=None),
        "parameters": sum(theta[name].numel() for name in group.names),
    }


def _column_norm(theta: Mapping[str, Tensor]) -> float | None:
    try:
        return linear_column_norm(select(theta, "linear"))
    except ValueError:  # a model of convolutions, say
        return None


def read_norms(path: Path) -> list[dict[str, Any]]:
    """Read the norms of a run from a CSV file or from the log that a training wrote.

    Args:
        path: ``.csv`` with ``step`` (or ``updates``), ``norm`` and any other of ``COLUMNS``; or a ``norms.jsonl``, or
            its folder.

    Returns:
        Rows with ``updates``, ``norm`` and what else of ``COLUMNS`` the file has.

    Raises:
        FileNotFoundError: there is no such file, or the folder has no log.
        ValueError: it is neither; the message names the file and what is wrong.
    """
    if path.suffix == ".csv":
        return _csv_rows(path)
    rows = []
    for record in read_growth(path):
        place = {"updates": record["updates"], "scope": record["scope"]}
        rows += [record, *({**place, **layer} for layer in record.get("layers", ()))]
    return rows


def complete_rows(run: str, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with all ``COLUMNS``, None where nothing is known, and each series by its updates.

    Args:
        run: name of the run, for rows without one.
        rows: with ``updates`` and ``norm``.
    """
    defaults = dict.fromkeys(COLUMNS) | {"run": run, "scope": "parameters"}
    filled = [defaults | {k: v for k, v in row.items() if k in defaults and v is not None} for row in rows]
    places = list(dict.fromkeys(map(_place, filled)))
    return sorted(filled, key=lambda row: (places.index(_place(row)), row["updates"]))


def check_points(rows: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError where a series has two norms after the same updates: they are of two runs, or given twice."""
    seen: dict[tuple[Any, ...], float] = {}
    for row in rows:
        key = (*_place(row), row["updates"])
        if key in seen:
            name = ", ".join(str(part) for part in key[:-1] if part is not None)
            raise ValueError(
                f"{name} has two norms after {row['updates']} updates, {seen[key]:.6g} and {row['norm']:.6g}; give "
                "each run once and by a name of its own (LABEL=PATH; in a table of trajectory.py its column run)"
            )
        seen[key] = row["norm"]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in SERIES)


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        names = ["updates" if name.strip() == "step" else name.strip() for name in reader.fieldnames or []]
        if not {"updates", "norm"} <= set(names):
            raise ValueError(f"{path} has the columns {names}; it needs step (or updates) and norm")
        reader.fieldnames = names
        rows = [_read_row(path, reader.line_num, row) for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _read_row(path: Path, line: int, row: Mapping[str, str | None]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, text in row.items():
        if name not in COLUMNS or not (text or "").strip():
            continue
        try:
            number = None if name in _TEXT else float(str(text))
            if number is not None and not math.isfinite(number):
                raise ValueError("not finite")
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {name} is {text!r}, not a number") from error
        values[name] = text if number is None else int(number) if name in _WHOLE else number
    if not {"updates", "norm"} <= set(values):
        raise ValueError(f"{path}, line {line}: no step or no norm")
    return values


def scope_series(rows: Iterable[Mapping[str, Any]], stacks: bool = False) -> dict[str, list[Any]]:
    """Return the rows of whole scopes by run and scope, as far as they differ: how figures call them.

    Args:
        rows: of a trajectory.
        stacks: the rows of layers instead, by run, scope and stack.
    """
    keys = ("run", "scope", "stack") if stacks else ("run", "scope")
    kept = [row for row in rows if (row["layer"] is not None) is stacks]
    differ = [key for key in keys if len({row[key] for row in kept}) > 1] or ["run"]
    found: dict[str, list[Any]] = {}
    for row in kept:
        found.setdefault(", ".join(str(row[key]) for key in differ), []).append(row)
    return found
