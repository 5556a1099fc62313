"""LRPE is orthogonal, and leaves only the difference of positions in a product of query and key."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.modules.lrpe import LRPE
from tests.transnormer_reference import lrpe as one_vector

KINDS = st.sampled_from(["1d3", "1d1", "1_3", "1_1"])


def make(kind: str, width: int, seed: int) -> LRPE:
    torch.manual_seed(seed)
    lrpe = LRPE(width, kind).double()
    lrpe.theta.data += 0.1 * torch.randn(width // 2, dtype=torch.float64)  # as after some training
    if lrpe.v is not None:
        lrpe.v.data /= lrpe.v.norm()  # of length 1 in float64 too
    return lrpe.requires_grad_(False)


@given(kind=KINDS, width=st.integers(2, 9), T=st.integers(1, 6), first=st.integers(0, 9999), seed=st.integers(0, 999))
def test_every_vector_is_encoded_as_the_formula_says(kind, width, T, first, seed):
    lrpe = make(kind, width, seed)
    x = torch.randn(2, 3, T, width, dtype=torch.float64)
    expected = torch.stack(
        [one_vector(row, first + i % T, lrpe.theta, lrpe.v) for i, row in enumerate(x.view(-1, width))]
    )
    torch.testing.assert_close(lrpe(x, torch.arange(first, first + T)), expected.view_as(x), rtol=0, atol=1e-10)


@given(kind=KINDS, width=st.integers(2, 9), first=st.integers(0, 9999), seed=st.integers(0, 999))
def test_products_at_one_position_are_kept(kind, width, first, seed):
    lrpe = make(kind, width, seed)
    basis = torch.eye(width, dtype=torch.float64).view(width, 1, 1, width)
    matrix = lrpe(basis, torch.tensor([first])).view(width, width)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-10)


@given(
    kind=KINDS,
    width=st.integers(2, 9),
    n=st.integers(0, 500),
    m=st.integers(0, 500),
    shift=st.integers(1, 2000),
    seed=st.integers(0, 999),
)
def test_products_depend_on_the_difference_of_positions_only(kind, width, n, m, shift, seed):
    lrpe = make(kind, width, seed)
    q, k = (torch.randn(1, 1, 1, width, dtype=torch.float64) for _ in range(2))

    def product(n, m):
        return (lrpe(q, torch.tensor([n])) * lrpe(k, torch.tensor([m]))).sum()

    torch.testing.assert_close(product(n, m), product(n + shift, m + shift), rtol=0, atol=1e-10)
    # ... which is q^T P R_(m-n) P k
    at_zero = lrpe(q, torch.tensor([0]))
    if m >= n:
        torch.testing.assert_close(product(n, m), (at_zero * lrpe(k, torch.tensor([m - n]))).sum(), rtol=0, atol=1e-10)


@given(kind=st.sampled_from(["1d3", "1d1"]), seed=st.integers(0, 999))
def test_the_difference_does_matter(kind, seed):
    lrpe = make(kind, 8, seed)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    near, far = (lrpe(q, torch.tensor([9])) * lrpe(k, torch.tensor([m])) for m in (8, 2))
    assert not torch.isclose(near.sum(), far.sum(), rtol=1e-6)


@given(kind=KINDS, width=st.integers(2, 6), seed=st.integers(0, 99))
def test_gradients(kind, width, seed):
    lrpe = make(kind, width, seed)
    x = torch.randn(1, 2, 3, width, dtype=torch.float64, requires_grad=True)
    theta = lrpe.theta.clone().requires_grad_()
    positions = torch.tensor([0, 3, 7])
    v = lrpe.v

    def call(x, theta):
        return torch.func.functional_call(lrpe, {"theta": theta}, (x, positions))

    assert torch.autograd.gradcheck(call, (x, theta))
    rows = [one_vector(row, positions[i % 3], theta, v) for i, row in enumerate(x.reshape(-1, width))]
    grad = torch.randn(6, width, dtype=torch.float64)
    expected = torch.autograd.grad(torch.stack(rows), (x, theta), grad)
    got = torch.autograd.grad(call(x, theta), (x, theta), grad.view(1, 2, 3, width))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
