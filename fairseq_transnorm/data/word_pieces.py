"""Which symbols continue a word: what masking of whole words needs to know of a tokenisation."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from . import gpt2
from .tokenizers import KINDS

_GPT2_SPACE = "\u0120"  # how encoder.json writes the space before a word


def continues_word(kind: str, dictionary: Any, data: str | os.PathLike[str] | None = None) -> Bool[np.ndarray, "N"]:
    """Mark the symbols of a dictionary that are only a part of a word; :func:`word_starts` applies the marks.

    A marked symbol continues the word of the symbol *before* it. With ``fastbpe``, where a symbol cannot say so of
    itself (``gra@@ ce``), it is the other way round: a marked symbol is continued by the one *after* it.

    * wordpiece: marked when it begins with ``##``, as in ``gra ##ce of``;
    * sentencepiece: when it does not begin with ``▁``, as in ``▁gra ce ▁of``;
    * gpt2: when its piece does not begin with a space;
    * fastbpe: when it ends in ``@@``, as in ``gra@@ ce of``;
    * words, characters: never, each symbol is a word.

    fairseq's own symbols and ``<mask>`` are never marked. Punctuation is a word of its own with wordpiece and words
    alone; the others write it without a space, or a mark of one, as a part of the word before.

    Args:
        kind: of tokenisation, the key ``kind`` of a data folder's note.
        dictionary: fairseq's, of N symbols.
        data: the data folder; needed for gpt2, whose symbols are numbers.

    Raises:
        ValueError: an unknown kind, or gpt2 without ``data``.
        FileNotFoundError: ``data`` lacks GPT-2's ``encoder.json``.
    """
    symbols = list(dictionary.symbols)
    if kind == "wordpiece":
        marked = [symbol.startswith("##") for symbol in symbols]
    elif kind == "sentencepiece":
        marked = [not symbol.startswith("\u2581") for symbol in symbols]
    elif kind == "fastbpe":
        marked = [symbol.endswith("@@") for symbol in symbols]
    elif kind == "gpt2":
        starts = _gpt2_word_starts(data)
        marked = [symbol not in starts for symbol in symbols]
    elif kind in KINDS:
        marked = [False] * len(symbols)
    else:
        raise ValueError(f"no rule for the words of the tokenizer {kind!r}; known are {', '.join(KINDS)}")
    own = np.arange(len(symbols)) < dictionary.nspecial
    own |= np.array([symbol == "<mask>" for symbol in symbols])
    return np.array(marked, dtype=bool) & ~own


def word_starts(kind: str, marks: Bool[np.ndarray, "N"], tokens: Integer[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
    """True where a token begins a word; the first one always does.

    Args:
        kind: of tokenisation.
        marks: from :func:`continues_word`.
        tokens: of one sentence. GPT-2's first piece of a line has no space before it, so that in a run of several
            sentences the first word of each would count as a part of the last word before.
    """
    starts = np.ones(len(tokens), dtype=bool)
    starts[1:] = ~marks[tokens[:-1] if kind == "fastbpe" else tokens[1:]]
    return starts


def _gpt2_word_starts(data: str | os.PathLike[str] | None) -> set[str]:
    """Symbols of GPT-2 whose piece begins with a space."""
    if data is None:
        raise ValueError("the words of gpt2 are told by encoder.json: give the data folder too")
    name, _ = gpt2.FILES
    path = Path(data, name)
    if not path.is_file():
        raise FileNotFoundError(f"no {path}, which tells which pieces of gpt2 begin a word; was the folder made here?")
    pieces = json.loads(path.read_text(encoding="utf-8"))
    return {str(number) for piece, number in pieces.items() if piece.startswith(_GPT2_SPACE)}
