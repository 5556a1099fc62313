"""Sequences of formal languages: each follows from its number alone, whoever draws it and after whatever else.

Number i of a split is drawn with Python's own generator, seeded with i plus the sizes of the splits before it. All
draws are those of ``randint``, ``choice`` and ``random``, so that the sequences are those of the original code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

SPLITS = ("train", "valid", "test")


class Sampler(Protocol):
    """Draws sequences."""

    def draw(self, rng: Random, index: int, low: int, high: int) -> str:
        """Return sequence ``index``, whose length is drawn from ``low`` to ``high``, with a generator seeded so."""

    def longest(self, high: int) -> int:
        """Return the greatest length there can be."""


@dataclass(frozen=True)
class UniformSampler:
    """A length, then as many symbols, all equally likely."""

    alphabet: str

    def draw(self, rng: Random, index: int, low: int, high: int) -> str:
        """Return a sequence; see :class:`Sampler`."""
        choice, alphabet = rng.choice, self.alphabet
        return "".join([choice(alphabet) for _ in range(rng.randint(low, high))])

    def longest(self, high: int) -> int:
        """Return the greatest length there can be."""
        return high


@dataclass(frozen=True)
class DyckSampler:
    """By turns a balanced sequence of brackets, a prefix of one with random symbols after it, and random symbols.

    Args:
        alphabet: of the random symbols.
        pairs: opener and closer of each kind of brackets.
        neutrals: symbols that may stand anywhere.
    """

    alphabet: str
    pairs: tuple[str, ...]
    neutrals: str

    def draw(self, rng: Random, index: int, low: int, high: int) -> str:
        """Return a sequence; see :class:`Sampler`."""
        kind = index % 3
        if kind == 2:
            return UniformSampler(self.alphabet).draw(rng, index, low, high)
        text = self.balanced(rng, rng.randint(low, high))
        if kind == 1:
            kept = rng.choice(range(len(text) + 1))
            text = text[:kept] + "".join([rng.choice(self.alphabet) for _ in range(len(text) - kept)])
        return text

    def balanced(self, rng: Random, length: int) -> str:
        """Return a balanced sequence of this length, or of one more, made by insertions at random places."""
        choice, random, pairs, neutrals = rng.choice, rng.random, self.pairs, self.neutrals
        text = ""
        while len(text) < length:
            place = choice(range(len(text) + 1))
            text = text[:place] + choice(neutrals if random() < 0.3 else pairs) + text[place:]
        return text

    def longest(self, high: int) -> int:
        """Return the greatest length there can be."""
        return high + 1


@dataclass(frozen=True)
class Samples:
    """Which sequences there are.

    Attributes:
        min_length, max_length: symbols of a sequence, ``BOS`` not counted; a balanced one may have one more.
        train_size, valid_size, test_size: sequences of the splits; those of the next split follow.
        tiny, crop_train, crop_all: keep no more than so many of train, of train, of each split; 0 for all. The numbers
            of those that are kept, and of other splits, stay.
        overfit: the first of train is the only sequence of all three splits.

    Raises:
        ValueError: a number makes no sense; the message has it as an option.
    """

    min_length: int = 1
    max_length: int = 100
    train_size: int = 50_000
    valid_size: int = 1_000
    test_size: int = 1_000
    tiny: int = 0
    crop_train: int = 0
    crop_all: int = 0
    overfit: bool = False

    def __post_init__(self) -> None:
        for name in ("min_length", "train_size", "valid_size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: at least 1")
        for name in ("tiny", "crop_train", "crop_all"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: 1 or more, or 0 for all")
        if self.max_length < self.min_length:
            raise ValueError(f"--max-length {self.max_length} is less than --min-length {self.min_length}")

    def indices(self, split: str) -> range:
        """Return the numbers of the sequences of a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
        if self.overfit:
            return range(1)
        sizes = (self.train_size, self.valid_size, self.test_size)
        number = SPLITS.index(split)
        first, count = sum(sizes[:number]), sizes[number]
        crops = (self.crop_all, self.tiny, self.crop_train) if split == "train" else (self.crop_all,)
        return range(first, first + min([count, *filter(None, crops)]))

    def draw(self, sampler: Sampler, split: str, only: Iterable[int] | None = None) -> list[str]:
        """Return the sequences of a split, or ``only`` those with these numbers."""
        rng = Random()
        texts = []
        for index in self.indices(split) if only is None else only:
            rng.seed(index)
            texts.append(sampler.draw(rng, index, self.min_length, self.max_length))
        return texts
