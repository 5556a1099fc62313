"""Single sentences of eight plays of Shakespeare: a small corpus for language models that read one sentence at a time.

The text of the plays with its headings and speakers, but without what stands in square brackets, is cut after ``.``,
``?`` and ``!``; a sentence is a list of lower-case words and punctuation marks, everything else is dropped::

    how is't , my noble lord ?
    the <unk> of your story put heaviness in me .

It is no corpus to judge a language model by: sentences of one scene lie in all splits.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping

from .binarize import Corpus
from .lines import SPLITS

SLUGS = ("hamlet", "macbeth", "lear", "othello", "romeo_and_juliet", "julius_caesar", "tempest", "merchant_of_venice")
LENGTHS = range(3, 31)  # of a sentence, in tokens
_DIRECTION = re.compile(r"\[[^\]]*\]")
_END = re.compile(r"(?<=[.?!])\s+")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[,;:.?!]")


def sentences(texts: Mapping[str, str]) -> Iterator[list[str]]:
    """Sentences of the plays in ``SLUGS``, in order, as lists of tokens; those of other ``LENGTHS`` are left out.

    Args:
        texts: slug -> text, from :func:`fairseq_transnorm.data.plays.read_texts`.
    """
    for slug in SLUGS:
        for part in _END.split(_DIRECTION.sub("", texts[slug]).replace("\n", " ")):
            tokens = _TOKEN.findall(part.lower())
            if len(tokens) in LENGTHS:
                yield tokens


def corpus(texts: Mapping[str, str], train: int, held_out: int, words: int, seed: int) -> Corpus:
    """Shuffled sentences, in which all but the most frequent words of the train split are ``<unk>``.

    Args:
        texts: as for :func:`sentences`.
        train: sentences of the train split.
        held_out: sentences of valid, and as many others of test.
        words: that are kept; of equally frequent ones the first in the alphabet.
        seed: of the shuffle.

    Raises:
        ValueError: a split would be empty, there are too few sentences, or ``words`` is below 1.
    """
    for option, value in (("--train", train), ("--held-out", held_out), ("--words", words)):
        if value < 1:
            raise ValueError(f"{option} {value}: at least 1")
    found = list(sentences(texts))
    if train + 2 * held_out > len(found):
        raise ValueError(
            f"--train {train} and twice --held-out {held_out} are more than the {len(found):,} sentences that there are"
        )
    random.Random(seed).shuffle(found)
    bounds = (0, train, train + held_out, train + 2 * held_out)
    splits = {split: found[bounds[i] : bounds[i + 1]] for i, split in enumerate(SPLITS)}
    counts = Counter(token for sentence in splits["train"] for token in sentence)
    kept = set(sorted(counts, key=lambda token: (-counts[token], token))[:words])

    def lines(split: str) -> Iterator[str]:
        return (" ".join(token if token in kept else "<unk>" for token in sentence) for sentence in splits[split])

    about = {"seed": seed, "train_sentences": train, "held_out": held_out, "words": words}
    return Corpus("play-sentences", lines, pre_split=True, about=about)
