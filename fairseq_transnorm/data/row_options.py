"""What the command lines in preprocessing/ that read files of labelled rows have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import classification, options
from .classification import Reader, Task


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --max-bad and the options of output."""
    options.add_max_bad(parser, "of a split's rows")
    options.add_output_arguments(parser)
    options.add_like(parser, required=True)


def build(
    task: Task, readers: Iterable[tuple[str, Reader]], out: Path, args: argparse.Namespace, corpus: str
) -> dict[str, Any]:
    """Make the data folder of what was read, and print it; bad rows are shown.

    Args:
        task: what is predicted.
        readers: of each split.
        out: the folder.
        args: with the options of :func:`add_arguments`.
        corpus: for the note.

    Raises:
        ValueError: a split has too many bad rows; and as :func:`classification.build` does.
    """
    splits = {}
    for split, reader in readers:
        if reader.bad:
            options.say(reader.describe())
        splits[split] = reader.finish(args.max_bad)
    note = classification.build(
        task,
        splits,
        out,
        args.like,
        about={"corpus": corpus},
        workers=args.workers,
        overwrite=args.overwrite,
        say=options.say,
    )
    options.print_classification(out, note)
    return note
