"""Parameters as one vector: literal numbers, which names belong where, and steps."""

import math

import pytest
import torch
from torch import nn

from fairseq_transnorm.measure.parameters import (
    Layer,
    Step,
    by_layer,
    dot,
    layer_of,
    linear_column_norm,
    model_vector,
    norm,
    norm_and_dot,
    select,
    smallest_rms,
    step_between,
    step_of,
    step_sums,
)

# name -> (stack and layer, whether it is the matrix of a linear map), names as each library has them
NAMES = {
    # fairseq and this package
    "decoder.layers.0.fc1.weight": (Layer("decoder", 1), True),
    "decoder.layers.11.self_attn_layer_norm.weight": (Layer("decoder", 12), False),
    "encoder.sentence_encoder.layers.2.self_attn.q_proj.bias": (Layer("encoder", 3), False),
    "decoder.embed_tokens.weight": (None, False),
    "decoder.embed_positions.weight": (None, False),
    "decoder.output_projection.weight": (None, True),
    "decoder.layer_norm.weight": (None, False),
    # BERT of Hugging Face
    "bert.encoder.layer.3.attention.self.query.weight": (Layer("encoder", 4), True),
    "bert.embeddings.word_embeddings.weight": (None, False),
    "bert.pooler.dense.weight": (None, True),
    # GPT-2
    "transformer.h.7.mlp.c_fc.weight": (Layer("model", 8), True),
    "transformer.wte.weight": (None, False),
    "transformer.wpe.weight": (None, False),
    # T5
    "encoder.block.0.layer.1.DenseReluDense.wi.weight": (Layer("encoder", 1), True),
    "decoder.block.5.layer.0.SelfAttention.q.weight": (Layer("decoder", 6), True),
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (Layer("encoder", 1), False),
    "shared.weight": (None, False),
}


def parameter(name):
    return torch.ones(3) if name.endswith("bias") or "norm.weight" in name else torch.ones(2, 3)


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_where_a_name_belongs(name, expected):
    layer, linear = expected
    assert layer_of(name) == layer
    parameters = {name: parameter(name), "decoder.layers.9.fc.weight": torch.ones(1, 1), "x": torch.ones(())}
    chosen = {scope: name in select(parameters, scope) for scope in ("layers", "all", "linear", "matrices")}
    matrix = parameters[name].dim() == 2
    assert chosen == {"layers": bool(layer), "all": True, "linear": linear, "matrices": bool(layer) and matrix}
    assert "x" not in select(parameters, "all"), "a single number"


def test_an_empty_or_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="unknown scope 'layer'; known: layers, all, linear, matrices"):
        select({"a.weight": torch.ones(2)}, "layer")
    with pytest.raises(ValueError, match=r"no parameter belongs to the scope 'layers'; there are \['a.weight'\]"):
        select({"a.weight": torch.ones(2)}, "layers")


def test_layers_come_in_order():
    names = [f"{stack}.layers.{n}.w" for stack in ("decoder", "encoder") for n in (10, 2, 0)]
    found = by_layer({name: torch.ones(1) for name in [*names, "decoder.embed_tokens.weight"]})
    assert list(found) == [Layer(s, n) for s in ("decoder", "encoder") for n in (1, 3, 11)]
    assert list(found[Layer("encoder", 3)]) == ["encoder.layers.2.w"]


def test_numbers_by_hand():
    a = {"m": torch.tensor([[3.0, 0.0], [4.0, 2.0]]), "v": torch.tensor([1.0, 2.0])}
    b = {"v": torch.tensor([1.0, -1.0]), "m": torch.ones(2, 2)}
    assert dot(a, b) == 9 - 1
    assert norm_and_dot(a, b) == (norm(a), dot(a, b))
    assert norm_and_dot({}, b) == (0, 0)
    assert norm(a) == pytest.approx(math.sqrt(29 + 5))
    assert smallest_rms(a) == pytest.approx(math.sqrt(29) / 2)
    assert smallest_rms(a | {"n": torch.full((1, 5), 0.5)}) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"no matrices among \['v'\]"):
        smallest_rms({"v": a["v"]})


def test_columns_of_linear_maps():
    """Two columns of length 5 and 2 and four of length 1; a map of GPT-2 is stored the other way round."""
    first, second = torch.tensor([[3.0, 0.0], [4.0, 2.0]]), torch.eye(4)
    assert linear_column_norm({"a.weight": first, "b.weight": second}) == pytest.approx((5 + 2 + 4) / 6)
    assert linear_column_norm({"h.0.mlp.c_fc.weight": first.T.contiguous()}) == pytest.approx(3.5)


def test_a_step_by_hand():
    # from (3, 0) to (3, 4), in two parameters
    step = step_between(
        {"a": torch.tensor([3.0]), "b": torch.zeros(1)}, {"a": torch.tensor([3.0]), "b": 4 * torch.ones(1)}
    )
    assert step == Step(3.0, 5.0, 4.0, 0.0, pytest.approx(0.6), 0.0)
    back = step_between({"a": torch.tensor([2.0, 0.0])}, {"a": torch.tensor([1.0, 0.0])})
    assert back == Step(2.0, 1.0, 1.0, -2.0, 1.0, -1.0)
    still = {"a": torch.tensor([2.0, 1.0])}
    assert step_between(still, still)[2:] == (0.0, 0.0, pytest.approx(1.0, abs=1e-15), 0.0)
    assert step_between({"a": torch.zeros(2)}, still)[4:] == (0.0, 0.0), "no direction yet"
    assert step_of([(1, 1, 0, 0), (8, 15, 4, 1.5)]) == Step(3.0, 4.0, 2.0, 1.5, pytest.approx(10.5 / 12), 0.25)


def test_sums_see_what_float32_does_not():
    """Ten million ones and a step of 1e-4 each: float32 would lose the product's last digits."""
    before = torch.ones(10_000_019)  # not a multiple of any piece
    after = before + 1e-4
    delta = float(after[0]) - 1
    first, second, moved, product = step_sums(before, after)
    n = before.numel()
    assert (first, product) == (n, pytest.approx(n * delta, rel=1e-12))
    assert moved == pytest.approx(n * delta**2, rel=1e-12)
    assert second == pytest.approx(n * (1 + delta) ** 2, rel=1e-12)


def test_tied_and_frozen_parameters():
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 2), nn.BatchNorm1d(2))
    model[1].weight = model[0].weight
    model[2].bias.requires_grad_(False)
    assert list(model_vector(model)) == ["0.weight", "2.weight", "3.weight", "3.bias"]
    vector = model_vector(model)
    assert vector["0.weight"].data_ptr() == model[0].weight.data_ptr(), "not copied"
    assert not vector["0.weight"].requires_grad
