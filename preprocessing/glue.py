"""A GLUE task as a data folder for fairseq's sentence_prediction task.

Takes the official tab-separated files (https://gluebenchmark.com/tasks), unzipped. Tokenizer and dictionary are those
of the data folder that the model was pretrained on. Rows that cannot be used are counted, shown and left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from fairseq_transnorm.data import classification, glue, options
from fairseq_transnorm.data.binarize import NOTE, check
from fairseq_transnorm.data.tokenizers import Tokenization


def convert(args: argparse.Namespace, name: str, out: Path) -> None:
    """Make the folder of one task."""
    task = glue.TASKS[name]
    readers: Iterator[tuple[str, glue.Reader]]
    readers = glue.from_datasets(task) if args.from_datasets else glue.read_files(task, args.source)
    splits = {}
    for split, reader in readers:
        if reader.bad:
            options.say(reader.describe())
        splits[split] = reader.finish(args.max_bad)
    note = classification.build(
        task.task,
        splits,
        out,
        args.like,
        about={"corpus": "GLUE"},
        workers=args.workers,
        overwrite=args.overwrite,
        say=options.say,
    )
    options.print_classification(out, note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*glue.TASKS, "all"], help="all: each in a folder of its own below --out")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--source", type=Path, metavar="FOLDER", help="holds MNLI/, QNLI/ and so on, or is the folder of the one task"
    )
    source.add_argument("--from-datasets", action="store_true", help="take them from Hugging Face's datasets instead")
    parser.add_argument(
        "--max-bad",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of a split's rows that may be bad before it is refused (default: %(default)s)",
    )
    options.add_output_arguments(parser)
    options.add_like(parser, required=True)
    args = parser.parse_args()
    if not 0 <= args.max_bad <= 1:
        raise ValueError(f"--max-bad {args.max_bad:g}: a share, 0 to 1")
    tasks = {name: Path(args.out) / name for name in glue.TASKS} if args.task == "all" else {args.task: Path(args.out)}
    if args.task == "all" and not args.overwrite:  # those that an earlier call finished are kept
        tasks = {name: out for name, out in tasks.items() if not (out / NOTE).is_file()}
    for name, out in tasks.items():  # what is wrong with any of them is told before any work
        check(out, Tokenization.of(args.like), args.workers, args.overwrite)
        if args.source:
            glue.locate(glue.TASKS[name], args.source)
    for name, out in tasks.items():
        convert(args, name, out)


if __name__ == "__main__":
    sys.exit(options.run(main))
