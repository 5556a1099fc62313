"""The Penn Treebank of language models as a data folder for fairseq: one sentence a line, 10,000 words.

The three files (6 MB) are downloaded into the cache folder and checked; a download that was cut off goes on where it
stopped. <unk> in the text is fairseq's unknown symbol. The text is under the licence of the Linguistic Data Consortium.
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import options, penn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--source", type=Path, metavar="FOLDER", help="has ptb.{train,valid,test}.txt, or {train,valid,test}.txt"
    )
    where.add_argument("--url", help="address of another folder with the same ptb.{train,valid,test}.txt")
    options.add_arguments(parser, tokenizer="words")
    args = options.parse(parser, lambda args: "words")
    source = args.source
    if source is None:
        options.say(f"fetching the {penn.NAME}")
        try:
            source = penn.fetch(args.url)
        except OSError as error:
            raise OSError(f"{error}. Without a network: --source FOLDER with the three files") from None
    options.build_from(args, penn.corpus(source, options.say))


if __name__ == "__main__":
    sys.exit(options.run(main))
