"""The vectorised locality curve equals the definition, read literally."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.measure.dilution import FRACTIONS, locality, uniform_locality

ATOL = 1e-12  # float64


def literal_locality(weights, r, causal):
    """l(i, r) of single rows, as the definition says it; None for a row of zeros."""
    n = len(weights)
    m = max(1, round(r * n))
    values = []
    for i in range(n):
        if causal:
            if i < n / 2:
                continue
            window = range(max(0, i - m // 2), i + 1)
        else:
            start = min(max(i - m // 2, 0), n - m)
            window = range(start, start + m)
        total = sum(abs(w) for w in weights[i])
        if total > 0:
            values.append(sum(abs(weights[i][j]) for j in window) / total)
    return values


def draw_weights(heads, n, seed, causal):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(heads, n, n, dtype=torch.float64, generator=generator)
    weights[torch.rand(heads, n, generator=generator) < 0.2] = 0.0  # whole rows
    return weights.tril() if causal else weights


@given(n=st.integers(1, 24), heads=st.integers(1, 3), seed=st.integers(0, 999), causal=st.booleans())
def test_fast_form_equals_the_definition(n, heads, seed, causal):
    weights = draw_weights(heads, n, seed, causal)
    sums, count = locality(weights, FRACTIONS, causal=causal)
    for r, value in zip(FRACTIONS, sums.tolist(), strict=True):
        expected = [x for head in weights.tolist() for x in literal_locality(head, r, causal)]
        assert count == len(expected)
        assert value == pytest.approx(sum(expected), abs=ATOL)


@given(n=st.integers(2, 40), causal=st.booleans())
def test_uniform_attention_gives_the_uniform_curve(n, causal):
    weights = torch.ones(n, n, dtype=torch.float64)
    sums, count = locality(weights.tril() if causal else weights, FRACTIONS, causal=causal)
    torch.testing.assert_close((sums / count).tolist(), uniform_locality(n, causal=causal), rtol=0, atol=ATOL)


@given(n=st.integers(1, 24), seed=st.integers(0, 999), causal=st.booleans())
def test_curves_rise_from_0_to_at_most_1_and_ignore_sign_and_scale(n, seed, causal):
    weights = draw_weights(1, n, seed, causal)
    sums, count = locality(weights, FRACTIONS, causal=causal)
    assert (sums[1:] >= sums[:-1] - ATOL).all()
    assert sums[-1] <= count + ATOL
    if not causal:
        assert sums[-1].item() == pytest.approx(count, abs=ATOL), "l(i, 1) = 1"
    rows = torch.rand(n, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(locality(-3.0 * rows * weights, FRACTIONS, causal=causal)[0], sums)


@given(n=st.integers(4, 24), seed=st.integers(0, 99))
def test_several_batches_add_up(n, seed):
    parts = [draw_weights(2, n, seed + i, True) for i in range(3)]
    together = locality(torch.stack(parts), FRACTIONS, causal=True)
    apart = [locality(part, FRACTIONS, causal=True) for part in parts]
    torch.testing.assert_close(together[0], sum(s for s, _ in apart))
    assert together[1] == sum(c for _, c in apart)
