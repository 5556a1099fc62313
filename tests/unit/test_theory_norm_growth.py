"""Closed forms of norm growth against numbers by hand and against steps that are really taken."""

import math

import pytest
import torch

from fairseq_transnorm.theory.norm_growth import (
    aligned_norm,
    boundary,
    decay_threshold,
    grows,
    integrated_rate,
    misaligned_norm,
    step_from_cosine,
)


def test_integrals_of_the_learning_rate():
    assert integrated_rate(0.1, 0, 10, 30) == pytest.approx(2.0)
    assert integrated_rate(1, 0.5, 1, 16) == pytest.approx(6.0)
    assert integrated_rate(2, 1, 1, math.e) == pytest.approx(2.0)


def test_norms_by_hand():
    assert aligned_norm(2.0, 1, 0.5, 1, 4) == pytest.approx(2 * math.exp(2))
    assert misaligned_norm(2.0, 1, 0.5, 1, 9) == pytest.approx(6.0), "the square root of t"
    assert misaligned_norm(2.0, 0.5, 0.5, 1, 256) == pytest.approx(4.0), "t^(1/8) for half the rate"
    assert misaligned_norm(3.0, 0.1, 0, 0, 200) == pytest.approx(3 * math.e)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_norms_follow_the_steps(power):
    """Steps in 400 dimensions, each as long as eta times theta: along theta, or drawn at random orthogonal to it."""
    draw = torch.Generator().manual_seed(1)
    theta = torch.randn(400, generator=draw, dtype=torch.float64)
    start, end, rate = 100, 500, 0.02 if power == 0 else 0.4
    along, across = theta.clone(), theta.clone()
    for t in range(start, end):
        eta = rate * t**-power
        along = along + eta * along
        step = torch.randn(400, generator=draw, dtype=torch.float64)
        step -= (step @ across) / (across @ across) * across
        across = across + eta * across.norm() * step / step.norm()
    # sums over steps against integrals: off by about eta / 2 in the exponent per unit of it
    norm = float(theta.norm())
    assert math.log(along.norm() / norm) == pytest.approx(integrated_rate(rate, power, start, end), rel=0.03)
    assert float(along.norm()) == pytest.approx(aligned_norm(norm, rate, power, start, end), rel=0.2)
    assert float(across.norm()) == pytest.approx(misaligned_norm(norm, rate, power, start, end), rel=2e-3)


@pytest.mark.parametrize(("product", "expected"), [(-0.4, True), (-0.6, False)])
def test_the_sign_of_growth_with_either_product(product, expected):
    assert boundary(1.0) == -0.5
    assert boundary(1.0, updated=True) == 0.5
    assert grows(product, 1.0) is expected
    # theta = (1, 0) and a step of length 1 with that product; theta' . delta = theta . delta + |delta|^2
    after = (1 + product, math.sqrt(1 - product**2))
    assert (math.hypot(*after) > 1) is expected
    assert (product + 1 > boundary(1.0, updated=True)) is expected, "the original compares this with -1/2"


def test_step_from_two_norms_and_their_cosine():
    # from (3, 0) to (3, 4)
    assert step_from_cosine(3.0, 5.0, 0.6) == (pytest.approx(4.0), pytest.approx(0.0, abs=1e-12))
    # from (2, 0) to (3, 1)
    assert step_from_cosine(2.0, math.sqrt(10), 3 / math.sqrt(10)) == pytest.approx((math.sqrt(2), math.sqrt(0.5)))
    with pytest.raises(ValueError, match=r"no step leads from norm 2\.0 to 2\.0"):
        step_from_cosine(2.0, 2.0, 1.0)


def test_weight_decay_at_which_growth_ends():
    assert decay_threshold(1e-3, 0.5, 80_000, 10.0) == pytest.approx(0.1)
    draw = torch.Generator().manual_seed(2)
    theta = torch.randn(1000, generator=draw, dtype=torch.float64)
    update = torch.randn(1000, generator=draw, dtype=torch.float64)
    update -= (update @ theta) / (theta @ theta) * theta
    limit = decay_threshold(1e-3, float(update.square().mean().sqrt()), 1000, float(theta.norm()))
    for decay, expected in ((0.95 * limit, True), (1.05 * limit, False)):
        assert bool((theta - 1e-3 * (update + decay * theta)).norm() > theta.norm()) is expected
