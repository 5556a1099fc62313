"""Made-up batches for masked language models with sentence order, where no text is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary

from .word_masking import WordMasking, replacements, special_symbols

VOCABULARY = 30522
"""Symbols of BERT's vocabulary."""


def made_up_dictionary(symbols: int = VOCABULARY) -> Dictionary:
    """Return a dictionary of ``symbols`` entries, fairseq's special ones and ``<mask>`` (the last) among them.

    Raises:
        ValueError: there is no room for a word.
    """
    dictionary = Dictionary()
    if symbols < dictionary.nspecial + 2:
        raise ValueError(f"a dictionary of {symbols} symbols: at least {dictionary.nspecial + 2}")
    for number in range(symbols - dictionary.nspecial - 1):
        dictionary.add_symbol(f"w{number}")
    dictionary.add_symbol("<mask>")
    return dictionary


def zipf_pairs(dictionary: Dictionary, sequences: int, length: int, seed: int) -> dict[str, Any]:
    """Return a batch as the task ``bert_sop_lm`` gives it: ``<s> A </s> B </s>``, tokens independent by Zipf's law.

    The k-th word of the dictionary has probability proportional to 1 / k. The cut between A and B is at a uniform
    position, 15 % of the words are masked (80 % ``<mask>``, 10 % another word, 10 % as they are), the order is random.

    Args:
        dictionary: with ``<mask>``, such as :func:`made_up_dictionary`.
        sequences: B.
        length: T tokens of each, special symbols included; at least 16, so that one is masked.
        seed: of everything that is drawn.

    Raises:
        ValueError: a number that is too small.
    """
    if sequences < 1 or length < 16:
        raise ValueError(f"{sequences} sequences of {length} tokens; at least 1 of 16")
    rng = np.random.default_rng(seed)
    mask = dictionary.index("<mask>")
    masking = WordMasking(
        mask=mask,
        pad=dictionary.pad(),
        special=special_symbols(dictionary, mask),
        replacements=replacements(dictionary, mask),
        max_ngram=1,
    )
    words = np.arange(dictionary.nspecial, mask)
    shares = 1 / np.arange(1, len(words) + 1)
    tokens = rng.choice(words, (sequences, length), p=shares / shares.sum())
    tokens[:, 0], tokens[:, -1] = dictionary.bos(), dictionary.eos()
    cuts = rng.integers(2, length - 2, sequences)
    tokens[np.arange(sequences), cuts] = dictionary.eos()
    each_its_own = np.ones(length, dtype=bool)
    masked = [masking(row, each_its_own, length - 3, rng) for row in tokens]
    source, target = (torch.from_numpy(np.stack(rows)).long() for rows in zip(*masked, strict=True))
    return {
        "net_input": {
            "src_tokens": source,
            "src_lengths": torch.full((sequences,), length),
            "segment_ids": torch.from_numpy(np.arange(length) > cuts[:, None]).long(),
        },
        "target": target,
        "sop_target": torch.from_numpy(rng.integers(0, 2, sequences)),
        "ntokens": sequences * length,
        "nsentences": sequences,
    }
