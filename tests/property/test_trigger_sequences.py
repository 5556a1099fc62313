"""Both samplers make the sequences of the step-by-step reference, number for number, and these follow their rule."""

from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fairseq_transnorm.data.bigram_statistics import BigramStatistics, count_bigrams
from fairseq_transnorm.data.trigger_sequences import ReferenceSampler, VectorisedSampler
from fairseq_transnorm.data.trigger_settings import PARTS, TriggerSettings, check_settings
from tests.trigger_reference import lighthouse, slow_sequence

SAMPLERS = [ReferenceSampler, VectorisedSampler]
# uniform outputs of each part of the vocabulary, and those of the text
OUTPUTS = [("uniform", part) for part in PARTS] + [("bigram", "all")]


@st.composite
def settings_for(draw, statistics):
    """Settings that these statistics can serve."""
    fixed, (distribution, part) = draw(st.booleans()), draw(st.sampled_from(OUTPUTS))
    offset = draw(st.integers(0, min(3, len(statistics.vocab)))) if fixed else 0
    count = draw(st.integers(0, min(6, len(statistics.vocab) - offset)))
    show = draw(st.booleans())
    flags = {name: draw(st.booleans()) for name in ("no_counter", "no_repeat")}
    length = draw(st.integers(1 + count * show, 40))
    settings = TriggerSettings(count, length, show, fixed, offset, distribution=distribution, part=part, **flags)
    try:
        check_settings(statistics, settings)
    except ValueError:
        assume(False)
    return settings


def generators(seed, count):
    return [np.random.default_rng([seed, i]) for i in range(count)]


def assert_as_the_slow_one(statistics, settings, seed, batch):
    slow = [slow_sequence(rng, statistics, settings) for rng in generators(seed, batch)]
    for sampler in SAMPLERS:
        made = sampler(statistics, settings).sequences(generators(seed, batch))
        for found, expected in zip(made, zip(*slow, strict=True), strict=True):
            assert found.tolist() == list(expected), sampler.__name__
            assert found.dtype == np.int64


@given(text=st.text("abcdeé\n", min_size=1, max_size=60), seed=st.integers(0, 999), data=st.data())
def test_samplers_agree_with_the_slow_one_on_any_text(text, seed, data):
    statistics = count_bigrams(text)
    assert_as_the_slow_one(statistics, data.draw(settings_for(statistics)), seed, batch=3)


@pytest.mark.parametrize(("distribution", "part"), OUTPUTS)
@pytest.mark.parametrize("no_repeat", [False, True])
@pytest.mark.parametrize(("fixed", "offset"), [(False, 0), (True, 0), (True, 3)])
def test_samplers_agree_with_the_slow_one_for_every_option(fixed, offset, no_repeat, distribution, part):
    for show, no_counter in product([False, True], repeat=2):
        settings = TriggerSettings(5, 50, show, fixed, offset, no_counter, no_repeat, distribution, part)
        assert_as_the_slow_one(lighthouse(), settings, 11, batch=3)


@given(settings=settings_for(lighthouse()), seed=st.integers(0, 999))
def test_sequences_follow_their_rule(settings, seed):
    statistics = lighthouse()
    for tokens, counters, triggers in zip(
        *VectorisedSampler(statistics, settings).sequences(generators(seed, 4)), strict=True
    ):
        assert len(tokens) == settings.length + 1
        assert len(counters) == settings.length
        assert len(set(triggers.tolist())) == settings.num_triggers
        start = settings.num_triggers if settings.show_triggers else 0
        assert tokens[:start].tolist() == triggers[:start].tolist()
        assert counters[:start].tolist() == [-1] * start
        outputs, seen = {}, {}
        for x, c, y in zip(
            tokens[start:-1].tolist(), counters[start:].tolist(), tokens[start + 1 :].tolist(), strict=True
        ):
            if x not in triggers:
                assert c == 0
                assert statistics.bigram[x, y] > 0
                continue
            seen[x] = seen.get(x, 0) + 1
            assert c == (1 if settings.no_counter else seen[x])
            assert outputs.setdefault(x, y) == y, "one output in the whole sequence"
        for trigger, output in outputs.items():
            assert not (settings.no_repeat and trigger == output)
            assert settings.part == "all" or (output < 57) == (settings.part == "train"), "57 = floor(0.75 x 76)"
            assert settings.distribution == "uniform" or statistics.bigram[trigger, output] > 0


class Numbers:
    """In place of a generator: the given numbers, one by one or several at once."""

    def __init__(self, numbers, indices):
        self.numbers, self.indices = iter(numbers), iter(indices)

    def random(self, size=None, out=None):
        if size is None and out is None:
            return next(self.numbers)
        out = np.empty(size) if out is None else out
        out[:] = [next(self.numbers, 0.99) for _ in out]  # more are taken than the sequence needs
        return out

    def integers(self, low, high):
        return next(self.indices) if np.ndim(high) == 0 else np.array([next(self.indices) for _ in high])


def test_worked_example():
    counts = np.ones((4, 4), np.int64)
    statistics = BigramStatistics(tuple("abcd"), np.array([4, 5, 4, 4]), counts, 17, "")
    settings = TriggerSettings(num_triggers=1, length=6, fixed=True)
    for sampler in SAMPLERS:
        # a, b, (d), b, (d), c, a; all rows of the bigram have the bounds .25, .5, .75 and 1
        rng = Numbers([0.1, 0.25, 0.49999, 0.7, 0.0], [3])
        tokens, counters, triggers = sampler(statistics, settings).sequences([rng])
        assert "".join(statistics.vocab[token] for token in tokens[0]) == "abdbdca"
        assert counters.tolist() == [[0, 1, 0, 2, 0, 0]]
        assert triggers.tolist() == [[1]]


def test_a_number_on_a_bound_and_beside_it():
    """The fast search adds the number of a row to the number that is drawn, and must not lose the last bits of it."""
    weights = np.random.default_rng(0).integers(0, 3, (60, 60))
    weights[:, 0] += 1
    statistics = BigramStatistics(tuple(map(chr, range(60))), np.ones(60, np.int64), weights, 60, "")
    cumulative = np.cumsum(statistics.bigram, 1)
    bounds = (cumulative / cumulative[:, -1:])[:, :-1]
    choices = VectorisedSampler(statistics, TriggerSettings(num_triggers=0)).next
    rows = np.arange(60)[:, None] + np.zeros_like(bounds, np.int64)
    for numbers in (bounds, np.nextafter(bounds, 0), np.nextafter(bounds, 1)):
        numbers = np.minimum(numbers, np.nextafter(1, 0))
        expected = (bounds[:, None, :] <= numbers[:, :, None]).sum(-1)
        assert (choices.draw(rows, numbers) == expected).all()
    assert (rows + bounds != np.nextafter(bounds, 0) + rows).any(), "some bounds are told apart by addition"
    assert (rows + bounds == np.nextafter(bounds, 0) + rows).any(), "and some are not"


def test_one_generator_for_several_sequences_goes_on():
    statistics, settings = lighthouse(), TriggerSettings(num_triggers=3, length=20)
    sampler, rng, slow = ReferenceSampler(statistics, settings), np.random.default_rng(7), np.random.default_rng(7)
    for _ in range(4):
        assert sampler.sequence(rng).tokens.tolist() == slow_sequence(slow, statistics, settings)[0]


def excess(observed, probabilities, total):
    """Chi-square over its expectation, in standard deviations; of cells that expect 5 or more, the others as one."""
    expected = probabilities * total
    large = expected >= 5
    observed = np.append(observed[large], observed[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    cells = expected > 0
    freedom = int(cells.sum()) - 1
    chi_square = float((((observed - expected) ** 2)[cells] / expected[cells]).sum())
    return chi_square - freedom, freedom


@pytest.mark.parametrize(("sampler", "seed"), [(ReferenceSampler, 5), (VectorisedSampler, 6)])
def test_frequencies(sampler, seed):
    """2,000 sequences of 48 tokens, random triggers: sums of chi-squares within 4 standard deviations."""
    statistics = lighthouse()
    size = len(statistics.vocab)
    settings = TriggerSettings(num_triggers=2, length=48)
    tokens, counters, _ = sampler(statistics, settings).sequences(generators(seed, 2000))
    x, y = tokens[:, :-1], tokens[:, 1:]
    table = np.zeros((size, size))
    np.add.at(table, (x[counters == 0], y[counters == 0]), 1)
    assert not table[statistics.bigram == 0].any()
    followers = [excess(row, p, row.sum()) for row, p in zip(table, statistics.bigram, strict=True) if row.sum() > 20]
    firsts = [excess(np.bincount(tokens[:, 0], minlength=size), statistics.unigram, 2000)]
    # of each sequence the outputs that it shows, each trigger once
    outputs = np.bincount(y[counters == 1], minlength=size)
    shown = [excess(outputs, np.full(size, 1 / size), outputs.sum())]
    for name, rows in {"followers": followers, "first tokens": firsts, "outputs": shown}.items():
        over, freedom = map(sum, zip(*rows, strict=True))
        assert abs(over) < 4 * (2 * freedom) ** 0.5, (name, over, freedom)
