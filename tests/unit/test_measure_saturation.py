"""Saturation layer by layer of small networks whose numbers can be had by hand."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fairseq_transnorm.measure.hidden_states import States
from fairseq_transnorm.measure.layer_saturation import (
    encodings_of,
    layer_rows,
    random_model,
    warn_of_collapse,
    warn_of_positions,
)
from fairseq_transnorm.measure.saturation import token_cosines

TABLE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


class Constant(nn.Module):
    """Embeddings w * table[token], then one layer that adds (b, 0) to the table's row; no final norm unless told."""

    def __init__(self, w=1.0, b=1.0, final=None):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))
        self.final = final

    def forward(self, tokens, keep):
        fixed = TABLE.to(self.w.dtype)[tokens]
        layer = fixed + self.b * torch.tensor([1.0, 0.0])
        return {"decoder": States([self.w * fixed, layer], layer if self.final is None else self.final(layer))}


def batch(*rows):
    length = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    return tokens, torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_cosines_of_tokens():
    a, b = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]), torch.tensor([[[4.0, 3.0], [1.0, 0.0]]])
    torch.testing.assert_close(token_cosines(a, b), torch.tensor([[0.96, 0.0]], dtype=torch.float64))


def test_the_mean_is_over_the_tokens_of_all_sentences():
    """Of four tokens, three are (0, 1) + b (1, 0) and one (1, 0) + b (1, 0), which any scaling leaves in place."""
    rows = layer_rows(Constant(), [batch([1, 1, 1], [0])], (3.0,))
    assert [(row["stack"], row["layer"], row["state"]) for row in rows] == [
        ("decoder", 0, "embeddings"),
        ("decoder", 1, "layer"),
    ]
    assert rows[0]["similarity"] == pytest.approx(1.0)
    assert rows[1]["similarity"] == pytest.approx((3 * cosine((1, 1), (3, 1)) + 1) / 4)
    assert {row["tokens"] for row in rows} == {4}
    apart = layer_rows(Constant(), [batch([1, 1, 1]), batch([0])], (3.0,))
    assert [row["similarity"] for row in apart] == pytest.approx([row["similarity"] for row in rows])


def test_collapse_is_the_mean_cosine_of_two_tokens():
    rows = layer_rows(Constant(), [batch([0, 0], [1])])
    assert rows[0]["collapse"] == pytest.approx(1 / 3), "one pair of three is alike, the others at right angles"
    assert rows[1]["collapse"] == pytest.approx((1 + 2 * cosine((1, 0), (1, 1))) / 3)
    torch.manual_seed(0)
    values = torch.randn(40, 7, dtype=torch.float64)
    values[3] = 0

    class Given(nn.Module):
        unused = nn.Parameter(torch.zeros(1))

        def forward(self, tokens, keep):
            return {"model": States([values[tokens]], values[tokens])}

    units = nn.functional.normalize(values, dim=-1)
    expected = (units @ units.T)[~torch.eye(40, dtype=torch.bool)].mean()
    (row,) = layer_rows(Given(), [batch(range(20), range(20, 25)), batch(range(25, 40))])
    assert row["collapse"] == pytest.approx(float(expected), abs=1e-12)


def test_one_token_has_no_pairs():
    assert [row["collapse"] for row in layer_rows(Constant(), [batch([1])])] == [None, None]


def test_several_factors_are_those_one_by_one():
    batches = [batch([1, 2], [0]), batch([1])]
    together = layer_rows(Constant(), batches, (2.0, 1000.0))
    assert together == layer_rows(Constant(), batches, (2.0,)) + layer_rows(Constant(), batches)
    assert [row["c"] for row in together] == [2.0, 2.0, 1000.0, 1000.0]
    assert [row["c"] for row in encodings_of(together)] == [2.0, 1000.0]


def test_encodings_stand_apart_behind_a_final_norm_only():
    rows = layer_rows(Constant(final=lambda x: x * torch.tensor([1.0, 2.0])), [batch([1, 2])])
    assert [(row["layer"], row["state"]) for row in rows] == [(0, "embeddings"), (1, "layer"), (1, "encodings")]
    assert encodings_of(rows) == [rows[2]]


def test_a_half_precision_network_is_evaluated_in_float32():
    """In float16, 1000 b would be 6e4 and its square no number."""
    half = Constant(b=60.0).half()
    rows = layer_rows(half, [batch([1, 2], [0])])
    assert rows[1]["similarity"] == pytest.approx(layer_rows(Constant(b=60.0), [batch([1, 2], [0])])[1]["similarity"])


def test_what_overflows_is_said_and_is_no_number(caplog):
    rows = layer_rows(Constant(b=1e37), [batch([1, 2])])
    assert rows[0]["similarity"] == pytest.approx(1.0)
    assert rows[1]["similarity"] is None
    assert "decoder, hidden state 1: not finite at c = 1000 in float32; take a smaller one" in caplog.text


def test_warnings(caplog):
    class SinusoidalTable(nn.Module):
        pass

    network = nn.ModuleDict({"states": nn.ModuleDict({"model": nn.ModuleDict({"positions": SinusoidalTable()})})})
    with caplog.at_level(logging.WARNING):
        warn_of_positions("one", network, scale_positions=True)
        warn_of_collapse("one", layer_rows(Constant(b=0.0), [batch([0, 1])]))
        assert not caplog.records
        warn_of_positions("one", network, scale_positions=False)
        warn_of_collapse("two", layer_rows(Constant(b=1000.0), [batch([0, 1])]))
    assert "one has sinusoidal positions (positions), which are no parameters" in caplog.text
    assert (
        "two, decoder: the encodings of all tokens are nearly the same (mean cosine of two tokens 1.000)" in caplog.text
    )


def test_random_models():
    trained = nn.Linear(3, 3)
    task = SimpleNamespace(build_model=lambda cfg: nn.Sequential(nn.Linear(3, 3), nn.Dropout()))
    run = SimpleNamespace(model=trained, task=task, cfg=SimpleNamespace(model=None))
    state = torch.get_rng_state()
    first, same, other = (random_model(run, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state), "the caller's numbers go on as if nothing had been drawn"
    assert torch.equal(first[0].weight, same[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert not any(module.training for module in first.modules())
