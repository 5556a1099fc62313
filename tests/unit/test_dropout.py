"""Dropout by cheap random numbers: probability, mean, gradient, independence."""

import pytest
import torch

from fairseq_transnorm.modules.dropout import dropout


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_as_many_are_dropped_and_the_others_grow(probability, dtype):
    torch.manual_seed(3)
    x = torch.ones(401, 499, dtype=dtype)
    out = dropout(x, probability)
    assert out.dtype == dtype
    kept = out[out != 0]
    assert kept.unique().tolist() == pytest.approx(
        [1 / (1 - probability)], rel=1e-2 if dtype == torch.bfloat16 else 1e-3
    )
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    assert 1 - len(kept) / x.numel() == pytest.approx(probability, abs=5 * deviation + 2**-17)


def test_the_mean_stays_exactly_for_probabilities_between_the_steps():
    torch.manual_seed(3)
    out = dropout(torch.ones(10, dtype=torch.float64), 0.1)
    assert out.max().item() == 65536 / (65536 - 6554)


def test_places_are_independent():
    torch.manual_seed(3)
    dropped = (dropout(torch.ones(2**20), 0.5) == 0).double()
    for distance in (1, 2, 3, 4, 8):  # four draws come from one number of the generator
        both = dropped[distance:] * dropped[:-distance]
        assert both.mean().item() == pytest.approx(0.25, abs=0.003)


def test_the_gradient_is_that_of_the_kept_and_the_seed_decides():
    x = torch.randn(30, 7, requires_grad=True)
    torch.manual_seed(5)
    out = dropout(x, 0.25)
    out.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), out.detach())
    torch.manual_seed(5)
    assert torch.equal(dropout(x, 0.25), out)
    assert not torch.equal(dropout(x, 0.25), out)


def test_nothing_is_dropped_in_evaluation_or_without_a_probability():
    x = torch.randn(3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


def test_the_least_probability_still_drops():
    torch.manual_seed(3)
    assert (dropout(torch.ones(2**20), 1e-9) == 0).sum() > 0
