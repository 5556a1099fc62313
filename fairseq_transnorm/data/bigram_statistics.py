"""Counts of the characters of a text and of its pairs of neighbours: what the sequences of ``bigram_icl`` follow.

A file of them is one JSON object. The text "abab." gives::

    {"vocab": [".", "a", "b"], "unigram": [1, 2, 2], "bigram": [[1, 2, 2], [2, 0, 1], [2, 1, 1]], "total": 5,
     "source_sha256": "..."}

The number of a symbol is its place in ``vocab``, in which characters are sorted by code point; ``bigram`` has a row
``[i, j, count]`` for each pair that occurs, ``j`` after ``i``. A file made by hand may have any symbols in any order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_file import whole_file

logger = logging.getLogger(__name__)
KEYS = ("vocab", "unigram", "bigram", "total", "source_sha256")


@dataclass(frozen=True, eq=False)
class BigramStatistics:
    """Counts of a text, which are never changed.

    Attributes:
        vocab: the symbols; the number of one is its place.
        unigram_counts: occurrences of each symbol in the whole text, ``N`` int64.
        bigram_counts: occurrences of each pair of neighbours, ``N N`` int64: first symbol, second symbol.
        total: symbols of the text.
        source_sha256: of the bytes of the text.
    """

    vocab: tuple[str, ...]
    unigram_counts: np.ndarray
    bigram_counts: np.ndarray
    total: int
    source_sha256: str

    @cached_property
    def unigram(self) -> np.ndarray:
        """Probabilities of the symbols, ``N`` float64."""
        return self.unigram_counts / self.unigram_counts.sum()

    @cached_property
    def bigram(self) -> np.ndarray:
        """Probabilities of the second symbol given the first, ``N N`` float64.

        A symbol that nothing follows, as one that is only the last of the text, has those of :attr:`unigram`.
        """
        rows = self.bigram_counts.sum(1, keepdims=True)
        found = np.where(rows > 0, self.bigram_counts / np.maximum(rows, 1), self.unigram)
        if empty := [self.vocab[i] for i in np.flatnonzero(rows == 0)]:
            logger.warning(
                "nothing follows %s in the text: what comes after is drawn as any symbol of it",
                ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more symbols" if len(empty) > 5 else ""),
            )
        return found

    @cached_property
    def sha256(self) -> str:
        """Hash of the symbols and counts, however they came here."""
        parts = (json.dumps(self.vocab).encode(), self.unigram_counts.tobytes(), self.bigram_counts.tobytes())
        return hashlib.sha256(b"\n".join(parts)).hexdigest()


def count_bigrams(text: str, name: str = "the text") -> BigramStatistics:
    """Count the characters of a text and its adjacent pairs, of which there is one less.

    Args:
        text: any, with its line ends.
        name: for messages.

    Raises:
        ValueError: the text is empty.
    """
    if not text:
        raise ValueError(f"{name} is empty: there is nothing to count; give a text with at least one character")
    codes, tokens = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_inverse=True)
    size = len(codes)
    pairs = np.bincount(tokens[:-1] * size + tokens[1:], minlength=size * size).reshape(size, size)
    return BigramStatistics(
        vocab=tuple(map(chr, codes)),
        unigram_counts=np.bincount(tokens, minlength=size).astype(np.int64),
        bigram_counts=pairs.astype(np.int64),
        total=len(text),
        source_sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def decode(data: bytes, name: str) -> str:
    """Decode UTF-8, with every character as it is, line ends too; raise ValueError when it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {error.start + 1}); convert the file first, "
            "e.g. iconv -f latin1 -t utf-8"
        ) from None


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read a file; raise FileNotFoundError when it is not there, with what is beside it."""
    path = Path(path)
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "not there"
        beside = sorted(p.name for p in path.parent.iterdir())[:12] if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"{path} is {what}; in {path.parent}/ there are: {beside}")
    return path.read_bytes()


def count_file(path: str | os.PathLike[str]) -> BigramStatistics:
    """Count those of a text file.

    Raises:
        FileNotFoundError: it is not there; the message lists what is beside it.
        ValueError: it is empty or not UTF-8.
    """
    return count_bigrams(decode(read_bytes(path), str(path)), str(path))


def read_statistics(path: str | os.PathLike[str]) -> BigramStatistics:
    """Read a file that :func:`write_statistics` wrote.

    Raises:
        FileNotFoundError: it is not there; the message lists what is beside it.
        ValueError: it is no such file, or what it says cannot be.
    """
    path = Path(path)
    try:
        loaded = json.loads(read_bytes(path))
    except ValueError as error:  # also of UTF-8
        raise ValueError(f"{path} is not JSON ({error}); {_REMEDY}") from None
    if not isinstance(loaded, dict) or (missing := [key for key in KEYS if key not in loaded]):
        raise ValueError(f"{path} has no {missing if isinstance(loaded, dict) else list(KEYS)}; {_REMEDY}")
    try:
        return _checked(loaded)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {_REMEDY}") from None


def write_statistics(statistics: BigramStatistics, path: str | Path) -> None:
    """Write a file, which is there whole or not at all."""
    first, second = np.nonzero(statistics.bigram_counts)
    pairs = np.stack([first, second, statistics.bigram_counts[first, second]], 1).tolist()
    values = (list(statistics.vocab), statistics.unigram_counts.tolist(), pairs)
    content = dict(zip(KEYS, (*values, statistics.total, statistics.source_sha256), strict=True))
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")


_REMEDY = "make the file again with preprocessing/bigram_statistics.py TEXT --out FILE"


def _checked(loaded: dict[str, Any]) -> BigramStatistics:
    """Return what a file holds; raise ValueError where it cannot be."""
    vocab, size = loaded["vocab"], len(loaded["vocab"]) if isinstance(loaded["vocab"], list) else 0
    if not size or not all(isinstance(symbol, str) and symbol for symbol in vocab):
        raise ValueError("vocab must be a list of strings, at least one, none of them empty")
    if len(set(vocab)) < size:
        twice = next(symbol for symbol in vocab if vocab.count(symbol) > 1)
        raise ValueError(f"vocab has {twice!r} twice")
    counts = _integers(loaded["unigram"], (size,), "unigram", "one count for each symbol of vocab")
    rows = loaded["bigram"] if loaded["bigram"] != [] else np.empty((0, 3), np.int64)
    pairs = _integers(rows, (len(rows) if isinstance(rows, list) else 0, 3), "bigram", "rows [i, j, count]")
    if (pairs[:, :2] >= size).any():
        worst = pairs[(pairs[:, :2] >= size).any(1)][0].tolist()
        raise ValueError(f"the row {worst} of bigram names a symbol that is not there: vocab has {size}")
    places = pairs[:, 0] * size + pairs[:, 1]
    if len(np.unique(places)) < len(places):
        raise ValueError("bigram has two rows for one pair")
    if not isinstance(loaded["total"], int) or loaded["total"] != counts.sum() or not loaded["total"]:
        raise ValueError(f"total {loaded['total']!r} is not the sum of unigram, {counts.sum()}, of at least 1")
    table = np.zeros((size, size), np.int64)
    table[pairs[:, 0], pairs[:, 1]] = pairs[:, 2]
    return BigramStatistics(tuple(vocab), counts, table, loaded["total"], str(loaded["source_sha256"]))


def _integers(values: Any, shape: tuple[int, ...], name: str, what: str) -> np.ndarray:
    """Return counts as an array; raise ValueError where they are none."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of different length
        found = np.empty(0)
    if found.shape != shape or found.dtype.kind != "i":
        raise ValueError(f"{name} must be {what}, all of them whole numbers")
    if found.size and found.min() < 0:
        raise ValueError(f"{name} has the negative number {found.min()}")
    return found.astype(np.int64)
