"""Encoding of many lines, in several processes when there are enough of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from . import tokenizers
from .parallel import Work, mapper

Encoded = tuple[list[str], Counter[str]]  # the symbols of each line; how often each symbol occurs in all of them


@contextmanager
def encoder(kind: str, folder: Path, pre_split: bool, workers: int, size: int) -> Iterator[Encoder]:
    """An encoder of lines that uses up to ``workers`` processes; what it makes does not depend on their number.

    Args:
        kind: of tokenisation.
        folder: has the tokeniser's model.
        pre_split: see :func:`tokenizers.load`.
        workers: upper bound on processes; with little text all is done in this one.
        size: bytes of text to come.
    """
    with mapper(_chunk_encoder, (kind, folder, pre_split), workers, size) as encode:
        yield Encoder(encode)


class Encoder:
    """See :func:`encoder`.

    Attributes:
        lines: encodes lines in chunks, in their order.
    """

    def __init__(self, lines: Callable[[Iterable[str]], Iterator[Encoded]]) -> None:
        self.lines = lines

    def file(self, source: Path, dest: Path) -> Counter[str]:
        """Write the symbols of every line of a file, empty lines included, and count them."""
        counts = Counter[str]()
        with (
            open(source, encoding="utf-8", newline="\n") as lines,
            open(dest, "w", encoding="utf-8", newline="\n") as handle,
            tqdm(desc=dest.name, unit=" lines", disable=None, leave=False) as bar,
        ):
            for symbols, found in self.lines(line.rstrip("\n") for line in lines):
                counts.update(found)
                handle.writelines(line + "\n" for line in symbols)
                bar.update(len(symbols))
        return counts


def _chunk_encoder(kind: str, folder: Path, pre_split: bool) -> Work[Encoded]:
    encode = tokenizers.load(kind, folder, pre_split)

    def work(chunk: list[str]) -> Encoded:
        symbols = [encode(line) for line in chunk]
        return symbols, Counter(symbol for line in symbols for symbol in line.split())

    return work
