"""Tables of runs on formal languages, from any number of save folders: all of them, and groups of one kind of model.

Folders are searched to any depth. STEM_runs.csv has a line a run: settings, results of checkpoint_best.pt on the test
set, accuracies of training and validation after epoch --at-epoch, and with --input what it makes of an input.
STEM_groups.csv has a line a language, layers, heads, width, kind of attention, positional encoding and whether the
model adds a BOS of its own: best, mean and worst of its runs, whatever their other settings and seeds; losses of the
test set and, of runs that came so far, of validation after epoch --group-epoch (the original counts that as 20, from
0). STEM.md has both to be read; there positions and BOS are columns only where runs differ in them. Accuracies are
shares of tokens, those of training with dropout; one that rounds to 1 but is below it is 1.0-. Losses are in nats,
those of the attention included. A run that did not come to its evaluation is "not evaluated" (empty in the .csv); one
that cannot be read is named and left out, and the exit status is 3.

  python analysis/rasp/summary.py checkpoints/rasp
  python analysis/rasp/summary.py runs/a runs/b --input dbbda --input ccacbb --out outputs/rasp_summary
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.language_attention import load_language_run, outputs_for
from fairseq_transnorm.measure.language_runs import CHECKPOINTS, accuracy_text, find_folders, group_rows, run_rows
from fairseq_transnorm.plotting import at_least, format_markdown, run_tables, save_csv, save_text

Rows = list[dict[str, Any]]
OUTPUT = "output of "  # a column's name, before the input
TEXT = ("id", "language", "attention", "position", "model_bos", "stop_reason")
OFTEN_SAME = ("position", "model_bos")  # columns only where runs differ


def add_outputs(rows: Rows, folders: dict[str, Path], inputs: list[str]) -> list[str]:
    """Add a column for each input with what the model makes of it; None where it is no input of the language.

    Returns:
        What is wrong with models that cannot be loaded.
    """
    failures = []
    for row in rows:
        row |= {f"{OUTPUT}{text!r}": None for text in inputs}
        try:
            run = load_language_run(folders[row["id"]] / CHECKPOINTS["best"])
        except (OSError, ValueError) as error:
            failures.append(str(error))
            continue
        row |= {f"{OUTPUT}{text!r}": outputs_for(run, text) for text in inputs}
    return failures


def shown(column: str, value: Any) -> str:
    """Return a value as a cell of a table that is to be read."""
    if value is None:
        return "not evaluated" if column.startswith("test_") else "-"
    if "accuracy" in column:
        return accuracy_text(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else plain(str(value))


def plain(text: str) -> str:
    """Return a text so that Markdown shows it as it is."""
    return re.sub(r"[\\`*<|~\[\]]", r"\\\g<0>", text)


def readable(rows: Rows, without: tuple[str, ...] = ()) -> str:
    """Return rows as a Markdown table without some columns."""
    columns = [name for name in rows[0] if name not in without]
    names = {name: plain(name if name.startswith(OUTPUT) else heading(name)) for name in columns}
    lines = [{names[name]: shown(name, row[name]) for name in columns} for row in rows]
    return format_markdown(lines, [names[name] for name in columns if name in TEXT or name.startswith(OUTPUT)])


def heading(column: str) -> str:
    return column.replace("_", " ")


def tables(rows: Rows, groups: Rows) -> str:
    """Return the text of the tables: runs by language, then groups."""
    parts = ["# Runs on formal languages"]
    same = tuple(name for name in OFTEN_SAME if len({row[name] for row in rows}) == 1)
    if same:
        told = (f"{heading(name)} {shown(name, rows[0][name])}" for name in same)
        parts.append(f"The same in all runs: {', '.join(told)}.")
    for language in dict.fromkeys(row["language"] for row in rows):
        mine = [row for row in rows if row["language"] == language]
        parts += [f"## {language}", readable(mine, ("language", *same))]
    parts += [
        "## By model",
        "Best, mean and worst of the runs of a language and kind of model, whatever their other settings and seeds.",
        readable(groups, same),
    ]
    return "\n\n".join(parts) + "\n"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="save folder, or folder with some at any depth")
    add("--must-contain", default="", metavar="TEXT", help="only save folders whose path contains TEXT")
    add("--at-epoch", type=at_least(1), default=20, metavar="N", help="of a run's accuracies (default: %(default)s)")
    add(
        "--group-epoch",
        type=at_least(1),
        default=21,
        metavar="N",
        help="of a group's validation (default: %(default)s)",
    )
    add("--input", action="append", default=[], metavar="TEXT", help="show what models make of it; several times")
    add("--out", default="outputs/rasp_summary", metavar="STEM", help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    quiet()

    def make() -> tuple[str, list[str]]:
        found = find_folders(options.folders, options.must_contain)
        rows, skipped = run_rows(found, options.at_epoch, options.group_epoch)
        failures = add_outputs(rows, dict(found), options.input) if options.input else []
        groups = group_rows(rows, options.group_epoch)
        text = tables(rows, groups)
        save_csv(f"{options.out}_runs.csv", rows)
        save_csv(f"{options.out}_groups.csv", groups)
        save_text(f"{options.out}.md", text)
        wrote = f"wrote {options.out}.md, {options.out}_runs.csv and {options.out}_groups.csv"
        return f"{text}\n{wrote}", skipped + failures

    return run_tables(parser.prog, make)


if __name__ == "__main__":
    sys.exit(main())
