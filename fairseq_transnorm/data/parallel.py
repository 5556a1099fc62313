"""Work in several processes, and one function of text for many texts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
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
    with processes(workers, _prepare, (make, args)) as pool:
        yield lambda texts: _in_order(pool, 2 * workers, texts)


@contextmanager
def processes(count: int, prepare: Callable[..., None], args: tuple[Any, ...] = ()) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that stop at once when the block raises, and when this process ends in whatever way.

    Args:
        count: of processes.
        prepare: called in each with ``args`` before its first task; both can be sent to a process.
        args: see there.
    """
    # Not forked: the copy of a process with threads, such as a test or a notebook, may wait for ever on a lock.
    fresh = multiprocessing.get_context("spawn")
    reader, writer = fresh.Pipe(duplex=False)
    with reader, writer:
        pool = ProcessPoolExecutor(count, fresh, initializer=_start, initargs=(reader, prepare, args))
        try:
            yield pool
        except BaseException:  # also an interrupt
            writer.close()
            raise
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


def _prepare(make: Callable[..., Work[Any]], args: tuple[Any, ...]) -> None:
    """Make a process ready to work on text."""
    global _work
    _work = make(*args)


def _start(parent: Connection, prepare: Callable[..., None], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    prepare(*args)


def _end_with(parent: Connection) -> None:
    """End this process when the other end is closed, be it by a kill: nobody else would tell a busy worker."""
    parent.poll(None)
    os._exit(1)


def _call(chunk: list[str]) -> Any:
    assert _work
    return _work(chunk)
