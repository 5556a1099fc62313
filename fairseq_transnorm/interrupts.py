"""Interrupts from the keyboard (SIGINT), held back while they would do harm."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType

COMMAND = "fairseq_transnorm.train_rasp"  # an entry point that takes interrupts itself


@contextmanager
def held() -> Iterator[None]:
    """Let an interrupt wait until the block ends; one that is ignored is ignored still.

    A ``KeyboardInterrupt`` in the midst of ``torch.save`` can become another error, after which fairseq tries again as
    if nothing had been asked of it.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    came: list[FrameType | None] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(signal.SIGINT, came[0])


class Interrupts:
    """What an entry point does with interrupts: it notes the first one, and ends with status 130 at a second one.

    To be the handler from the first import on: torch and fairseq take seconds to import, and nothing of them should end
    halfway. As soon as there is something to do (``raising``), an interrupt raises ``KeyboardInterrupt``.

    Attributes:
        count: those that came.
        raising: whether they raise ``KeyboardInterrupt``.
    """

    def __init__(self) -> None:
        self.count = 0
        self.raising = False
        self.process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Take an interrupt; the processes that load data leave it to this one."""
        if os.getpid() != self.process:
            return
        self.count += 1
        if self.raising:
            raise KeyboardInterrupt
        if self.count > 1:
            os._exit(128 + signal.SIGINT)
        os.write(2, b"interrupted: ends as soon as everything is loaded, or at once if interrupted again\n")

    def again(self) -> None:
        """Raise what an interrupt raised and somebody swallowed: Python does so in finalisers and weak references."""
        if self.raising and self.count:
            raise KeyboardInterrupt

    def take(self) -> None:
        """Become the handler, where interrupts are not ignored, as those of a shell's background."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self)


interrupts = Interrupts()


def take_early() -> None:
    """Take interrupts from now on where this process was started as ``python -m fairseq_transnorm.train_rasp``."""
    if ("-m", COMMAND) in pairwise(sys.orig_argv):
        interrupts.take()


def end() -> None:
    """Let nothing but its own status decide how a process ends that took interrupts.

    Python notes a ``KeyboardInterrupt`` that leaves ``exec`` or ``eval`` of a text, as there are many in libraries, and
    ends ``python -m`` as killed by it, even where it was caught; the next text makes it forget.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exec("")
