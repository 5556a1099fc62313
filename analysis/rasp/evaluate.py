"""Evaluate models of formal languages: loss and accuracy on train, valid and test, as at the end of a training.

Give checkpoints, save folders or folders of these, which are searched to any depth. Losses are in nats, accuracies
shares: of tokens over the whole split, their mean over batches, and of sequences without a mistake; all in evaluation
mode. With --write, results.json and training_prints.txt of the save folders tell the same, as after a training with
python -m fairseq_transnorm.train_rasp. A model that cannot be read is named and left out; the exit status then is 3.

  python analysis/rasp/evaluate.py --path checkpoints/rasp --splits test
  python analysis/rasp/evaluate.py --path runs/a runs/b/checkpoint_last.pt --out outputs/rasp_evaluate
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from fairseq_transnorm.measure.checkpoints import check_device, load_run
from fairseq_transnorm.measure.commands import quiet
from fairseq_transnorm.measure.epoch_log import METRICS, SPLITS
from fairseq_transnorm.measure.language_accuracy import evaluate, write_evaluation
from fairseq_transnorm.measure.language_runs import CHECKPOINTS, find_checkpoints
from fairseq_transnorm.plotting import format_table, run_tables, save_csv, save_table

Rows = list[dict[str, Any]]


def measure(options: argparse.Namespace) -> tuple[Rows, list[str]]:
    """Return a row a model and split, and what is wrong with models that are left out."""
    rows, skipped = [], []
    for name, path in find_checkpoints(options.path, options.select):
        try:
            run = load_run(path, device=options.device)
            evaluated = evaluate(run, options.splits)
            if options.write:
                write_evaluation(run, evaluated)
        except (OSError, ValueError) as error:
            skipped.append(str(error))
            continue
        common = {"model": name, "language": run.task.language.name, "checkpoint": str(path), "updates": run.updates}
        for split in options.splits:
            rows.append(common | {"split": split} | {metric: evaluated[split][metric] for metric in METRICS})
    if not rows:
        raise ValueError("no model can be evaluated: " + "; ".join(skipped))
    return rows, skipped


def splits(text: str) -> list[str]:
    """Read the names of splits, with commas between them."""
    names = text.split(",")
    if unknown := [name for name in names if name not in SPLITS]:
        raise argparse.ArgumentTypeError(f"no split {', '.join(map(repr, unknown))}; there are {','.join(SPLITS)}")
    return list(dict.fromkeys(names))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--path", nargs="+", type=Path, required=True, metavar="PATH", help="checkpoints, or folders of save folders")
    add("--select", choices=sorted(CHECKPOINTS), default="best", help="checkpoint of a folder (default: %(default)s)")
    add("--splits", type=splits, default=",".join(SPLITS), metavar="NAME[,NAME]", help="default: %(default)s")
    add("--write", action="store_true", help="also into the save folders; takes --select best and all splits")
    add(
        "--out",
        default="outputs/rasp_evaluate",
        metavar="STEM",
        help="writes STEM.json and .csv (default: %(default)s)",
    )
    add("--device", default="cpu", help="where models run: cpu, cuda, cuda:1 (default: %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(argv)
    if options.write and (set(options.splits) < set(SPLITS) or options.select != "best" or any_file(options.path)):
        parser.error("--write is for save folders, with --select best and all splits")
    quiet()

    def make() -> tuple[str, list[str]]:
        check_device(options.device)
        rows, skipped = measure(options)
        save_table(f"{options.out}.json", rows)
        save_csv(f"{options.out}.csv", rows)
        lines = [{name: row[name] for name in row if name != "checkpoint"} for row in rows]
        return f"{format_table(lines, digits=6)}\nwrote {options.out}.json and .csv", skipped

    return run_tables(parser.prog, make)


def any_file(paths: list[Path]) -> bool:
    return any(path.is_file() for path in paths)


if __name__ == "__main__":
    sys.exit(main())
