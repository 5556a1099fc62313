"""Absolute positions: fairseq's numbering and table."""

import math

import pytest
import torch
from fairseq.modules import SinusoidalPositionalEmbedding

from fairseq_transnorm.modules.positions import LearnedPositions, SinusoidalPositions


def test_sinusoid_by_hand():
    # D = 6: frequencies 1, 10000^(-1/2) = 0.01, 10000^(-1) = 0.0001; sines first, then cosines
    got = SinusoidalPositions(6, padding_idx=1)(torch.tensor([[2, 100]]), 101)
    expected = [[f(p * w) for f in (math.sin, math.cos) for w in (1, 0.01, 0.0001)] for p in (2, 100)]
    torch.testing.assert_close(got, torch.tensor([expected]))


def test_the_pad_row_and_an_odd_channel_are_zero():
    positions = SinusoidalPositions(5, padding_idx=1)
    assert positions(torch.tensor([[1]]), 9).tolist() == [[[0.0] * 5]]
    table = positions(torch.arange(2, 40)[None], 40)
    assert (table[..., 4] == 0).all()
    assert (table[..., :4] != 0).all()


@pytest.mark.parametrize("dim", [4, 7, 16])
def test_the_table_is_fairseqs(dim):
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 1, 1, 1]])  # 1 is padding
    theirs = SinusoidalPositionalEmbedding(dim, padding_idx=1, init_size=64)(tokens)
    numbers = torch.tensor([[2, 3, 4, 5, 6, 7], [2, 3, 4, 1, 1, 1]])
    torch.testing.assert_close(SinusoidalPositions(dim, 1)(numbers, 8), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_the_table_grows_and_keeps_its_type_and_values(dtype):
    small, grown = (SinusoidalPositions(8, 1).to(dtype) for _ in range(2))
    numbers = torch.arange(2, 400)[None]
    before = grown(numbers, 400)
    far = grown(torch.tensor([[20000]]), 20001)
    assert far.dtype == dtype
    torch.testing.assert_close(far[0, 0, 0].double(), torch.tensor(math.sin(20000)).double(), rtol=0, atol=1e-3)
    assert torch.equal(before, grown(numbers, 400))
    assert torch.equal(before, small(numbers, 400))
    assert grown(torch.tensor([[1]]), 2).abs().sum() == 0


def test_the_sinusoid_is_neither_trained_nor_saved():
    positions = SinusoidalPositions(8, 1)
    assert not list(positions.parameters())
    assert not positions.state_dict()


def test_learned_positions():
    torch.manual_seed(0)
    positions = LearnedPositions(64, padding_idx=1, max_positions=1000)
    # fairseq's layout: position p of a text is row padding_idx + 1 + p
    assert positions.embedding.weight.shape == (1002, 64)
    assert positions.embedding.weight[1].abs().sum() == 0
    rows = positions(torch.arange(2, 1002)[None], 1002)
    assert torch.equal(rows[0], positions.embedding.weight[2:])
    # 64,000 draws of standard deviation 1/8: the sample's is off by 1/8 / sqrt(128,000)
    assert abs(rows.std().item() - 1 / 8) < 3 * 0.125 / 128000**0.5
    positions(torch.tensor([[1, 2]]), 3).sum().backward()
    assert positions.embedding.weight.grad[1].abs().sum() == 0, "the pad row is not trained"
    assert positions.embedding.weight.grad[2].abs().sum() > 0


def test_a_width_without_two_frequencies_is_refused():
    with pytest.raises(ValueError, match="width of at least 4, got 3"):
        SinusoidalPositions(3, 1)
