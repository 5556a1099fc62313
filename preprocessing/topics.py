"""The topic language as a data folder of documents for the task bert_sop_lm with --masked-lm-only.

64 words in 8 topics of 8; each document is one sequence of 16 words of one topic. A masked word costs a model that has
learnt the topics ln 8 = 2.08 nats, and ln 64 = 4.16 nats one that guesses.
"""

import argparse
import sys

from fairseq_transnorm.data import options, topics
from fairseq_transnorm.data.tokenizers import Tokenization


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=int, default=1920, metavar="N", help="sequences of the training split (default: %(default)s)"
    )
    parser.add_argument(
        "--valid", type=int, default=512, metavar="N", help="sequences of valid, and of test (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the draw (default: %(default)s)")
    options.add_output_arguments(parser)
    args = parser.parse_args()
    args.tokenization = Tokenization("words")
    options.build_from(args, topics.corpus(args.train, args.valid, args.seed))


if __name__ == "__main__":
    sys.exit(options.run(main))
