"""Which symbols continue a word, by the spelling of each tokenisation."""

import json

import numpy as np
import pytest
from fairseq.data import Dictionary

from fairseq_transnorm.data.word_pieces import continues_word, word_starts


def dictionary_of(*symbols):
    dictionary = Dictionary()
    for symbol in [*symbols, "<mask>"]:
        dictionary.add_symbol(symbol)
    return dictionary


def cut(kind, line, data=None):
    """The line with a bar before every word."""
    dictionary = dictionary_of(*line.split())
    marks = continues_word(kind, dictionary, data)
    assert marks.dtype == bool
    assert marks.shape == (len(dictionary),)
    own = [dictionary.index(symbol) for symbol in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    assert not marks[own].any()
    tokens = np.array([dictionary.index(symbol) for symbol in line.split()])
    starts = word_starts(kind, marks, tokens)
    return " ".join(("|" if start else "") + symbol for start, symbol in zip(starts, line.split(), strict=True))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("wordpiece", "|gra ##ce ##ful |of |<unk> |, |the ##s"),
        ("sentencepiece", "|▁gra ce ful , |▁of |<unk> s |▁ ß"),
        ("fastbpe", "|gra@@ ce@@ ful |of |<unk> |a@@ b |c"),
        ("words", "|grace |ful |##of |a@@ |▁b"),
        ("characters", "|a |▁ |c |d"),
    ],
)
def test_words(kind, words):
    assert cut(kind, words.replace("|", "")) == words


def test_the_first_token_starts_a_word_even_when_it_is_a_part():
    assert cut("wordpiece", "##ful of") == "|##ful |of"
    assert cut("sentencepiece", "ful ▁of") == "|ful |▁of"


def test_gpt2_looks_its_numbers_up(tmp_path):
    with pytest.raises(ValueError, match="give the data folder too"):
        continues_word("gpt2", dictionary_of("1"))
    with pytest.raises(FileNotFoundError, match=r"encoder\.json"):
        continues_word("gpt2", dictionary_of("1"), tmp_path)
    (tmp_path / "encoder.json").write_text(json.dumps({"gra": 7, "ce": 8, "\u0120of": 9, ",": 10}))
    assert cut("gpt2", "7 8 10 9 7", tmp_path) == "|7 8 10 |9 7"


def test_unknown_kind():
    with pytest.raises(ValueError, match="no rule for the words of the tokenizer 'moses'; known are words, char"):
        continues_word("moses", dictionary_of("a"))
