"""Closed forms of components and blocks: against quadrature, against formulas written out, and their domains."""

import math

import numpy as np
import pytest
from numpy.polynomial import hermite_e, legendre

from fairseq_transnorm.theory import approximations
from fairseq_transnorm.theory.blocks import attention_block, embeddings, ffn_block, residual, zipf_match
from fairseq_transnorm.theory.moments import (
    Moments,
    Signal,
    attention,
    compose,
    dropout,
    gelu,
    layer_norm,
    layer_norm_feature_covariance,
    linear,
    relu,
    softmax,
)

SIGMAS, CORRELATIONS = (0.1, 0.5, 1.0, 2.0, 3.0), (0.0, 0.3, 0.6, 0.9)
GELU_TOLERANCE, RELU_TOLERANCE = 1e-5, 1e-6  # of the output's variance; of that of the gradient in the output
UNIT_FFN = {"d": 1, "f": 1, "first_variance": 1.0, "second_variance": 1.0}
OPPOSED = Signal(gradient_correlation=-0.5)
SIZES = {"length": 10, "d_in": 4, "d_out": 4}
SCORES = {"query_variance": 0.1, "key_variance": 0.1, "value_variance": 0.1}
BLOCK = {"length": 10, "d": 4, "output_variance": 0.1} | SCORES


def normal_pairs(r, points=120):
    """Nodes of two standard normals with correlation r, and their weights."""
    z, w = hermite_e.hermegauss(points)
    w = w / w.sum()
    first, second = np.meshgrid(z, z, indexing="ij")
    return first, r * first + math.sqrt(1 - r * r) * second, np.outer(w, w)


def erf(x):
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gelu_equals_quadrature(sigma):
    def values(x):
        cdf, density = 0.5 * (1 + erf(x / math.sqrt(2))), np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return x * cdf, cdf + x * density

    for r in CORRELATIONS:
        a, b, w = normal_pairs(r)
        (y, slope), (other, other_slope) = values(sigma * a), values(sigma * b)
        mean = (w * y).sum()
        got = gelu(Signal(variance=sigma**2, correlation=r, gradient_variance=2.0, gradient_correlation=0.5))
        variance = (w * y * y).sum() - mean**2
        near = {"abs": GELU_TOLERANCE * variance, "rel": 0}
        assert got.variance == pytest.approx(variance, **near)
        assert got.mean == pytest.approx(mean, abs=GELU_TOLERANCE * math.sqrt(variance), rel=0)
        assert got.covariance == pytest.approx((w * y * other).sum() - mean**2, **near)
        assert got.gradient_variance == pytest.approx(2 * (w * slope**2).sum(), abs=2 * GELU_TOLERANCE, rel=0)
        pairs = (w * slope * other_slope).sum()
        assert got.gradient_covariance == pytest.approx(2 * 0.5 * pairs, abs=2 * GELU_TOLERANCE, rel=0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_relu_equals_quadrature_on_half_lines(sigma):
    nodes, weights = legendre.leggauss(200)

    def half_line(low):
        """Nodes from ``low`` to 12 standard deviations, where the density is 1e-32, and weights times the density."""
        width = (12 - low) / 2
        z = low + width * (nodes + 1)
        return z, width * weights * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    for r in CORRELATIONS:
        first, w = half_line(0.0)
        product = both = 0.0
        for z, weight in zip(first, w, strict=True):
            second, v = half_line(max(-12.0, -r * z / math.sqrt(1 - r * r)))
            product += weight * z * (v * (r * z + math.sqrt(1 - r * r) * second)).sum()
            both += weight * v.sum()
        mean, square = (w * first).sum(), (w * first**2).sum()
        got = relu(Signal(variance=sigma**2, correlation=r, gradient_variance=2.0, gradient_correlation=0.5))
        variance = sigma**2 * (square - mean**2)
        near = {"abs": RELU_TOLERANCE * variance, "rel": 0}
        assert got.mean == pytest.approx(sigma * mean, abs=RELU_TOLERANCE * sigma, rel=0)
        assert got.variance == pytest.approx(variance, **near)
        assert got.covariance == pytest.approx(sigma**2 * (product - mean**2), **near)
        assert got.gradient_variance == pytest.approx(2 * w.sum(), abs=RELU_TOLERANCE, rel=0)
        assert got.gradient_covariance == pytest.approx(2 * 0.5 * both, abs=RELU_TOLERANCE, rel=0)


def test_simple_components_by_hand():
    x = Signal(mean=2.0, variance=3.0, correlation=0.5, gradient_variance=4.0, gradient_correlation=0.25)
    by_hand = {
        linear(x, d_in=10, d_out=5, weight_variance=0.1): Moments(0.0, 7.0, 5.5, 2.0, 0.5),
        dropout(x, p=0.2): Moments(2.0, 4.75, 1.5, 5.0, 1.0),
        layer_norm(x, d=4): Moments(0.0, 1.0, 0.375, 4 / 3, 1 / 3),
    }
    for got, expected in by_hand.items():
        assert vars(got) == pytest.approx(vars(expected))
    assert layer_norm_feature_covariance(101) == -0.01
    assert dropout(x, p=0.2).correlation == pytest.approx(1.5 / 4.75)


def test_softmax_forms_by_hand():
    x = Signal(variance=0.5, correlation=0.2, gradient_variance=2.0)
    v, L = 0.4, 11
    full, approximate = softmax(x, length=L), softmax(x, length=L, approximate=True)
    u = v * 1.1
    variance = math.exp(2 * u) * (math.exp(u) - 1) / (10 * math.exp(v) + 1) ** 2
    assert (full.mean, full.variance) == pytest.approx((1 / 11, variance))
    assert full.gradient_variance == pytest.approx(2 * (variance + 1 / 121))
    assert approximate.variance == pytest.approx((math.exp(v) - 1) / 121)
    assert approximate.gradient_variance == pytest.approx(2 * math.exp(v) / 121)
    for form in (full, approximate):
        assert form.variance + 10 * form.covariance == pytest.approx(0, abs=1e-15), "a row adds up to 1"
        assert form.gradient_variance + 10 * form.gradient_covariance == pytest.approx(0, abs=1e-15)


def test_feed_forward_block_equals_its_formula():
    r, rg, p, inner_p, sg = np.linspace(0, 1, 11), 0.4, 0.2, 0.5, 3.0
    d, f, s1, s2 = 8, 32, 0.1, 0.3
    K = d * f * s1 * s2 / 2
    x = Signal(correlation=r, gradient_variance=sg, gradient_correlation=rg)
    got = ffn_block(x, d=d, f=f, first_variance=s1, second_variance=s2, p=p, activation_p=inner_p)
    kept = (1 - p) * (1 - inner_p)
    rho = r + (np.sqrt(1 - r * r) - r * np.arccos(r)) / np.pi
    np.testing.assert_allclose(got.variance, K / kept)
    np.testing.assert_allclose(got.covariance, K * rho)
    np.testing.assert_allclose(got.correlation, kept * rho)
    np.testing.assert_allclose(got.gradient_variance, K * sg / kept)
    np.testing.assert_allclose(got.gradient_covariance, K * rg * sg * (0.5 + np.arcsin(r) / np.pi))


def test_feed_forward_block_with_gelu_takes_the_second_moment():
    inner = gelu(Signal(variance=2.0, correlation=0.3))
    got = ffn_block(Signal(correlation=0.3), d=4, f=8, first_variance=0.5, second_variance=0.25, activation="gelu")
    assert got.variance == pytest.approx(8 * 0.25 * (inner.variance + inner.mean**2))
    assert got.covariance == pytest.approx(8 * 0.25 * (inner.covariance + inner.mean**2))
    assert got.gradient_variance == pytest.approx(4 * 0.25 * 8 * 0.5 * inner.gradient_variance)


@pytest.mark.parametrize("r", [0.0, 0.3, 1.0])
def test_attention_block_equals_its_formula(r):
    L, d, p, pa, rg, sg = 20, 16, 0.1, 0.3, 0.4, 2.0
    sq, sk, sv, so = 0.05, 0.06, 0.07, 0.08
    K, q2 = d * d * sv * so, d * d * sq * sk
    x = Signal(correlation=r, gradient_variance=sg, gradient_correlation=rg)
    sizes = {"length": L, "d": d, "p": p, "attention_p": pa}
    weights = {"query_variance": sq, "key_variance": sk, "value_variance": sv, "output_variance": so}
    got, by_value, whole = (
        attention_block(x, **sizes, **weights, gradient=form) for form in ("corrected", "values", "whole")
    )
    peaks = math.exp((1 - r) * q2) / (1 - pa) * (4 * (1 - r) ** 2 * q2 / d + 1 - r)
    V = K / (1 - p) * (r + ((1 - r) ** 2 * (L - 1) * q2 / d + peaks) / L)
    C = K * (r + (2 * (1 - r) ** 2 * q2 / d + 1 - r) / L)
    H = K * sg * (1 + (L - 1) * rg * (1 - p)) / (L * (1 - p))
    uneven = r * (1 - r) * q2
    G = K * sg * (1 / (L * (1 - pa) * (1 - p)) + rg * math.exp(uneven) * (1 + uneven))
    G_value = K * sg * (1 + (L - 1) * rg * (1 - p) * (1 - pa)) / (L * (1 - pa) * (1 - p))
    assert (got.mean, got.variance, got.covariance) == pytest.approx((0, V, C))
    assert (got.gradient_variance, got.gradient_covariance) == pytest.approx((G, H))
    assert by_value.gradient_variance == pytest.approx(G_value)
    e, n = math.exp((1 - r) * q2), (1 - r + r * pa) / (1 - pa)
    rest = e / L * (1 / (1 - pa) + (2 - r) * n * q2) + (1 - r) ** 2 * q2 / d
    G_whole = K * sg * (rg * math.exp(uneven) * ((L - 1) / L + uneven) + rest / (1 - p))
    assert whole.gradient_variance == pytest.approx(G_whole)


def test_forms_of_the_attention_gradient_meet_where_they_should():
    """Without scores only values are left; in long sequences of wide vectors the whole form is the corrected one."""
    x = Signal(correlation=0.4, gradient_correlation=0.3)
    even, wide = {"length": 50, "d": 4}, {"length": 10**7, "d": 10**6}
    for sizes, q, forms in ((even, 0.0, ("values", "corrected", "whole")), (wide, 1e-6, ("corrected", "whole"))):
        weights = {"query_variance": q, "key_variance": q, "value_variance": 0.1, "output_variance": 0.1}
        got = [attention_block(x, **sizes, **weights, gradient=form).gradient_variance for form in forms]
        # The values' form takes L - 1 other positions of L where the corrected one takes L.
        assert got == pytest.approx([got[-1]] * len(forms), rel=1 / 50 if q == 0 else 1e-5)
    with pytest.raises(ValueError, match="gradient 'long' must be values, corrected or whole"):
        attention_block(x, **BLOCK, gradient="long")


def test_attention_of_one_position_is_its_value():
    """With L = 1 the softmax is 1 and nothing but the product of value weights is left."""
    x = Signal(variance=2.0)
    got = attention(x, length=1, d_in=4, d_out=6, query_variance=0.0, key_variance=0.1, value_variance=0.5)
    assert (got.variance, got.gradient_variance) == pytest.approx((4 * 0.5 * 2, 6 * 0.5))


def test_embeddings_of_english_text():
    assert zipf_match(30522) == pytest.approx(0.0138, abs=5e-5)
    got = embeddings(table_variance=0.3, token_match=zipf_match(30522), p=0.1)
    assert got.variance == pytest.approx(1.0)
    assert got.correlation == pytest.approx(0.9 * 0.227, abs=2e-4)
    one = embeddings(table_variance=0.3, token_match=0.01, segment_match=1.0)
    assert one.correlation == pytest.approx(1.01 / 3)
    none = embeddings(table_variance=0.5, token_match=0.01, segment_match=None)
    assert (none.variance, none.correlation) == pytest.approx((1.0, 0.01 / 2))


def test_residual_adds_skip_and_block():
    x = Signal(mean=1.0, variance=2.0, correlation=0.5, gradient_variance=3.0, gradient_correlation=0.2)
    got = residual(x, Moments(0.5, 4.0, 1.0, 6.0, 1.2), lambda_sq=0.64, beta_sq=0.36)
    assert vars(got) == pytest.approx(vars(Moments(0.8 + 0.3, 2.72, 1.0, 4.08, 0.816)))


def test_compose_goes_forward_and_back():
    x = Signal(variance=2.0, correlation=0.4, gradient_variance=3.0, gradient_correlation=0.5)
    inner = relu(x)
    got = compose(x, relu, lambda h: dropout(h, p=0.2))
    assert got.mean == inner.mean
    assert got.variance == pytest.approx((inner.variance + 0.2 * inner.mean**2) / 0.8)
    assert got.gradient_variance == pytest.approx(3.0 / 0.8 / 2)
    assert got.gradient_covariance == pytest.approx((0.25 + math.asin(0.4) / (2 * math.pi)) * 1.5)


def test_everything_broadcasts():
    r, rg = np.linspace(0, 1, 3)[:, None], np.linspace(0, 1, 4)
    got = attention_block(Signal(correlation=r, gradient_correlation=rg), **BLOCK)
    assert np.shape(got.gradient_variance) == (3, 4)
    one = attention_block(Signal(correlation=0.5, gradient_correlation=1 / 3), **BLOCK)
    assert got.gradient_variance[1, 1] == pytest.approx(one.gradient_variance)


def test_constants_and_full_correlation_pass_through():
    """Variance 0 and r = 1 are inside the domains, also where a rounded quotient would leave them."""
    for variance, r in [(0.0, 0.3), (1.0, 1.0), (1 / 3, 1.0), (0.7, -1.0)]:
        for activation in ("relu", "gelu"):
            x = Signal(variance=variance, correlation=r, gradient_correlation=1.0)
            got = ffn_block(x, d=3, f=7, first_variance=0.3, second_variance=0.1, p=0.0, activation=activation)
            assert all(np.isfinite(value) for value in vars(got).values())


def test_approximations_stay_within_a_hundredth():
    r = np.linspace(0, 1, 5001)
    x = Signal(correlation=r)
    exact = {
        approximations.relu_correlation: relu(x).correlation,
        approximations.ffn_correlation: ffn_block(x, **UNIT_FFN).correlation,
    }
    for form, values in exact.items():
        assert 0.001 < np.abs(form(r) - values).max() < 0.01
        with pytest.raises(ValueError, match=r"r 1\.5 must lie"):
            form(np.array([0.5, 1.5]))


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (r"^variance -0\.5 ", lambda: Signal(variance=-0.5)),
        (r"^variance -2 ", lambda: Signal(variance=np.array([1.0, -2.0]))),
        (r"^variance nan ", lambda: Signal(variance=math.nan)),
        (r"^mean inf ", lambda: Signal(mean=math.inf)),
        (r"^correlation 1\.01 .*\[-1, 1\]", lambda: Signal(correlation=1.01)),
        (r"^gradient_variance -1 ", lambda: Signal(gradient_variance=-1.0)),
        (r"^gradient_correlation -1\.5 ", lambda: Signal(gradient_correlation=-1.5)),
        (r"^p 1 must lie in \[0, 1\)", lambda: dropout(Signal(), p=1.0)),
        (r"^p -0\.1 ", lambda: dropout(Signal(), p=-0.1)),
        (r"^d_in 0 must be at least 1", lambda: linear(Signal(), d_in=0, d_out=1, weight_variance=1.0)),
        (r"^d_out 0", lambda: linear(Signal(), d_in=1, d_out=0, weight_variance=1.0)),
        (r"^weight_variance -1 ", lambda: linear(Signal(), d_in=1, d_out=1, weight_variance=-1.0)),
        (r"^mean 0\.1 must be 0: .* relu", lambda: relu(Signal(mean=0.1))),
        (r"^mean 0\.1 must be 0: .* gelu", lambda: gelu(Signal(mean=0.1))),
        (r"^d 1 must be at least 2", lambda: layer_norm(Signal(), d=1)),
        (r"^d 1 must be at least 2", lambda: layer_norm_feature_covariance(1)),
        (r"^variance 0 must be above 0", lambda: layer_norm(Signal(variance=0.0), d=4)),
        (r"^length 1 must be at least 2", lambda: softmax(Signal(), length=1)),
        (r"^correlation -0\.5 is below -1 / \(L - 1\)", lambda: softmax(Signal(correlation=-0.5), length=10)),
        (r"^length 0 ", lambda: attention(Signal(), **SIZES | {"length": 0}, **SCORES)),
        (r"^key_variance -1 ", lambda: attention(Signal(), **SIZES, **SCORES | {"key_variance": -1.0})),
        (r"^p 1 ", lambda: attention(Signal(), **SIZES, **SCORES, p=1.0)),
        (r"^gradient_correlation -0\.5 is below", lambda: attention(OPPOSED, **SIZES, **SCORES)),
        (r"^p 2 ", lambda: attention_block(Signal(), **BLOCK, attention_p=2.0)),
        (r"^activation 'silu'", lambda: ffn_block(Signal(), **UNIT_FFN, activation="silu")),
        (r"^token_match 1\.5 ", lambda: embeddings(table_variance=1.0, token_match=1.5)),
        (r"^segment_match -1 ", lambda: embeddings(table_variance=1.0, token_match=0.1, segment_match=-1.0)),
        (r"^table_variance -1 ", lambda: embeddings(table_variance=-1.0, token_match=0.1)),
        (r"^vocabulary 0 ", lambda: zipf_match(0)),
        (r"^beta_sq -0\.1 ", lambda: residual(Signal(), Moments(0, 1, 0, 1, 0), beta_sq=-0.1)),
    ],
)  # fmt: skip
def test_wrong_domains_raise_by_name(message, call):
    with pytest.raises(ValueError, match=message):
        call()
