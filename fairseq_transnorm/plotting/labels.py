"""What files and folders are called in figures, and when several may share a name."""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_LOGS = {"norms.jsonl", "probes.jsonl", "epochs.jsonl"}  # what training writes, whatever the run

_LONGEST = 240  # bytes of a name; file systems take 255
_VISIBLE = {"\n": "↵", " ": "␣", "\t": "⇥"}


class Labelled(NamedTuple):
    """A file or folder with the name that it has in figures."""

    label: str
    path: Path


class Unnamed(Labelled):
    """One that nobody named: its label is read from its path."""


def labelled(text: str) -> Labelled:
    """Read ``LABEL=PATH``, or ``PATH`` alone, whose label is the folder of a checkpoint or log, or its own name."""
    label, equals, rest = text.partition("=")
    if equals and label and rest and not Path(text).exists():
        return Labelled(label, Path(rest))
    path = Path(text)
    if _is_generic(path):
        return Unnamed(path.absolute().parent.name, path)
    return Unnamed(_own_name(path) or path.absolute().name, path)


def check_distinct(inputs: Sequence[tuple[str, object]], what: str, place: str = "PATH") -> None:
    """Raise ValueError where two inputs have one label, though each is a model of its own.

    Args:
        inputs: labels, each with whatever it names.
        what: what they are, such as ``checkpoints``.
        place: what the command line calls their paths.
    """
    labels = [each[0] for each in inputs]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two {what} share a name in {labels}; write LABEL={place}")


def check_runs(inputs: Iterable[Labelled]) -> None:
    """Raise ValueError where paths of different folders got one label by chance, though one label means one run."""
    homes: dict[str, Labelled] = {}
    for each in inputs:
        first = homes.setdefault(each.label, each)
        if _home(first.path) != _home(each.path) and (isinstance(first, Unnamed) or isinstance(each, Unnamed)):
            raise ValueError(
                f"{first.path} and {each.path} are of different folders and both called {each.label!r}; write "
                "LABEL=PATH for each, with the same LABEL if they are one run"
            )


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Return for each label a name that a file or folder can have, no two the same."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        name = "".join("_" if letter in "/\\\0" else letter for letter in label)
        bare = name.lstrip(".")
        name = "_" * (len(name) - len(bare)) + bare
        while name in names.values():
            name += "_"
        names[label] = name
    return names


def text_name(text: str) -> str:
    """Return a name that a folder can have for any text: no two texts the same, capitals or not.

    Small letters and digits stand for themselves, a capital is ``_`` and its small letter, all else ``%`` and its bytes
    in hexadecimal. What gets too long is ``~`` and all bytes in base 32, then ``~~`` and their SHA-256.

    >>> text_name("aB/ 1")
    'a_b%2f%201'
    """
    data = text.encode()
    plain = "".join(map(_spelled, text))
    packed = "~" + base64.b32encode(data).decode().rstrip("=").lower()
    return next(name for name in (plain, packed, f"~~{hashlib.sha256(data).hexdigest()}") if len(name) <= _LONGEST)


def _spelled(letter: str) -> str:
    if letter in string.ascii_lowercase + string.digits:
        return letter
    if letter in string.ascii_uppercase:
        return f"_{letter.lower()}"
    return "".join(f"%{byte:02x}" for byte in letter.encode())


def show_symbol(symbol: str) -> str:
    """Return a symbol of a text as it can be seen on an axis: a new line as ↵, a space as ␣, a tab as ⇥."""
    shown = "".join(_VISIBLE.get(letter, letter) for letter in symbol)
    return shown if shown.isprintable() else repr(shown)[1:-1]


def _own_name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem  # a folder's name may hold a number such as 0.001


def _is_generic(path: Path) -> bool:
    name = _own_name(path)
    return name.startswith(("checkpoint", "train")) or name in {"log", "output"} or path.name in _LOGS


def _home(path: Path) -> Path:
    """Return what gives a path its label."""
    return (path.absolute().parent if _is_generic(path) else path).resolve()
