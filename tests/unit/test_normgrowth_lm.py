"""The norm-growth language model: variants, initial weights, the original's tensors, decoding, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq_transnorm.models.normgrowth.config import PRESETS
from fairseq_transnorm.models.normgrowth.upstream import (
    FIRST_POSITION,
    NEVER,
    SPECIAL_SYMBOLS,
    from_upstream_state_dict,
    to_upstream_state_dict,
)
from fairseq_transnorm.modules.layer import TransformerLayer
from tests.normgrowth_reference import HEADS, LENGTH, WORDS, build, logits, torch_encoder, upstream_state
from tests.transnormer_reference import LMTask

SENTENCE = torch.tensor([3, 0, 6, 6, 1, 2])
BIAS_FREE = {"normgrowth_si_softmax", "normgrowth_si_softmax_scaled", "normgrowth_si_drop", "normgrowth_post_ln"}
UNSCALED = {f"normgrowth_{name}" for name in ("no_scale", "bias", "post_ln", "si_softmax", "si_drop", "si_norm")}
POST = {f"normgrowth_{name}" for name in ("control", "no_scale", "post_ln", "control_drop")}
LIKE_THE_ORIGINAL = sorted(name for name in PRESETS if not name.endswith(("_rel", "vaswani", "true_pre_norm")))


@pytest.mark.parametrize("arch", LIKE_THE_ORIGINAL)
@pytest.mark.parametrize("mask", ["causal", "multiplicative"])
def test_a_variant_with_the_originals_tensors_gives_the_formulas_numbers(arch, mask):
    bias_free = arch in BIAS_FREE or arch == "normgrowth_si_norm"
    state = upstream_state(bias=not bias_free)
    model = build(arch, attn_mask=mask)
    model.load_state_dict(from_upstream_state_dict(state), strict=True)
    got, _ = model(SENTENCE[None] + SPECIAL_SYMBOLS)
    placement = "post" if arch in POST else "res_post"
    weight_map = "si_norm" if arch == "normgrowth_si_norm" else "softmax"
    wanted = logits(state, SENTENCE, placement, arch not in UNSCALED, mask, weight_map)
    torch.testing.assert_close(got[0, :, SPECIAL_SYMBOLS:], wanted, rtol=1e-10, atol=1e-10)
    assert (got[0, :, :SPECIAL_SYMBOLS] == NEVER).all()


@pytest.mark.parametrize("arch", ["control_drop", "si_drop", "bias_scaled_drop", "bias_scaled_drop3"])
def test_sublayers_drop_out_before_the_sum_and_before_the_norm(arch):
    arch = f"normgrowth_{arch}"
    state, p, post = upstream_state(bias=arch not in BIAS_FREE), PRESETS[arch]["dropout"], arch in POST
    model = build(arch).train()
    model.load_state_dict(from_upstream_state_dict(state), strict=True)

    def drop(change):  # the same draws as in the model
        return change.masked_fill(torch.rand(change.shape) < p, 0.0) / (1 - p) if post else F.dropout(change, p)

    torch.manual_seed(5)
    got, _ = model(SENTENCE[None] + SPECIAL_SYMBOLS)
    numbers = "post" if post else "res_post", arch not in UNSCALED, "causal", "softmax"
    torch.manual_seed(5)
    wanted = logits(state, SENTENCE, *numbers, drop)
    torch.testing.assert_close(got[0, :, SPECIAL_SYMBOLS:], wanted, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(wanted, logits(state, SENTENCE, *numbers))


VARIANTS = {  # linear biases, post-norm, scaled scores, dropout
    "control": (True, True, True, 0.0),
    "pre_norm": (True, False, True, 0.0),
    "no_scale": (True, True, False, 0.0),
    "control_rel": (True, True, True, 0.0),
    "bias": (True, False, False, 0.0),
    "post_ln": (False, True, False, 0.0),
    "bias_scaled": (True, False, True, 0.0),
    "bias_scaled_rel": (True, False, True, 0.0),
    "si_softmax": (False, False, False, 0.0),
    "si_softmax_scaled": (False, False, True, 0.0),
    "control_drop": (True, True, True, 0.1),
    "si_drop": (False, False, False, 0.1),
    "bias_scaled_drop": (True, False, True, 0.1),
    "bias_scaled_drop3": (True, False, True, 0.3),
    "vaswani": (True, True, True, 0.1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_has_the_switches_of_the_originals_table(name):
    bias, post, scale, dropout = VARIANTS[name]
    for layer in build(f"normgrowth_{name}").decoder.layers:
        assert (layer.attn.qkv.bias is not None, layer.norm_placement == "post", layer.dropout) == (bias, post, dropout)
        assert layer.attn.scale == ((8 / HEADS) ** -0.5 if scale else 1.0)
        assert layer.attn.dropout == layer.ffn.dropout == (0.1 if name == "vaswani" else 0.0)


@pytest.mark.parametrize("axis", ["time", "batch"])
def test_vaswani_is_torchs_encoder_over_either_axis(axis):
    encoder = torch_encoder()
    state = upstream_state(layers=0) | {f"encoder.{name}": x for name, x in encoder.state_dict().items()}
    model = build("normgrowth_vaswani", attention_axis=axis)
    model.load_state_dict(from_upstream_state_dict(state), strict=True)
    words = torch.stack([SENTENCE, SENTENCE.flip(0), SENTENCE.roll(2)])
    x = state["embed.weight"][words] + state["pos_embed.weight"]
    if axis == "batch":
        wanted = encoder(x.transpose(0, 1)).transpose(0, 1)
    else:
        wanted = encoder(x, mask=nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=x.dtype))
    got, _ = model.decoder(words + SPECIAL_SYMBOLS, features_only=True)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_true_pre_norm_has_the_norm_before_each_sublayer_and_one_at_the_end_when_asked():
    model = build("normgrowth_true_pre_norm", final_norm=True)
    tokens = SENTENCE[None] + SPECIAL_SYMBOLS
    x, extra = model.decoder(tokens, features_only=True, return_all_hiddens=True)
    layer, h = model.decoder.layers[0], extra["inner_states"][0].transpose(0, 1)
    h = h + layer.attn(layer.attn_norm(h))
    h = h + layer.ffn(layer.ffn_norm(h))
    torch.testing.assert_close(extra["inner_states"][1].transpose(0, 1), h)
    torch.testing.assert_close(x, model.decoder.norm(extra["inner_states"][2].transpose(0, 1)))
    assert build("normgrowth_true_pre_norm").decoder.norm is None


def test_sinusoids_are_those_of_the_paper_and_no_parameters():
    model = build("normgrowth_control_rel")
    positions = model.decoder.embed_positions
    assert not list(positions.parameters())
    row = positions(torch.tensor([[FIRST_POSITION + 3]]), FIRST_POSITION + 4)[0, 0]
    angles = [3 / 10000 ** (2 * i / 8) for i in range(4)]
    wanted = torch.tensor([f(torch.tensor(a)) for a in angles for f in (torch.sin, torch.cos)])
    torch.testing.assert_close(row.float(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", ["normgrowth_control", "normgrowth_si_softmax"])
def test_the_original_code_gets_its_tensors_back(arch):
    state = upstream_state(bias=arch == "normgrowth_control")
    back = to_upstream_state_dict(from_upstream_state_dict(state), HEADS)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_vaswani_goes_back_too_and_words_may_stand_anywhere():
    layers = {f"encoder.{name}": x for name, x in torch_encoder().state_dict().items()}
    state, rows = upstream_state(layers=0) | layers, [12, 4, 5, 9, 8, 7, 6]
    ours = from_upstream_state_dict(state, rows, num_symbols=16)
    assert torch.equal(ours["decoder.embed_tokens.weight"][12], state["embed.weight"][0])
    assert len(ours["decoder.embed_tokens.weight"]) == 16
    assert ours["decoder.output_projection.bias"][11] == NEVER
    back = to_upstream_state_dict(ours, HEADS, rows, vaswani=True)
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert back.keys() == state.keys()


def test_a_state_dict_that_is_not_the_originals_is_refused_by_name():
    state = upstream_state()
    with pytest.raises(ValueError, match=r"'classifier\.weight'"):
        from_upstream_state_dict({name: x for name, x in state.items() if name != "classifier.weight"})
    with pytest.raises(ValueError, match=r"unknown.*lm_head"):
        from_upstream_state_dict(state | {"lm_head": torch.zeros(1)})
    with pytest.raises(ValueError, match="7 words need"):
        from_upstream_state_dict(state, rows=[4, 5])
    with pytest.raises(ValueError, match="lacks the attention of layer 1"):
        from_upstream_state_dict({name: x for name, x in state.items() if "layer1.heads.head" not in name})


def test_initial_weights_are_torchs_defaults():
    model = build(dtype=torch.float32, decoder_embed_dim=256, decoder_ffn_embed_dim=128, decoder_attention_heads=4)
    layer = model.decoder.layers[0]
    for linear in (layer.attn.qkv, layer.attn.out, layer.ffn.inner, layer.ffn.out, model.decoder.output_projection):
        bound = linear.in_features**-0.5
        assert bound * 0.9 < linear.weight.abs().max() <= bound
        assert bound * 0.5 < linear.bias.abs().max() <= bound
    assert 0.9 < model.decoder.embed_tokens.weight[SPECIAL_SYMBOLS:].std() < 1.1
    assert 0.9 < model.decoder.embed_positions.embedding.weight[FIRST_POSITION:].std() < 1.1


def test_vaswani_begins_with_equal_layers_and_torchs_attention():
    first, second = build("normgrowth_vaswani").decoder.layers
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    bound = (6 / (4 * 8)) ** 0.5
    assert bound * 0.9 < first.attn.qkv.weight.abs().max() <= bound, "the draw of other variants ends at 0.82 of it"
    assert not first.attn.qkv.bias.any()
    assert not first.attn.out.bias.any()
    other = build("normgrowth_control").decoder.layers
    assert not torch.equal(other[0].attn.qkv.weight, other[1].attn.qkv.weight)


def test_the_default_layers_have_the_papers_number_of_parameters():
    from fairseq_transnorm.models.normgrowth.config import NormGrowthLMConfig
    from fairseq_transnorm.models.normgrowth.lm import build_layer

    layer = build_layer(NormGrowthLMConfig())
    assert 12 * sum(p.numel() for p in layer.parameters()) == 37_837_824


@pytest.mark.parametrize("arch", sorted(PRESETS))
def test_each_kind_of_bias_is_there_or_not(arch):
    model = build(arch, no_norm_bias=True, final_norm=True)
    linear = [m for m in model.decoder.layers.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 8
    assert {m.bias is None for m in linear} == {PRESETS[arch].get("no_layer_bias", False)}
    assert {m.bias is None for m in model.modules() if isinstance(m, nn.LayerNorm)} == {True}
    assert model.decoder.output_projection.bias is not None
    assert build(arch, no_classifier_bias=True).decoder.output_projection.bias is None
    model(SENTENCE[None] + SPECIAL_SYMBOLS)


@pytest.mark.parametrize(
    "arch", ["normgrowth_control", "normgrowth_pre_norm", "normgrowth_si_norm", "normgrowth_vaswani"]
)
def test_decoding_step_by_step_gives_the_same_numbers(arch):
    model, tokens = build(arch), SENTENCE[None] + SPECIAL_SYMBOLS
    whole, _ = model(tokens)
    state: dict = {}
    for t in range(1, LENGTH + 1):
        step, _ = model.decoder(tokens[:, :t], incremental_state=state)
        torch.testing.assert_close(step[:, -1], whole[:, t - 1])


@pytest.mark.parametrize(("option", "words"), [("attn_mask", "multiplicative"), ("attention_axis", "batch")])
def test_a_model_that_sees_the_future_cannot_generate(option, words):
    model = build(**{option: words})
    with pytest.raises(ValueError, match=f"with --{option.replace('_', '-')} {words} .* cannot generate"):
        model.decoder(SENTENCE[None] + SPECIAL_SYMBOLS, incremental_state={})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decoder_attention_heads": 3}, "--decoder-attention-heads 3"),
        ({"decoder_layers": 0}, "--decoder-layers 0"),
        ({"decoder_ffn_embed_dim": 0}, "--decoder-ffn-embed-dim 0"),
        ({"dropout": 1.0}, "--dropout 1.0"),
        ({"attention_axis": "batch", "attn_mask": "multiplicative"}, "--attn-mask multiplicative does nothing with"),
        ({"max_target_positions": 3}, "--max-target-positions 3"),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ValueError, match=f"normgrowth_lm: {words}"):
        build(**options)


def test_names_that_nobody_knows_are_refused():
    from fairseq_transnorm.modules.feed_forward import FeedForward
    from fairseq_transnorm.modules.growth_attention import GrowthAttention
    from fairseq_transnorm.modules.norms import LayerNorm

    with pytest.raises(ValueError, match="norm placement 'sideways'"):
        TransformerLayer(
            GrowthAttention(8, 2), FeedForward(8, 8), LayerNorm(8), LayerNorm(8), norm_placement="sideways"
        )
    for name in ("mask", "weight_map", "axis", "qkv_init"):
        with pytest.raises(ValueError, match="'other'"):
            GrowthAttention(8, 2, **{name: "other"})


def test_padding_on_the_right_changes_no_word():
    model = build("normgrowth_pre_norm")
    tokens = SENTENCE[None] + SPECIAL_SYMBOLS
    alone, _ = model(tokens[:, :4])
    padded = tokens.clone()
    padded[:, 4:] = LMTask(WORDS).target_dictionary.pad()
    torch.testing.assert_close(model(padded)[0][:, :4], alone)


@pytest.mark.parametrize(
    ("arch", "options", "warned"),
    [
        ("normgrowth_si_norm", {}, False),
        ("normgrowth_pre_norm", {"dropout": 0.1}, False),
        ("normgrowth_si_norm", {"no_layer_bias": False, "weight_map": "softmax"}, True),
    ],
)
def test_a_preset_with_some_of_its_values_only_is_warned_of(arch, options, warned, caplog):
    build(arch, _name=arch, **options)
    message = (
        "normgrowth_si_norm is named, but the model has no_layer_bias False, not True, weight_map softmax, not si_"
    )
    assert (message in caplog.text) is warned
    assert ("write their values too: no_layer_bias: True, norm_placement: res_post" in caplog.text) is warned
    assert bool(caplog.records) is warned


def test_a_preset_without_any_of_its_values_is_refused():
    with pytest.raises(ValueError, match="write _name: normgrowth_lm with norm_placement: res_post"):
        build("normgrowth_control", _name="normgrowth_pre_norm")
