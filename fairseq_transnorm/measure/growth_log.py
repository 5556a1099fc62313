"""The file in which training notes how its parameters grow: one JSON object a line, in order of the updates.

Each record tells what one update did: ``updates`` (after it), ``epoch``, its ``lr``, ``scope``, ``norm`` and
``norm_before``, ``step_norm``, ``product`` (theta . delta), ``direction_cosine``, ``alignment``, and of the gradient at
theta ``gradient_norm``, ``gradient_product`` (theta . g) and ``gradient_cosine``. Where asked for, it has ``layers``, a
list of the norm and step of each, and ``tensors``, name -> [norm before, step norm, product]. The first record, before
any update, has the norms only.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from ..whole_file import set_aside, whole_file

FILE = "norms.jsonl"
Record = dict[str, Any]
logger = logging.getLogger(__name__)


class Records(NamedTuple):
    """What a file holds.

    Attributes:
        records: the whole records.
        cut_line: number of a last line that is cut off, as by a kill; 0 where there is none.
    """

    records: list[Record]
    cut_line: int


def read_records(path: Path) -> Records:
    """Read a file.

    Raises:
        ValueError: a line is no record, or updates do not rise.
    """
    records: list[Record] = []
    *lines, rest = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            updates, _ = int(record["updates"]), float(record["norm"])
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}: line {number} is no record of a norm: {line[:60]!r}; move the file away"
            ) from None
        if records and updates <= records[-1]["updates"]:
            raise ValueError(
                f"{path}: line {number} has update {updates} after update {records[-1]['updates']}; did two runs write "
                "into it? Give each its own --save-dir"
            )
        records.append(record)
    return Records(records, len(lines) + 1 if rest else 0)


def read_growth(path: str | Path) -> list[Record]:
    """Return the records of a run; a last line that is cut off is left out, with a warning.

    Args:
        path: the file, or the save folder it is in.

    Raises:
        FileNotFoundError: there is none.
        ValueError: see :func:`read_records`; or there is no record in it.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.glob("*"))[:12] if file.parent.is_dir() else []
        raise FileNotFoundError(
            f"no {file}; in {file.parent}/ there are {beside or 'no files'}; train with --norm-log-interval 1 and a "
            "task that logs norms, such as normgrowth_lm"
        )
    records, cut_line = read_records(file)
    if cut_line:
        logger.warning("%s: line %s is cut off, as by a kill in the midst of writing; it is left out", file, cut_line)
    if not records:
        raise ValueError(f"{file} holds no record")
    return records


class GrowthLog:
    """The file of a run that trains: what was written after the checkpoint it goes on from is cut off first.

    Args:
        path: the file; made when missing.
        updates: those of the checkpoint; 0 for a new run: a file that is there is of an older one, whole or damaged,
            and becomes ``norms.jsonl.old``.
        scope: of the parameters, which must be that of the records to be kept.

    Raises:
        ValueError: the file of a run that goes on is damaged, or has another scope.
    """

    def __init__(self, path: Path, updates: int, scope: str) -> None:
        self.path = path
        if not updates:
            set_aside(path)
        records, cut_line = read_records(path) if path.is_file() else Records([], 0)
        kept = [record for record in records if record["updates"] <= updates]
        if other := next((record for record in kept if record.get("scope") != scope), None):
            raise ValueError(
                f"{path}: its records are of the scope {other.get('scope')!r}, the run goes on with --norm-scope "
                f"{scope}; keep the scope, or move the file away"
            )
        self.last: int | None = kept[-1]["updates"] if kept else None
        if cut_line or len(kept) < len(records):
            with whole_file(path) as unfinished:
                unfinished.write_text("".join(map(_line, kept)), encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append a record.

        Raises:
            OSError: the file cannot be written, as on a full disk.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise OSError(
                f"{self.path}: the record of update {record['updates']} cannot be written: {error.strerror}; mend that "
                "and start the same command again: it goes on from the last checkpoint"
            ) from error
        self.last = record["updates"]


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
