"""Language models of the package on sequences with triggers: where they look, and what their weights recall."""

import math
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from fairseq_transnorm.data.symbol_dictionary import SymbolDictionary
from fairseq_transnorm.measure.memory_probes import memories_of, position_key_scores, token_key_scores, weight_probes
from fairseq_transnorm.measure.own_attention import attended_positions
from fairseq_transnorm.models.normgrowth.config import NormGrowthLMConfig
from fairseq_transnorm.models.normgrowth.lm import NormGrowthLM
from fairseq_transnorm.models.transnormer.config import TransNormerLMConfig
from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention

V, T, D = 5, 8, 32
SYMBOLS = SymbolDictionary("abcde")
TRIGGERS = [3, 1, 4]
ITSELF = torch.eye(V, dtype=torch.float64)  # a bigram model in which each token is followed by itself
SIZES = {"decoder_embed_dim": D, "decoder_layers": 2, "decoder_attention_heads": 1, "decoder_ffn_embed_dim": 8}
LENGTHS = {"tokens_per_sample": T, "max_target_positions": None}
NORMGROWTH = (NormGrowthLM, NormGrowthLMConfig, {})
TRANSNORMER = (TransNormerLM, TransNormerLMConfig, {"abs_pos": "learned", "untied_output": True, "ffn": "classic"})
PLAIN = {  # attention that compares by queries and keys alone
    "softmax": (NORMGROWTH, {}),
    "local softmax": (TRANSNORMER, {"layer_split": "1", "lrpe": "none"}),
    "linear without a feature map": (TRANSNORMER, {"layer_split": "0", "lrpe": "none", "linear_act": "identity"}),
}
OTHER = {
    "linear": (TRANSNORMER, {"layer_split": "0"}),
    "linear without lrpe": (TRANSNORMER, {"layer_split": "0", "lrpe": "none"}),
    "local with lrpe": (TRANSNORMER, {"layer_split": "1"}),
    "si_norm": (NORMGROWTH, {"weight_map": "si_norm"}),
}


def build(name, **options):
    (kind, config, base), own = (PLAIN | OTHER)[name]
    cfg = OmegaConf.structured(config(**{**SIZES, **LENGTHS, **base, **own, **options}))
    torch.manual_seed(0)
    return kind.build_model(cfg, SimpleNamespace(target_dictionary=SYMBOLS))


def teach(model):
    """Give a model perfect memories; tokens, positions, what layer 1 writes and logits are axes of their own."""
    axes = torch.eye(D)
    tokens, positions, written, logits = axes[:5], axes[5:13], axes[13:18], axes[18:23]
    write = written.T @ tokens
    recall_previous = positions[1:].T @ positions[:-1]
    recall_trigger = tokens[TRIGGERS].T @ written[TRIGGERS]
    decoder = model.decoder
    first, second = (layer.attn for layer in decoder.layers)
    with torch.no_grad():
        decoder.embed_tokens.weight.copy_(tokens)
        decoder.embed_positions.embedding.weight.copy_(positions)
        decoder.output_projection.weight.copy_(logits)
        first.qkv.weight.copy_(torch.cat([axes, 0.1 * recall_previous, write]))
        first.out.weight.copy_(axes)
        second.qkv.weight.copy_(torch.cat([axes, 0.1 * recall_trigger, write]))
        second.out.weight.copy_(0.1 * logits.T @ written)
    return model


def probes(model, triggers=TRIGGERS):
    return weight_probes(memories_of(model), triggers, ITSELF, cutoff=4)


@pytest.mark.parametrize("name", PLAIN)
def test_perfect_memories_recall_everything_and_zeros_guess(name):
    model = teach(build(name))
    perfect = {"wo1_acc": 1, "wk1_acc": 1, "wk0_acc": 1, "wk0_4_acc": 1}
    assert {key: probes(model)[key] for key in perfect} == perfect
    # of all tokens only the triggers are known: the others have keys of 0, for which the first of all wins
    assert probes(model, None)["wk1_acc"] == pytest.approx(4 / V)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.attn.qkv.weight.zero_()
    chance = {"wo1_acc": 1 / V, "wk1_acc": 1 / 3, "wk0_acc": 1 / (T - 1), "wk0_4_acc": 1 / 3}
    assert {key: probes(model)[key] for key in chance} == chance


@pytest.mark.parametrize("name", OTHER)
def test_scores_that_are_no_products_have_no_probe(name):
    model = teach(build(name))
    found = probes(model)
    assert (found["wo1_acc"], found["wk1_acc"], found["wk0_acc"], found["wk0_4_acc"]) == (1, None, None, None)
    for scores in (token_key_scores, position_key_scores):
        with pytest.raises(ValueError, match="layer does not compare by queries and keys alone"):
            scores(memories_of(model))


def test_each_layer_is_asked_for_itself():
    model = teach(build("linear", layer_split="local,linear", lrpe_layers="linear"))
    found = probes(model)
    assert (found["wk0_acc"], found["wk1_acc"]) == (1, None)


@pytest.mark.parametrize(("name", "scale"), [("softmax", 1), ("local softmax", math.sqrt(D))])
def test_the_feed_forward_of_layer_2_with_the_factor_of_the_embedding(name, scale):
    model = teach(build(name, activation_dropout=0.5)).train()
    inner, out = model.decoder.layers[1].ffn.inner, model.decoder.layers[1].ffn.out
    with torch.no_grad():
        for parameter in (*inner.parameters(), *out.parameters()):
            parameter.zero_()
        assert probes(model)["ff1_loss"] == pytest.approx(math.log(V))
        inner.weight[:V, :V] = torch.eye(V)
        out.weight[18:23, :V] = 2 * torch.eye(V)
    assert probes(model)["ff1_loss"] == pytest.approx(math.log(1 + 4 * math.exp(-2 * scale)))
    assert model.training


def test_positions_and_logits_of_other_models():
    tied = build("linear", abs_pos="sinusoidal", untied_output=False)
    found = memories_of(tied)
    assert torch.equal(found.unembedding, tied.decoder.embed_tokens.weight.double())
    assert torch.equal(found.tokens, math.sqrt(D) * found.unembedding)
    assert found.positions.shape == (T, D)
    assert torch.equal(found.positions[0], torch.cat([torch.zeros(D // 2), torch.ones(D // 2)]).double())
    found = probes(build("local softmax", abs_pos="none"))
    assert found["wk0_acc"] is None
    assert found["wk1_acc"] is not None
    assert set(probes(build("softmax", decoder_layers=1)).values()) == {None}


def against_itself(attention):
    """Let the score of two vectors be minus their product."""
    dim = attention.out.in_features
    with torch.no_grad():
        attention.qkv.weight.copy_(torch.cat([-torch.eye(dim), torch.eye(dim), torch.eye(dim)]))
        attention.qkv.bias.zero_()
    return attention


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (LinearAttention(4, 1, None, "identity", "none"), [0, 0, 0, 3, 3]),
        (LocalAttention(4, 1, None, 2, "identity", "none"), [0, 0, 2, 3, 4]),
        (LocalAttention(4, 1, None, 2, "softmax", "none"), [0, 0, 2, 3, 4]),
    ],
    ids=["linear", "local", "local softmax"],
)
def test_a_key_that_is_not_seen_never_wins(attention, expected):
    """Weights of -|x| |y| of parallel vectors: the shortest key that is seen wins, whatever makes weights of scores."""
    x = torch.tensor([1.0, 2.0, 4.0, 0.5, 3.0])[None, :, None].expand(1, 5, 4)
    with attended_positions(against_itself(attention)) as found:
        attention(x)
    assert found[0].tolist() == [[expected]]
