"""Your own text as a data folder for fairseq: one UTF-8 file a split, or one file that is split here.

Each line is one sequence that ends in </s>; runs of white space become one space and empty lines are dropped. With
--documents a line is a sentence and empty lines stand between documents; one stays after each. With --chunks empty
lines stand between sentences, as in the Brown corpus; what begins with # is a comment.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fairseq_transnorm.data import options
from fairseq_transnorm.data.binarize import Corpus
from fairseq_transnorm.data.lines import SPLITS, chunks_of, deal, documents_of, read_lines


def units(path: Path, form: str) -> Iterator[list[str]]:
    """What stays together: the documents, each with the empty line after it, or the sentences."""
    lines = read_lines(path, keep_blank=form != "lines")
    if form == "documents":
        return ([*document, ""] for document in documents_of(lines))
    return ([line] for line in (chunks_of(lines) if form == "chunks" else lines))


def one_file(path: Path, percent: list[float], block: int, seed: int, form: str) -> Corpus:
    """Splits of one file, its sentences dealt in blocks or its documents one by one."""
    count = sum(1 for _ in units(path, form))
    if not count:
        raise ValueError(f"{path} is empty: it has no {form[:-1]} with text")
    dealt = deal(count, percent, block, seed, form)

    def lines(split: str) -> Iterator[str]:
        for number, unit in enumerate(units(path, form)):
            where = next((held for held in dealt if number // block in dealt[held]), "train")
            if where == split:
                yield from unit

    about = {"split_percent": percent, "block_lines": block, "seed": seed}
    return Corpus(path.name, lines, about=about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, metavar="FILE", help=f"text of the {split} split")
    parser.add_argument("--file", type=Path, metavar="FILE", help="instead: one text, which is split here")
    parser.add_argument(
        "--split",
        default="90,5,5",
        metavar="A,B,C",
        help="with --file: percent of train, valid, test (default: 90,5,5)",
    )
    parser.add_argument(
        "--split-by",
        choices=("lines", "blocks"),
        help="with --file: deal each line by itself, or blocks of lines that stay together (default: blocks); with "
        "--documents each document is dealt by itself",
    )
    parser.add_argument("--block-lines", type=int, default=100, metavar="N", help="lines of a block (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="with --file: of the split (default: %(default)s)")
    parser.add_argument(
        "--pre-split", action="store_true", help="with --tokenizer words: punctuation already stands by itself"
    )
    form = parser.add_mutually_exclusive_group()
    for name, what in (
        ("documents", "one sentence a line and empty lines between documents"),
        ("chunks", "empty lines between sentences, which may go over several lines, and comments that begin with #"),
    ):
        form.add_argument(
            f"--{name}", dest="form", action="store_const", const=name, default="lines", help=f"the text has {what}"
        )
    options.add_arguments(parser, tokenizer="sentencepiece")
    args = options.parse(parser, lambda args: "sentencepiece")
    files = {split: getattr(args, split) for split in SPLITS}
    if args.file is not None and any(files.values()):
        parser.error("give either --file or --train, --valid and --test")
    if args.file is None and not all(files.values()):
        parser.error("give --train, --valid and --test, or one --file to be split")
    if args.form == "documents" and args.split_by is not None:
        parser.error(f"--split-by {args.split_by} does not go with --documents, which are dealt one by one")
    if args.file is not None:
        block = 1 if args.form == "documents" or args.split_by == "lines" else args.block_lines
        corpus = one_file(args.file, options.shares(parser, args.split, total=100), block, args.seed, args.form)
    else:
        if len({path.resolve() for path in files.values()}) < len(files):
            parser.error("--train, --valid and --test name the same file twice")
        for path in files.values():
            next(read_lines(path), None)  # a missing file is told before any work

        def lines(split: str) -> Iterator[str]:
            return chain.from_iterable(units(files[split], args.form))

        corpus = Corpus(files["train"].name, lines, keep_text=False)
    options.build_from(args, replace(corpus, pre_split=args.pre_split, documents=args.form == "documents"))


if __name__ == "__main__":
    sys.exit(options.run(main))
