"""Every language agrees with the slow literal one: samples, outputs and attention targets, also padded in a batch."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.data import languages
from fairseq_transnorm.data.language_dataset import LanguageDataset
from fairseq_transnorm.data.language_samples import Samples
from tests import rasp_reference as slow


def assert_as_the_slow_one(language, texts):
    """Compare a batch of sequences, all of its padding included."""
    data = LanguageDataset(language, texts)
    batch = data.collater(range(len(texts)))
    inputs, targets = batch["net_input"]["src_tokens"].tolist(), batch["target"].tolist()
    lengths = batch["net_input"]["src_lengths"].tolist()
    T = max(lengths)
    if language.heads:
        found = language.attention_targets(batch["net_input"]["src_tokens"], batch["net_input"]["src_lengths"])
        matrices = found.int().tolist()
        if language.supervised:
            assert found.equal(batch["attention_targets"])
    assert ("attention_targets" in batch) == language.supervised
    for row, text in enumerate(texts):
        symbols, outputs, wanted = slow.expected(language.name, text)
        padding = T - len(symbols)
        alphabet = [*slow.alphabet(language.name), slow.NEUTRAL]
        assert lengths[row] == data.num_tokens(row) == len(symbols)
        assert inputs[row] == [alphabet.index(symbol) for symbol in symbols] + [len(alphabet)] * padding
        classes = slow.classes(language.name)
        assert targets[row] == [classes.index(output) for output in outputs] + [len(classes)] * padding
        for number, matrix in enumerate(wanted):
            padded = [[*line, *[0] * padding] for line in matrix] + [[0] * T] * padding
            assert matrices[row][number] == padded, (language.name, text, number)
    assert batch["ntokens"] == sum(lengths)


@given(name=st.sampled_from(slow.NAMES), data=st.data())
def test_any_sequences(name, data):
    """Few symbols, so that they repeat; up to 25 positions, so that counts pass 10."""
    symbols = data.draw(st.lists(st.sampled_from(slow.alphabet(name)), min_size=1, max_size=5))
    text = st.text(st.sampled_from(symbols), min_size=1, max_size=25)
    assert_as_the_slow_one(languages.get(name), data.draw(st.lists(text, min_size=1, max_size=4)))


@pytest.mark.parametrize("name", slow.NAMES)
def test_the_samples_of_every_language(name):
    language = languages.get(name)
    samples = Samples(max_length=40, train_size=20, valid_size=6, test_size=6)
    random.seed(1)
    before = random.getstate()
    for split, first, count in (("train", 0, 20), ("valid", 20, 6), ("test", 26, 6)):
        texts = samples.draw(language.sampler, split)
        assert texts == [slow.sample(name, first + i, high=40) for i in range(count)]
        assert_as_the_slow_one(language, texts)
    assert random.getstate() == before


def test_sequences_of_full_length():
    """The constant 202 of the definition stands for more than any length."""
    samples = Samples(min_length=100)
    for name in ("sort_10_bos_with_attns", "hist2_10_with_attns", "sort_by_freq_10_bos_with_attns"):
        texts = samples.draw(languages.get(name).sampler, "train", [3, 4])
        assert_as_the_slow_one(languages.get(name), texts)
