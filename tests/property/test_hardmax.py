"""Saturated attention: uniform over the largest scores, what a softmax tends to, under every mask."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.measure.attention import hardmax_of, replaced_weights
from fairseq_transnorm.measure.hardmax import hardmax
from fairseq_transnorm.modules.growth_attention import GrowthAttention

INF = math.inf
shapes = {"B": st.integers(1, 3), "T": st.integers(1, 7), "seed": st.integers(0, 999)}


def whole_scores(*shape, seed):
    """Scores -2 .. 2 with many ties."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(seed)).double()


def some_allowed(*shape, seed):
    """Which keys are allowed, at least one a row."""
    allowed = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    allowed[..., 0] |= ~allowed.any(-1)
    return allowed


def test_by_hand():
    scores = torch.tensor([[1.0, 3.0, 3.0], [-1.0, -2.0, -INF], [-INF, -INF, 5.0], [0.0, 0.0, 0.0]])
    expected = [[0, 0.5, 0.5], [1, 0, 0], [0, 0, 1], [1 / 3] * 3]
    torch.testing.assert_close(hardmax(scores), torch.tensor(expected), rtol=0, atol=0)


def test_no_key_and_no_number():
    scores = torch.tensor([[1.0, 2.0], [math.nan, 0.0], [INF, INF]])
    allowed = torch.tensor([[False, False], [True, True], [True, True]])
    found = hardmax(scores, allowed)
    assert found[0].tolist() == [0.0, 0.0]
    assert found[1].isnan().all()
    assert found[2].tolist() == [0.5, 0.5]


def test_tolerance():
    scores = torch.tensor([1.0, 0.9, 0.5])[None]
    assert hardmax(scores).tolist() == [[1.0, 0.0, 0.0]]
    assert hardmax(scores, None, 0.2).tolist() == [[0.5, 0.5, 0.0]]
    assert hardmax(torch.nextafter(torch.ones(1, 2), torch.tensor([[INF, 1.0]]))).tolist() == [[1.0, 0.0]], "one bit"
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="must not be negative"):
            hardmax(scores, None, bad)


@given(**shapes)
def test_uniform_over_the_largest_allowed(B, T, seed):
    scores, allowed = whole_scores(B, T, T, seed=seed), some_allowed(B, T, T, seed=seed)
    found = hardmax(scores, allowed)
    for row, may, weights in zip(scores.flatten(0, 1), allowed.flatten(0, 1), found.flatten(0, 1), strict=True):
        largest = max(row[may].tolist())
        won = [s == largest and bool(m) for s, m in zip(row.tolist(), may, strict=True)]
        assert weights.tolist() == [w / sum(won) for w in won]


@given(c=st.sampled_from([60.0, 1000.0, 1e12]), **shapes)
def test_the_softmax_tends_to_it(c, B, T, seed):
    scores, allowed = whole_scores(B, T, T, seed=seed), some_allowed(B, T, T, seed=seed)
    limit = torch.softmax((c * scores).masked_fill(~allowed, -INF), dim=-1)
    torch.testing.assert_close(hardmax(scores, allowed), limit, rtol=0, atol=1e-15)
    assert torch.equal(hardmax(c * scores, allowed), hardmax(scores, allowed))


def attention(mask="causal", seed=0, **options):
    torch.manual_seed(seed)
    return GrowthAttention(8, 2, mask=mask, **options).double().eval()


@given(mask=st.sampled_from(["causal", "multiplicative"]), weight_map=st.sampled_from(["softmax", "si_norm"]), **shapes)
def test_the_replacement_is_the_attention_itself(mask, weight_map, B, T, seed):
    module = attention(mask, seed, weight_map=weight_map)
    x = torch.randn(B, T, 8, dtype=torch.float64)
    found = []
    with torch.no_grad(), replaced_weights(module, lambda _name, c: found.append(c) or c.weights()):
        replaced = module(x)
    with torch.no_grad():
        torch.testing.assert_close(replaced, module(x), rtol=0, atol=1e-12)
        torch.testing.assert_close(found[0].weights(), module.attention_weights(x), rtol=0, atol=1e-12)
    assert "mix" not in vars(module)


@given(weight_map=st.sampled_from(["softmax", "si_norm"]), **shapes)
def test_a_causal_mask_leaves_nothing_on_the_future(weight_map, B, T, seed):
    module = attention("causal", seed, weight_map=weight_map)
    x = 1e3 * torch.randn(B, T, 8, dtype=torch.float64)
    for weights in (module.attention_weights(x), *all_weights(module, x)):
        assert torch.equal(weights, weights.tril()), "exactly 0"
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, 2, T).double())


def all_weights(module, x):
    found = []
    with replaced_weights(module, lambda _name, c: found.append(c.weights()) or found[-1]):
        module(x)
    with replaced_weights(module, lambda _name, c: found.append(hardmax(c.scores, c.allowed)) or found[-1]):
        module(x)
    return found


@given(B=st.integers(1, 3), T=st.integers(2, 7), seed=st.integers(0, 99))
def test_under_the_multiplicative_mask_zeros_compete(B, T, seed):
    """A query whose own and earlier scores are negative attends to all of its future, and to nothing else."""
    module = attention("multiplicative", seed)
    with torch.no_grad():
        module.qkv.bias[:8], module.qkv.bias[8:16] = 5.0, -5.0  # q and k point away from each other
        module.qkv.weight.mul_(0.01)
        found = []
        x = torch.randn(B, T, 8, dtype=torch.float64)
        with replaced_weights(module, lambda _name, c: found.append(hardmax(c.scores)) or found[-1]):
            module(x)
        later = torch.ones(T, T).triu(1).double()
        expected = (later / later.sum(-1, keepdim=True).clamp_min(1)).expand(B, 2, T, T)
        assert torch.equal(found[0][..., :-1, :], expected[..., :-1, :])
        assert (found[0][..., -1, :].sum(-1) == 1).all(), "the last query has no future"
        with replaced_weights(module, hardmax_of(module)):
            out = module(x)
        values = module.qkv(x)[..., 16:].unflatten(-1, (2, 4)).transpose(1, 2)
        torch.testing.assert_close(out, module.out((found[0] @ values).transpose(1, 2).flatten(2)), rtol=0, atol=1e-12)


@given(**shapes)
def test_si_norm_has_no_softmax_to_replace(B, T, seed):
    module = attention("causal", seed, weight_map="si_norm")
    x = torch.randn(B, T, 8, dtype=torch.float64)
    with torch.no_grad():
        with replaced_weights(module, hardmax_of(module)):
            saturated = module(x)
        torch.testing.assert_close(saturated, module(x), rtol=0, atol=1e-12)
