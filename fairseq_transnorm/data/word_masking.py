"""Masked tokens of a sample: whole words and n-grams of words, up to a budget.

With words of several symbols (``##`` continues a word), and a budget of two tokens::

    sample   <s>  the  dog    ##house  is   old  </s>  it   leak  ##s  </s>
    source   <s>  the  <mask>  ##ing   is   old  </s>  it   leak  ##s  </s>
    target    .    .   dog    ##house   .    .    .    .     .     .    .     (a dot is padding: no loss there)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from fairseq.data import Dictionary

from .bert_wordpiece import SPECIAL

# Symbols that no text has: fairseq fills dictionaries with the first, BERT's vocabulary has the second.
_UNUSED = re.compile(r"madeupword\d{4}|\[unused\d+\]")


@dataclass(frozen=True)
class WordMasking:
    """How the tokens of a sample are masked.

    Attributes:
        mask: number of the symbol ``<mask>``.
        pad: number that stands in the target where there is no loss.
        special: whether a symbol is never chosen; bool ``[N]``.
        replacements: numbers of the symbols that may replace a token.
        prob: share of the tokens to choose.
        leave_prob: share of the chosen tokens that stay as they are.
        random_prob: share of the chosen tokens that become another symbol; the rest become ``<mask>``.
        max_ngram: most words that are chosen together.
    """

    mask: int
    pad: int
    special: np.ndarray
    replacements: np.ndarray
    prob: float = 0.15
    leave_prob: float = 0.1
    random_prob: float = 0.1
    max_ngram: int = 3

    def __call__(
        self, tokens: np.ndarray, begins: np.ndarray, target_length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return source and target of a sample, ``T`` each.

        Args:
            tokens: the sample with its special symbols, ``T``.
            begins: whether a token begins a word, bool ``T``; of special symbols it does not matter.
            target_length: tokens that the sample was meant to have, without special symbols; bounds the budget.
            rng: source of randomness; the result depends on nothing else.
        """
        word_of = self.words(tokens, begins)
        inside = np.flatnonzero(word_of >= 0)
        lengths = np.bincount(word_of[inside])
        covered = choose_words(lengths.tolist(), self.budget(len(tokens), target_length), self.max_ngram, rng)
        positions = inside[covered[word_of[inside]]]
        source, target = tokens.copy(), np.full_like(tokens, self.pad)
        target[positions] = tokens[positions]
        fate = rng.random(len(positions))
        source[positions[fate >= self.leave_prob + self.random_prob]] = self.mask
        replaced = positions[fate < self.random_prob]
        source[replaced] = self.replacements[rng.integers(len(self.replacements), size=len(replaced))]
        return source, target

    def budget(self, length: int, target_length: int) -> float:
        """Return how many tokens may be masked.

        It is a real number, as in the original: slightly under ``prob`` for a full sample, and below 1, so that nothing
        is masked, for a sample that was meant to have fewer than ``1 / prob`` tokens.

        Args:
            length: tokens of the sample, special symbols included.
            target_length: see :meth:`__call__`.
        """
        return min(self.prob * target_length, max(1, round(self.prob * length)))

    def words(self, tokens: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Return the number of the word that each token belongs to, ``T``; -1 for special symbols.

        What follows a special symbol begins a word: a sentence may have been cut within one.
        """
        inside = ~self.special[tokens]
        after_special = np.concatenate(([True], ~inside[:-1]))
        return np.where(inside, np.cumsum(inside & (begins | after_special)) - 1, -1)


def choose_words(lengths: Sequence[int], budget: float, max_ngram: int, rng: np.random.Generator) -> np.ndarray:
    """Choose words until the budget is used up; return which, bool ``W``.

    Words are visited in random order. At each an n-gram of words that starts there is drawn, n having weight 1/n up to
    ``max_ngram`` and to the last word. It is shortened while it has more tokens than the budget has left, and left out
    if a single word is too long or if it overlaps words chosen before.

    Args:
        lengths: tokens of each word, ``W``.
        budget: most tokens to choose.
        max_ngram: most words to choose at once.
        rng: source of randomness.
    """
    count = len(lengths)
    order = rng.permutation(count)
    weights = np.cumsum(1 / np.arange(1, max_ngram + 1))
    in_sample = np.minimum(max_ngram, count - order)  # words from here to the last, as far as they can matter
    draws = rng.random(count) * weights[in_sample - 1]
    sizes = np.minimum(1 + np.searchsorted(weights, draws, side="right"), in_sample)
    covered = np.zeros(count, dtype=bool)
    left = budget
    for start, size in zip(order.tolist(), sizes.tolist(), strict=True):
        if left < 1:
            break
        while size and sum(lengths[start : start + size]) > left:
            size -= 1
        if size and not covered[start : start + size].any():
            covered[start : start + size] = True
            left -= sum(lengths[start : start + size])
    return covered


def special_symbols(dictionary: Dictionary, mask: int) -> np.ndarray:
    """Return which symbols are never chosen, bool ``[N]``: ``<s>``, ``<pad>``, ``</s>`` and ``<mask>``.

    ``<unk>`` stands for a word of the text and may be chosen.
    """
    special = np.zeros(len(dictionary), dtype=bool)
    special[[dictionary.bos(), dictionary.pad(), dictionary.eos(), mask]] = True
    return special


def replacements(dictionary: Dictionary, mask: int) -> np.ndarray:
    """Return the numbers of the symbols that may replace a token.

    The original draws from the whole vocabulary; here without special symbols, ``<unk>`` and BERT's own included, and
    unused ones.

    Raises:
        ValueError: there is no other symbol.
    """
    own = ((i, dictionary[i]) for i in range(dictionary.nspecial, len(dictionary)) if i != mask)
    found = [i for i, symbol in own if symbol not in SPECIAL and not _UNUSED.fullmatch(symbol)]
    if not found:
        raise ValueError(
            f"the dictionary has {len(dictionary)} symbols, but no word that could replace a masked one: all are "
            "special or unused; was dict.txt made from the text?"
        )
    return np.array(found, dtype=np.int64)
