"""Fits of growth laws: numbers by hand, the published series of T5, and series that say nothing."""

import math

import numpy as np
import pytest

from fairseq_transnorm.measure.fits import EXPONENT, LAWS, SQUARED, Fit, curve, fit_law, fit_rows
from fairseq_transnorm.measure.t5_norms import BOTH, ENCODER, t5_rows

T = [0, 1, 4, 9, 16, 25]
EXACT = {
    "t": lambda t: 2 * t + 3,
    "sqrt t": lambda t: 2 * math.sqrt(t) + 3,
    "exp -t": lambda t: 2 * math.exp(-t) + 3,
    "t^1/4": lambda t: 2 * t**0.25 + 3,
    SQUARED: lambda t: math.sqrt(2 * t + 3),
    EXPONENT: lambda t: math.exp(3) * t**2,
}


@pytest.mark.parametrize("law", LAWS)
def test_each_law_finds_itself(law):
    fit = fit_law(law, T, [EXACT[law](t) for t in T])
    assert fit[:3] == (law, pytest.approx(2), pytest.approx(3))
    assert fit.r_squared == pytest.approx(1, abs=1e-12)
    assert fit.points == len(T) - (law == EXPONENT), "the logarithm of 0 is left out"
    assert curve(fit, T) == pytest.approx([EXACT[law](t) for t in T])
    others = [fit_law(other, T, [EXACT[law](t) for t in T]).r_squared for other in LAWS if other != law]
    assert max(others) < 0.999


def test_numbers_by_hand():
    """Points (0, 0), (1, 1), (2, 1): slope 1/2, intercept 1/6; SS_res = 1/6, SS_tot = 2/3."""
    fit = fit_law("t", [0, 1, 2], [0.0, 1.0, 1.0])
    assert fit == Fit("t", pytest.approx(1 / 2), pytest.approx(1 / 6), pytest.approx(3 / 4), 3)
    squared = fit_law(SQUARED, [0, 1, 2], [0.0, 2.0, 2.0])
    assert squared == Fit(SQUARED, pytest.approx(2), pytest.approx(2 / 3), pytest.approx(3 / 4), 3)


def test_the_fit_is_that_of_numpy_at_large_numbers():
    t = np.arange(100) * 5100.0 + 1e6
    norms = 1e3 + 1e-3 * t + np.random.default_rng(1).normal(size=100)
    slope, intercept = np.polyfit(t, norms, 1)
    fit = fit_law("t", t, norms)
    assert (fit.slope, fit.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert fit.r_squared == pytest.approx(np.corrcoef(t, norms)[0, 1] ** 2)


def test_the_exponent_after_a_start():
    norms = [7.0, 7.0, *(t**0.5 for t in T[2:])]
    assert fit_law(EXPONENT, T, norms, beyond=1).slope == pytest.approx(0.5)
    assert fit_law(EXPONENT, T, norms, beyond=1).points == 4
    assert fit_law(EXPONENT, T, norms).slope != pytest.approx(0.5, abs=0.05)
    assert fit_law(EXPONENT, T, norms, beyond=10) is None, "two points are left"


def test_series_that_decide_nothing():
    constant = fit_law("t", T, [0.1] * len(T))
    assert constant.r_squared is None
    assert constant.slope == pytest.approx(0, abs=1e-15)
    assert fit_law(SQUARED, T, [1e-3] * len(T)).r_squared is None
    assert fit_law("exp -t", [100, 200, 300], [1.0, 2.0, 3.0]) is None, "0 at each"
    with pytest.raises(ValueError, match=r"^1 checkpoint with different numbers of updates; .* from 3 on"):
        fit_law("t", [5, 5, 5], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"^2 checkpoints"):
        fit_law("t", [5, 6], [1.0, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        fit_law("t", T, [math.nan, *T[1:]])
    with pytest.raises(ValueError, match="6 updates and 5 norms"):
        fit_law("t", T, T[1:])
    with pytest.raises(ValueError, match="unknown law 'cubic'"):
        fit_law("cubic", T, T)


def rows(layer=None, norms=T):
    place = {"run": "a", "scope": "layers", "stack": layer and "decoder", "layer": layer}
    return [place | {"updates": t, "norm": float(norm)} for t, norm in zip(T, norms, strict=True)]


def test_every_series_is_fitted():
    fits = fit_rows([*rows(), *rows(layer=2, norms=[2 * t for t in T]), *rows(layer=1, norms=[0.5] * len(T))])
    assert len(fits) == 3 * len(LAWS)
    slopes = {f["layer"]: f["slope"] for f in fits if f["law"] == "t"}
    assert slopes == pytest.approx({None: 1, 2: 2, 1: 0}, abs=1e-12)
    assert not [v for f in fits for v in f.values() if isinstance(v, float) and not math.isfinite(v)]
    nothing = next(f for f in fit_rows(rows(), beyond=99) if f["law"] == EXPONENT)
    assert [nothing[name] for name in Fit._fields] == [EXPONENT, None, None, None, 0]
    with pytest.raises(ValueError, match="a, layers, decoder, 3: 1 checkpoint"):
        fit_rows(rows() + rows(layer=3)[:1])


def t5(scope, beyond=0):
    mine = [row for row in t5_rows() if row["scope"] == scope]
    return {f["law"]: f for f in fit_rows(mine, beyond)}


@pytest.mark.parametrize("scope", [BOTH, ENCODER])
def test_the_norms_of_t5_grow_as_the_square_root(scope):
    fits = t5(scope)
    assert fits["sqrt t"]["points"] == 30
    assert fits["sqrt t"]["r_squared"] > 0.995
    assert fits["sqrt t"]["r_squared"] > fits["t"]["r_squared"] + 0.02
    assert fits[SQUARED]["r_squared"] > max(f["r_squared"] for law, f in fits.items() if law != SQUARED)


def test_fits_of_t5_are_those_of_the_whole_series():
    """The 30 of 104 points weigh the start more: all 104 give R^2 .9986 (sqrt), .9663 (t), .9363 and .9997."""
    fits = t5(BOTH, beyond=2000)
    got = {law: fits[law]["r_squared"] for law in ("t", "sqrt t", "t^1/4", SQUARED)}
    assert got == pytest.approx({"t": 0.9574, "sqrt t": 0.9978, "t^1/4": 0.9160, SQUARED: 0.9998}, abs=1e-4)
    assert got[SQUARED] == pytest.approx(0.9997, abs=2e-4)
    assert got["sqrt t"] == pytest.approx(0.9986, abs=1e-3)
    assert got["t"] == pytest.approx(0.9663, abs=1e-2)
    assert fits["sqrt t"]["slope"] == pytest.approx(5.411, rel=0.015)
    assert fits[EXPONENT]["slope"] == pytest.approx(0.443, abs=0.01)
    encoder = t5(ENCODER)
    assert encoder["sqrt t"]["r_squared"] == pytest.approx(0.9991, abs=1.1e-3)
    assert encoder[SQUARED]["r_squared"] == pytest.approx(0.9996, abs=3e-4)


def test_steps_of_t5_are_those_of_the_whole_series():
    steps = {row["updates"]: row for row in t5_rows() if row["step_norm"] is not None}
    assert len(steps) == 29
    assert max(steps, key=lambda t: steps[t]["alignment"]) == 15300
    expected = {5100: (342, -0.05), 10200: (391, None), 15300: (None, 0.179), 163200: (None, 0.05)}
    expected |= {61200: (292, None), 469200: (None, 0.03), 524288: (291, 0.023)}
    for updates, (length, alignment) in expected.items():
        if length is not None:
            assert steps[updates]["step_norm"] == pytest.approx(length, rel=0.01)
        if alignment is not None:
            assert steps[updates]["alignment"] == pytest.approx(alignment, abs=0.005)
