"""One function of text for many texts, in several processes when there are enough of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

# Of text. A process needs seconds to start, since it imports fairseq, and then does a few million bytes a second.
_BYTES_PER_WORKER = 8 << 20
_CHUNK = 1 << 17  # characters sent to a process at a time

R = TypeVar("R")
Work = Callable[[list[str]], R]


@contextmanager
def mapper(
    make: Callable[..., Work[R]], args: tuple[Any, ...], workers: int, size: int
) -> Iterator[Callable[[Iterable[str]], Iterator[R]]]:
    """A function that cuts texts into chunks and gives the result of each, in their order.

    The chunks, and so the results, do not depend on the number of processes.

    Args:
        make: called in each process with ``args``, gives the function of a chunk.
        args: can be sent to a process.
        workers: upper bound on processes; with little text all is done in this one.
        size: bytes of text to come.
    """
    workers = min(workers, size // _BYTES_PER_WORKER)
    if workers < 2:
        work = make(*args)
        yield lambda texts: map(work, _chunks(texts))
        return
    # Not forked: the copy of a process with threads, such as a test or a notebook, may wait for ever on a lock.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(make, args))
    try:
        yield lambda texts: _in_order(pool, 2 * workers, texts)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, ahead: int, texts: Iterable[str]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    for chunk in _chunks(texts):
        waiting.append(pool.submit(_call, chunk))
        if len(waiting) > ahead:  # enough to keep all busy without holding the whole text
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


_work: Work[Any] | None = None  # of a worker process


def _start(make: Callable[..., Work[Any]], args: tuple[Any, ...]) -> None:
    """Make a process ready to work."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work = make(*args)


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would then wait for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _call(chunk: list[str]) -> Any:
    assert _work
    return _work(chunk)
