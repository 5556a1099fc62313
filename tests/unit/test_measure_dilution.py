"""Locality curves by hand, and attention weights of real modules."""

import pytest
import torch

from fairseq_transnorm.measure.dilution import FRACTIONS, locality, neighbourhoods, uniform_locality


def curve(weights, fractions, causal):
    sums, count = locality(torch.tensor(weights), fractions, causal=causal)
    return (sums / count).tolist()


def test_centred_neighbourhoods_by_hand():
    start, stop = neighbourhoods(5, (0.2, 0.5, 0.6, 1.0), causal=False)
    # m = 1, round(2.5) = 2, 3, 5
    assert start.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 1, 2, 2], [0, 0, 0, 0, 0]]
    assert (stop - start).tolist() == [[1] * 5, [2] * 5, [3] * 5, [5] * 5]


def test_causal_neighbourhoods_by_hand():
    start, stop = neighbourhoods(5, (0.2, 0.6, 1.0), causal=True)
    assert start.tolist() == [[0, 1, 2, 3, 4], [0, 0, 1, 2, 3], [0, 0, 0, 1, 2]]
    assert stop.tolist() == [[1, 2, 3, 4, 5]] * 3


def test_centred_locality_by_hand():
    weights = [[2.0, 1.0, 1.0], [1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]
    # m = 1: 1/2 and 1/4; m = 2: row 0 keys 0-1, row 1 keys 0-1; the row of zeros is left out
    assert curve(weights, (0.3, 0.7, 1.0), False) == pytest.approx([(1 / 2 + 1 / 4) / 2, (3 / 4 + 2 / 4) / 2, 1.0])


def test_causal_locality_by_hand():
    weights = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0], [1.0, 2.0, -3.0, 4.0]]
    # rows 2 and 3 only; m // 2 = 0, 1, 2
    expected = [(1 / 4 + 4 / 10) / 2, (2 / 4 + 7 / 10) / 2, (4 / 4 + 9 / 10) / 2]
    assert curve(weights, (0.25, 0.5, 1.0), True) == pytest.approx(expected)


def test_uniform_curve_by_hand():
    assert uniform_locality(4, (0.25, 0.5, 1.0), causal=True) == pytest.approx(
        [(1 / 3 + 1 / 4) / 2, (2 / 3 + 2 / 4) / 2, (3 / 3 + 3 / 4) / 2]
    )
    assert uniform_locality(10, (0.1, 0.5, 1.0), causal=False) == pytest.approx([0.1, 0.5, 1.0])
    # the value that the specification of the measure names for 96 tokens
    assert uniform_locality(96, (0.4,), causal=True)[0] == pytest.approx(0.2867, abs=1e-4)


def test_weights_of_zeros_only_count_no_row():
    sums, count = locality(torch.zeros(2, 6, 6), FRACTIONS, causal=True)
    assert count == 0
    assert sums.tolist() == [0.0] * len(FRACTIONS)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5])
def test_fractions_outside_the_sequence_are_refused(bad):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        neighbourhoods(8, (0.5, bad), causal=True)
