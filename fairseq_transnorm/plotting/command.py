"""The command line that all analysis files share: measure or read a table, draw, print."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .labels import labelled
from .tables import format_table, load_table, save_table


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a whole number from ``least`` on, as a type of argparse."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}")
        return int(text)

    return number


def analysis_parser(
    description: str, out: str, *, inputs: str | None = None, device: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that every analysis file has.

    Args:
        description: what the figure shows; the docstring of the file.
        out: default of ``--out``.
        inputs: what the files on the command line are, such as ``checkpoint``; None when there are none.
        device: whether there is a ``--device``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if inputs:
        parser.add_argument(
            "inputs",
            nargs="*",
            type=labelled,
            metavar=f"[LABEL=]{inputs.upper()}",
            help=f"{inputs} to measure, with its name in the figure",
        )
    parser.add_argument("--table", metavar="JSON", help="measure nothing, draw the table that an earlier run wrote")
    parser.add_argument(
        "--out", default=out, metavar="STEM", help="writes STEM.pdf, STEM.png and STEM.json (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of everything drawn at random (default: %(default)s)"
    )
    if device:
        parser.add_argument(
            "--device", default="cpu", help="where models run: cpu, cuda, cuda:1 (default: %(default)s)"
        )
    return parser


def add_sentence_options(parser: argparse.ArgumentParser, most: int) -> None:
    """Add what every analysis has that reads sentences, by default the first ``most`` of a split."""
    add = parser.add_argument
    add(
        "--text",
        metavar="FILE",
        help="one sentence a line, or as the Brown corpus; default: a split of the data folder",
    )
    add("--data", help="data folder to read, when not the one that each model was trained on")
    add("--split", default="valid", help="split to read (default: %(default)s)")
    add("--sentences", type=at_least(1), default=most, metavar="N", help="read the first N (default: %(default)s)")


def run_analysis(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    measure: Callable[[argparse.Namespace], list[dict[str, Any]]],
    draw: Callable[[Any, str, argparse.Namespace], Sequence[str] | None],
    *,
    columns: Iterable[str],
    summary: Callable[[Any, argparse.Namespace], list[dict[str, Any]]] | None = None,
    need_inputs: bool = True,
    verdict: Callable[[Any, argparse.Namespace], str | None] | None = None,
) -> int:
    """Parse, measure or load the table, draw, print a table and what was written; return the exit status.

    A wrong file or value, or a missing package, ends in one line on standard error and status 1; wrong options in
    argparse's status 2.

    Args:
        parser: of :func:`analysis_parser`, with the file's own options added.
        argv: command line; None for that of the process.
        measure: options -> rows.
        draw: rows, stem and options -> three files; knows no model. It returns the stems of its figures where there are
            several.
        columns: what ``draw`` needs of a table that is given with ``--table``.
        summary: rows and options -> the shorter rows to print; None prints all.
        need_inputs: whether there must be files on the command line or a ``--table``.
        verdict: rows and options -> what the numbers fail to show, for standard error and status 3; None when nothing.
    """
    options = parser.parse_args(argv)
    given = getattr(options, "inputs", [])
    if options.table and given:
        parser.error("give files to measure or --table, not both")
    if need_inputs and not options.table and not given:
        parser.error("nothing to measure: give at least one file, or --table with an earlier table")
    try:
        rows = load_table(options.table, columns) if options.table else measure(options)
        stems = draw(rows, options.out, options) or [options.out]
        printed = summary(rows, options) if summary else rows
        failure = verdict(rows, options) if verdict else None
    except (OSError, ValueError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    print(format_table(printed))
    print("\n".join(f"wrote {stem}.pdf, .png and .json" for stem in stems))
    if failure is not None:
        print(f"{parser.prog}: {failure}", file=sys.stderr)
    return 0 if failure is None else 3


def run_tables(prog: str, make: Callable[[], tuple[str, Sequence[str]]]) -> int:
    """Make tables and print them; return the exit status, 3 where something is left out of them, 1 for an error.

    Args:
        prog: name of the command, for messages.
        make: writes the tables; returns what to print, and what is wrong with each that is left out.
    """
    try:
        text, skipped = make()
    except (OSError, ValueError, ImportError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 1
    print(text)
    if skipped:
        print(f"{prog}: left out {len(skipped)}:\n" + "\n".join(skipped), file=sys.stderr)
    return 3 if skipped else 0


def criteria_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser for :func:`run_criteria`: a folder of runs, and ``--out``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, metavar="JSON", help="default: phenomena.json in the folder")
    return parser


def run_criteria(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    check: Callable[[argparse.Namespace], list[dict[str, Any]]],
) -> int:
    """Check, print and keep a table of criteria; return the exit status, 3 where one is missed, 1 for an error.

    Args:
        parser: of :func:`criteria_parser`, with the file's own options added.
        argv: command line; None for that of the process.
        check: options -> the lines, each with ``ok`` yes or no.
    """
    options = parser.parse_args(argv)
    try:
        rows = check(options)
    except (OSError, ValueError, LookupError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    save_table(options.out or options.folder / "phenomena.json", rows)
    print(format_table(rows))
    missed = sum(row["ok"] != "yes" for row in rows)
    if missed:
        print(f"{parser.prog}: {missed} of {len(rows)} criteria are missed", file=sys.stderr)
    return 3 if missed else 0
