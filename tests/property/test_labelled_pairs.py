"""Joining and cutting of labelled pairs against the rule, written out symbol by symbol."""

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.data.labelled_pairs import PairDataset

BOS, PAD, EOS = 0, 1, 2
WORDS = st.lists(st.integers(4, 30), max_size=9)


class Items:
    """What an indexed dataset of fairseq is for its readers: lists of ids, each with its end."""

    def __init__(self, lines):
        self.lines = [torch.tensor([*line, EOS]) for line in lines]
        self.sizes = np.array(list(map(len, self.lines)))

    def __getitem__(self, index):
        return self.lines[index]

    def __len__(self):
        return len(self.lines)


def dictionary():
    made = Dictionary()
    for number in range(40):
        made.add_symbol(f"w{number}")
    return made


def by_the_rule(first, second, max_length):
    """[CLS] A [SEP] B [SEP]: where the ids reach the most before the last [SEP], one less is kept, then [SEP]."""
    ids = [BOS, *first] if second is None else [BOS, *first, EOS, *second]
    if len(ids) >= max_length:
        ids = ids[: max_length - 1]
    ids.append(EOS)
    end = ids.index(EOS)
    return ids, [int(place > end) for place in range(len(ids))]


@given(
    pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4),
    paired=st.booleans(),
    max_length=st.integers(3, 24),
)
def test_pairs_are_cut_as_the_rule_says(pairs, paired, max_length):
    second = Items([b for _, b in pairs]) if paired else None
    data = PairDataset([Items([a for a, _ in pairs])], second, None, dictionary(), max_length)
    rows = [by_the_rule(a, b if paired else None, max_length) for a, b in pairs]
    batch = data.collater([data[index] for index in range(len(pairs))])
    tokens, segments = batch["net_input"]["src_tokens"], batch["net_input"]["segment_ids"]
    longest = max(len(ids) for ids, _ in rows)
    assert tokens.tolist() == [ids + [PAD] * (longest - len(ids)) for ids, _ in rows]
    assert segments.tolist() == [marks + [0] * (longest - len(marks)) for _, marks in rows]
    assert batch["net_input"]["src_lengths"].tolist() == [len(ids) for ids, _ in rows] == data.sizes.tolist()
    assert batch["ntokens"] == sum(len(ids) for ids, _ in rows)
    assert "target" not in batch
    assert all(ids[-1] == EOS and len(ids) <= max_length for ids, _ in rows)


@given(
    rows=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4),
    max_option=st.integers(1, 9),
    room=st.integers(3, 12),
)
def test_options_are_cut_first_and_keep_both_separators(rows, max_option, room):
    max_length = max_option + room
    options = [Items([row[number] for row in rows]) for number in (1, 2)]
    targets = torch.arange(len(rows))[:, None] % 2
    data = PairDataset(options, Items([row[0] for row in rows]), targets, dictionary(), max_length, max_option)
    expected = [by_the_rule(option[:max_option], row[0], max_length) for row in rows for option in row[1:]]
    batch = data.collater([data[index] for index in range(len(rows))])
    net_input = batch["net_input"]
    for number, (ids, marks) in enumerate(expected):
        length = int(net_input["src_lengths"][number])
        assert net_input["src_tokens"][number, :length].tolist() == ids
        assert net_input["segment_ids"][number, :length].tolist() == marks
        assert ids.count(EOS) == 2
    assert [data.size(row) for row in range(len(rows))] == [
        max(len(expected[2 * row][0]), len(expected[2 * row + 1][0])) for row in range(len(rows))
    ]
    assert data.num_tokens(0) == 2 * data.size(0)
    assert batch["target"].tolist() == targets.tolist()
    assert batch["nsentences"] == len(rows)


def test_the_order_of_batches():
    lines = Items([[5] * size for size in (4, 1, 3, 1, 2)])
    assert PairDataset([lines], None, None, dictionary(), 9).ordered_indices().tolist() == [1, 3, 4, 2, 0]
    orders = [PairDataset([lines], None, None, dictionary(), 9, None, True, seed).order.tolist() for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(5))


def test_what_does_not_fit_is_refused():
    two, three = Items([[5], [6]]), Items([[5], [6], [7]])
    with pytest.raises(ValueError, match=r"inputs and labels of an example differ in number, \[2, 3\] rows"):
        PairDataset([two], three, None, dictionary(), 9)
    with pytest.raises(ValueError, match=r"differ in number, \[2, 2, 1\] rows"):
        PairDataset([two], two, torch.zeros(1, 1), dictionary(), 9)
    with pytest.raises(ValueError, match="--max-option-length 7 with --max-positions 9: 1 to 6"):
        PairDataset([two], two, None, dictionary(), 9, 7)
    with pytest.raises(ValueError, match="--max-positions 2: at least 3"):
        PairDataset([two], None, None, dictionary(), 2)
    two.lines[1] = torch.tensor([5, 6])
    with pytest.raises(ValueError, match="does not end in </s>"):
        PairDataset([two], None, None, dictionary(), 9)[1]
    assert PairDataset([two], None, None, dictionary(), 9).collater([]) == {}, "another process has one batch more"
