"""Feed-forward sublayers: values by hand, where dropout stands, initialisation."""

import math

import pytest
import torch
import torch.nn.functional as F

from fairseq_transnorm.modules.activations import ACTIVATIONS
from fairseq_transnorm.modules.feed_forward import FeedForward, GatedFeedForward


def glu_by_hand(activation: str, **options: str) -> GatedFeedForward:
    """W1 = (1 0; 0 2), b1 = (0, 1); W2 = (0 1; 1 1), b2 = (1, 0); W3 = (1 -1; 2 0), b3 = (0, 10)."""
    ffn = GatedFeedForward(2, 2, activation, **options).double()
    ffn.gate_and_value.weight.data = torch.tensor([[1, 0], [0, 2], [0, 1], [1, 1]], dtype=torch.float64)
    ffn.gate_and_value.bias.data = torch.tensor([0, 1, 1, 0], dtype=torch.float64)
    ffn.out.weight.data = torch.tensor([[1, -1], [2, 0]], dtype=torch.float64)
    ffn.out.bias.data = torch.tensor([0, 10], dtype=torch.float64)
    return ffn


# x = (2, -1): gate inputs (2, -1), values (0, 1) for W2 x + b2 = (-1 + 1, 2 - 1)
# x = (1, 3): gate inputs (1, 7), values (4, 4)
SILU1, SILU7, SILU_1 = 1 / (1 + math.exp(-1)), 7 / (1 + math.exp(-7)), -1 / (1 + math.e)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("identity", [[1, 10], [4 - 28, 8 + 10]]),
        ("relu", [[0, 10], [4 - 28, 8 + 10]]),
        ("silu", [[-SILU_1, 10], [4 * SILU1 - 4 * SILU7, 8 * SILU1 + 10]]),
        ("swish", [[-SILU_1, 10], [4 * SILU1 - 4 * SILU7, 8 * SILU1 + 10]]),
    ],
)
def test_gated_values_by_hand(activation, expected):
    got = glu_by_hand(activation)(torch.tensor([[[2, -1], [1, 3]]], dtype=torch.float64))
    torch.testing.assert_close(got, torch.tensor([expected], dtype=torch.float64))


def test_the_gate_is_silu_and_the_output_plain_by_default():
    x = torch.tensor([[[2, -1], [1, 3]]], dtype=torch.float64)
    torch.manual_seed(0)
    ffn = GatedFeedForward(2, 2).double()
    gate, value = F.linear(x, ffn.gate_and_value.weight, ffn.gate_and_value.bias).chunk(2, -1)
    torch.testing.assert_close(ffn(x), ffn.out(gate * gate.sigmoid() * value))


def test_the_final_activation():
    x = torch.tensor([[[2, -1], [1, 3]]], dtype=torch.float64)
    got = glu_by_hand("identity", final_activation="relu")(x)
    assert got.tolist() == [[[1, 10], [0, 18]]]


def test_classic_values_by_hand():
    ffn = FeedForward(2, 3).double()
    ffn.inner.weight.data = torch.tensor([[1, 0], [0, 1], [-1, -1]], dtype=torch.float64)
    ffn.inner.bias.data = torch.tensor([0, 0, 1], dtype=torch.float64)
    ffn.out.weight.data = torch.tensor([[1, 2, 3], [1, -1, 0]], dtype=torch.float64)
    ffn.out.bias.data = torch.tensor([0.5, 0], dtype=torch.float64)
    # (2, -1): hidden (2, -1, 0) -> relu (2, 0, 0); (-3, 1): hidden (-3, 1, 3) -> (0, 1, 3)
    got = ffn(torch.tensor([[[2, -1], [-3, 1]]], dtype=torch.float64))
    assert got.tolist() == [[[2.5, 2], [11.5, -1]]]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_has_right_gradients(activation):
    torch.manual_seed(0)
    for ffn in (GatedFeedForward(3, 5, activation, final_activation=activation), FeedForward(3, 5, activation)):
        x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(ffn.double(), x)


@pytest.mark.parametrize("gated", [True, False])
def test_dropout_stands_after_the_activation_in_training_only(gated):
    torch.manual_seed(0)
    ffn = GatedFeedForward(8, 8, dropout=0.25) if gated else FeedForward(8, 8, dropout=0.25)
    ffn.out.weight.data, ffn.out.bias.data = torch.eye(8), torch.zeros(8)
    if gated:  # a value of 1, so that the output is the gate
        ffn.gate_and_value.weight.data[8:], ffn.gate_and_value.bias.data[8:] = 0, 1
    x = torch.randn(1, 5000, 8)
    whole, dropped = ffn.eval()(x), ffn.train()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    # 40,000 draws, of which ReLU leaves about half: one standard error is 0.003
    assert abs(kept.sum() / (whole != 0).sum() - 0.75) < 0.01
    assert torch.equal(whole, ffn.eval()(x))
    ffn.dropout = 0.0
    torch.testing.assert_close(ffn.train()(x), whole)


def test_initialisation_is_torchs_default():
    torch.manual_seed(0)
    ffn = GatedFeedForward(64, 170)
    for parameter, fan_in in [(p, 64) for p in ffn.gate_and_value.parameters()] + [
        (p, 170) for p in ffn.out.parameters()
    ]:
        bound = fan_in**-0.5
        assert parameter.abs().max() <= bound
        # uniform on (-a, a): fourth moment a^4/5 and second a^2/3, so the mean square is off by a^2 sqrt(4/45 / n)
        assert abs(parameter.square().mean() - bound**2 / 3) < 4 * bound**2 * (4 / 45 / parameter.numel()) ** 0.5


def test_unknown_activations_are_refused():
    for build in (
        lambda: GatedFeedForward(2, 2, "sillu"),
        lambda: GatedFeedForward(2, 2, final_activation="sillu"),
        lambda: FeedForward(2, 2, "sillu"),
    ):
        with pytest.raises(ValueError, match="unknown activation 'sillu'; did you mean 'silu'"):
            build()
