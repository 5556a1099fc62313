"""Samples of documents against a sentence-by-sentence form; all draws depend on seed, epoch and number only."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.data.sentence_pairs import Documents, SentencePairs, draw_samples, truncate
from fairseq_transnorm.data.word_masking import WordMasking
from tests.documents import EOS, Sentences

BOS, PAD, MASK, FIRST = 0, 1, 3, 10


@st.composite
def texts(draw):
    """Documents, empty ones included, of sentences whose tokens all differ: a token tells where it stood."""
    lengths = draw(st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=6))
    count = sum(map(sum, lengths))
    tokens = iter(range(FIRST, FIRST + count))
    return Sentences([[[next(tokens) for _ in range(n)] for n in document] for document in lengths])


def dataset(sentences, **options):
    special = np.arange(FIRST + int(sentences.sizes.sum())) < FIRST
    masking = WordMasking(MASK, PAD, special, np.arange(FIRST, len(special)), prob=options.pop("mask_prob", 0.15))
    options = {"tokens_per_sample": 20, "short_seq_prob": 0.3, "max_sentence_tokens": 8} | options
    return SentencePairs(sentences, lambda tokens: np.ones(len(tokens), dtype=bool), masking, BOS, EOS, **options)


def documents_as_described(lines, min_sentences, longest):
    """Return the usable documents as lists of numbers of sentences, and the two counts of those left out."""
    documents = [[]]
    for number, line in enumerate(lines):
        if line == [EOS]:
            documents.append([])
        else:
            documents[-1].append(number)
    documents = [document for document in documents if document]
    short = [d for d in documents if len(d) < min_sentences]
    long = [d for d in documents if len(d) >= min_sentences and max(len(lines[i]) - 1 for i in d) > longest]
    return [d for d in documents if d not in short and d not in long], len(short), len(long)


def samples_as_described(lines, documents, targets, min_sentences):
    """The oracle: sentence after sentence; ``targets`` of all samples in the order of the text."""
    targets, found = iter(targets), []
    for document in documents:
        run, target = [], None
        for position, number in enumerate(document, start=1):
            target = next(targets) if target is None else target
            run.append(number)
            tokens, remain = sum(len(lines[i]) - 1 for i in run), len(document) - position
            if remain == 0 or (tokens >= target and len(run) >= min_sentences and remain >= min_sentences):
                found.append((run[0], run[-1] + 1, target, min(tokens, target)))
                run, target = [], None
    return found


@given(
    sentences=texts(),
    min_sentences=st.integers(1, 2),
    longest=st.integers(1, 9),
    length=st.integers(2, 30),
    short=st.sampled_from([0, 0.5, 1]),
    seed=st.integers(0, 99),
)
def test_documents_and_samples_equal_the_oracle(sentences, min_sentences, longest, length, short, seed):
    documents = Documents.of(sentences.sizes, min_sentences, longest)
    expected, too_short, too_long = documents_as_described(sentences.lines, min_sentences, longest)
    assert [list(range(a, b)) for a, b in zip(documents.starts, documents.ends, strict=True)] == expected
    assert (documents.short, documents.long) == (too_short, too_long)
    samples = draw_samples(sentences.sizes, documents, length, short, min_sentences, np.random.default_rng(seed))
    assert all(2 <= t <= length for t in samples.targets)
    if not short:
        assert all(t == length for t in samples.targets)
    oracle = samples_as_described(sentences.lines, expected, samples.targets.tolist(), min_sentences)
    assert list(zip(*(part.tolist() for part in samples), strict=True)) == oracle


def test_short_targets_are_uniform_and_a_tenth():
    """Within 4 standard errors: 20,000 documents of one sample each, seed 3."""
    sizes = np.tile([4, 4, 1], 20_000)
    documents = Documents.of(sizes, 2, 512)
    targets = draw_samples(sizes, documents, 21, 0.1, 2, np.random.default_rng(3)).targets
    counts = np.bincount(targets, minlength=22)
    assert not counts[:2].any()
    n = len(targets)
    for target in range(2, 22):
        share = 0.1 / 20 + (0.9 if target == 21 else 0)
        assert abs(counts[target] / n - share) < 4 * np.sqrt(share * (1 - share) / n)


def truncate_as_described(lengths, length):
    first, second = lengths
    while first + second > length:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(first=st.integers(1, 40), second=st.integers(1, 40), length=st.integers(2, 80), seed=st.integers(0, 99))
def test_truncation_leaves_parts_of_the_described_lengths(first, second, length, seed):
    a, b = np.arange(first), np.arange(second)
    parts = truncate(a, b, length, np.random.default_rng(seed))
    assert tuple(map(len, parts)) == truncate_as_described((first, second), length)
    for part in parts:
        assert np.array_equal(part, np.arange(part[0], part[0] + len(part))), "taken from the ends only"


def test_truncation_takes_from_both_ends_alike():
    """The front loses Binomial(20, 1/2): mean 10, variance 5; within 4 standard errors, 2000 draws, seed 1."""
    rng, part = np.random.default_rng(1), np.arange(30)
    fronts = np.array([truncate(part, part[:5], 15, rng)[0][0] for _ in range(2000)])
    assert abs(fronts.mean() - 10) < 4 * np.sqrt(5 / 2000)
    assert abs(fronts.var() - 5) < 4 * 5 * np.sqrt(2 / 2000)


@given(sentences=texts(), pairs=st.booleans(), seed=st.integers(0, 9), epoch=st.integers(1, 3))
def test_a_sample_is_made_of_its_sentences(sentences, pairs, seed, epoch):
    data = dataset(sentences, pairs=pairs, seed=seed)
    data.set_epoch(epoch)
    assert sorted(data.ordered_indices()) == list(range(len(data)))
    assert np.array_equal(data.num_tokens_vec(np.arange(len(data))), data.sizes)
    for index in range(len(data)):
        sample = data[index]
        start, end, target, _ = (int(part[index]) for part in data.samples)
        source, wanted = sample["src_tokens"].numpy(), sample["target"].numpy()
        tokens = np.where(wanted == PAD, source, wanted)
        assert len(tokens) == data.num_tokens(index) <= min(target + data.num_special, 20)
        assert (tokens[0], tokens[-1]) == (BOS, EOS)
        cuts = np.flatnonzero(tokens == EOS)
        assert len(cuts) == (2 if pairs else 1)
        parts = [p[p != EOS] for p in np.split(tokens[1:], cuts[:1])]
        first, second = (parts[0], parts[1]) if pairs else (parts[0], None)
        text = np.concatenate([sentences[i].numpy()[:-1] for i in range(start, end)])
        if pairs:
            assert sample["segment_ids"].tolist() == [0] * (len(first) + 2) + [1] * (len(second) + 1)
            if sample["sop_target"]:
                first, second = second, first
            assert min(len(first), len(second)) >= 1
            assert first[-1] < second[0], "tokens count up in the text"
            # cut between two sentences: one ends where the first part may end, unless it was shortened there
            ends = np.cumsum([len(sentences[i]) - 1 for i in range(start, end)])[:-1]
            assert any(first[-1] <= text[e - 1] and second[0] >= text[e] for e in ends)
        else:
            assert not sample["segment_ids"].any()
            assert "sop_target" not in sample
        for part in (first, second):
            if part is not None:
                assert np.array_equal(part, np.arange(part[0], part[-1] + 1)), "a run of the text"
                assert np.isin(part, text).all()


@given(sentences=texts(), seed=st.integers(0, 9), epoch=st.integers(1, 3), other=st.integers(1, 3))
def test_draws_depend_on_seed_epoch_and_number_only(sentences, seed, epoch, other):
    data = dataset(sentences, seed=seed)
    data.set_epoch(epoch)
    order = data.ordered_indices()
    kept = [data[i] for i in range(len(data))]
    again = dataset(sentences, seed=seed)  # of another process, which has come another way
    again.set_epoch(other)
    _ = [again[i] for i in range(len(again))]
    again.set_epoch(epoch)
    assert np.array_equal(again.ordered_indices(), order)
    for i in reversed(range(len(again))):
        assert again[i].keys() == kept[i].keys()
        assert all(np.array_equal(again[i][name], kept[i][name]) for name in kept[i])


LONG = Sentences(
    [[list(range(FIRST + 40 * d + 4 * s, FIRST + 40 * d + 4 * s + 4)) for s in range(10)] for d in range(200)]
)


@pytest.mark.parametrize("change", [{"epoch": 2}, {"seed": 2}])
def test_another_epoch_or_seed_is_another_draw(change):
    data, other = dataset(LONG), dataset(LONG, seed=change.get("seed", 1))
    other.set_epoch(change.get("epoch", 1))
    assert not np.array_equal(data.samples.targets, other.samples.targets)
    assert not np.array_equal(data.order, other.order)
    same = [all(np.array_equal(data[i][n], other[i][n]) for n in ("src_tokens", "target")) for i in range(100)]
    assert sum(same) < 5


def test_epochs_of_the_same_samples_are_masked_cut_and_ordered_anew():
    """Without short samples the runs of sentences are those of each epoch; all else is drawn again."""
    data = dataset(LONG, short_seq_prob=0, mask_prob=0.3)
    runs, orders, masks, swaps, cuts = [], [], [], [], []
    for epoch in (1, 2):
        data.set_epoch(epoch)
        samples = [data[i] for i in range(100)]
        runs.append(data.samples.starts)
        orders.append(data.ordered_indices())
        masks.append([tuple(np.flatnonzero(sample["target"] != PAD)) for sample in samples])
        swaps.append([sample["sop_target"] for sample in samples])
        cuts.append([int((sample["segment_ids"] == 0).sum()) for sample in samples])
    assert np.array_equal(*runs)
    assert np.mean(orders[0] == orders[1]) < 0.05
    assert np.mean([a == b for a, b in zip(*masks, strict=True)]) < 0.2
    assert 25 <= sum(a == b for a, b in zip(*swaps, strict=True)) <= 75  # half of them, within 5 standard errors
    assert cuts[0] != cuts[1]


def test_half_of_the_pairs_are_swapped_and_cuts_are_uniform():
    """Within 4 standard errors: samples of 5 sentences of 4 tokens, 400 of each of 5 epochs."""
    data = dataset(LONG, tokens_per_sample=23, short_seq_prob=0)
    swapped, cuts = [], []
    for epoch in range(1, 6):
        data.set_epoch(epoch)
        assert len(data) == 400
        for i in range(400):
            sample = data[i]
            first = int((sample["segment_ids"] == 0).sum()) - 2
            swapped.append(sample["sop_target"])
            cuts.append(5 - first // 4 if sample["sop_target"] else first // 4)
    n = len(swapped)
    assert abs(np.mean(swapped) - 0.5) < 4 * np.sqrt(0.25 / n)
    for count in np.bincount(cuts, minlength=5)[1:]:
        assert abs(count / n - 0.25) < 4 * np.sqrt(0.1875 / n)


def test_a_batch_is_padded_on_the_right_with_segment_0():
    data = dataset(Sentences([[[11, 12], [13]], [[14, 15, 16], [17, 18]]]), short_seq_prob=0, mask_prob=0)
    batch = data.collater([data[0], data[1]])
    assert batch["net_input"]["src_lengths"].tolist() == [6, 8]
    assert (batch["ntokens"], batch["nsentences"], batch["id"].tolist()) == (14, 2, [0, 1])
    tokens, segments = batch["net_input"]["src_tokens"], batch["net_input"]["segment_ids"]
    assert tokens[0, 6:].tolist() == [PAD, PAD]
    assert segments[0, 6:].tolist() == [0, 0]
    swapped = batch["sop_target"].tolist()
    assert tokens[1].tolist() == [0, *([17, 18, 2, 14, 15, 16] if swapped[1] else [14, 15, 16, 2, 17, 18]), 2]
    assert segments[1].tolist() == ([0] * 4 + [1] * 4 if swapped[1] else [0] * 5 + [1] * 3)
    assert batch["target"].eq(PAD).all()
    assert data.collater([]) == {}


def test_documents_without_the_last_empty_line_count():
    sentences = Sentences([[[11], [12]], [[13], [14]]])
    assert Documents.of(sentences.sizes[:-1], 2, 8).ends.tolist() == [2, 5]
