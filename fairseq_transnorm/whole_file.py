"""Files that are there whole or not at all, and those of an older run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path

logger = logging.getLogger(__name__)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield another name in the same folder; what was written there becomes ``path`` when the block ends well.

    A kill at any moment leaves the old file or the new one; after an error nothing is left beside it.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def set_aside(path: str | Path) -> None:
    """Rename a file of an older run, if there is one, and say so.

    It becomes ``<name>.old``, or where that is taken, ``<name>.old2``, ``<name>.old3`` and so on: nothing is lost.
    """
    path = Path(path)
    if path.is_file():
        names = (path.with_name(f"{path.name}.old{number}") for number in chain([""], count(2)))
        old = next(name for name in names if not name.exists())
        path.replace(old)
        logger.warning("a run begins at update 0; %s was there, of an older run: renamed to %s", path, old.name)
