"""Encoding of many lines, in several processes when there are enough of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from . import tokenizers

# Of text. A process needs seconds to start, since it imports fairseq, and then encodes a few million bytes a second.
_BYTES_PER_WORKER = 8 << 20
_CHUNK = 1 << 17  # characters sent to a process at a time

Encode = Callable[[str], str]
Chunk = list[str]
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
    workers = min(workers, size // _BYTES_PER_WORKER)
    if workers < 2:
        yield Encoder(tokenizers.load(kind, folder, pre_split))
        return
    # Not forked: the copy of a process with threads, such as a test or a notebook, may wait for ever on a lock.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(kind, folder, pre_split)
    )
    try:
        yield Encoder(None, pool, workers)
    finally:
        pool.shutdown(cancel_futures=True)


class Encoder:
    """See :func:`encoder`."""

    def __init__(self, encode: Encode | None, pool: ProcessPoolExecutor | None = None, workers: int = 1):
        self._encode, self._pool, self._workers = encode, pool, workers

    def lines(self, lines: Iterable[str]) -> Iterator[Encoded]:
        """Encode lines in chunks, in their order."""
        if self._pool is None:
            assert self._encode
            for chunk in _chunks(lines):
                yield _encode_chunk(self._encode, chunk)
            return
        waiting: deque[Future[Encoded]] = deque()
        for chunk in _chunks(lines):
            waiting.append(self._pool.submit(_work, chunk))
            if len(waiting) > 2 * self._workers:  # enough to keep all busy without holding the whole text
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

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


def _chunks(lines: Iterable[str]) -> Iterator[Chunk]:
    chunk: Chunk = []
    size = 0
    for line in lines:
        chunk.append(line)
        size += len(line) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode_chunk(encode: Encode, chunk: Chunk) -> Encoded:
    symbols = [encode(line) for line in chunk]
    return symbols, Counter(symbol for line in symbols for symbol in line.split())


_encode: Encode | None = None  # of a worker process


def _start(kind: str, folder: Path, pre_split: bool) -> None:
    """Make a process ready to encode."""
    global _encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _encode = tokenizers.load(kind, folder, pre_split)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would then wait for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _work(chunk: Chunk) -> Encoded:
    assert _encode
    return _encode_chunk(_encode, chunk)
