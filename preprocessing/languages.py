"""Formal languages of the task rasp_lang: their names, and samples of one of them as a model sees them.

python preprocessing/languages.py list sort
python preprocessing/languages.py peek --language sort_26_bos_with_attns --split valid 0 3
"""

import argparse
import sys
from dataclasses import fields

import torch

from fairseq_transnorm.data import languages, options
from fairseq_transnorm.data.language_samples import SPLITS, Samples
from fairseq_transnorm.data.languages import Language, visible

SHORT = 20  # tokens from which on an input is too long for its matrices to be shown
NUMBERS = [field for field in fields(Samples) if field.name.endswith(("_length", "_size"))]


def show_list(text: str) -> None:
    """Print the languages whose names contain ``text``.

    Raises:
        ValueError: there are none.
    """
    found = [language for language in languages.every() if text in language.name]
    if not found:
        raise ValueError(f"no language's name contains {text!r}; leave it out to see all")
    width = max(len(language.name) for language in found)
    print(f"{'language':{width}}  symbols  classes  BOS  target matrices (layer,head)  needs")
    for language in found:
        heads = " ".join(f"{layer},{head}" for layer, head in language.program_heads) if language.supervised else ""
        needs = f"{_count(language.needs[0], 'layer')}, {_count(language.needs[1], 'head')}" if heads else ""
        print(
            f"{language.name:{width}}  {len(language.alphabet):7}  {len(language.classes):7}  "
            f"{'yes' if language.bos else 'no':3}  {heads:28}  {needs}".rstrip()
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def peek(language: Language, samples: Samples, split: str, start: int, stop: int) -> None:
    """Print the samples ``start`` to ``stop - 1`` of a split.

    Raises:
        ValueError: there are no such samples.
    """
    indices = samples.indices(split)
    if not 0 <= start < stop <= len(indices):
        raise ValueError(
            f"{split} has the samples 0 to {len(indices) - 1}, not {start} up to {stop}; give the first and the one "
            "after the last"
        )
    for number, text in enumerate(samples.draw(language.sampler, split, indices[start:stop]), start):
        tokens = torch.tensor([language.encode(text)])
        print(f"{split} {number}, index {indices[number]}, {_count(tokens.shape[1], 'token')}")
        rows = [list(map(visible, row)) for row in (language.with_bos(text), language.outputs(text))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, row in zip(("input ", "target"), rows, strict=True):
            print(f"  {name}  " + " ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        if language.supervised and tokens.shape[1] < SHORT:
            targets = language.attention_targets(tokens, torch.tensor([tokens.shape[1]]))[0].int().tolist()
            for (layer, head), matrix in zip(language.program_heads, targets, strict=True):
                print(f"  layer {layer}, head {head}")
                for line in matrix:
                    print("    " + " ".join(map(str, line)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|peek")
    listing = commands.add_parser("list", help="names, sizes and target matrices of the languages")
    listing.add_argument("text", nargs="?", default="", metavar="TEXT", help="show only names that contain it")
    peeking = commands.add_parser("peek", help="samples: input, target and, of less than 20 tokens, target matrices")
    peeking.add_argument("start", type=int, help="number of the first sample, from 0")
    peeking.add_argument("stop", type=int, help="number after the last")
    peeking.add_argument("--language", required=True, metavar="NAME", help="see list")
    peeking.add_argument("--split", choices=SPLITS, default="train", help="(default: %(default)s)")
    for number in NUMBERS:
        option = f"--{number.name.replace('_', '-')}"
        peeking.add_argument(option, type=int, default=number.default, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.command == "list":
        show_list(args.text)
        return
    samples = Samples(**{number.name: getattr(args, number.name) for number in NUMBERS})
    peek(languages.get(args.language), samples, args.split, args.start, args.stop)


if __name__ == "__main__":
    sys.exit(options.run(main))
