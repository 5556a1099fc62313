"""Lines of text: reading with checks, words, and splits of one file into train, valid and test."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

SPLITS = ("train", "valid", "test")
# A word with inner apostrophes and hyphens, or a run of one punctuation mark ("--", "...").
_WORD = re.compile(r"\w+(?:['’-]\w+)*|([^\w\s])\1*")


def decode_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    r"""Decode lines of UTF-8; every run of white space becomes one space, none stays at the ends.

    Only ``\n`` ends a line, so the numbers in errors are those of an editor.

    Raises:
        ValueError: a line is not UTF-8, or holds a NUL character. The text names ``name`` and the line number.
    """
    for number, raw in enumerate(lines, start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the "
                f"line); convert the file first, e.g. iconv -f latin1 -t utf-8"
            ) from None
        if "\0" in text:
            raise ValueError(f"{name}, line {number}: a NUL character; is this a text file in UTF-8?")
        yield " ".join(text.split())


def read_lines(path: str | os.PathLike[str], keep_blank: bool = False) -> Iterator[str]:
    """Lines of a UTF-8 text file, as :func:`decode_lines` cleans them.

    Args:
        path: the file.
        keep_blank: also give the empty lines, each of which is an end-of-sentence symbol of its own for fairseq.

    Raises:
        FileNotFoundError: there is no such file; the text lists what is beside it.
        ValueError: as for :func:`decode_lines`.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*"))[:20] if path.parent.is_dir() else []
        raise FileNotFoundError(f"no file {path}; beside it: {', '.join(beside) or 'nothing'}")
    with open(path, "rb") as handle:
        for line in decode_lines(handle, str(path)):
            if line or keep_blank:
                yield line


def folder_lines(folder: Path, files: Mapping[str, str]) -> Callable[[str], Iterator[str]]:
    """Reader of the splits of a text that lie in one folder, with their empty lines.

    Args:
        folder: has the files.
        files: split -> name of its file.

    Raises:
        FileNotFoundError: a file is missing; the text lists what is there.
    """
    paths = {split: folder / file for split, file in files.items()}
    if missing := [path.name for path in paths.values() if not path.is_file()]:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; it has: {there}")
    return lambda split: read_lines(paths[split], keep_blank=True)


def documents_of(lines: Iterable[str]) -> Iterator[list[str]]:
    """Documents of a text that has one sentence a line and empty lines between documents; none is empty."""
    document: list[str] = []
    for line in lines:
        if line:
            document.append(line)
        elif document:
            yield document
            document = []
    if document:
        yield document


def chunks_of(lines: Iterable[str]) -> Iterator[str]:
    """Sentences of a text in which empty lines part them, as the Brown corpus is distributed.

    The lines of a chunk are joined; a chunk that begins with ``#`` is a comment and left out.
    """
    return (" ".join(chunk) for chunk in documents_of(lines) if not chunk[0].startswith("#"))


def document_lines(documents: Iterable[Iterable[str]]) -> Iterator[str]:
    """The sentences, which are not empty, and an empty line after each document."""
    for document in documents:
        yield from document
        yield ""


def split_words(line: str) -> list[str]:
    """Cut punctuation off: ``"No, good-night--sir!"`` is ``No`` ``,`` ``good-night`` ``--`` ``sir`` ``!``."""
    return [match.group() for match in _WORD.finditer(line)]


def ranking(names: Iterable[str], seed: int) -> list[str]:
    """Shuffle ``names`` by the SHA-256 of seed and name: the same everywhere, and stable when others are added."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def check_shares(shares: Sequence[float], total: float | None = None) -> None:
    """Check the shares of train, valid and test.

    Raises:
        ValueError: not three finite numbers above 0, or they do not sum to ``total``.
    """
    fit = len(shares) == 3 and all(math.isfinite(share) and share > 0 for share in shares)
    if not fit or (total is not None and abs(sum(shares) - total) > 1e-6):
        wanted = "such as 980,10,10" if total is None else f"that sum to {total:g}"
        raise ValueError(f"--split {','.join(f'{share:g}' for share in shares)}: give three shares above 0, {wanted}")


def share_out(count: int, shares: Sequence[float], what: str) -> dict[str, range]:
    """Cut 0 to ``count`` into train, valid and test, in this order; valid and test are rounded, train has the rest.

    Args:
        count: how many there are.
        shares: of train, valid and test; any scale.
        what: is counted, for messages.

    Raises:
        ValueError: as :func:`check_shares` does, or a split that would be empty.
    """
    check_shares(shares)
    valid, test = (round(count * share / sum(shares)) for share in shares[1:])
    train = count - valid - test
    for split, size in zip(SPLITS, (train, valid, test), strict=True):
        if size < 1:
            raise ValueError(
                f"{count:,} {what}: the {split} split would be empty; use more text or other shares (--split)"
            )
    return {"train": range(train), "valid": range(train, train + valid), "test": range(train + valid, count)}


def deal(count: int, percent: Sequence[float], block: int, seed: int, what: str = "lines") -> dict[str, set[int]]:
    """Deal ``count`` lines to valid and test in whole blocks of ``block`` lines; train has the rest.

    Args:
        count: number of lines.
        percent: shares of train, valid and test; they sum to 100.
        block: consecutive lines that stay together, so that they keep their context.
        seed: of the draw.
        what: is dealt, for messages.

    Returns:
        Split -> indices of its blocks, for valid and test. Block b holds the lines b * block to (b + 1) * block - 1.

    Raises:
        ValueError: as :func:`check_shares` does, or a split that would be empty.
    """
    check_shares(percent, total=100)
    if block < 1:
        raise ValueError(f"--block-lines {block}: at least 1")
    blocks = -(-count // block)
    sizes = [round(blocks * share / 100) for share in percent[1:]]
    for split, size in zip(SPLITS, [blocks - sum(sizes), *sizes], strict=True):
        if size < 1:
            raise ValueError(
                f"{count:,} {what} in {blocks:,} blocks of {block}: the {split} split would be empty; "
                f"use more text, other shares (--split) or smaller blocks (--block-lines)"
            )
    order = [int(name) for name in ranking(map(str, range(blocks)), seed)]
    return {"valid": set(order[: sizes[0]]), "test": set(order[sizes[0] : sum(sizes)])}
