"""Files that a training run writes as it goes, one JSON object a line; a run that is killed and goes on keeps them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..whole_file import set_aside, whole_file

Record = dict[str, Any]
logger = logging.getLogger(__name__)


class Lines(NamedTuple):
    """What a file holds.

    Attributes:
        records: the whole ones.
        cut_line: number of a last line that is cut off, as by a kill; 0 where there is none.
    """

    records: list[Record]
    cut_line: int


def read_lines(path: Path, check: Callable[[Record], object], kind: str) -> Lines:
    """Read a file.

    Args:
        path: it is there.
        check: raises ValueError, TypeError or KeyError for an object that is no record.
        kind: of the records, for messages: ``record of a norm``.

    Raises:
        ValueError: a line is no record.
    """
    records = []
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            check(record)
        except (ValueError, TypeError, KeyError) as error:
            known = not isinstance(error, ValueError) or isinstance(error, json.JSONDecodeError)
            reason = "" if known else f" ({error})"
            raise ValueError(f"{path}: line {number} is no {kind}: {line[:60]!r}{reason}; move the file away") from None
        records.append(record)
    return Lines(records, len(lines) + 1 if rest else 0)


def read_file(path: str | Path, name: str, read: Callable[[Path], Lines], advice: str) -> list[Record]:
    """Return the records of a run; a last line that is cut off is left out, with a warning.

    Args:
        path: the file, or the save folder it is in.
        name: of the file in such a folder.
        read: reads it.
        advice: what to do where there is none.

    Raises:
        FileNotFoundError: there is none.
        ValueError: there is no record in it, or as of ``read``.
    """
    path = Path(path)
    file = path / name if path.is_dir() else path
    if not file.is_file():
        beside = sorted(p.name for p in file.parent.glob("*"))[:12] if file.parent.is_dir() else []
        raise FileNotFoundError(f"no {file}; in {file.parent}/ there are {beside or 'no files'}; {advice}")
    records, cut_line = read(file)
    if cut_line:
        logger.warning("%s: line %s is cut off, as by a kill in the midst of writing; it is left out", file, cut_line)
    if not records:
        raise ValueError(f"{file} holds no record")
    return records


class LinesFile:
    """The file of a run that trains: what was written after the checkpoint it goes on from is cut off first.

    Args:
        path: the file; made when missing.
        updates: those of the checkpoint; 0 for a new run: a file that is there is of an older one, whole or damaged,
            and becomes ``<name>.old`` (``.old2``, ..).
        read: reads it.
        keep: whether a record is older than the checkpoint; may raise ValueError for one of another kind of run.

    Attributes:
        last: the last record that is kept; None where there is none.

    Raises:
        ValueError: the file of a run that goes on is damaged.
    """

    def __init__(self, path: Path, updates: int, read: Callable[[Path], Lines], keep: Callable[[Record], bool]) -> None:
        self.path = path
        if not updates:
            set_aside(path)
        records, cut_line = read(path) if path.is_file() else Lines([], 0)
        kept = [record for record in records if keep(record)]
        self.last = kept[-1] if kept else None
        if cut_line or len(kept) < len(records):
            write_lines(path, kept)

    def write(self, record: Record, moment: str) -> None:
        """Append a record.

        Args:
            record: numbers, texts, lists and dictionaries.
            moment: of training, for the message.

        Raises:
            OSError: the file cannot be written, as on a full disk.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise OSError(
                f"{self.path}: the record of {moment} cannot be written: {error.strerror}; mend that and start the "
                "same command again: it goes on from the last checkpoint"
            ) from error
        self.last = record


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Write a file as a whole."""
    with whole_file(path) as unfinished:
        unfinished.write_text("".join(map(_line, records)), encoding="utf-8")


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
