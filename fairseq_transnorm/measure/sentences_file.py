"""Sentences of a text file for measures that read plain text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..data.lines import chunks_of, read_lines


def read_sentences(path: str | Path, limit: int | None = None) -> list[str]:
    """Return the first ``limit`` sentences of a file, all without a limit, with single spaces.

    A file without blank lines, except at its ends, has one sentence a line. With blank lines it is read as the Brown
    corpus is distributed: they separate the sentences, which may go over several lines, and a chunk that begins with
    ``#`` is a comment.

    Raises:
        FileNotFoundError: there is no such file; the message lists what is beside it.
        ValueError: it is not UTF-8, it has no sentences, or ``limit`` is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"asked for {limit} sentences of {path}; ask for at least 1")
    lines = list(read_lines(path, keep_blank=True))
    while lines and not lines[-1]:
        lines.pop()
    start = next((number for number, line in enumerate(lines) if line), 0)
    found = list(islice(_sentences(lines[start:]), limit))
    if not found:
        raise ValueError(f"{path} holds no sentences: it is empty, or has nothing but comments")
    return found


def _sentences(lines: list[str]) -> Iterator[str]:
    return chunks_of(lines) if "" in lines else iter(lines)
