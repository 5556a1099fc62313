"""Whole words and n-grams of them are masked up to a budget, and never anything else."""

from functools import partial

import numpy as np
import pytest
from fairseq.data import Dictionary
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.data.word_masking import WordMasking, choose_words, replacements, special_symbols
from fairseq_transnorm.data.word_pieces import continues_word, word_starts

DICTIONARY = Dictionary()
for symbol in [f"w{i}" for i in range(30)] + [f"##p{i}" for i in range(20)] + ["madeupword0000", "[unused7]"]:
    DICTIONARY.add_symbol(symbol)
MASK = DICTIONARY.add_symbol("<mask>")
BOS, PAD, EOS, UNK = DICTIONARY.bos(), DICTIONARY.pad(), DICTIONARY.eos(), DICTIONARY.unk()
WORDS = range(4, 34)
PIECES = range(34, 54)
STARTS = partial(word_starts, "wordpiece", continues_word("wordpiece", DICTIONARY))


def masking(**options):
    return WordMasking(MASK, PAD, special_symbols(DICTIONARY, MASK), replacements(DICTIONARY, MASK), **options)


def choose_as_described(lengths, budget, max_ngram, rng):
    """The oracle: sets of words, one rule after the other, with the same draws."""
    order = [int(word) for word in rng.permutation(len(lengths))]
    draws = list(rng.random(len(lengths)))
    chosen: set[int] = set()
    for word, draw in zip(order, draws, strict=True):
        room = budget - sum(lengths[w] for w in chosen)
        weights = [1 / n for n in range(1, max_ngram + 1) if word + n <= len(lengths)]
        shares = [weight / sum(weights) for weight in weights]
        n = 1
        while n < len(weights) and draw >= sum(shares[:n]):
            n += 1
        while n > 1 and sum(lengths[w] for w in range(word, word + n)) > room:
            n -= 1
        ngram = set(range(word, word + n))
        if sum(lengths[w] for w in ngram) <= room and not ngram & chosen:
            chosen |= ngram
    return chosen


@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    budget=st.floats(0, 60),
    max_ngram=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_choice_equals_the_oracle(lengths, budget, max_ngram, seed):
    got = choose_words(lengths, budget, max_ngram, np.random.default_rng(seed))
    expected = choose_as_described(lengths, budget, max_ngram, np.random.default_rng(seed))
    assert set(np.flatnonzero(got)) == expected
    assert sum(lengths[w] for w in expected) <= budget


class Draws:
    """Stands for a generator: visits these words with these draws."""

    def __init__(self, order, draws):
        self.order, self.draws = order, draws

    def permutation(self, count):
        return np.array(self.order)

    def random(self, count):
        return np.array(self.draws)


def test_an_example_by_hand():
    # At the last word only n = 1 is possible; at word 1 a trigram of 6 tokens is drawn. It fits into 8 - 2, and into
    # 7 - 2 when it has been shortened to words 1 and 2; then word 3 is left for the end, word 0 is too long.
    lengths, draws = [2, 2, 3, 1, 2], Draws([4, 1, 0, 2, 3], [0.9, 0.9, 0.1, 0.1, 0.1])
    assert choose_words(lengths, 8, 3, draws).tolist() == [False, True, True, True, True]
    assert choose_words(lengths, 7, 3, draws).tolist() == [False, True, True, False, True]
    assert choose_words(lengths, 6.9, 3, draws).tolist() == [True, True, False, False, True]
    for budget in (8, 7, 6.9):
        chosen = choose_as_described(lengths, budget, 3, draws)
        assert chosen == set(np.flatnonzero(choose_words(lengths, budget, 3, draws)))


@pytest.mark.parametrize(
    ("word", "max_ngram", "elevenths"), [(0, 3, [6, 3, 2]), (7, 3, [6, 3, 2]), (9, 3, [11]), (0, 1, [11])]
)
def test_ngrams_of_n_words_have_weight_one_nth(word, max_ngram, elevenths):
    draws = (np.arange(1100) + 0.5) / 1100
    sizes = [int(choose_words([1] * 10, 10, max_ngram, Draws([word], [u])).sum()) for u in draws]
    assert [sizes.count(n + 1) for n in range(len(elevenths))] == [100 * share for share in elevenths]


def test_weights_are_normalised_at_the_end():
    draws = (np.arange(1200) + 0.5) / 1200
    sizes = [int(choose_words([1] * 10, 10, 3, Draws([8], [u])).sum()) for u in draws]
    assert (sizes.count(1), sizes.count(2)) == (800, 400)


@st.composite
def samples(draw):
    """One or two parts of words of one to four pieces; the first may begin within a word."""
    parts = draw(st.integers(1, 2))
    token = st.sampled_from([*WORDS, *PIECES, *PIECES, UNK])
    return np.array([BOS, *(t for _ in range(parts) for t in [*draw(st.lists(token, min_size=1, max_size=60)), EOS])])


@given(tokens=samples(), target_length=st.integers(2, 100), prob=st.floats(0.05, 0.9), seed=st.integers(0, 99))
def test_whole_words_within_the_budget_and_nothing_special(tokens, target_length, prob, seed):
    begins = STARTS(tokens)
    mask = masking(prob=prob)
    source, target = mask(tokens, begins, target_length, np.random.default_rng(seed))
    chosen = target != PAD
    assert np.array_equal(target[chosen], tokens[chosen])
    assert np.array_equal(source[~chosen], tokens[~chosen])
    assert not chosen[np.isin(tokens, [BOS, EOS, PAD, MASK])].any()
    assert chosen.sum() <= min(prob * target_length, max(1, round(prob * len(tokens))))
    # a piece is chosen if and only if what it continues is
    for i in np.flatnonzero(np.isin(tokens, PIECES)):
        if tokens[i - 1] not in (BOS, EOS):
            assert chosen[i] == chosen[i - 1]
    allowed = {MASK, *WORDS, *PIECES}
    assert all(int(s) in allowed or s == t for s, t in zip(source[chosen], tokens[chosen], strict=True))
    again = mask(tokens, begins, target_length, np.random.default_rng(seed))
    assert np.array_equal(again[0], source)
    assert np.array_equal(again[1], target)


def test_words_by_hand():
    """A part that was cut within a word begins with a piece, which then is a word of its own."""
    tokens = np.array([BOS, 34, 35, 4, 36, UNK, EOS, 37, 5, EOS])
    assert masking().words(tokens, STARTS(tokens)).tolist() == [-1, 0, 0, 1, 1, 2, -1, 3, 4, -1]


def test_budgets_by_hand():
    mask = masking()
    assert mask.budget(512, 509) == pytest.approx(76.35)  # 15 % of 512 would be 77
    assert mask.budget(100, 509) == 15
    assert mask.budget(3, 509) == 1
    assert mask.budget(9, 6) == pytest.approx(0.9)  # nothing at all


def test_full_samples_are_masked_up_to_the_budget():
    tokens = np.array([BOS, *np.random.default_rng(0).choice(WORDS, 509), EOS, EOS])
    for seed in range(20):
        _, target = masking()(tokens, STARTS(tokens), 509, np.random.default_rng(seed))
        assert (target != PAD).sum() == 76


@pytest.mark.parametrize(("leave", "random"), [(0.1, 0.1), (0.3, 0.1)])
def test_shares_of_masks_of_tokens_left_and_of_tokens_replaced(leave, random):
    """Within 3 standard errors: 300 samples of 76 masked tokens, seed 5."""
    mask = masking(leave_prob=leave, random_prob=random)
    rng = np.random.default_rng(5)
    counts = np.zeros(3)
    replaced_by = np.zeros(len(DICTIONARY))
    for _ in range(300):
        tokens = np.array([BOS, *rng.choice(WORDS, 509), EOS, EOS])
        source, target = mask(tokens, STARTS(tokens), 509, rng)
        chosen = target != PAD
        left, masked = (source == tokens)[chosen].sum(), (source == MASK)[chosen].sum()
        counts += [masked, left, chosen.sum() - masked - left]
        replaced_by += np.bincount(source[chosen & (source != tokens) & (source != MASK)], minlength=len(DICTIONARY))
    n, own = counts.sum(), len(WORDS) + len(PIECES)
    assert n == 300 * 76
    by_chance = random / own  # replaced by itself
    for count, share in zip(counts, (1 - leave - random, leave + by_chance, random - by_chance), strict=True):
        assert abs(count / n - share) < 3 * np.sqrt(share * (1 - share) / n)
    # uniform over what is no special symbol and not unused; a word replaces itself unseen
    assert not replaced_by[[BOS, PAD, EOS, UNK, MASK, MASK - 1, MASK - 2]].any()
    for ids in (WORDS, PIECES):
        expected = random * n * len(ids) / own
        assert abs(replaced_by[list(ids)].sum() - expected) < 3 * np.sqrt(expected) + n * by_chance


def test_no_symbol_of_berts_own_replaces_a_word():
    """Those of a dictionary made of a raw vocab.txt."""
    dictionary = Dictionary()
    for symbol in ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s"):
        dictionary.add_symbol(symbol)
    mask = dictionary.add_symbol("<mask>")
    assert [dictionary[i] for i in replacements(dictionary, mask)] == ["the", "##s"]


def test_a_dictionary_without_words_is_refused():
    dictionary = Dictionary()
    dictionary.add_symbol("[unused0]")
    mask = dictionary.add_symbol("<mask>")
    with pytest.raises(ValueError, match="the dictionary has 6 symbols, but no word that could replace a masked one"):
        replacements(dictionary, mask)


def test_a_sample_of_special_symbols_only():
    tokens = np.array([BOS, EOS])
    source, target = masking()(tokens, np.array([True, True]), 20, np.random.default_rng(0))
    assert source.tolist() == [BOS, EOS]
    assert target.tolist() == [PAD, PAD]
