"""Comedy or tragedy? Passages of Shakespeare's plays as a data folder for fairseq's sentence_prediction task.

A passage is a run of whole speeches without the speakers' names. The plays are split as preprocessing/plays.py splits
them with the same --seed and --held-out, so that a model pretrained on those never saw the plays of valid and test.
"""

import argparse
import sys

from fairseq_transnorm.data import classification, options, plays
from fairseq_transnorm.data.binarize import check
from fairseq_transnorm.data.classification import Example, Examples, Task
from fairseq_transnorm.data.folder import read_note
from fairseq_transnorm.data.lines import ranking
from fairseq_transnorm.data.tokenizers import Tokenization

TASK = Task("passages", 1, plays.PASSAGE_LABELS)


def check_split(args: argparse.Namespace) -> None:
    """Refuse a split that would test on plays of pretraining."""
    note = read_note(args.like)
    if note["corpus"] != "plays":
        options.say(f"note: {args.like} was not made from the plays, so nothing says which of them it holds")
        return
    for name, default in (("seed", None), ("held_out", 1)):
        there, here = note.get(name, default), getattr(args, name)
        if there != here:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} {here}, but {args.like} was made with {flag} {there}: pretraining would have seen plays that "
                f"are held out here; give {flag} {there}"
            )


def draw(passages: list[tuple[str, str]], count: int, seed: int) -> list[tuple[str, str]]:
    """Draw ``count`` passages of each label; a larger draw holds a smaller one."""
    chosen: set[str] = set()
    for label in plays.PASSAGE_LABELS:
        texts = [text for text, genre in passages if genre == label]
        if not 1 <= count <= len(texts):
            raise ValueError(f"--per-label {count}: 1 to {len(texts)}, for there are so many of {label} to train on")
        chosen.update(ranking(texts, seed)[:count])
    return [(text, genre) for text, genre in passages if text in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_play_arguments(parser)
    parser.add_argument(
        "--words", type=int, default=100, metavar="N", help="least words of a passage (default: %(default)s)"
    )
    parser.add_argument(
        "--per-label", type=int, metavar="N", help="train: N passages of each label, drawn at random (default: all)"
    )
    parser.add_argument(
        "--draw-seed", type=int, default=1, metavar="N", help="which ones --per-label draws (default: %(default)s)"
    )
    options.add_output_arguments(parser)
    options.add_like(parser, required=True)
    args = parser.parse_args()
    check(args.out, Tokenization.of(args.like), args.workers, args.overwrite)
    check_split(args)
    texts = plays.fetch(args.source, options.say)
    found, rows = plays.passages(texts, args.seed, args.held_out, args.words)
    if args.per_label is not None:
        found["train"] = draw(found["train"], args.per_label, args.draw_seed)
    splits = {split: Examples([Example((text,), genre) for text, genre in pairs]) for split, pairs in found.items()}
    about = {"corpus": "plays", "seed": args.seed, "held_out": args.held_out, "words": args.words}
    about |= {"per_label": args.per_label, "draw_seed": args.per_label and args.draw_seed, "plays": rows}
    note = classification.build(
        TASK,
        splits,
        args.out,
        args.like,
        about=about,
        workers=args.workers,
        overwrite=args.overwrite,
        say=options.say,
    )
    options.print_classification(args.out, note)


if __name__ == "__main__":
    sys.exit(options.run(main))
