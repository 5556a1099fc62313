"""Identities of a step that hold for every pair of vectors, tiny steps and half precision included."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fairseq_transnorm.measure.parameters import (
    SCOPES,
    dot,
    linear_column_norm,
    model_vector,
    norm,
    select,
    smallest_rms,
    step_between,
    step_of,
    step_sums,
)
from fairseq_transnorm.theory.norm_growth import boundary, grows, step_from_cosine

CLOSE = 1e-10  # of the largest term: what the identities are to hold to


def vectors(seed, size, dtype, names=3):
    """Two vectors in three parameters, the step between them ``size`` times as long as a parameter of order 1."""
    draw = torch.Generator().manual_seed(seed)
    before, after = {}, {}
    for i in range(names):
        shape = [(7,), (3, 5), (2, 3, 4)][i % 3]
        theta = torch.randn(shape, generator=draw)
        before[str(i)] = theta.to(dtype)
        after[str(i)] = (theta + size * torch.randn(shape, generator=draw)).to(dtype)
    return before, after


steps = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
sizes = st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 1.0, 30.0])


@steps
@given(seed=st.integers(0, 10_000), size=sizes)
def test_identities_of_a_step(dtype, seed, size):
    before, after = vectors(seed, size, dtype)
    step = step_between(before, after)
    rho, after_rho, delta, product, kappa, alpha = step
    squared = max(rho, after_rho) ** 2
    assert rho == pytest.approx(norm(before), rel=1e-14)
    assert after_rho == pytest.approx(norm(after), rel=1e-14)
    assert delta**2 == pytest.approx(rho**2 + after_rho**2 - 2 * rho * after_rho * kappa, abs=CLOSE * squared)
    assert alpha * delta == pytest.approx(after_rho * kappa - rho, abs=CLOSE * after_rho)
    assert after_rho**2 - rho**2 == pytest.approx(2 * product + delta**2, abs=CLOSE * squared)
    with_updated = dot(after, {name: after[name].double() - before[name].double() for name in after})
    assert after_rho**2 - rho**2 == pytest.approx(2 * with_updated - delta**2, abs=CLOSE * squared)
    assert kappa == pytest.approx(dot(before, after) / (rho * after_rho), abs=CLOSE)
    if delta > 1e-3 * rho:
        assert step_from_cosine(rho, after_rho, kappa) == (pytest.approx(delta), pytest.approx(alpha, abs=1e-6))
    if delta and abs(product - boundary(delta)) > 1e-12 * squared:
        assert grows(product, delta) is (after_rho > rho)
        assert (with_updated > boundary(delta, updated=True)) is (after_rho > rho)


@steps
@given(seed=st.integers(0, 10_000), size=sizes)
def test_a_step_against_exact_fractions(dtype, seed, size):
    before, after = vectors(seed, size, dtype, names=2)
    a, b = ([Fraction(x) for name in v for x in v[name].double().flatten().tolist()] for v in (before, after))
    delta = [y - x for x, y in zip(a, b, strict=True)]
    moved, product = sum(d * d for d in delta), sum(x * d for x, d in zip(a, delta, strict=True))
    step = step_between(before, after)
    # a tiny step keeps its digits: nothing is a difference of large sums
    assert step.step_norm == pytest.approx(math.sqrt(moved), rel=1e-13)
    assert step.product == pytest.approx(float(product), abs=1e-13 * step.norm_before * step.step_norm)


@given(seed=st.integers(0, 10_000), size=sizes, cut=st.integers(1, 2))
def test_parts_of_a_vector_join(seed, size, cut):
    before, after = vectors(seed, size, torch.float32)
    parts = [step_sums(before[name], after[name]) for name in before]
    joined = [*parts[:cut], tuple(map(math.fsum, zip(*parts[cut:], strict=True)))]
    assert step_of(joined) == pytest.approx(step_between(before, after), rel=1e-12, abs=1e-15)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
def test_lengths_scale(seed, scale):
    vector, _ = vectors(seed, 0.0, torch.float64)
    larger = {name: scale * p for name, p in vector.items()}
    assert norm(larger) == pytest.approx(scale * norm(vector))
    assert smallest_rms(larger) == pytest.approx(scale * smallest_rms(vector))
    matrices = {name: p for name, p in vector.items() if p.dim() == 2}
    assert linear_column_norm({n: scale * p for n, p in matrices.items()}) == pytest.approx(
        scale * linear_column_norm(matrices)
    )


class Tied(nn.Module):
    """A tiny language model: layers of two maps and a norm, the classifier tied to the embeddings or not."""

    def __init__(self, layers, width, tie):
        super().__init__()
        self.embed_tokens = nn.Embedding(11, width)
        blocks = (nn.Sequential(nn.Linear(width, 2), nn.Linear(2, width), nn.LayerNorm(width)) for _ in range(layers))
        self.layers = nn.ModuleList(blocks)
        self.output_projection = nn.Linear(width, 11, bias=False)
        if tie:
            self.output_projection.weight = self.embed_tokens.weight


@given(layers=st.integers(1, 3), width=st.integers(1, 5), tie=st.booleans())
def test_each_number_counts_once_in_each_scope(layers, width, tie):
    model = Tied(layers, width, tie)
    vector = model_vector(model)
    counts = {scope: sum(p.numel() for p in select(vector, scope).values()) for scope in SCOPES}
    maps, rest = layers * 4 * width, layers * (2 + width + 2 * width)
    assert counts == {
        "layers": maps + rest,
        "all": maps + rest + 11 * width * (1 if tie else 2),
        "linear": maps + (0 if tie else 11 * width),
        "matrices": maps,
    }
    everything = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    assert norm(select(vector, "all")) == pytest.approx(float(everything.norm()), rel=1e-13)
