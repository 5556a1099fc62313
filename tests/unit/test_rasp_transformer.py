"""The transformer on formal languages: the formulas, initial values, what it is asked for, refusals."""

import math
from itertools import pairwise

import pytest
import torch

import fairseq_transnorm.models  # noqa: F401  (registers the architecture)
from fairseq_transnorm.measure.hidden_states import HiddenStates
from fairseq_transnorm.measure.own_attention import attended_positions
from fairseq_transnorm.measure.rasp_throughput import PlainModel
from fairseq_transnorm.models.rasp.config import RaspTransformerConfig
from fairseq_transnorm.models.rasp.transformer import RaspTransformer
from fairseq_transnorm.tasks.rasp_lang import RaspLangConfig, RaspLangTask

EXACT = {"rtol": 1e-10, "atol": 1e-10}
SIZES = {"rasp_layers": 2, "rasp_heads": 2, "rasp_dim": 12}


def task_of(language="reverse_10", **options):
    return RaspLangTask.setup_task(RaspLangConfig(_name="rasp_lang", language=language, max_length=9, **options))


def build(language="reverse_10", **options):
    torch.manual_seed(4)
    return RaspTransformer.build_model(RaspTransformerConfig(**SIZES | options), task_of(language))


def batch(lengths=(5, 1, 3), symbols=11):
    """Random symbols, padded with the number after the last one."""
    torch.manual_seed(8)
    tokens = torch.randint(0, symbols, (len(lengths), max(lengths)))
    return tokens.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], symbols)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [12, 10, 7])
def test_equals_the_formulas_one_sequence_at_a_time(width, training):
    heads = 2 if width % 2 == 0 else 1
    model = build(rasp_dim=width, rasp_heads=heads, independent_layer_init=True).double().train(training)
    plain = PlainModel(11, 10, width, layers=2, heads=heads, dropout=0.0).double()
    plain.load_state_dict(model.state_dict())
    tokens = batch()
    logits, _ = model(tokens)
    assert logits.shape == (3, 5, 10)
    for row, sequence in zip(logits, tokens, strict=True):
        real = sequence[sequence != 11]
        torch.testing.assert_close(row[: len(real)], plain(real), rtol=1e-6, atol=1e-6)  # positions are float32


@pytest.mark.parametrize("attention", ["softmax", "linear", "linear_denominator"])
def test_training_and_evaluation_agree_and_padding_changes_nothing(attention):
    model, tokens = build(rasp_attention=attention).double(), batch()
    trained, evaluated = model.train()(tokens)[0], model.eval()(tokens)[0]
    real = tokens != 11
    torch.testing.assert_close(trained[real], evaluated[real], **EXACT)
    wider = torch.nn.functional.pad(tokens, (0, 3), value=11)
    torch.testing.assert_close(model(wider)[0][:, :5][real], evaluated[real], **EXACT)
    torch.testing.assert_close(model.train()(wider)[0][:, :5][real], evaluated[real], **EXACT)
    for row, sequence in zip(evaluated, tokens, strict=True):
        alone = sequence[sequence != 11]
        torch.testing.assert_close(model.eval()(alone[None])[0][0], row[: len(alone)], **EXACT)


def test_positions_are_sines_and_cosines_in_turn():
    model = build(rasp_dim=7, rasp_heads=1).double()
    table = model.embed_positions(torch.arange(5), 5)[..., :7]
    for t in range(5):
        for c in range(7):
            angle = t * 10000 ** (-(c - c % 2) / 8)
            assert table[t, c].item() == pytest.approx(math.cos(angle) if c % 2 else math.sin(angle), abs=1e-6)


def test_learned_positions_and_their_number():
    model = build(positional_encoding="embed", max_positions=30)
    assert model.embed_positions.embedding.weight.shape == (30, 12)
    assert model.embed_positions.embedding.weight.std().item() == pytest.approx(1, abs=0.15)
    with pytest.raises(ValueError, match="31 symbols are more than --max-positions 30"):
        model(torch.zeros(1, 31, dtype=torch.long))


def test_initial_values():
    model = build(rasp_layers=3, rasp_heads=1, rasp_dim=60)
    state = model.state_dict()
    assert state["embed_tokens.weight"].shape == (11, 60)
    assert state["embed_tokens.weight"].std().item() == pytest.approx(1, abs=0.15)
    bounds = {  # of uniform draws
        "layers.0.attn.qkv.weight": math.sqrt(6 / (4 * 60)),
        "layers.0.attn.out.weight": 60**-0.5,
        "layers.0.ffn.inner.weight": 60**-0.5,
        "layers.0.ffn.inner.bias": 60**-0.5,
        "layers.0.ffn.out.weight": 120**-0.5,
        "layers.0.ffn.out.bias": 120**-0.5,
        "classifier.weight": 60**-0.5,
        "classifier.bias": 60**-0.5,
    }
    for name, bound in bounds.items():
        largest = state[name].abs().max().item()
        assert 0.5 * bound < largest <= bound, name
        assert state[name].std().item() == pytest.approx(bound / 3**0.5, rel=0.35), name
    for name in ("layers.0.attn.qkv.bias", "layers.0.attn.out.bias", "layers.0.attn_norm.bias"):
        assert not state[name].any()
    assert (state["layers.0.ffn_norm.weight"] == 1).all()
    assert model.layers[0].attn_norm.eps == 1e-5
    same = build(rasp_layers=3), build(rasp_layers=3, independent_layer_init=True)
    for model, equal in zip(same, (True, False), strict=True):
        for one, other in pairwise(model.layers):
            assert torch.equal(one.attn.qkv.weight, other.attn.qkv.weight) == equal
            assert one.attn.qkv.weight is not other.attn.qkv.weight


def test_bos_inside_the_model_is_a_symbol_that_nobody_asks_for():
    """The same as a BOS in the input, but for the row of logits."""
    model, tokens = build(model_bos=True).double().eval(), batch(lengths=(5, 4))
    plain = build().double().eval()
    plain.load_state_dict(model.state_dict())
    with_bos = torch.cat([torch.full((2, 1), 10), tokens], 1)
    wanted, asked = plain(with_bos, return_attention=True)
    found, extra = model(tokens, return_attention=True)
    torch.testing.assert_close(found, wanted[:, 1:], **EXACT)
    assert extra["attn"][0].shape == (2, 2, 6, 6)
    torch.testing.assert_close(extra["attn"][1], asked["attn"][1], **EXACT)
    torch.testing.assert_close(model.train()(tokens)[0][0], wanted[0, 1:], **EXACT)
    assert model.max_positions() == plain.max_positions() - 1


def test_positional_dropout_is_of_the_sum_in_training_only():
    model, tokens = build(positional_dropout=0.5).double(), batch(lengths=(9,) * 40)
    (before, *_), (after, *_) = (
        model.train(training)(tokens, return_all_hiddens=True)[1]["inner_states"] for training in (False, True)
    )
    dropped = after == 0
    assert 0.4 < dropped.double().mean() < 0.6
    torch.testing.assert_close(after[~dropped], 2 * before[~dropped], **EXACT)


def test_weights_scores_and_hidden_states_as_asked_for():
    model, tokens = build().double().eval(), batch()
    logits, extra = model(tokens)
    assert extra == {"attn": None, "scores": None, "inner_states": None}
    again, extra = model(tokens, return_attention=True)
    real = tokens != 11
    torch.testing.assert_close(again[real], logits[real], **EXACT)
    assert [len(extra[name]) for name in ("attn", "scores")] == [2, 2]
    weights, scores = extra["attn"][1], extra["scores"][1]
    torch.testing.assert_close(weights.sum(-1)[:, 0][real], torch.ones(9, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(scores[0].softmax(-1), weights[0], **EXACT)
    for training in (True, False):
        features, extra = model.train(training)(tokens, features_only=True, return_all_hiddens=True)
        torch.testing.assert_close(model.classifier(features)[real], logits[real], **EXACT)
        assert [state.shape for state in extra["inner_states"]] == [(5, 3, 12)] * 3
        torch.testing.assert_close(extra["inner_states"][-1].transpose(0, 1)[real], features[real], **EXACT)


def test_the_measures_of_the_package_know_it():
    model, tokens = build().eval(), batch(lengths=(5, 5))
    states = HiddenStates(model)(tokens)
    assert len(states) >= 2
    with attended_positions(model) as looked:
        model(tokens)
    assert [positions.shape for positions in looked] == [(2, 2, 5)] * 2


def test_gradient_of_the_attention_alone_reaches_queries_and_keys():
    model, tokens = build().train(), batch()
    _, extra = model(tokens, return_attention=True)
    extra["attn"][1][:, 0, 0].square().sum().backward()
    queries, keys, values = model.layers[1].attn.qkv.weight.grad.chunk(3)
    assert queries.abs().max() > 0
    assert keys.abs().max() > 0
    assert not values.any()
    assert model.classifier.weight.grad is None


REFUSED = [
    ({"rasp_heads": 5}, "--rasp-heads 5 does not divide --rasp-dim 12"),
    ({"rasp_layers": 0}, "--rasp-layers 0 must be at least 1"),
    ({"rasp_ffn_dim": 0}, "--rasp-ffn-dim 0 must be at least 1"),
    ({"dropout": 1.0}, "--dropout 1.0 is not a probability"),
    ({"positional_dropout": -0.1}, "--positional-dropout -0.1"),
    ({"rasp_dim": 2, "rasp_heads": 1}, "--positional-encoding sin needs at least 4"),
    ({"max_positions": 8}, "--max-positions 8 is too few for inputs of up to 9"),
    ({"max_positions": 9, "model_bos": True}, "--max-positions 9 is too few for inputs of up to 10"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused_by_name(options, message):
    with pytest.raises(ValueError, match=f"rasp_transformer: .*{message}"):
        build(**options)


SUPERVISED = [
    ("sort_10_with_attns", {"rasp_layers": 1}, "of 2 layers and 1 head; .*--language sort_10$"),
    ("hist2_10_bos_with_attns", {"rasp_heads": 1}, "of 2 layers and 2 heads; .*--language hist2_10_bos$"),
    ("sort_by_freq_10_with_attns", {}, "of 3 layers and 2 heads"),
    ("sort_10_with_attns", {"rasp_attention": "linear"}, "--rasp-attention linear has no softmax .*sort_10_with_attns"),
]


@pytest.mark.parametrize(("language", "options", "message"), SUPERVISED)
def test_what_cannot_be_supervised_is_refused(language, options, message):
    with pytest.raises(ValueError, match=f"rasp_transformer: .*{message}"):
        build(language, **options)
    build(language.removesuffix("_with_attns"), **options)


def test_linear_attention_has_no_maps_and_a_task_without_language_is_refused():
    with pytest.raises(ValueError, match="linear attention has no softmax"):
        build(rasp_attention="linear")(batch(), return_attention=True)
    task = task_of()
    del task.language
    with pytest.raises(ValueError, match="--task rasp_lang has no language"):
        RaspTransformer.build_model(RaspTransformerConfig(**SIZES), task)
