"""Fast estimates equal the definition read literally; closed forms agree with simulations within standard errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_transnorm.measure.component_grid import COMPONENTS
from fairseq_transnorm.measure.component_moments import (
    SIMULATIONS,
    MomentSums,
    attend,
    correlated_normal,
    dropout,
    simulate,
)

FLOAT32 = 2e-5  # of the mean square of the entries, from sums in float32 over one axis
RUNS, STANDARD_ERRORS = 16, 4.0  # 4 rather than 3: over 100 comparisons, and t with 15 degrees of freedom

# Per component: parameters, trials of one run, and how far the closed form itself may be off, as a share. The forms
# without an entry are exact; LayerNorm's leave out 1 / d, softmax's and attention's 1 / L and more.
SIGNAL = {"variance": 2.0, "correlation": 0.4, "gradient_variance": 0.5, "gradient_correlation": 0.3}
CASES = {
    "linear": ({"mean": 1.0, "weight_gain": 2.0, "d_in": 60, "d_out": 30, "length": 20} | SIGNAL, 40, {}),
    "relu": ({"length": 30} | SIGNAL, 3000, {}),
    "gelu": ({"length": 30} | SIGNAL, 3000, {}),
    "layernorm": ({"mean": -3.0, "d": 100, "length": 30} | SIGNAL, 40, {
        "variance": 1e-4, "covariance": 0.01, "gradient_variance": 0.03, "gradient_covariance": 0.03,
        "feature_covariance": 0.04}),
    "dropout": ({"mean": 2.0, "p": 0.3, "d": 30, "length": 30} | SIGNAL, 100, {}),
    "softmax": ({"variance": 0.5, "correlation": 0.4, "length": 300}, 200, {
        "variance": 0.05, "gradient_variance": 0.03, "covariance": 0.05, "gradient_covariance": 0.03}),
    "attention": ({"value_gain": 1.0, "score_gain": 0.36, "p": 0.2, "d_in": 100, "d_out": 64, "correlation": 0.4,
                   "gradient_correlation": 0.3, "length": 100}, 16, {
        "variance": 0.06, "covariance": 0.06, "gradient_variance": 0.05, "gradient_covariance": 0.1}),
    "embeddings": ({"vocabulary": 1000, "segments": 2, "p": 0.2, "table_variance": 0.3, "gradient_variance": 2.0,
                    "gradient_correlation": 0.5, "d": 64, "length": 32}, 64, {}),
    "ffn_block": ({"activation": "gelu", "p": 0.2, "first_gain": 1.5, "second_gain": 2.0, "d": 64, "f": 256,
                   "correlation": 0.3, "gradient_correlation": 0.3, "length": 32}, 16, {
        "variance": 0.03, "covariance": 0.03, "gradient_variance": 0.03, "gradient_covariance": 0.03}),
    "attention_block": ({"score_gain": 0.7, "value_gain": 1.0, "output_gain": 1.0, "p": 0.1, "attention_p": 0.1,
                         "d": 64, "heads": 4, "correlation": 0.5, "gradient_correlation": 0.4, "length": 100}, 64, {
        "variance": 0.06, "covariance": 0.06, "gradient_variance": 0.05, "gradient_covariance": 0.06}),
}  # fmt: skip


def literal_moments(z):
    """Mean, variance, and the off-diagonal mean of the covariance matrix of positions, in float64."""
    rows = z.double().transpose(0, 1).flatten(1).numpy()  # positions down, (sample, feature) across
    matrix = np.cov(rows)
    np.fill_diagonal(matrix, 0.0)
    return rows.mean(), rows.var(), matrix.sum() / (len(rows) * (len(rows) - 1))


@given(
    sizes=st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(1, 9)),
    cut=st.integers(0, 11),
    mean=st.sampled_from([0.0, -10.0, 300.0]),
    r=st.floats(0, 1),
    seed=st.integers(0, 999),
)
def test_sums_over_batches_equal_the_definition(sizes, cut, mean, r, seed):
    generator = torch.Generator().manual_seed(seed)
    z = correlated_normal(sizes, mean=mean, variance=0.1, correlation=r, generator=generator)
    z += 0.1 * torch.arange(sizes[1])[:, None]  # positions with means of their own
    for data, tolerance in ((z, FLOAT32), (z.double(), 1e-12)):
        sums = MomentSums()
        for part in (data[:cut], data[cut:]):
            if len(part):
                sums.add(part)
        expected = literal_moments(data)
        scale = float(data.double().square().mean())
        got = (sums.mean, sums.variance, sums.covariance)
        assert got == pytest.approx(expected, abs=tolerance * max(scale, 1.0), rel=0)


def test_float32_sums_hold_for_a_mean_far_above_the_spread():
    """The hardest case of the grids: mean -10 and variance 0.1, so that squares are 1000 times what is left."""
    generator = torch.Generator().manual_seed(0)
    z = correlated_normal((40, 100, 100), mean=-10.0, variance=0.1, correlation=1 / 3, generator=generator)
    sums = MomentSums()
    sums.add(z)
    mean, variance, covariance = literal_moments(z)
    assert sums.mean == pytest.approx(mean, rel=1e-6)
    assert sums.variance == pytest.approx(variance, rel=2e-4)
    assert sums.covariance == pytest.approx(covariance, rel=1e-3)


def test_one_position_has_no_covariance():
    sums = MomentSums()
    sums.add(torch.randn(5, 1, 3))
    assert math.isnan(sums.covariance)


def test_attend_with_heads_equals_torch():
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(2, 5, 8, generator=generator), torch.randn(8, 24, generator=generator)
    q, k, v = (part.view(2, 5, 2, 4).transpose(1, 2) for part in (x @ w).chunk(3, dim=-1))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(x, w, 2, 0.0, generator), expected)


def test_dropout_keeps_the_mean_and_is_reproducible():
    x = torch.ones(200, 500)
    a, b = (dropout(x, 0.25, torch.Generator().manual_seed(3)) for _ in range(2))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert a.unique().tolist() == pytest.approx([0, 4 / 3])
    # standard deviation of the mean: sqrt(p / (1 - p) / n)
    assert a.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(0.25 / 0.75 / 1e5))


@pytest.mark.parametrize("name", CASES)
def test_closed_forms_agree_with_measurement(name):
    """16 independent runs of the trials above, seeds 0 to 15; the mean lies within 4 of its standard errors."""
    parameters, trials, shares = CASES[name]
    runs = [
        simulate(SIMULATIONS[name], parameters, trials, torch.Generator().manual_seed(seed)) for seed in range(RUNS)
    ]
    predicted = COMPONENTS[name].theory(parameters)
    for key in runs[0]:
        measured = np.array([run[key] for run in runs])
        error = measured.std(ddof=1) / math.sqrt(RUNS)
        theory = predicted[whole if (whole := f"{key} whole") in predicted else key]
        allowed = STANDARD_ERRORS * error + shares.get(key, 0.0) * abs(theory) + 1e-6
        assert abs(measured.mean() - theory) <= allowed, f"{key}: {measured.mean():.5g} ± {error:.2g}, not {theory:.5g}"
        # A form that were 20 % off would be seen, but for moments that are about 0.
        if abs(theory) > 0.05:
            assert allowed < 0.2 * abs(theory), f"{key}: too few trials to tell"
