"""Fused causal attention: heads one by one against the formula, in values and gradients; logits read out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_transnorm.modules import fused_attention
from fairseq_transnorm.modules.fused_attention import causal_attention
from fairseq_transnorm.modules.induction import InductionLayer
from fairseq_transnorm.modules.linear import takes_products

FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
one_by_one = pytest.mark.skipif(not takes_products(torch.zeros(1)), reason="torch has no oneDNN here")


def by_the_formula(q, k, v, scale):
    rows = []
    for t in range(q.shape[2]):
        weights = (scale * torch.einsum("bhk,bhsk->bhs", q[:, :, t], k[:, :, : t + 1])).softmax(-1)
        rows.append(torch.einsum("bhs,bhsv->bhv", weights, v[:, :, : t + 1]))
    return torch.stack(rows, dim=2)


@pytest.fixture
def small_heads(monkeypatch):
    monkeypatch.setattr(fused_attention, "SMALLEST_HEAD", 0)


@pytest.fixture(autouse=True, scope="module")
def any_number_of_rows():
    """Short sequences, of which any number of rows can have a gradient."""
    rows, fused_attention.ROWS = fused_attention.ROWS, 1
    yield
    fused_attention.ROWS = rows


@one_by_one
@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 9),
    K=st.integers(1, 5),
    V=st.integers(1, 5),
    H=st.integers(1, 2),
    wanted=st.sets(st.sampled_from("qkv"), min_size=1),
    counted=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_heads_one_by_one_equal_the_formula(T, K, V, H, wanted, counted, seed):
    torch.manual_seed(seed)
    sizes = {"q": K, "k": K, "v": V}
    inputs = [torch.randn(2, H, T, sizes[name], requires_grad=name in wanted) for name in "qkv"]
    seen = torch.randn(2, H, T, V) * (torch.rand(2, 1, T, 1) < counted / 9)  # some positions have no gradient
    flat = [x.flatten(0, 1) for x in inputs]
    fast = fused_attention._OneByOne.apply(*flat, 0.7).unflatten(0, (2, H))
    slow = by_the_formula(*(x.double() for x in inputs), 0.7)
    torch.testing.assert_close(fast.double(), slow, **FLOAT32)
    leaves = [x for x in inputs if x.requires_grad]
    for one, other in zip(
        torch.autograd.grad((fast * seen).sum(), leaves), torch.autograd.grad((slow * seen).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other, **FLOAT32)


@one_by_one
def test_large_heads_are_computed_one_by_one_and_others_are_not(small_heads, monkeypatch):
    taken = []
    original = fused_attention._OneByOne.apply
    monkeypatch.setattr(
        fused_attention._OneByOne, "apply", lambda *inputs: taken.append(len(inputs[0])) or original(*inputs)
    )
    x = torch.randn(3, 2, 5, 4)
    got = causal_attention(x, x, x, 0.5)
    assert taken == [6]
    torch.testing.assert_close(causal_attention(x.double(), x.double(), x.double(), 0.5), got.double(), **FLOAT32)
    assert taken == [6]  # float64 is torch's own


@one_by_one
def test_second_derivatives_are_refused(small_heads):
    x = torch.randn(1, 1, 4, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(causal_attention(x, x, x, 1.0).square().sum(), x, create_graph=True)


@settings(max_examples=20, deadline=None)
@given(T=st.integers(1, 6), N=st.integers(1, 10), bare=st.booleans(), heads=st.integers(1, 2), seed=st.integers(0, 99))
def test_logits_read_out_of_a_layer_are_those_of_its_residual_stream(T, N, bare, heads, seed):
    torch.manual_seed(seed)
    ffn = None if bare else torch.nn.Linear(8, 8, bias=False)
    layer = InductionLayer(8, heads, query=False, ffn=ffn).double()
    x = torch.randn(2, T, 8, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(N, 8, dtype=torch.float64, requires_grad=True)
    fast, slow = layer.read_out(x, matrix), layer(x, return_weights=True).hidden @ matrix.t()
    torch.testing.assert_close(fast, slow)
    wanted = [x, matrix, *layer.parameters()]
    seen = torch.randn_like(fast)
    for one, other in zip(
        torch.autograd.grad((fast * seen).sum(), wanted), torch.autograd.grad((slow * seen).sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other)
