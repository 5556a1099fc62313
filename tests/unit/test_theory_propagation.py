"""The theory of whole encoders: rules of thumb by hand, and against measured models of 48 layers."""

from dataclasses import replace

import numpy as np
import pytest

from fairseq_transnorm.theory.blocks import attention_block, ffn_block
from fairseq_transnorm.theory.deep_scale import ResidualWeights, constant_stds, residual_weights, xavier_stds
from fairseq_transnorm.theory.moments import Signal, dropout, trace
from fairseq_transnorm.theory.propagation import Encoder, exponential, inverse_root, propagate, straight_line

N, D, F, L = 24, 64, 256, 128


def encoder(**options):
    stds = options.pop("stds", xavier_stds(D, F, 2, N))
    return Encoder(**{"dim": D, "inner": F, "length": L, "stds": stds, "dropout": 0.1, "token_match": 0.02} | options)


def test_reference_lines_by_hand():
    assert straight_line(8.0, 4).tolist() == [2, 4, 6, 8]
    assert inverse_root(6.0, 4) == pytest.approx([6, 6 / 2**0.5, 6 / 3**0.5, 3])
    assert exponential(2.0, 3) == pytest.approx([2, 2.048, 2.097152])
    assert exponential(2.0, 3, rate=2) == pytest.approx([2, 4, 8])


def test_pre_norm_adds_the_gains_of_its_blocks():
    """V <- V + B, where B depends on the correlation only, which settles."""
    variance = propagate(encoder()).variance
    steps = np.diff(variance)
    r = float(propagate(encoder()).correlation[-1])
    x = Signal(correlation=r)
    attn = attention_block(
        x,
        length=L,
        d=D,
        **{f"{name}_variance": 2 / (D + D / 2) for name in ("query", "key", "value")},
        output_variance=1 / D,
        p=0.1,
    )
    ffn = ffn_block(x, d=D, f=F, first_variance=2 / (D + F), second_variance=2 / (D + F), p=0.1)
    assert float(ffn.variance) == pytest.approx(0.32 / 0.9), "the spread of a Xavier feed-forward"
    assert steps[-1] == pytest.approx(float(attn.variance) + float(ffn.variance), rel=0.01)


def test_post_norm_is_one_plus_the_last_gain():
    found = propagate(encoder(post_norm=True))
    assert found.variance == pytest.approx(np.full(N, 1 + 0.32 / 0.9)), "1 after every norm, 1 + B before it"


def test_scaling_keeps_the_variance_of_unit_blocks():
    """With lambda^2 + beta^2 = 1 a Post-LN sum has variance lambda^2 + beta^2 B, whatever the depth."""
    weights = residual_weights(N)
    found = propagate(encoder(post_norm=True, weights=weights)).variance
    assert found == pytest.approx(np.full(N, weights.skip_squared + weights.change_squared * 0.32 / 0.9))


@pytest.mark.parametrize("post_norm", [False, True])
def test_gradients_by_the_rule_of_a_block(post_norm):
    """Blocks that let hardly anything through leave lambda^2 + beta^2 G / V of the last block's gradient."""
    stds = constant_stds(1e-6, N)
    weights = ResidualWeights(0.9, 0.1)
    found = propagate(encoder(stds=stds, weights=weights, post_norm=post_norm))
    # Post-LN: the skip loses lambda^2, and the norm gives it back; Pre-LN: it is lost
    per_layer = 1.0 if post_norm else 0.9**2
    assert found.gradient_ratio == pytest.approx(per_layer ** np.arange(N)[::-1], rel=1e-4)


def test_everything_between_positions_alike():
    """One token, one segment and no dropout: all positions get the same embedding but for their positions."""
    found = propagate(encoder(dropout=0.0, token_match=1.0, segment_match=1.0))
    assert found.correlation[0] > 0.7
    assert np.all(np.diff(found.correlation) > 0)
    assert found.correlation[-1] < 1


def test_components_inside_a_chain():
    half = lambda x: dropout(x, p=0.5)  # noqa: E731
    first, second = trace(Signal(variance=2.0, correlation=0.5, gradient_variance=3.0), half, half)
    assert (first.variance, second.variance, second.correlation) == pytest.approx((2, 4, 0.25))
    assert (first.gradient_variance, second.gradient_variance) == pytest.approx((6, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim 0 must be at least 1"),
        ({"length": 0}, "length 0 must be at least 1"),
        ({"dropout": 1.0}, r"p 1 must lie in \[0, 1\)"),
        ({"activation_dropout": 1.0}, r"p 1 must lie in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"p -0.1 must lie in \[0, 1\)"),
        ({"token_match": 1.5}, "token_match 1.5"),
        ({"segment_match": -1.0}, "segment_match -1"),
        ({"gradient_correlation": 2.0}, "gradient_correlation 2"),
        ({"activation": "tanh"}, "activation 'tanh'"),
        ({"weights": ResidualWeights(-1.0, 1.0)}, "skip_squared -1 must be above 0"),
        ({"stds": replace(constant_stds(0.1, 3), value=np.array([0.1, -0.1, 0.1]))}, "std of value -0.1"),
        ({"stds": replace(constant_stds(0.1, 3), value=np.array([0.1]))}, "1 values and 3 outputs"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        propagate(encoder(**change))


@pytest.mark.parametrize("line", [straight_line, inverse_root, exponential])
def test_lines_of_no_layers(line):
    with pytest.raises(ValueError, match="layers 0 must be at least 1"):
        line(1.0, 0)
