"""How much models of formal languages look where the language's program looks: a table of their heads.

The target mass is the attention weight on the keys that the program attends to, mean over queries, then over test
sequences; the squared difference is that of the loss, from the program's matrix with rows divided by their sums. Models
that were not supervised are compared with the same program. A model that cannot be measured is named and left out; the
exit status then is 3.

  python analysis/rasp/target_mass.py --path runs/hist2_26_bos runs/hist2_26_bos_with_attns
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.language_attention import head_fits, load_language_run
from fairseq_transnorm.measure.language_runs import CHECKPOINTS, find_checkpoints
from fairseq_transnorm.plotting import at_least, format_table, run_tables, save_table

Rows = list[dict[str, Any]]


def measure(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Return a row a head, and what is wrong with the models that are left out."""
    rows, skipped = [], []
    for name, path in find_checkpoints(options.path, options.select, options.must_contain):
        try:
            run = load_language_run(path, options.device)
            of_run = {"model": name, "language": run.task.language.name}
            rows += [of_run | row for row in head_fits(run, options.sequences, options.min_length)]
        except (OSError, ValueError) as error:
            skipped.append(str(error))
    if not rows:
        raise ValueError("; ".join(skipped))
    return rows, skipped


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--path", nargs="+", type=Path, required=True, metavar="PATH", help="checkpoints, or folders of save folders")
    add("--select", choices=CHECKPOINTS, default="best", help="checkpoint of a save folder (default: %(default)s)")
    add("--must-contain", default="", metavar="TEXT", help="only save folders whose path contains TEXT")
    add("--sequences", type=at_least(1), default=60, metavar="N", help="of the test set (default: %(default)s)")
    add("--min-length", type=at_least(1), default=6, metavar="N", help="of these, in symbols (default: %(default)s)")
    add("--device", default="cpu", help="where models run: cpu, cuda, cuda:1 (default: %(default)s)")
    add("--out", default="outputs/rasp_target_mass.json", metavar="JSON", help="default: %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    quiet()

    def make() -> tuple[str, list[str]]:
        rows, skipped = measure(options)
        save_table(options.out, rows)
        return f"{format_table(rows)}\nwrote {options.out}", skipped

    return run_tables(parser.prog, make)


if __name__ == "__main__":
    sys.exit(main())
