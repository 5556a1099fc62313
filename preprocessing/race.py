"""RACE as a data folder for the task dslm_sentence_ranking: each question with its four options, and the article.

Takes the folder of the official archive (https://www.cs.cmu.edu/~glai1/data/race/), unpacked: train/, dev/ and test/,
each with middle/ and high/. Tokenizer and dictionary are those of the data folder that the model was pretrained on.
Questions that cannot be used are counted, shown and left out. The split valid is all of dev, valid1 its middle school,
valid2 its high school; so are test, test1 and test2.
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import options, race, row_options
from fairseq_transnorm.data.binarize import check
from fairseq_transnorm.data.tokenizers import Tokenization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="FOLDER", required=True, help="is RACE/, or holds it")
    row_options.add_arguments(parser)
    args = parser.parse_args()
    check(args.out, Tokenization.of(args.like), args.workers, args.overwrite)
    row_options.build(race.TASK, race.read_files(args.source), args.out, args, "RACE")


if __name__ == "__main__":
    sys.exit(options.run(main))
