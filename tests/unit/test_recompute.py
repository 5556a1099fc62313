"""Computing again in the backward pass, in parts: the same values and gradients as at once."""

import pytest
import torch

from fairseq_transnorm.modules import recompute as module
from fairseq_transnorm.modules.recompute import by_segments, in_parts, recompute

EXACT = {"rtol": 1e-12, "atol": 1e-12}  # float64


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def mixed(x, y, real, weight, scale):
    """Something that uses cut and shared inputs, and one that has no gradient."""
    return (x.tanh() * y.sum(-1, keepdim=True)).masked_fill(~real[:, None], 0.0) @ weight * scale


@pytest.mark.parametrize("numbers", [1, 13, 40, 10**6])
@pytest.mark.parametrize("shared_trained", [True, False])
def test_segments_equal_the_whole(numbers, shared_trained, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_NUMBERS", numbers)
    x, y = rows(11, 4), rows(3, 11, seed=1).transpose(0, 1)
    real = torch.arange(11) % 3 != 0
    weight, scale = rows(4, 5, seed=2), rows(1, seed=3)
    if not shared_trained:
        weight = weight.detach()
    inputs = [t for t in (x, y, weight, scale) if t.requires_grad]
    sizes = []

    def spy(*args):
        sizes.append(len(args[0]))
        return mixed(*args)

    out, expected = by_segments(spy, (x, y, real), (weight, scale)), mixed(x, y, real, weight, scale)
    # a segment holds at most so many numbers of the first input, and at least one row
    assert sum(sizes) == 11
    assert max(sizes) == min(11, max(1, numbers // 4))
    torch.testing.assert_close(out, expected, **EXACT)
    grad = rows(11, 5, seed=4).detach()
    torch.testing.assert_close(
        torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad), **EXACT
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_backward_pass_inside_autocast_works(dtype, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_NUMBERS", 8)
    x, weight = rows(9, 4).float().detach().requires_grad_(), rows(4, 4, seed=1).float().detach().requires_grad_()
    expected = torch.autograd.grad((x @ weight).tanh().sum(), (x, weight))
    with torch.autocast("cpu", dtype=dtype):
        with torch.autocast("cpu", enabled=False):
            out = by_segments(lambda x, weight: (x @ weight).tanh(), (x,), (weight,))
        got = torch.autograd.grad(out.sum(), (x, weight))
    # torch itself would also compute the gradient of a product in half precision here
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-2)


@pytest.mark.parametrize("length", [1, 4, 5, 10, 11])
def test_parts_equal_the_whole(length):
    x, sizes = rows(2, 5, 3), []

    def function(part):
        sizes.append(len(part))
        return part.square()

    out = in_parts(function, x, rows=length)
    assert max(sizes) <= max(length, 1)
    torch.testing.assert_close(out, x.square(), **EXACT)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 2 * x, **EXACT)


def test_recomputation_keeps_inputs_only_and_draws_the_same_numbers_again():
    x, kept, calls = rows(50, 50), [], []

    def function(x):
        calls.append(1)
        return torch.nn.functional.dropout(x.exp().sin().exp(), 0.5)

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        out = recompute(function, x, random=True)
    torch.rand(7)  # other numbers are drawn in between
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert sum(kept) <= 2500
    assert len(calls) == 2
    dropped = out == 0
    assert 0.4 < dropped.double().mean() < 0.6
    assert torch.equal(grad == 0, dropped)


def test_nothing_is_kept_or_called_twice_without_gradients():
    calls = []
    with torch.no_grad():
        recompute(lambda x: calls.append(1) or x.exp(), rows(3))
    assert calls == [1]
