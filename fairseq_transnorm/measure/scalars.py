"""Any number that training logged, by its name: from the file of norm growth, or from the log of fairseq-train."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .growth_log import FILE, Record, read_growth
from .logs import find_log, read_log

_TRAINING = ("train_inner", "train")


def scalar_rows(run: str, path: str | Path, scalars: Sequence[str], split: str | None = None) -> list[dict[str, Any]]:
    """Return the curves of some scalars of one run as flat rows.

    Args:
        run: name of the run; several paths may share it.
        path: ``norms.jsonl``, a log of fairseq-train, or a save folder with one of them or both.
        scalars: names; those of norm growth are looked for first, also of one layer, as ``norm_decoder_3``.
        split: of which lines of the log the others are; None for the first validation set that has them, then training.

    Returns:
        Rows with ``run``, ``source``, ``scalar``, ``split`` (``norms`` for those of norm growth), ``scope``
        (of the parameters whose norms they are, else None), ``updates``, ``epoch`` and ``value``.

    Raises:
        FileNotFoundError: no such file, or neither of them in the folder.
        ValueError: a scalar is in none of them, or a file is damaged.
    """
    records, lines = _read(Path(path), scalars)
    rows = []
    for scalar in scalars:
        points = [] if split else [("norms", record) for record in records if scalar in record]
        points = points or _lines_with(scalar, lines, split)
        if not points:
            found = sorted({*_names(records), *_names(lines)} - {"updates", "epoch", "split", "scope"})
            where = f" in its lines of {split!r}" if split else ""
            raise ValueError(f"{path} has no {scalar!r}{where}; there are {', '.join(found)}")
        rows += [
            {"run": run, "source": str(path), "scalar": scalar, "split": kind, "scope": point.get("scope")}
            | {"updates": point["updates"], "epoch": point["epoch"], "value": point[scalar]}
            for kind, point in points
            if math.isfinite(point[scalar])
        ]
    return rows


def by_epoch(rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return the last value of each epoch with its number, and the value before the first update with epoch 0."""
    return list({0 if not row["updates"] else row["epoch"]: row["value"] for row in rows}.items())


def _read(path: Path, scalars: Sequence[str]) -> tuple[list[Record], list[dict[str, Any]]]:
    if path.suffix == ".jsonl":
        return [_flat(record) for record in read_growth(path)], []
    if not path.is_dir() or not (path / FILE).is_file():
        return [], read_log(path, scalars)
    records = [_flat(record) for record in read_growth(path)]
    try:
        find_log(path)
    except FileNotFoundError:
        return records, []
    return records, read_log(path, scalars)


def _flat(record: Record) -> Record:
    """Return a record with the entries of its layers beside the others, and without those of its tensors."""
    own = {name: value for name, value in record.items() if name not in ("layers", "tensors")}
    for layer in record.get("layers", []):
        place = f"{layer['stack']}_{layer['layer']}"
        own |= {f"{name}_{place}": value for name, value in layer.items() if name not in ("stack", "layer")}
    return own


def _lines_with(scalar: str, lines: Sequence[dict[str, Any]], split: str | None) -> list[tuple[str, dict[str, Any]]]:
    names = list(dict.fromkeys(line["split"] for line in lines))
    order = [split] if split else [*(n for n in names if n not in _TRAINING), *_TRAINING]
    for name in order:
        if found := [(name, line) for line in lines if line["split"] == name and scalar in line]:
            return found
    return []


def _names(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {name for row in rows for name in row}
