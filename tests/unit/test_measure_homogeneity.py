"""Homogeneity of networks whose degree is known, biases that are really not there, and the demands on the curves."""

import pytest
import torch
from fairseq.data import Dictionary
from torch import nn

from fairseq_transnorm.measure.homogeneity import (
    BIASES,
    GRIDS,
    LINEAR,
    LOG,
    SHOWN,
    Curve,
    Size,
    lines_of,
    mean_at,
    new_model,
    random_sentences,
    variant_rows,
    violations,
)

SIZE = Size(layers=2, dim=16, ffn_dim=8, heads=2)


class Maps(nn.Module):
    """Embedding and some linear maps, called as fairseq's decoders are."""

    def __init__(self, maps, bias):
        super().__init__()
        self.layers = nn.Sequential(nn.Embedding(9, 4), *(nn.Linear(4, 4, bias) for _ in range(maps)))

    def forward(self, tokens, features_only, return_all_hiddens):
        x = self.layers(tokens)
        return x, {"inner_states": [x.transpose(0, 1)]}


def network(maps, bias):
    torch.manual_seed(0)
    return nn.ModuleDict({"decoder": Maps(maps, bias)}).double()


@pytest.mark.parametrize("maps", [0, 1, 2])
def test_maps_without_biases_have_the_degree_of_their_number(maps):
    curve = Curve(network(maps, bias=False), torch.arange(9).view(3, 3))
    assert curve.tail_exponent() == pytest.approx(maps + 1)
    for c in (1.0, 5.0):
        assert curve.at(c) == pytest.approx({"cosine": 1.0, "relative_error": c**maps - 1})


def test_a_bias_is_left_behind():
    """``c^2 W E + c b``: a cosine by hand, and a limit without the bias."""
    model = network(1, bias=True)
    tokens = torch.arange(9).view(3, 3)
    layers = model.decoder.layers
    product, bias = (layers[0].weight @ layers[1].weight.T).detach().flatten(), layers[1].bias.detach().repeat(9)
    curve = Curve(model, tokens)
    small, large = 4 * product + 2 * bias, 1e6 * product + 1e3 * bias
    assert curve.at(2.0)["cosine"] == pytest.approx(float(torch.cosine_similarity(small, large, dim=0)))
    error = (small - 2 * (product + bias)).norm() / (2 * (product + bias)).norm()
    assert curve.at(2.0)["relative_error"] == pytest.approx(float(error))
    assert curve.tail_exponent() == pytest.approx(2.0, abs=1e-3)


def test_numbers_that_overflow_are_refused():
    model = network(2, bias=False)
    with torch.no_grad():
        model.decoder.layers[0].weight.mul_(1e303)
    with pytest.raises(ValueError, match="scaled by 1000 are not finite"):
        Curve(model, torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("variant", ["pre_norm", "si_softmax"])
@pytest.mark.parametrize("biases", BIASES)
def test_biases_are_really_there_or_not(variant, biases):
    model = new_model(variant, SIZE, seed=3, **BIASES[biases])
    names = [name for name, _ in model.decoder.layers.named_parameters() if name.endswith("bias")]
    assert any("norm" not in name for name in names) == (biases == "all")
    assert any("norm" in name for name in names) == (biases != "none")


def test_models_and_sentences_come_from_their_seeds():
    before = torch.random.get_rng_state()
    first, again, other = (new_model("control", SIZE, seed) for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.decoder.embed_tokens.weight, other.decoder.embed_tokens.weight)
    assert first.decoder.layers[0].ffn.inner.weight.shape == (8, 16)
    tokens = random_sentences(first.decoder.dictionary, 1)
    assert tokens.shape == (10, 10)
    assert set(tokens.flatten().tolist()) == set(range(4, 14)), "ten words, no special symbols"
    assert torch.equal(tokens, random_sentences(first.decoder.dictionary, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(ValueError, match="special symbols only"):
        random_sentences(Dictionary(), 0)


@pytest.mark.parametrize("variant", ["pre_norm", "control"])
def test_curves_rise_to_the_limit(variant):
    rows = variant_rows(variant, "no linear", "causal", SIZE, seed=0)
    assert [row["c"] for row in rows if row["grid"] == LINEAR] == pytest.approx([1 + 9 * k / 19 for k in range(20)])
    log = [row for row in rows if row["grid"] == LOG]
    assert set(SHOWN) < {row["c"] for row in log}
    assert len(rows) == len(GRIDS[LINEAR]) + len(GRIDS[LOG])
    assert log[-1]["cosine"] == pytest.approx(1.0)
    assert log[0]["cosine"] < log[6]["cosine"] < log[12]["cosine"] + 1e-9, "c = 1, 10, 100"
    assert log[0]["relative_error"] == 0
    assert {round(row["tail_exponent"], 3) for row in rows} == {1.0}
    mult = variant_rows(variant, "no linear", "multiplicative", SIZE, seed=0)
    assert mult[0]["cosine"] != rows[0]["cosine"]
    unmoved = variant_rows(variant, "none", "causal", SIZE, seed=0)
    assert [row["cosine"] for row in unmoved] == [row["cosine"] for row in rows], "biases of norms begin at 0"


def made_up(**changed):
    """Rows that meet every demand, but for what is changed: (model, biases, c) or (model, biases) -> value."""
    cosines = {
        ("pre_norm", "all"): {1.0: 0.7, 10.0: 0.97, 100.0: 0.995},
        ("pre_norm", "none"): {1.0: 0.8, 10.0: 0.99, 100.0: 0.999},
        ("control", "all"): {1.0: 0.1, 10.0: 0.9, 100.0: 0.992},
        ("control", "none"): {1.0: 0.1, 10.0: 0.95, 100.0: 0.999},
    }
    for key, value in changed.items():
        model, biases, c = key.split("__")
        cosines[model, biases][float(c)] = value
    return [
        {"model": model, "mask": "causal", "biases": biases, "seed": seed, "grid": LOG, "c": c}
        | {"cosine": cosine + 0.001 * seed, "tail_exponent": 1.0}
        for (model, biases), line in cosines.items()
        for c, cosine in {**line, 1000.0: 1.0}.items()
        for seed in (0, 1)
    ]


def test_demands():
    assert violations(made_up()) == []
    assert next(iter(lines_of(made_up()))) == ("pre_norm", "causal", "all")
    assert mean_at(made_up(), 100.0) == pytest.approx(0.997, abs=5e-3)
    for changed, words in {
        "pre_norm__all__1": "pre_norm, causal, all biases: the cosine at c = 1 is 0.500, not above 0.6",
        "control__none__1": "control, causal, none biases: the cosine at c = 1 is 0.500, not below 0.35",
        "control__all__100": "the cosine at c = 100 is 0.5005, not above 0.99",
        "pre_norm__none__10": "the cosine at c = 10 is 0.5005, not above the 0.9705 with biases",
    }.items():
        (found,) = violations(made_up(**{changed: 0.5 if "c = 1 " not in words else 0.4995}))
        assert words in found
    rows = made_up()
    for row in rows:
        row["tail_exponent"] = 1.2
    assert len(violations(rows)) == 4
    with pytest.raises(ValueError, match="nothing to check"):
        violations([row | {"biases": "trained"} for row in rows])
    with pytest.raises(ValueError, match="no factor c = 7"):
        mean_at(rows, 7.0)
