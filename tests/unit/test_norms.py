"""Normalisations: values computed by hand, zero rows, precision, gradients and names."""

import math

import pytest
import torch
from torch import nn

from fairseq_transnorm.modules.norms import (
    GatedRMSNorm,
    LayerNorm,
    RMSNorm,
    ScaleNorm,
    SimpleRMSNorm,
    build_norm,
    rms_normalise,
)

NAMES = ["simplermsnorm", "rmsnorm", "gatedrmsnorm", "scalenorm", "layernorm"]
# (3, 4): mean square 12.5, rms 3.5355339
X = torch.tensor([[3.0, 4.0]])


def set_parameters(norm: nn.Module, **values: list[float] | float) -> nn.Module:
    for name, value in values.items():
        parameter = getattr(norm, name)
        assert parameter.shape == torch.tensor(value).shape
        parameter.data = torch.tensor(value)
    return norm


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (SimpleRMSNorm(), [0.8485281, 1.1313708]),  # 3 and 4 over sqrt(12.5)
        (SimpleRMSNorm(eps=1.0), [0.6614436, 0.8819248]),  # over sqrt(12.5) + 1
        (SimpleRMSNorm(eps=1.0, eps_inside=True), [0.8164966, 1.0886621]),  # over sqrt(13.5)
        (set_parameters(RMSNorm(2), scale=[2.0, -1.0]), [1.6970563, -1.1313708]),
        (set_parameters(RMSNorm(2, offset=True), scale=[1.0, 1.0], offset=[0.5, -0.5]), [1.3485281, 0.6313708]),
        (RMSNorm(2, partial=0.5), [1.0, 4 / 3]),  # the rms of the first channel alone is 3
        (RMSNorm(2, partial=0.9), [1.0, 4 / 3]),  # int(0.9 * 2) = 1
        (RMSNorm(2, eps=1.0, partial=0.5), [0.75, 1.0]),  # 3 + 1
        (RMSNorm(2, eps=7.0, eps_inside=True, partial=0.5), [0.75, 1.0]),  # sqrt(9 + 7)
        # sigmoid(0.5 * 3) = 0.8175745, sigmoid(-1 * 4) = 0.0179862: the gate sees the unnormalised values
        (set_parameters(GatedRMSNorm(2), scale=[1.0, 2.0], gate=[0.5, -1.0]), [0.6937350, 0.0406981]),
        (GatedRMSNorm(2), [0.8082859, 1.1110218]),  # gates sigmoid(3) = 0.9525741, sigmoid(4) = 0.9820138
        (set_parameters(ScaleNorm(), scale=2.0), [1.6970556, 2.2627408]),  # 6 and 8 over sqrt(12.5 + 1e-5)
        (ScaleNorm(eps=3.5), [0.75, 1.0]),  # sqrt(12.5 + 3.5) = 4
        # mean 3.5, variance 0.25: +-0.5 over sqrt(0.25 + 1e-5)
        (LayerNorm(2), [-0.9999800, 0.9999800]),
        (set_parameters(LayerNorm(2, eps=0.75), weight=[2.0, 1.0], bias=[1.0, 3.0]), [0.0, 3.5]),  # sqrt(1)
    ],
    ids=lambda value: str(value) if isinstance(value, nn.Module) else "",
)
def test_values_by_hand(norm, expected):
    torch.testing.assert_close(norm(X)[0], torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_offset_is_off_and_parameters_start_neutral():
    assert RMSNorm(3).offset is None
    assert {name: p.tolist() for name, p in RMSNorm(2, offset=True).named_parameters()} == {
        "scale": [1, 1],
        "offset": [0, 0],
    }
    assert {name: p.tolist() for name, p in GatedRMSNorm(2).named_parameters()} == {"scale": [1, 1], "gate": [1, 1]}
    assert {name: p.tolist() for name, p in ScaleNorm().named_parameters()} == {"scale": 1}
    assert {name: p.tolist() for name, p in LayerNorm(2).named_parameters()} == {"weight": [1, 1], "bias": [0, 0]}
    assert not list(SimpleRMSNorm().parameters())


@pytest.mark.parametrize(
    ("name", "eps"),
    [("simplermsnorm", 1e-8), ("rmsnorm", 1e-8), ("gatedrmsnorm", 1e-8), ("scalenorm", 1e-5), ("layernorm", 1e-5)],
)
def test_default_and_given_eps(name, eps):
    assert build_norm(name, 4).eps == eps
    assert build_norm(name, 4, eps=0.25).eps == 0.25


@pytest.mark.parametrize("name", NAMES)
def test_eps_inside_changes_the_three_rms_norms_only(name):
    outside, inside = build_norm(name, 2, 1.0)(X), build_norm(name, 2, 1.0, eps_inside=True)(X)
    rms = name in ("simplermsnorm", "rmsnorm", "gatedrmsnorm")
    assert torch.equal(outside, inside) != rms
    if rms:
        ratio = (math.sqrt(12.5) + 1) / math.sqrt(13.5)
        torch.testing.assert_close(inside, outside * ratio)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("eps_inside", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_zero_row_gives_zero_and_finite_gradients(name, eps_inside, dtype):
    # eps 1e-8 is 0 in float16, and 0/0 is no number
    norm = build_norm(name, 4, eps_inside=eps_inside).to(dtype)
    x = torch.zeros(2, 4, dtype=dtype)
    x[1] = torch.tensor([1.0, -1, 2, 0.5])
    x.requires_grad_()
    out = norm(x)
    assert out.dtype == dtype
    assert out[0].tolist() == [0, 0, 0, 0]
    # a small gradient: 1e8 times 1 is beyond float16
    (1e-4 * out.float()).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in norm.parameters())


@pytest.mark.parametrize("eps_inside", [False, True])
@pytest.mark.parametrize("row", [[0.0, 0, 0, 0], [0.0, 0, 1, 2]])
def test_a_partial_norm_has_finite_gradients_where_the_measured_channels_are_zero(row, eps_inside):
    x = torch.tensor([row], requires_grad=True)
    out = RMSNorm(4, partial=0.5, eps_inside=eps_inside)(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


def test_the_gradient_at_a_zero_row_is_one_over_eps():
    x = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    (SimpleRMSNorm(eps=1e-2)(x) * torch.tensor([1.0, 2, 3])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[100.0, 200, 300]], dtype=torch.float64))
    x.grad = None
    (SimpleRMSNorm(eps=1e-4, eps_inside=True)(x) * torch.tensor([1.0, 2, 3])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[100.0, 200, 300]], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_computes_in_float32(name, dtype):
    # 300^2 * 64 and 2000^2 overflow float16
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).mul(2000).to(dtype)
    norm = build_norm(name, 64)
    wide = norm(x.float())
    assert wide.dtype == torch.float32
    torch.testing.assert_close(norm.to(dtype)(x), wide.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_changes_nothing(name):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * 1e4
    norm = build_norm(name, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(norm(x), norm(x))
        inside = norm(x)
    torch.testing.assert_close(inside, norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_srms_ignores_the_scale_of_a_token_and_gives_rms_one(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 7, 12, generator=generator, dtype=dtype)
    scale = torch.rand(3, 7, 1, generator=generator, dtype=dtype) * 100 + 0.1
    torch.testing.assert_close(SimpleRMSNorm()(scale * x), SimpleRMSNorm()(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(SimpleRMSNorm()(x).square().mean(-1), torch.ones(3, 7, dtype=dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-8, 1e-2, 1.0])
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_written_gradient_is_that_of_the_formula(eps, contiguous):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    x[0, 0] *= 1e-6  # a nearly zero row
    x = (x if contiguous else x.transpose(0, 2)).requires_grad_()
    grad = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    out = rms_normalise(x, eps)
    formula = x / (x.square().mean(-1, keepdim=True).sqrt() + eps)
    torch.testing.assert_close(out, formula, rtol=1e-12, atol=0)
    (got,) = torch.autograd.grad(out, x, grad)
    (expected,) = torch.autograd.grad(formula, x, grad)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eps_inside", [False, True])
def test_gradcheck(eps_inside):
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rms_normalise(x, 0.1, eps_inside), x)


def test_none_changes_nothing():
    assert build_norm("none", 2)(X) is X


@pytest.mark.parametrize(
    ("name", "eps", "message"),
    [
        ("simplermsnrom", None, r"unknown norm 'simplermsnrom'; did you mean 'simplermsnorm'\?.*layernorm"),
        ("rmsnorm", 0.0, r"norm rmsnorm: eps 0\.0 must be above 0"),
        ("layernorm", -1e-5, r"norm layernorm: eps -1e-05 must be above 0"),
        ("scalenorm", math.nan, r"norm scalenorm: eps nan must be above 0"),
    ],
)
def test_bad_names_and_eps_are_refused(name, eps, message):
    with pytest.raises(ValueError, match=message):
        build_norm(name, 4, eps)


@pytest.mark.parametrize("partial", [0.0, 0.1, 1.5])
def test_a_partial_norm_needs_a_channel(partial):
    with pytest.raises(ValueError, match=f"RMSNorm: partial {partial} of 4 channels"):
        RMSNorm(4, partial=partial)
