"""Tables of measured numbers: flat rows, kept as JSON beside the figure that shows them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Value = str | int | float | bool | None
Row = Mapping[str, Value]


class Table(list[dict[str, Any]]):
    """Rows of a saved table, with the command, package version and seed that made them.

    A list like any other for whoever draws it; a figure drawn from it keeps the origin of the numbers.
    """

    def __init__(
        self, rows: Iterable[Mapping[str, Any]], *, command: str, version: str, seed: int | None = None
    ) -> None:
        super().__init__(dict(row) for row in rows)
        self.command, self.version, self.seed = command, version, seed


def load_table(path: str | Path, columns: Iterable[str] = ()) -> Table:
    """Read a table written by :func:`save_table` or beside a figure.

    Args:
        path: the ``.json`` file.
        columns: names that every row must have.

    Raises:
        FileNotFoundError: there is no such file; the message lists the tables beside it.
        ValueError: the file is no table, has no rows, or its rows lack a column.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.json"))
        raise FileNotFoundError(f"no table {path}; in {path.parent}/ there are {beside or 'no .json files'}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content["rows"]
        table = Table(rows, command=content["command"], version=content["version"], seed=content["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a table of this package (JSON with rows, command, version and seed): {error!r}; "
            "give the .json that was written beside a figure"
        ) from error
    if not table:
        raise ValueError(f"{path} has no rows; measure again")
    for number, row in enumerate(table, start=1):
        if missing := [name for name in columns if name not in row]:
            raise ValueError(
                f"{path}: row {number} lacks {missing}, it has {sorted(row)}; was the table made by another script?"
            )
    return table


def same_origin(rows: Sequence[Row], some: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return some rows of a table as one that was made by the same command."""
    if not isinstance(rows, Table):
        return some
    return Table(some, command=rows.command, version=rows.version, seed=rows.seed)


def save_table(path: str | Path, rows: Sequence[Row], *, seed: int | None = None) -> None:
    """Write ``rows`` as JSON, one row a line, so that a kill at any moment leaves the old file or the new one."""
    save_text(path, to_json(rows, seed=seed))


def save_csv(path: str | Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as comma-separated values with the columns of the first, numbers in full; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(row, number) for number, row in enumerate(rows, start=1))
    save_text(path, text.getvalue())


def save_text(path: str | Path, text: str) -> None:
    """Write a file as :func:`save_table` does."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(rows: Sequence[Row], *, seed: int | None = None) -> str:
    """Return the text of a table: rows, command, version, seed; no times, so that a second run writes the same bytes.

    Numbers that are not finite become null: JSON has none.

    Raises:
        TypeError: a value is no string, number, truth value or None; tensors and numpy numbers are turned into
            Python numbers where they are measured.
    """
    if isinstance(rows, Table):
        command, version, seed = rows.command, rows.version, rows.seed
    else:
        from fairseq_transnorm import __version__  # at call time: the package is still importing when this module is

        command, version = current_command(), __version__
    head = {"command": command, "version": version, "seed": seed}
    lines = [f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items()]
    body = ",\n".join(f"  {json.dumps(_plain(row, n), allow_nan=False)}" for n, row in enumerate(rows, start=1))
    return "{\n" + "".join(lines) + ' "rows": [\n' + body + "\n ]\n}\n"


def current_command() -> str:
    """Return the command line of this process, the script relative to the working folder where it lies in it."""
    script = Path(sys.argv[0])
    if script.is_absolute() and script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(["python", str(script), *sys.argv[1:]])


def format_table(rows: Sequence[Row], columns: Sequence[str] | None = None, digits: int = 4) -> str:
    """Return ``rows`` as aligned text for a terminal: text to the left, numbers to the right with ``digits`` digits."""
    columns = list(columns or dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name), digits) for name in columns] for row in rows]
    widths = [max(len(name), *(len(row[i]) for row in cells)) if cells else len(name) for i, name in enumerate(columns)]
    left = [any(isinstance(row.get(name), str) for row in rows) for name in columns]

    def line(texts: Sequence[str]) -> str:
        padded = [t.ljust(w) if is_left else t.rjust(w) for t, w, is_left in zip(texts, widths, left, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(columns), line(["-" * width for width in widths]), *map(line, cells)])


def format_markdown(rows: Sequence[Row], text: Iterable[str] = ()) -> str:
    """Return ``rows`` as a Markdown table with the columns of the first: those in ``text`` to the left, others right.

    Numbers get commas between thousands, those with a fraction two digits after the point; None is a dash.
    """
    columns, left = list(rows[0]), set(text)
    lines = [columns, ["---" if name in left else "---:" for name in columns]]
    lines += [[format_cell(row.get(name)) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(value: Value) -> str:
    """Return one value of :func:`format_markdown`."""
    if isinstance(value, float):
        return f"{value:,.2f}"
    return f"{value:,}" if isinstance(value, int) else str("-" if value is None else value)


def _plain(row: Row, number: int) -> dict[str, Value]:
    for name, value in row.items():
        # bool is an int, and numpy.float64 is a float: only exact types come back unchanged from JSON.
        if type(value) not in (str, int, float, bool, type(None)):
            raise TypeError(
                f"row {number}: {name!r} is {type(value).__module__}.{type(value).__name__} ({value!r}), "
                "not a plain Python value; convert it with float(), int() or str() where it is measured"
            )
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)
