"""Block-local attention equals dense attention under a block-diagonal mask, for any length, mask and activation."""

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairseq_transnorm.modules import recompute
from fairseq_transnorm.modules.activations import get_activation
from fairseq_transnorm.modules.local_attention import (
    block_local_attention,
    dense_block_local_attention,
    dense_block_local_weights,
)
from tests.transnormer_reference import random_qkv

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
ACTS = ["softmax", "relu", "squared_relu", "gelu", "silu", "sigmoid", "elu", "1+elu", "identity", "exp"]
CASES = st.fixed_dictionaries(
    {
        "B": st.integers(1, 3),
        "H": st.integers(1, 2),
        "T": st.integers(1, 30),
        "K": st.integers(1, 4),
        "V": st.integers(1, 4),
        "block": st.integers(1, 12) | st.just(64),
        "act": st.sampled_from(ACTS),
        "causal": st.booleans(),
        "padded": st.booleans(),
        "seed": st.integers(0, 9999),
        "time_first": st.booleans(),
    }
)
FIXED = {"B": 2, "H": 2, "K": 3, "V": 2, "seed": 1, "time_first": False}


# numbers that a segment may hold: 1 makes a segment of every block
SEGMENTS = st.sampled_from([1, 60, 2**18])


def segments_of(numbers: int):
    return mock.patch.object(recompute, "SEGMENT_NUMBERS", numbers)


def padding_of(B: int, T: int, seed: int) -> Tensor:
    """Right padding of random lengths from 0 to T."""
    lengths = torch.randint(0, T + 1, (B,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(T)[None] >= lengths[:, None]


def by_rows(q, k, v, block, act, causal, padding=None) -> Tensor:
    """One query at a time: collect the keys it may see, weigh them, add their values."""
    out = 0 * (q.sum(-1, keepdim=True) + k.sum(-1, keepdim=True) + v)  # zeros that depend on everything
    for b in range(q.shape[0]):
        for t in range(q.shape[2]):
            first = t - t % block
            last = t if causal else min(first + block, q.shape[2]) - 1
            seen = [s for s in range(first, last + 1) if padding is None or not padding[b, s]]
            if seen:
                scores = (q[b, :, None, t] * k[b, :, seen]).sum(-1)
                weights = torch.softmax(scores, -1) if act == "softmax" else get_activation(act)(scores)
                out[b, :, t] = (weights[..., None] * v[b, :, seen]).sum(-2)
    return out


def draw(case):
    q, k, v = random_qkv(*(case[name] for name in "BHTKV"), case["seed"], time_first=case["time_first"])
    padding = padding_of(case["B"], case["T"], case["seed"]) if case["padded"] else None
    return (q, k, v), (case["block"], case["act"], case["causal"], padding)


def values_and_gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@settings(max_examples=80)
@given(case=CASES, numbers=SEGMENTS)
@example(case=FIXED | {"T": 24, "block": 8, "act": "softmax", "causal": True, "padded": False}, numbers=1)
@example(case=FIXED | {"T": 5, "block": 8, "act": "softmax", "causal": False, "padded": False}, numbers=1)
@example(case=FIXED | {"T": 21, "block": 8, "act": "softmax", "causal": False, "padded": False}, numbers=1)
@example(case=FIXED | {"T": 21, "block": 8, "act": "softmax", "causal": False, "padded": True}, numbers=1)
@example(case=FIXED | {"T": 21, "block": 8, "act": "1+elu", "causal": True, "padded": True}, numbers=1)
@example(case=FIXED | {"T": 21, "block": 8, "act": "sigmoid", "causal": False, "padded": False}, numbers=1)
def test_equals_one_query_at_a_time(case, numbers):
    qkv, options = draw(case)
    expected = values_and_gradients(by_rows(*qkv, *options), qkv)
    with segments_of(numbers):
        torch.testing.assert_close(values_and_gradients(block_local_attention(*qkv, *options), qkv), expected, **EXACT)
    torch.testing.assert_close(
        values_and_gradients(dense_block_local_attention(*qkv, *options), qkv), expected, **EXACT
    )


@given(case=CASES)
def test_weights_are_zero_where_nothing_may_be_seen(case):
    (q, k, v), (block, act, causal, padding) = draw(case)
    weights = dense_block_local_weights(q, k, block, act, causal, padding).detach()
    torch.testing.assert_close(weights @ v, block_local_attention(q, k, v, block, act, causal, padding), **EXACT)
    t, s = torch.arange(q.shape[2])[:, None], torch.arange(q.shape[2])[None, :]
    assert (weights[..., t // block != s // block] == 0).all()
    if causal:
        assert (weights[..., s > t] == 0).all()
    if padding is not None:
        assert (weights.masked_fill(~padding[:, None, None, :], 0) == 0).all()
    if act == "softmax":
        sums = weights.sum(-1)
        torch.testing.assert_close(sums, (sums > 0.5).to(sums), **EXACT)


@given(case=CASES, length=st.integers(1, 30))
def test_padding_changes_no_real_position(case, length):
    (q, k, v), (block, act, causal, _) = draw(case)
    length = min(length, q.shape[2])
    padding = (torch.arange(q.shape[2]) >= length).expand(q.shape[0], -1)
    padded = block_local_attention(q, k, v, block, act, causal, padding)
    alone = block_local_attention(*(x[:, :, :length] for x in (q, k, v)), block, act, causal)
    torch.testing.assert_close(padded[:, :, :length], alone, **EXACT)


@given(case=CASES, n=st.integers(0, 29))
def test_other_blocks_and_the_future_never_change_a_token(case, n):
    (q, k, v), (block, act, causal, padding) = draw(case)
    n = min(n, q.shape[2] - 1)
    changed = []
    for x in (q, k, v):
        other = x.detach().clone()
        other[:, :, n] += 1
        changed.append(other)
    before, after = (block_local_attention(*x, block, act, causal, padding).detach() for x in ((q, k, v), changed))
    t = torch.arange(q.shape[2])
    untouched = t < n if causal else torch.zeros(len(t), dtype=torch.bool)
    untouched |= t // block != n // block
    assert torch.equal(before[:, :, untouched], after[:, :, untouched])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_a_row_of_padding_alone_gives_zero_and_finite_gradients(act, causal):
    q, k, v = random_qkv(B=2, H=2, T=7, K=3, V=2, seed=0)
    padding = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    for form in (block_local_attention, dense_block_local_attention):
        out = form(q, k, v, 4, act, causal, padding)
        assert out.isfinite().all()
        assert (out[0] == 0).all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.square().sum() + out.sum(), (q, k, v)))


@pytest.mark.parametrize("numbers", [1, 2**18])
@pytest.mark.parametrize("act", ["softmax", "relu", "1+elu"])
@pytest.mark.parametrize("causal", [True, False])
def test_gradcheck(act, causal, numbers):
    q, k, v = random_qkv(B=2, H=1, T=5, K=2, V=2, seed=0)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with segments_of(numbers):
        assert torch.autograd.gradcheck(lambda *x: block_local_attention(*x, 3, act, causal, padding), (q, k, v))


def test_values_by_hand():
    q, k = torch.ones(2, 1, 1, 3, 1, dtype=torch.float64)
    k = k * torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64).log().clamp(min=0).view(1, 1, 3, 1)
    v = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(1, 1, 3, 1)
    # scores 0, 0, ln 5: softmax weights 1, then 1/2 and 1/2, then 1/7, 1/7, 5/7
    got = block_local_attention(q, k, v, 64).flatten()
    torch.testing.assert_close(got, torch.tensor([1, 1.5, 18 / 7], dtype=torch.float64))
    got = block_local_attention(q, k, v, 2).flatten()
    torch.testing.assert_close(got, torch.tensor([1, 1.5, 3], dtype=torch.float64))
    got = block_local_attention(q, k, v, 64, "1+elu").flatten()  # weights 1 + score, no denominator
    torch.testing.assert_close(got[:2], torch.tensor([1.0, 3], dtype=torch.float64))


def test_very_large_scores_do_not_overflow():
    q, k, v = random_qkv(1, 1, 6, 2, 2, seed=0, dtype=torch.float32)
    assert block_local_attention(1e3 * q, 1e3 * k, v, 4).isfinite().all()


def test_dropout_drops_weights_and_scales_the_rest():
    torch.manual_seed(0)
    q, k = torch.zeros(2, 1, 1, 6400, 1)
    v = torch.eye(64).repeat(100, 1).view(1, 1, 6400, 64)  # the output is the weights
    weights = block_local_attention(q, k, v, 64, "1+elu", causal=False, dropout=0.25)
    torch.testing.assert_close(weights.unique(), torch.tensor([0, 4 / 3]))
    # 409,600 draws: one standard error is 0.0007
    assert abs((weights == 0).float().mean().item() - 0.25) < 0.003


@pytest.mark.parametrize("block", [0, -1])
def test_a_block_without_positions_is_refused(block):
    with pytest.raises(ValueError, match=f"block_size {block} must be at least 1"):
        block_local_attention(*random_qkv(1, 1, 4, 2, 2, seed=0), block)


def test_an_unknown_activation_is_refused():
    with pytest.raises(ValueError, match=r"unknown activation 'softmx'"):
        block_local_attention(*random_qkv(1, 1, 4, 2, 2, seed=0), 2, "softmx")
