"""Data folders that are whole or not there, and the note in each that says how it was made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .fetch import exclusive

NOTE = "tokenizer.json"


def check_output(out: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise FileExistsError when ``out`` holds something that may not be replaced."""
    out = Path(os.path.abspath(out))
    old = _sibling(out, "old")
    if old.exists() and not out.exists():
        old.rename(out)  # a run was killed between the two renames of whole_folder
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{out} is there already; give another --out, or --overwrite to replace it")
    if not (out / NOTE).is_file():
        raise FileExistsError(f"{out} has no {NOTE}, so it is not ours to replace; remove it yourself")


@contextmanager
def whole_folder(out: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``out`` that becomes ``out`` when the block ends well.

    What an interrupted run left in it, ``.out.partial``, is removed; after an error nothing is left.

    Raises:
        FileExistsError: as :func:`check_output` does.
        BlockingIOError: another process is making ``out``.
    """
    out = Path(os.path.abspath(out))
    check_output(out, overwrite)
    old, partial = _sibling(out, "old"), _sibling(out, "partial")
    partial.mkdir(parents=True, exist_ok=True)
    with exclusive(partial, f"making {out}"):
        try:
            check_output(out, overwrite)  # another process may just have made it
            for path in partial.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield partial
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        except BaseException:  # also an interrupt
            shutil.rmtree(partial, ignore_errors=True)
            raise
    shutil.rmtree(old, ignore_errors=True)


def write_note(folder: Path, note: Mapping[str, Any]) -> None:
    """Write the note of a data folder."""
    (folder / NOTE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_note(data: str | os.PathLike[str]) -> dict[str, Any]:
    """The note ``tokenizer.json`` of a data folder; :func:`binarize.build` and :mod:`classification` say its keys.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    path = Path(data) / NOTE
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: {data} was not made by the scripts in preprocessing/")
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); make the folder again") from None
    if not isinstance(note, dict) or not isinstance(note.get("kind"), str):
        raise ValueError(f"{path} does not name the kind of tokenizer; make the folder again")
    return note


def _sibling(out: Path, suffix: str) -> Path:
    return out.with_name(f".{out.name}.{suffix}")
