"""Bounded and unbounded gradients in attention scores: formulas by hand, against autograd, and never violated."""

import math

import pytest
import torch

from fairseq_transnorm.measure.score_gradients import (
    NORMS,
    Norm,
    largest_weight_derivative,
    score_gradient,
    sweep_rows,
    weights,
)
from fairseq_transnorm.theory import gradient_bounds as theory

EPSILONS = [10.0**-k for k in range(1, 7)]
MACHINE = 1e-12  # float64 rounding on the way to a bound that is met exactly


def slope(xs, ys):
    """Least squares slope of log y over log x."""
    xs, ys = [math.log(x) for x in xs], [math.log(y) for y in ys]
    x0, y0 = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / sum((x - x0) ** 2 for x in xs)


def test_softmax_derivative_by_hand():
    derivative = theory.softmax_derivative(torch.tensor([0.5, 0.25, 0.25]))
    expected = [[0.25, -0.125, -0.125], [-0.125, 0.1875, -0.0625], [-0.125, -0.0625, 0.1875]]
    torch.testing.assert_close(derivative, torch.tensor(expected))


def test_scaled_linear_derivative_by_hand():
    # p = (1/4, 3/4); dp_j / ds_k = (1[j = k] - p_j) / sum(s)
    derivative = theory.scaled_linear_derivative(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(derivative, torch.tensor([[0.1875, -0.0625], [-0.1875, 0.0625]]))


def test_the_papers_example_by_hand():
    assert theory.equal_scores_derivative(0.1, 4) == pytest.approx((1.875, -0.625))
    assert theory.scaled_linear_bound(0.1) == pytest.approx(2.5)
    assert theory.norm_attention_bound(2.0, 3.0, 4, 0.25) == pytest.approx(72.0)
    assert theory.norm_attention_sharp_bound(2.0, 3.0, 0.3, 0.16, eps_inside=True) == pytest.approx(12.0)
    assert theory.norm_attention_sharp_bound(2.0, 3.0, 0.3, 0.1, eps_inside=False) == pytest.approx(15.0)


@pytest.mark.parametrize("form", ["softmax", "scaled linear"])
def test_closed_forms_equal_autograd(form):
    scores = torch.rand(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    for row in scores:
        auto = torch.autograd.functional.jacobian(lambda s: weights(s[None], form)[0], row)
        closed = (
            theory.softmax_derivative(row.softmax(-1)) if form == "softmax" else theory.scaled_linear_derivative(row)
        )
        torch.testing.assert_close(closed, auto, rtol=1e-12, atol=1e-14)


def test_scaled_linear_gradients_grow_without_end_and_softmax_ones_do_not():
    linear, soft = [], []
    for eps in EPSILONS:
        scores = torch.full((1, 8), eps, dtype=torch.float64)
        linear.append(largest_weight_derivative(scores, "scaled linear"))
        soft.append(largest_weight_derivative(scores, "softmax"))
        assert linear[-1] == pytest.approx(theory.equal_scores_derivative(eps, 8)[0], rel=1e-9)
        assert linear[-1] <= theory.scaled_linear_bound(eps)
    assert slope(EPSILONS, linear) == pytest.approx(-1, abs=0.01)
    assert max(soft) <= theory.SOFTMAX_BOUND
    assert slope(EPSILONS, soft) == pytest.approx(0, abs=0.01)


def test_the_softmax_bound_holds_and_is_reached():
    generator = torch.Generator().manual_seed(1)
    for scale in (0.01, 1.0, 100.0):
        scores = scale * torch.randn(50, 9, dtype=torch.float64, generator=generator)
        assert theory.softmax_derivative(scores.softmax(-1)).abs().max() <= 0.25 + MACHINE
    assert largest_weight_derivative(torch.tensor([[3.0, 3.0]]), "softmax") == pytest.approx(0.25)


@pytest.mark.parametrize("norm", [*NORMS, Norm(1e-2, True), Norm(1e-8, True)], ids=lambda n: n.name)
def test_norm_attention_never_exceeds_its_bounds(norm):
    """1,000 draws over sizes and scales, among them rows that are almost or exactly zero."""
    generator = torch.Generator().manual_seed(2)
    tightest = 0.0
    for draw in range(1000):
        n, d = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
        scores, v, upstream = (torch.randn(n, size, dtype=torch.float64, generator=generator) for size in (n, d, d))
        scores *= 10.0 ** (-12 * torch.rand(n, 1, generator=generator, dtype=torch.float64))
        if draw % 10 == 0:
            scores[0] = 0.0
        gradient = score_gradient(scores, v, upstream, "norm", norm).abs()
        c1, c2 = float(upstream.norm(dim=-1).max()), float(v.norm(dim=-1).max())
        rms = (scores @ v).square().mean(-1, keepdim=True).sqrt()
        sharp = theory.norm_attention_sharp_bound(c1, c2, rms, norm.eps, eps_inside=norm.inside)
        assert (gradient <= sharp * (1 + MACHINE)).all(), f"draw {draw}"
        worst = theory.norm_attention_sharp_bound(c1, c2, 0.0, norm.eps, eps_inside=norm.inside)
        assert gradient.max() <= worst * (1 + MACHINE), f"draw {draw}"
        if norm.inside:
            assert gradient.max() <= theory.norm_attention_bound(c1, c2, d, norm.eps), f"draw {draw}"
        tightest = max(tightest, float((gradient / sharp).max()))
    assert tightest > 0.9, "a bound that nothing comes near proves nothing"


def test_norm_gradients_saturate_only_below_their_eps():
    scores = [10.0 ** (-k / 2) for k in range(23)]
    rows = sweep_rows(scores)
    curves = {form: [r["score_gradient"] for r in rows if r["form"] == form] for form in {r["form"] for r in rows}}
    assert set(curves) == {"softmax", "scaled linear", *(norm.name for norm in NORMS)}
    for name in ("norm, eps 1e-2", "norm, eps 1e-6 inside"):
        last = curves[name][-5:]  # the last two decades
        assert max(last) / min(last) < 1.01, name
        assert curves[name][4] / curves[name][2] > 5, f"{name}: grows as 1 / score while that is above eps"
    linear = curves["scaled linear"]
    assert linear[-1] / linear[-5] == pytest.approx(100, rel=0.01)
    assert curves["softmax"][-1] == pytest.approx(curves["softmax"][0], rel=1e-6)
    # The default eps does not tame gradients: ten decades on, it is still at 1e9.
    assert curves["norm, eps 1e-8"][-1] > 1e8
    # a saturated gradient is proportional to 1 / eps outside, 1 / sqrt(eps) inside the root
    assert curves["norm, eps 1e-6 inside"][-1] / curves["norm, eps 1e-2"][-1] == pytest.approx(10, rel=0.01)
    assert curves["norm, eps 1e-8"][-1] / curves["norm, eps 1e-2"][-1] == pytest.approx(1e6, rel=0.02)
    assert all(r["score_gradient"] <= r["sharp_bound"] for r in rows if r["sharp_bound"] is not None)
    assert all(r["score_gradient"] <= r["published_bound"] for r in rows if r["published_bound"] is not None)


def test_the_sweep_is_reproducible_and_depends_on_the_seed():
    assert sweep_rows([1e-3], seed=1) == sweep_rows([1e-3], seed=1) != sweep_rows([1e-3], seed=2)
