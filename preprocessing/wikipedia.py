"""Wikipedia as a data folder for fairseq: documents of sentences, for pretraining a BERT with sentence order.

The articles come as JSON lines, {"text": ..., "title": ...}, one article a line, as any extractor of dumps writes
them, or from Hugging Face's datasets. They are split in their order and cut into sentences; an empty line ends each.
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import options, sentences, wikipedia


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--source",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="files of JSON lines, also .gz or .bz2, or folders of such files",
    )
    where.add_argument(
        "--from-datasets",
        nargs=2,
        metavar=("NAME", "CONFIG"),
        help="of Hugging Face, such as wikimedia/wikipedia 20231101.en (needs the extra data)",
    )
    parser.add_argument(
        "--split",
        default="980,10,10",
        metavar="A,B,C",
        help="shares of train, valid, test, which are the first, next and last articles (default: 980,10,10)",
    )
    options.add_sentences(parser, "english")
    options.add_max_bad(parser, "share of the articles")
    options.add_arguments(parser, tokenizer="wordpiece")
    args = options.parse(parser, lambda args: "wordpiece")
    shares = options.shares(parser, args.split)
    sentences.check(args.sentences)
    if args.source:
        source = wikipedia.from_files(args.source)
    else:
        options.say(f"loading {' '.join(args.from_datasets)}")
        source = wikipedia.from_datasets(*args.from_datasets)
    corpus = wikipedia.corpus(
        source, shares, args.sentences, max_bad=args.max_bad, workers=args.workers, say=options.say
    )
    options.build_from(args, corpus)


if __name__ == "__main__":
    sys.exit(options.run(main))
