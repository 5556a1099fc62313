"""The topic language: what a very deep masked language model can learn within minutes on a CPU.

Each sequence draws a topic and then uniform words of it, so that its other words tell the topic of a masked word::

    t3w1 t3w7 t3w7 t3w0 t3w5 ...

A model that has learnt this guesses one of 8 words, ln 8 = 2.08 nats; one that has not, one of 64, ln 64 = 4.16 nats.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from .binarize import Corpus
from .lines import document_lines

TOPICS = 8
WORDS = 8  # of a topic
LENGTH = 16  # words of a sequence


def sequences(count: int, seed: str) -> Iterator[str]:
    """Draw sequences; the same seed gives the same ones everywhere."""
    rng = random.Random(seed)
    for _ in range(count):
        topic = rng.randrange(TOPICS)
        yield " ".join(f"t{topic}w{rng.randrange(WORDS)}" for _ in range(LENGTH))


def corpus(train: int, valid: int, seed: int) -> Corpus:
    """Return documents of one line, a sequence each, with the empty line after a document.

    Args:
        train: sequences of the split train.
        valid: sequences of valid, and as many others of test.
        seed: of the draw.

    Raises:
        ValueError: a split would be empty.
    """
    sizes = {"train": train, "valid": valid, "test": valid}
    for option, size in (("--train", train), ("--valid", valid)):
        if size < 1:
            raise ValueError(f"{option} {size}: at least 1 sequence")

    def lines(split: str) -> Iterator[str]:
        return document_lines([sequence] for sequence in sequences(sizes[split], f"{seed}/{split}"))

    about = {"seed": seed, "topics": TOPICS, "words_of_a_topic": WORDS, "sequence_words": LENGTH}
    return Corpus("topics", lines, pre_split=True, documents=True, keep_text=False, about=about)
