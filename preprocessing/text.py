"""Your own text as a data folder for fairseq: one UTF-8 file a split, or one file that is split here.

Each line is one sequence that ends in </s>; runs of white space become one space and empty lines are dropped.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from fairseq_transnorm.data import options
from fairseq_transnorm.data.binarize import Corpus
from fairseq_transnorm.data.lines import SPLITS, deal, read_lines


def one_file(path: Path, percent: list[float], block: int, seed: int) -> Corpus:
    """Splits of one file, its lines dealt in blocks."""
    count = sum(1 for _ in read_lines(path))
    if not count:
        raise ValueError(f"{path} is empty: it has no line with text")
    dealt = deal(count, percent, block, seed)

    def lines(split: str) -> Iterator[str]:
        for number, line in enumerate(read_lines(path)):
            where = next((held for held in dealt if number // block in dealt[held]), "train")
            if where == split:
                yield line

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
        default="blocks",
        help="with --file: deal each line by itself, or blocks of lines that stay together (default: %(default)s)",
    )
    parser.add_argument("--block-lines", type=int, default=100, metavar="N", help="lines of a block (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="with --file: of the split (default: %(default)s)")
    parser.add_argument(
        "--pre-split", action="store_true", help="with --tokenizer words: punctuation already stands by itself"
    )
    options.add_arguments(parser, tokenizer="sentencepiece")
    args = options.parse(parser, lambda args: "sentencepiece")
    files = {split: getattr(args, split) for split in SPLITS}
    if args.file is not None and any(files.values()):
        parser.error("give either --file or --train, --valid and --test")
    if args.file is None and not all(files.values()):
        parser.error("give --train, --valid and --test, or one --file to be split")
    if args.file is not None:
        try:
            percent = [float(share) for share in args.split.split(",")]
        except ValueError:
            parser.error(f"--split {args.split}: three numbers such as 90,5,5")
        corpus = one_file(args.file, percent, args.block_lines if args.split_by == "blocks" else 1, args.seed)
    else:
        if len({path.resolve() for path in files.values()}) < len(files):
            parser.error("--train, --valid and --test name the same file twice")
        for path in files.values():
            next(read_lines(path), None)  # a missing file is told before any work
        corpus = Corpus(files["train"].name, lambda split: read_lines(files[split]), keep_text=False)
    options.build_from(args, replace(corpus, pre_split=args.pre_split))


if __name__ == "__main__":
    sys.exit(options.run(main))
