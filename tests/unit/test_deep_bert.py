"""The deep BERT: formula, sizes, initial weights, heads, segments, checkpointed activations, errors."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import save_on_cpu

from fairseq_transnorm.models.dslm.bert import DeepBert
from fairseq_transnorm.models.dslm.config import PRESETS
from fairseq_transnorm.models.masked_lm_hub import MaskedLMHub
from fairseq_transnorm.modules import recompute
from fairseq_transnorm.theory.deep_scale import FeedForwardSizes, correlations, residual_weights
from tests import deep_bert_reference as reference
from tests.deep_bert_reference import SCALED, build, config, disturbed
from tests.transnormer_reference import MLMTask, padded, random_tokens

EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64
PLACEMENTS = pytest.mark.parametrize("pre", [False, True], ids=["post_ln", "pre_ln"])
EOS = 2


def pair(first: int, second: int, seed: int = 0) -> torch.Tensor:
    """``<s> A </s> B </s>``."""
    words = random_tokens(first + second, seed=seed)
    return torch.cat([torch.tensor([0]), words[:first], torch.tensor([EOS]), words[first:], torch.tensor([EOS])])


@PLACEMENTS
@pytest.mark.parametrize("scaled", [{}, SCALED], ids=["vanilla", "dslm"])
def test_equals_the_formula(pre, scaled):
    model, tokens = disturbed(build(encoder_normalize_before=pre, **scaled)), pair(5, 4)
    skip, block = (math.sqrt(2 / 3), math.sqrt(1 / 3)) if scaled else (1.0, 1.0)
    x = reference.features(model, tokens, [0] * 7 + [1] * 5, skip, block, pre)
    torch.testing.assert_close(model(tokens[None], features_only=True)[0][0], x, **EXACT)
    head = model.encoder.head
    h = reference.norm(head.norm, F.relu(x @ head.dense.weight.T + head.dense.bias))
    factor = 1.0 if head.scale is None else head.scale.item()
    assert factor == pytest.approx(1 / math.sqrt(16 / 3) if scaled else 1.0)
    expected = factor * h @ model.encoder.embed_tokens.weight.T + head.bias
    logits, extra = model(tokens[None], sentence_order=True)
    torch.testing.assert_close(logits[0], expected, **EXACT)
    pooled = torch.tanh(x[0] @ model.pooler.weight.T + model.pooler.bias)
    order = pooled @ model.order_head.weight.T + model.order_head.bias
    torch.testing.assert_close(extra["sentence_order"][0], order, **EXACT)
    assert expected.std() > 0.3, "the test is blind"


def test_segments_can_be_given_and_are_otherwise_those_of_a_pair():
    model = build()
    tokens = padded([pair(3, 2), pair(1, 1, seed=1)])
    ids = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0, 0, 0]])
    torch.testing.assert_close(model(tokens)[0], model(tokens, segment_ids=ids)[0], rtol=0, atol=0)
    assert not torch.allclose(model(tokens)[0], model(tokens, segment_ids=1 - ids)[0])


@pytest.mark.parametrize("segments", [0, 1])
def test_a_model_without_two_segments_refuses_pairs_of_segments(segments):
    model, tokens = build(num_segments=segments), pair(3, 2)[None]
    torch.testing.assert_close(model(tokens)[0], model(tokens, segment_ids=torch.zeros_like(tokens))[0])
    with pytest.raises(ValueError, match=f"segment 1, the model has {segments} segment .*--num-segments 2"):
        model(tokens, segment_ids=torch.ones_like(tokens))


def test_a_checkpoint_with_other_segments_is_refused():
    with pytest.raises(RuntimeError, match="has 2 segment embeddings, the model 0; pass --num-segments 2"):
        build(num_segments=0).load_state_dict(build().state_dict())


@PLACEMENTS
def test_padding_changes_nothing(pre):
    model = build(encoder_normalize_before=pre, **SCALED)
    rows = [pair(6, 5), pair(2, 3, seed=1)]
    together = model(padded(rows))[0]
    for row, out in zip(rows, together, strict=True):
        torch.testing.assert_close(out[: len(row)], model(row[None])[0][0], **EXACT)


@pytest.mark.parametrize("name", [name for name in PRESETS if not name.endswith("768l")])
def test_a_layer_has_12_d_squared_and_13_d_parameters(name):
    values = PRESETS[name]
    with torch.device("meta"):
        model = DeepBert.build_model(config(**values), MLMTask())
    dim, layers = values["encoder_embed_dim"], values["encoder_layers"]
    assert sum(p.numel() for p in model.encoder.layers.parameters()) == layers * (12 * dim**2 + 13 * dim)


def test_the_family_has_encoders_of_equal_size():
    sizes = {name: v["encoder_layers"] * v["encoder_embed_dim"] ** 2 for name, v in PRESETS.items()}
    family = {sizes[f"{kind}_bert_{n}l"] for kind in ("dslm", "vanilla") for n in (12, 48, 192, 768)}
    assert family == {12 * 1024**2}
    assert sizes["dslm_bert_96l"] == 2 * 12 * 1024**2


# --- initial weights


def stds(model):
    layer, dim = model.encoder.layers[-1], model.pooler.in_features
    parts = {
        "token": model.encoder.embed_tokens.weight[2:],
        "position": model.encoder.embed_positions.embedding.weight[2:],
        "query": layer.attn.qkv.weight[:dim],
        "key": layer.attn.qkv.weight[dim : 2 * dim],
        "value": layer.attn.qkv.weight[2 * dim :],
        "out": layer.attn.out.weight,
        "inner": layer.ffn.inner.weight,
        "outer": layer.ffn.out.weight,
        "head": model.encoder.head.dense.weight,
        "pooler": model.pooler.weight,
        "order": model.order_head.weight,
    }
    return {name: weight.std().item() for name, weight in parts.items()}


WIDE = {
    "encoder_embed_dim": 256,
    "encoder_attention_heads": 4,
    "encoder_layers": 2,
    "max_positions": 300,
    "dropout": 0.1,
}


def test_the_standard_deviations_of_deep_scale():
    model = build(num_words=1000, **WIDE, **SCALED)
    # by hand, beta^2 = 1/2: r at the second layer's attention
    r = 0.221 * 0.9
    r = (r + 0.9) / 2
    r = (r + 0.9 * (r + (math.sqrt(1 - r * r) - r * math.acos(r)) / math.pi)) / 2
    sigma = math.sqrt(math.sqrt(0.9 / r) / 256)
    ffn = math.sqrt(math.sqrt(0.45) / 256)
    embedding = math.sqrt(0.3)
    expected = dict.fromkeys(("token", "position"), embedding) | dict.fromkeys(("value", "out"), sigma)
    expected |= dict.fromkeys(("inner", "outer"), ffn) | dict.fromkeys(("query", "key", "head", "pooler"), 1 / 16)
    found = stds(model)
    assert found.pop("order") == pytest.approx(1 / 16, rel=0.12)  # 512 numbers only
    assert found == pytest.approx(expected, rel=0.02)
    assert model.encoder.embed_segments.weight.std().item() == pytest.approx(embedding, rel=0.2)
    assert model.encoder.head.scale.item() == pytest.approx(1 / math.sqrt(0.3 * 256))
    for embed in (model.encoder.embed_tokens, model.encoder.embed_positions.embedding):
        assert not embed.weight[1].any(), "padding"
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_the_standard_deviations_of_xavier_and_of_bert():
    projection, unit, ffn = math.sqrt(2 / (256 + 64)), 1 / 16, math.sqrt(2 / (5 * 256))
    expected = dict.fromkeys(("query", "key", "value"), projection) | dict.fromkeys(("inner", "outer"), ffn)
    expected |= dict.fromkeys(("token", "position", "out", "head", "pooler"), unit)
    found = stds(build(num_words=1000, **WIDE))
    assert found.pop("order") == pytest.approx(math.sqrt(2 / (256 + 2)), rel=0.12)
    assert found == pytest.approx(expected, rel=0.02)
    constant = stds(build(num_words=1000, dslm_init="normal", **WIDE))
    assert constant.pop("order") == pytest.approx(0.02, rel=0.12)
    assert constant == pytest.approx(dict.fromkeys(constant, 0.02), rel=0.02)


@pytest.mark.parametrize("segments", [0, 1])
def test_fewer_segments_have_other_embeddings_and_another_correlation(segments):
    model = build(num_words=1000, num_segments=segments, **WIDE, **SCALED)
    tables = 2 + segments
    shares = [1 / k for k in range(1, 1006)]  # of fairseq's four symbols, the words and <mask>
    match = sum(p * p for p in shares) / sum(shares) ** 2
    r = 0.9 * (match + segments) / tables
    found = build(num_words=1000, num_segments=segments, **{**WIDE, **SCALED, "encoder_layers": 2})
    first = found.encoder.layers[0].attn.out.weight.std().item()
    assert first == pytest.approx(math.sqrt(math.sqrt(0.9 / r) / 256), rel=0.02)
    assert stds(model)["token"] == pytest.approx(math.sqrt(0.9 / tables), rel=0.02)
    assert model.encoder.head.scale.item() == pytest.approx(1 / math.sqrt(0.9 / tables * 256))


@PLACEMENTS
def test_without_scaling_a_post_norm_stream_begins_each_block_anew(pre):
    model = build(num_words=50, dslm_init="dslm", encoder_normalize_before=pre, **WIDE)
    r, S = 0.221 * 0.9, 1.0
    for block in (lambda r: 0.9, lambda r: 0.9 * (r + (math.sqrt(1 - r * r) - r * math.acos(r)) / math.pi)):
        r = (S * r + block(r)) / (S + 1)
        S = S + 1 if pre else 1.0
    assert stds(model)["out"] == pytest.approx(math.sqrt(math.sqrt(0.9 / r) / 256), rel=0.02)


def test_dropout_inside_the_feed_forward_is_made_up_for():
    options = {**WIDE, **SCALED, "activation_dropout": 0.4, "encoder_layers": 2}
    found = stds(build(num_words=50, **options))
    assert found["inner"] == pytest.approx((2 * 0.9 * 0.6 / (256 * 1024)) ** 0.25, rel=0.02)


@PLACEMENTS
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_signals_and_logits_keep_their_variance(pre, activation):
    options = {"encoder_layers": 24, "activation_fn": activation, "encoder_normalize_before": pre}
    model = build(num_words=1000, dtype=torch.float32, **{**WIDE, **options}, **SCALED).train()
    tokens = torch.stack([pair(90, 100, seed=i) % 1000 for i in range(4)])
    sums = []
    for layer in model.encoder.layers:  # before the norm of Post-LN
        layer.register_forward_hook(lambda *a: sums.append(a[2].var().item())) if pre else (
            layer.ffn_norm.register_forward_pre_hook(lambda _m, x: sums.append(x[0].var().item()))
        )
    logits, _ = model(tokens)
    assert len(sums) == 24
    assert 0.85 < min(sums) <= max(sums) < 1.15, sums
    assert logits.var().item() == pytest.approx(1.0, abs=0.1)


def test_a_checkpoint_keeps_the_factor_of_its_logits():
    model = build(dropout=0.3, **SCALED)
    other = build(seed=1, dropout=0.0, **SCALED)
    other.load_state_dict(model.state_dict())
    tokens = pair(4, 5)[None]
    torch.testing.assert_close(other(tokens)[0], model(tokens)[0], **EXACT)


def test_short_sequences_can_be_taken_into_account():
    def out_of(**options):
        return build(num_words=500, **options, **WIDE, **SCALED).encoder.layers[0].attn.out.weight.std().item()

    short = out_of(dslm_sequence_length=16)
    assert short < 0.97 * out_of()  # attention over few positions averages less, so its weights must be smaller
    assert out_of(dslm_sequence_length=16, attention_dropout=0.5) < 0.99 * short  # and less of those that are kept


@torch.no_grad()
def test_a_deep_model_in_bfloat16_keeps_its_variance():
    options = {"encoder_layers": 192, "encoder_embed_dim": 64, "encoder_normalize_before": True, "dropout": 0.1}
    model = build(dtype=torch.bfloat16, num_words=200, **options, **SCALED).train()
    tokens = torch.stack([pair(29, 32, seed=i) for i in range(4)])
    states = model(tokens, return_all_hiddens=True)[1]["inner_states"]
    found = [x.float().var().item() for x in states]
    assert 0.7 < min(found) <= max(found) < 1.5, found[::24]
    exact = build(dtype=torch.float32, num_words=200, **options, **SCALED).train()
    torch.manual_seed(1)
    expected = exact(tokens, return_all_hiddens=True)[1]["inner_states"][-1].var().item()
    torch.manual_seed(1)
    narrow = model(tokens, return_all_hiddens=True)[1]["inner_states"][-1].float().var().item()
    assert narrow == pytest.approx(expected, rel=0.1)


# --- training


@pytest.mark.parametrize("flag", ["checkpoint_activations", "offload_activations"])
def test_checkpointed_activations_give_the_same_gradients(flag):
    found = []
    for on in (False, True):
        model = build(**{flag: on, "dropout": 0.2, "attention_dropout": 0.2}, **SCALED).train()
        torch.manual_seed(3)
        logits, extra = model(pair(9, 8)[None], sentence_order=True)
        (logits.square().mean() + extra["sentence_order"].sum()).backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], msg=name, **EXACT)


def test_offloading_keeps_nothing_but_the_layers_inputs_and_those_on_the_cpu(monkeypatch):
    packed = []
    model = build(offload_activations=True, **SCALED).train()

    class Counting(save_on_cpu):
        def __init__(self, pin_memory=False):
            super().__init__(pin_memory)
            pack = self.pack_hook
            self.pack_hook = lambda tensor: packed.append(tuple(tensor.shape)) or pack(tensor)

    monkeypatch.setattr(recompute, "save_on_cpu", Counting)
    model(pair(9, 8)[None])
    assert packed.count((1, 20, 16)) == 3, "one input a layer"


def test_order_and_features_or_a_head():
    model, tokens = build(), pair(4, 3)[None]
    model.register_classification_head("a", 3)
    features, extra = model(tokens, None, True, sentence_order=True)
    torch.testing.assert_close(features, model(tokens, features_only=True)[0])
    assert extra["sentence_order"].shape == (1, 2)
    with pytest.raises(ValueError, match="order is not of the head 'a'"):
        model(tokens, classification_head_name="a", sentence_order=True)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[-1, 0, 0]], "a token of segment -1; the first segment is 0"),
        ([[0, 0]], r"shape of the tokens, \(1, 3\)"),
        ([[0.0, 0.0, 1.0]], "not torch.float32"),
    ],
)
def test_segments_that_are_none(ids, message):
    with pytest.raises(ValueError, match=message):
        build()(random_tokens(1, 3), segment_ids=torch.tensor(ids))


def test_a_head_stands_on_the_pooler_and_is_kept_with_the_checkpoint():
    model, tokens = build(), pair(4, 3)[None]
    model.register_classification_head("a", 3)
    head = model.classification_heads["a"]
    expected = head.out_proj(model.pool(model(tokens, features_only=True)[0]))
    torch.testing.assert_close(model(tokens, classification_head_name="a")[0], expected, **EXACT)
    assert head.out_proj.weight.shape == (3, 16)
    loaded = build(seed=1, load_checkpoint_heads=True)
    loaded.load_state_dict(model.state_dict())
    torch.testing.assert_close(loaded(tokens, classification_head_name="a")[0], expected, **EXACT)
    other = build(seed=1)
    other.register_classification_head("a", 2)
    other.load_state_dict(model.state_dict())  # a head of another task is left out
    assert other.classification_heads["a"].out_proj.weight.shape == (2, 16)


def test_the_hub_puts_one_separator_between_a_pair():
    hub = MaskedLMHub(SimpleNamespace(bpe=None), MLMTask(), build(), words=True)
    tokens = hub.encode("word0 word2", "word1")
    assert tokens.tolist() == [0, 4, 6, EOS, 5, EOS]
    assert hub.decode(tokens) == ["word0 word2", "word1"]
    assert hub.decode(hub.encode("word0")) == "word0"


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_attention_heads": 3}, "--encoder-attention-heads 3 does not divide --encoder-embed-dim 16"),
        ({"encoder_layers": 0}, "--encoder-layers 0 must be at least 1"),
        ({"encoder_ffn_embed_dim": 0}, "--encoder-ffn-embed-dim 0 must be at least 1"),
        ({"dropout": 1.0}, "--dropout 1.0 is not a probability"),
        ({"num_segments": 3}, "--num-segments 3"),
        ({"dslm_beta_sq": 0.1}, "--dslm-beta-sq 0.1 has no effect without --dslm-residual-scaling"),
        ({**SCALED, "dslm_beta_sq": 0.1, "dslm_lambda_sq": 0.8}, r"0.8 \+ 0.1 = 0.9 is not 1"),
        ({**SCALED, "dslm_beta_sq": -0.1}, r"beta\^2 = -0.1 is not between 0 and 1; .*--dslm-beta-sq"),
        ({**SCALED, "dslm_lambda_sq": 1.5, "dslm_any_sum": True}, "both must be above 0"),
        ({**SCALED, "dslm_alpha": 1000.0}, "= 0 is not between"),
        ({"dslm_k": 2.0}, "--dslm-k 2.0 has no effect without --dslm-residual-scaling"),
        ({**SCALED, "dslm_k": 2.0, "dslm_beta_sq": 0.1}, "--dslm-k 2.0 has no effect without a beta"),
        ({"dslm_sequence_length": 9}, "--dslm-sequence-length 9 has no effect without --dslm-init dslm"),
        ({**SCALED, "encoder_layers": 1}, r"beta\^2 = k / N\^alpha = 1 / 1\^1 = 1 is not between"),
        ({**SCALED, "activation_fn": "silu"}, "not of --activation-fn silu"),
        ({**SCALED, "dslm_input_corr": 1.5}, "--dslm-input-corr 1.5 is not in"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message):
    with pytest.raises(ValueError, match=f"^deep_bert: .*{message}"):
        build(**options)


def test_samples_longer_than_the_positions_are_refused():
    with pytest.raises(ValueError, match="--max-positions 64 is too few for samples of up to 65 tokens"):
        DeepBert.build_model(config(), MLMTask(max_positions=65))


# --- theory of the whole


def test_residual_weights():
    assert residual_weights(192).change_squared == pytest.approx(1 / 192)
    assert residual_weights(192).skip_squared == pytest.approx(191 / 192)
    assert residual_weights(4, k=2, alpha=2).change_squared == pytest.approx(2 / 16)
    given = residual_weights(8, skip_squared=0.9, change_squared=0.2, any_sum=True)
    assert (given.skip, given.change) == pytest.approx((math.sqrt(0.9), math.sqrt(0.2)))


def test_the_correlation_rises_to_a_fixed_point_below_that_of_dropout():
    r, _ = correlations(768, 0.221, 0.1, FeedForwardSizes(128, 512), residual_weights(768))
    assert r[0] == pytest.approx(0.221 * 0.9)
    assert (r[1:] > r[:-1]).all()
    assert r[-1] < 0.9


def test_without_scaling_only_post_norm_begins_each_block_with_unit_variance():
    sizes = FeedForwardSizes(64, 256)
    pre, _ = correlations(50, 0.221, 0.1, sizes)
    post, _ = correlations(50, 0.221, 0.1, sizes, post_norm=True)
    assert post[5] > pre[5]  # equal shares of skip and block, at every depth
    assert post[49] == pytest.approx(post[40], rel=1e-6)
