"""Affine maps through oneDNN: the values and gradients of F.linear, and nothing computed twice."""

import pytest
import torch
import torch.nn.functional as F

from fairseq_transnorm.modules import linear as module
from fairseq_transnorm.modules.linear import Linear, linear
from fairseq_transnorm.modules.recompute import recompute
from tests.transnormer_reference import build_lm, random_tokens, train_step

needs_onednn = pytest.mark.skipif(module._ONEDNN is None, reason="this torch has no oneDNN")
CLOSE = {"rtol": 1e-4, "atol": 1e-4}  # float32; sums of up to a few hundred products


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def products(monkeypatch):
    """Count the products that oneDNN computes, and send even small ones to it."""
    calls = []

    def counted(*operands):
        calls.append(tuple(operands[0].shape))
        return original(*operands)

    original = module._product
    monkeypatch.setattr(module, "_product", counted)
    monkeypatch.setattr(module, "SMALLEST_PRODUCT", 0)
    return calls


def values_and_gradients(function, inputs, grad):
    leaves = [x.clone().requires_grad_() if wanted else x for x, wanted in inputs]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, [x for x in leaves if x.requires_grad], grad)]


@needs_onednn
@pytest.mark.parametrize("wanted", [(1, 1, 1), (1, 0, 0), (0, 1, 1), (0, 0, 1)])
@pytest.mark.parametrize("shape", [(7, 33), (1, 1), (2, 5, 32), (2, 3, 4, 17)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_linear(shape, bias, wanted, products):
    wide = 19
    if not bias and wanted == (0, 0, 1):
        return
    tensors = [drawn(*shape), drawn(wide, shape[-1], seed=1), *([drawn(wide, seed=2)] if bias else [])]
    inputs = list(zip(tensors, wanted, strict=False))
    grad = drawn(*shape[:-1], wide, seed=3)
    expected = values_and_gradients(F.linear, inputs, grad)
    for got, want in zip(values_and_gradients(linear, inputs, grad), expected, strict=True):
        torch.testing.assert_close(got, want, **CLOSE)
    assert len(products) == 1 + sum(wanted[:2])


@needs_onednn
def test_any_strides(products):
    x = drawn(6, 40, seed=1).t()[::2]  # neither rows nor columns are whole runs of memory
    weight = drawn(6, 11).t()
    grad = torch.ones(()).expand(20, 11)
    inputs = [(x, True), (weight, True)]
    for got, want in zip(
        values_and_gradients(linear, inputs, grad), values_and_gradients(F.linear, inputs, grad), strict=True
    ):
        torch.testing.assert_close(got, want, **CLOSE)
    assert len(products) == 3


@needs_onednn
@pytest.mark.parametrize("size", [(0, 8), (2, 0, 8)])
def test_no_rows(size):
    x = torch.zeros(size, requires_grad=True)
    out = Linear(8, 4)(x)
    out.sum().backward()
    assert out.shape == (*size[:-1], 4)
    assert x.grad.shape == size


@needs_onednn
def test_a_product_that_ends_a_recomputed_stretch_is_not_computed_again(products):
    layer, x = Linear(12, 5), drawn(30, 12).requires_grad_()
    recompute(lambda x: layer(x.tanh()), x).sum().backward()
    assert products == [(30, 12), (30, 5), (5, 30)]  # forward, then the gradients of input and weight
    recomputed = x.grad, layer.weight.grad
    x.grad = layer.weight.grad = None
    layer(x.tanh()).sum().backward()
    for got, want in zip(recomputed, (x.grad, layer.weight.grad), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@needs_onednn
def test_without_gradients(products):
    layer, x = Linear(12, 5), drawn(3, 10, 12)
    with torch.no_grad():
        out = layer(x)
    assert not out.requires_grad
    torch.testing.assert_close(out, F.linear(x, layer.weight, layer.bias), **CLOSE)
    assert products == [(30, 12)]


@needs_onednn
@pytest.mark.parametrize(
    "options", [{}, {"checkpoint_activations": True}, {"ffn": "classic", "untied_output": True}], ids=str
)
def test_a_whole_model_trains_alike(options, products):
    model = build_lm(dtype=torch.float32, **options).train()
    tokens = random_tokens(2, 30)

    def gradients():
        model.zero_grad()
        logits = train_step(model, tokens)
        return [logits, *(p.grad for p in model.parameters() if p.grad is not None)]

    got = gradients()
    assert products
    with torch.backends.mkldnn.flags(enabled=False):
        expected = gradients()
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_take_the_usual_way(dtype, products):
    layer, x = Linear(12, 5).to(dtype), drawn(30, 12).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert products == []


def test_autocast_and_a_disabled_onednn_take_the_usual_way(products):
    layer, x = Linear(12, 5), drawn(30, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert products == []


def test_a_small_product_takes_the_usual_way():
    layer, x = Linear(12, 5), drawn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_what_does_not_fit_is_left_to_the_clear_error_of_linear(products):
    assert not module._takes(drawn(30, 13), drawn(5, 12))
    assert not module._takes(drawn(30, 11), drawn(5, 12))
