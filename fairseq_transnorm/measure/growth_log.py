"""The file in which training notes how its parameters grow: one JSON object a line, in order of the updates.

Each record tells what one update did: ``updates`` (after it), ``epoch``, its ``lr``, ``scope``, ``norm`` and
``norm_before``, ``step_norm``, ``product`` (theta . delta), ``direction_cosine``, ``alignment``, and of the gradient at
theta ``gradient_norm``, ``gradient_product`` (theta . g) and ``gradient_cosine``. Where asked for, it has ``layers``, a
list of the norm and step of each, and ``tensors``, name -> [norm before, step norm, product]. The first record, before
any update, has the norms only.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from .json_lines import Lines, LinesFile, Record, read_file, read_lines

FILE = "norms.jsonl"


def read_records(path: Path) -> Lines:
    """Read a file.

    Raises:
        ValueError: a line is no record, or updates do not rise.
    """

    def check(record: Record) -> None:
        int(record["updates"]), float(record["norm"])

    lines = read_lines(path, check, "record of a norm")
    updates = [record["updates"] for record in lines.records]
    for number, (before, after) in enumerate(pairwise(updates), 2):
        if after <= before:
            raise ValueError(
                f"{path}: line {number} has update {after} after update {before}; did two runs write into it? Give "
                "each its own --save-dir"
            )
    return lines


def read_growth(path: str | Path) -> list[Record]:
    """Return the records of a run; arguments and errors as of :func:`read_file`, and errors of :func:`read_records`."""
    advice = "train with --norm-log-interval 1 and a task that logs norms, such as normgrowth_lm"
    return read_file(path, FILE, read_records, advice)


class GrowthLog:
    """The file of a run that trains: see :class:`LinesFile`.

    Args:
        path: the file; made when missing.
        updates: those of the checkpoint the run goes on from; 0 for a new run.
        scope: of the parameters, which must be that of the records to be kept.

    Raises:
        ValueError: the file of a run that goes on is damaged, or has another scope.
    """

    def __init__(self, path: Path, updates: int, scope: str) -> None:
        def keep(record: Record) -> bool:
            if record["updates"] > updates:
                return False
            if record.get("scope") != scope:
                raise ValueError(
                    f"{path}: its records are of the scope {record.get('scope')!r}, the run goes on with --norm-scope "
                    f"{scope}; keep the scope, or move the file away"
                )
            return True

        self.file = LinesFile(path, updates, read_records, keep)

    @property
    def last(self) -> int | None:
        """Updates of the last record; None where there is none."""
        return None if self.file.last is None else self.file.last["updates"]

    def write(self, record: Record) -> None:
        """Append a record; errors as of :meth:`LinesFile.write`."""
        self.file.write(record, f"update {record['updates']}")
