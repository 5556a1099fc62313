"""Masks and weight maps of the norm-growth attention: fast and slow form, what is seen, and scale invariance."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.modules.growth_attention import GrowthAttention, scale_invariant_weights

CHOICES = st.fixed_dictionaries(
    {
        "mask": st.sampled_from(["causal", "multiplicative"]),
        "weight_map": st.sampled_from(["softmax", "si_norm"]),
        "scale": st.booleans(),
        "bias": st.booleans(),
    }
)


def build(choices: dict, seed: int, dim: int = 8, heads: int = 2) -> GrowthAttention:
    torch.manual_seed(seed)
    return GrowthAttention(dim, heads, **choices).double()


def seen_gradients(attention: GrowthAttention, x: torch.Tensor, position: int) -> torch.Tensor:
    """How much each position's input moves the output at ``position``: ``T``."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(attention(x)[0, position].sum(), x)
    return gradient[0].abs().sum(-1)


@given(choices=CHOICES, T=st.integers(1, 7), seed=st.integers(0, 99))
def test_the_output_is_that_of_the_dense_weights_with_its_gradients(choices, T, seed):
    attention = build(choices, seed)
    x = torch.randn(2, T, 8, dtype=torch.float64, requires_grad=True)
    v = attention.qkv(x).unflatten(-1, (6, 4))[:, :, 4:].transpose(1, 2)
    wanted = attention.out((attention.attention_weights(x) @ v).transpose(1, 2).flatten(2))
    got = attention(x)
    torch.testing.assert_close(got, wanted)
    probe = torch.randn_like(got)
    inputs = [x, attention.qkv.weight, attention.out.weight]
    for a, b in zip(torch.autograd.grad(got, inputs, probe), torch.autograd.grad(wanted, inputs, probe), strict=True):
        torch.testing.assert_close(a, b)


@given(choices=CHOICES, T=st.integers(2, 7), seed=st.integers(0, 99))
def test_the_weight_on_the_future_is_exactly_zero_unless_the_mask_multiplies(choices, T, seed):
    attention = build(choices, seed)
    weights = attention.attention_weights(torch.randn(2, T, 8, dtype=torch.float64))
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, T, dtype=torch.float64))
    if choices["mask"] == "multiplicative" and choices["weight_map"] == "softmax":
        assert (weights[..., future] > 0).all()
    else:
        assert not weights[..., future].any()


@given(choices=CHOICES, seed=st.integers(0, 99))
def test_later_input_moves_earlier_output_only_where_the_mask_multiplies(choices, seed):
    attention, T = build(choices, seed), 5
    x = torch.randn(1, T, 8, dtype=torch.float64)
    moved = x.clone()
    moved[:, 3:] += torch.randn(1, 2, 8, dtype=torch.float64)
    leaks = choices["mask"] == "multiplicative" and choices["weight_map"] == "softmax"
    assert torch.equal(attention(x)[:, :3], attention(moved)[:, :3]) != leaks
    assert bool(seen_gradients(attention, x, 2)[3:].any()) == leaks


@given(T=st.integers(1, 6), c=st.sampled_from([1e-9, 0.3, 1e3, 1e12]), seed=st.integers(0, 99))
def test_si_norm_is_a_distribution_that_no_factor_changes(T, c, seed):
    torch.manual_seed(seed)
    scores = torch.randn(2, T, T, dtype=torch.float64)
    allowed = torch.ones(T, T, dtype=torch.bool).tril()
    weights = scale_invariant_weights(scores, allowed)
    squares = scores.masked_fill(~allowed, 0.0) ** 2
    torch.testing.assert_close(weights, squares / squares.sum(-1, keepdim=True))
    torch.testing.assert_close(scale_invariant_weights(c * scores, allowed), weights)


def test_si_norm_of_zeros_is_uniform_over_what_is_allowed_and_has_finite_gradients():
    scores = torch.zeros(3, 3, requires_grad=True)
    weights = scale_invariant_weights(scores, torch.ones(3, 3, dtype=torch.bool).tril())
    torch.testing.assert_close(weights, torch.tensor([[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]))
    (gradient,) = torch.autograd.grad(weights[2, 0], scores)
    assert not gradient.any()
    assert not scale_invariant_weights(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool)).any()


@pytest.mark.parametrize("size", [1e-30, 1e16, 1e25])
def test_si_norm_neither_overflows_nor_vanishes_in_float32(size):
    weights = scale_invariant_weights(torch.tensor([[3.0, 4.0]]) * size, None)
    torch.testing.assert_close(weights, torch.tensor([[9 / 25, 16 / 25]]))
