"""A GLUE task as a data folder for fairseq's sentence_prediction task, or with --dslm for dslm_sentence_prediction.

Takes the official tab-separated files (https://gluebenchmark.com/tasks), unzipped. Tokenizer and dictionary are those
of the data folder that the model was pretrained on. Rows that cannot be used are counted, shown and left out.
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import glue, options, row_options
from fairseq_transnorm.data.binarize import NOTE, check
from fairseq_transnorm.data.tokenizers import Tokenization


def convert(args: argparse.Namespace, task: glue.Glue, out: Path) -> None:
    """Make the folder of one task."""
    readers = glue.from_datasets(task) if args.from_datasets else glue.read_files(task, args.source)
    row_options.build(task.task, readers, out, args, "GLUE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*glue.TASKS, "all"], help="all: each in a folder of its own below --out")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--source", type=Path, metavar="FOLDER", help="holds MNLI/, QNLI/ and so on, or is the folder of the one task"
    )
    source.add_argument("--from-datasets", action="store_true", help="take them from Hugging Face's datasets instead")
    parser.add_argument(
        "--dslm",
        action="store_true",
        help="for DeepScaleLM: BERT's cleaning of text, pairs joined by one </s> with segments (task "
        "dslm_sentence_prediction), MNLI's classes in the order contradiction, entailment, neutral",
    )
    row_options.add_arguments(parser)
    args = parser.parse_args()
    names = list(glue.TASKS) if args.task == "all" else [args.task]
    tasks = {Path(args.out) / name if args.task == "all" else Path(args.out): glue.TASKS[name] for name in names}
    if args.dslm:
        tasks = {out: glue.for_bert(task) for out, task in tasks.items()}
    if args.task == "all" and not args.overwrite:  # those that an earlier call finished are kept
        tasks = {out: task for out, task in tasks.items() if not (out / NOTE).is_file()}
    for out, task in tasks.items():  # what is wrong with any of them is told before any work
        check(out, Tokenization.of(args.like), args.workers, args.overwrite)
        if args.source:
            glue.locate(task, args.source)
    for out, task in tasks.items():
        convert(args, task, out)


if __name__ == "__main__":
    sys.exit(options.run(main))
