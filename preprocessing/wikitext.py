"""WikiText-103 or WikiText-2, word level or raw, as a data folder for fairseq.

The archive (about 190 MB or 5 MB) is downloaded into the cache folder, checked and unpacked on the fly; a download that
was cut off goes on where it stopped. Empty lines are kept: each is one </s>, as in the published counts. The raw
editions hold the text as written, which is what a byte-level BPE is made for. With --paragraphs empty lines and
headings are left out, for a language model that reads each line by itself (--sample-break-mode eos).
"""

import argparse
import sys
from pathlib import Path

from fairseq_transnorm.data import options, wikitext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--name", choices=sorted(wikitext.EDITIONS), default="wikitext-103", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="PATH",
        help="folder with wiki.{train,valid,test}.tokens (raw editions: .raw), or the zip archive",
    )
    parser.add_argument("--url", help="another address of the archive")
    parser.add_argument(
        "--sha256", metavar="HEX", help="checksum of what is at --url when it is another file, or 'none'"
    )
    parser.add_argument(
        "--paragraphs", action="store_true", help="leave out empty lines and headings, which begin with ="
    )
    options.add_arguments(parser, tokenizer="words; raw editions: gpt2")
    args = options.parse(parser, lambda args: "gpt2" if wikitext.EDITIONS[args.name].raw else "words")
    if args.source and (args.url or args.sha256):
        parser.error("--source does not go with --url or --sha256")
    source = args.source
    if source is None:
        options.say(f"fetching {args.name}")
        try:
            source = wikitext.fetch(args.name, args.url, args.sha256)
        except OSError as error:
            raise OSError(f"{error}. Without a network: --source FOLDER or the zip file") from None
    options.build_from(args, wikitext.corpus(args.name, source, options.say, args.paragraphs))


if __name__ == "__main__":
    sys.exit(options.run(main))
