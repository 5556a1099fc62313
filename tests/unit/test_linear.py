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

    original = module.matrix_product
    monkeypatch.setattr(module, "matrix_product", counted)
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
@pytest.mark.parametrize("bias", [drawn(22, seed=2)[::2], drawn(1, seed=2).expand(11)], ids=["strided", "expanded"])
def test_any_bias(bias, products):
    x, weight = drawn(20, 40), drawn(11, 40, seed=1)
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), **CLOSE)
    assert products == [(20, 40)]


@pytest.mark.parametrize("size", [(0, 8), (2, 0, 8)])
def test_no_rows(size, products):
    x = torch.zeros(size, requires_grad=True)
    out = Linear(8, 4)(x)
    out.sum().backward()
    assert out.shape == (*size[:-1], 4)
    assert x.grad.shape == size
    assert products == []


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


def test_autocast_takes_the_usual_way(products):
    layer, x = Linear(12, 5), drawn(30, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert products == []


@needs_onednn
@pytest.mark.parametrize("passes", ["forward", "backward", "both"])
def test_onednn_can_be_switched_off(passes, monkeypatch):
    """In one pass too: a layer that is recomputed keeps the same things either way."""
    monkeypatch.setattr(module, "SMALLEST_PRODUCT", 0)
    calls = []
    onednn = module._ONEDNN
    monkeypatch.setattr(module, "_ONEDNN", lambda *args: [calls.append(args[0].shape), onednn(*args)][1])
    layer, x = Linear(12, 5), drawn(30, 12).requires_grad_()
    with torch.backends.mkldnn.flags(enabled=passes == "backward"):
        out = recompute(lambda x: layer(x.tanh()), x)
    with torch.backends.mkldnn.flags(enabled=passes == "forward"):
        out.sum().backward()
    assert len(calls) == {"forward": 2, "backward": 1, "both": 0}[passes]
    got, x.grad = x.grad, None
    F.linear(x.tanh(), layer.weight, layer.bias).sum().backward()
    torch.testing.assert_close(got, x.grad, **CLOSE)


@needs_onednn
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
def test_any_default_type(default, products):
    layer, x = Linear(12, 5), drawn(30, 12)
    torch.set_default_dtype(default)
    try:
        layer(x).sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(5, 12), **CLOSE)
    assert len(products) == 2


@needs_onednn
def test_what_no_gradient_needs_is_not_kept(products):
    layer, x = Linear(12, 5), drawn(30, 12).requires_grad_()
    layer.weight.requires_grad_(False)
    kept = []
    hidden = x.tanh()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        out = layer(hidden)
    assert kept == [(5, 12)]  # the weight, for the gradient of x
    hidden.data.zero_()
    out.sum().backward()
    assert len(products) == 2


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_the_compiler_and_the_tracer_see_an_ordinary_product(products, monkeypatch):
    layer, x = Linear(12, 5), drawn(30, 12)
    traced = torch.jit.trace(layer, x, check_trace=False)  # which would call the layer itself
    assert "mkldnn" not in str(traced.graph)
    torch.testing.assert_close(traced(x), F.linear(x, layer.weight, layer.bias), **CLOSE)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    layer(x)
    assert products == []


@needs_onednn
def test_second_derivatives_are_refused(products):
    layer, x = Linear(12, 5), drawn(30, 12).requires_grad_()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)


def test_a_small_product_takes_the_usual_way():
    layer, x = Linear(12, 5), drawn(3, 12)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_what_does_not_fit_is_left_to_the_clear_error_of_linear(products):
    assert not module._takes(drawn(30, 13), drawn(5, 12), None)
    assert not module._takes(drawn(30, 11), drawn(5, 12), None)
    assert not module._takes(drawn(30, 12), drawn(5, 12), drawn(6))
    assert not module._takes(drawn(30, 12), drawn(5, 12), drawn(5).double())
    assert not module._takes(drawn(30, 12), drawn(12), None)
