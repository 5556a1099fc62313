"""Options of the TransNormer language model: presets, completion, layer kinds, and refusals that name the option."""

import argparse
import dataclasses
import re

import pytest
import torch
from fairseq import models, options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fairseq_transnorm import registry
from fairseq_transnorm.models.transnormer.build import layer_kinds
from fairseq_transnorm.models.transnormer.config import PRESETS, TransNormerLMConfig
from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from fairseq_transnorm.modules.attention import LinearAttention, LocalAttention
from fairseq_transnorm.modules.feed_forward import FeedForward, GatedFeedForward
from tests.transnormer_reference import T1, LMTask, build_lm, lm_config

PAPER = {  # spec of the paper's model on WikiText-103, common to t1 and t2
    "decoder_embed_dim": 512,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "linear_attention_heads": None,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "linear_norm": "simplermsnorm",
    "layer_norm_type": "simplermsnorm",
    "norm_eps": None,
    "norm_eps_inside": False,
    "layer_split": "0.5",
    "layer_order": "local_first",
    "block_size": 64,
    "lrpe": "1d3",
    "lrpe_layers": "both",
    "abs_pos": "sinusoidal",
    "ffn": "glu",
    "glu_act": "silu",
    "glu_mult": 8 / 3,
    "glu_final_act": "identity",
    "post_norm": False,
    "layernorm_embedding": False,
    "attention_denominator": False,
    "untied_output": False,
    "small_init_embedding": False,
    "no_scale_embedding": False,
    "causal_impl": "chunk",
}
T2 = {"linear_act": "1+elu", "local_act": "softmax", "local_norm": "none"}


def parsed(arch: str, *flags: str) -> DictConfig:
    """The model's config as fairseq-train makes it from a command line."""
    parser = options.get_training_parser()
    argv = ["data", "--task", "language_modeling", "--tokens-per-sample", "32", "--arch", arch, *flags]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, argv)).model


def as_text(cfg: DictConfig, names) -> dict:
    values = {name: cfg[name] for name in names}
    return {
        name: value if isinstance(value, bool | int | float | None) else str(value) for name, value in values.items()
    }


@pytest.mark.parametrize(("arch", "own"), [("transnormer_lm", T2), ("transnormer_t2", T2), ("transnormer_t1", T1)])
def test_the_presets_are_the_papers_models(arch, own):
    expected = PAPER | own
    assert as_text(parsed(arch), expected) == expected


def test_a_flag_wins_over_the_preset():
    cfg = parsed("transnormer_t1", "--linear-act", "1+elu", "--decoder-embed-dim", "32", "--block-size", "9")
    got = as_text(cfg, ["linear_act", "decoder_embed_dim", "block_size", "local_act", "local_norm"])
    assert got == {"linear_act": "1+elu", "decoder_embed_dim": 32, "block_size": 9} | {
        "local_act": "relu",
        "local_norm": "simplermsnorm",
    }
    assert parsed("transnormer_lm_tiny", "--decoder-layers", "3").decoder_layers == 3


@pytest.mark.parametrize("arch", PRESETS)
def test_a_preset_only_fills_what_is_missing(arch):
    full = {name: object() for name in PRESETS[arch]}
    args = argparse.Namespace(**full)
    ARCH_CONFIG_REGISTRY[arch](args)
    assert vars(args) == full
    args = argparse.Namespace(other=1)
    ARCH_CONFIG_REGISTRY[arch](args)
    assert vars(args) == {"other": 1} | PRESETS[arch]


def test_a_preset_with_an_unknown_field_is_refused():
    with pytest.raises(KeyError, match=r"preset 'some_arch' sets \['blok_size'\], which TransNormerLMConfig lacks"):
        registry.register_presets("transnormer_lm", TransNormerLMConfig, {"some_arch": {"blok_size": 3}})
    assert "some_arch" not in ARCH_CONFIG_REGISTRY


def test_a_config_of_an_older_checkpoint_is_completed():
    cfg = parsed("transnormer_t1", "--decoder-embed-dim", "16", "--decoder-attention-heads", "2")
    with open_dict(cfg):
        del cfg["checkpoint_activations"]
        del cfg["glu_final_act"]
    full = registry.complete(cfg, TransNormerLMConfig)
    assert full.checkpoint_activations is False
    assert str(full.glu_final_act) == "identity"
    assert as_text(full, T1) == T1
    assert full.decoder_embed_dim == 16
    model = TransNormerLM.build_model(cfg, LMTask())
    assert model.decoder.embed_tokens.weight.shape[1] == 16


@pytest.mark.parametrize("how", ["namespace", "dataclass", "omegaconf"])
def test_a_model_is_built_from_any_form_of_its_config(how):
    values = {"decoder_embed_dim": 16, "decoder_attention_heads": 2, "decoder_layers": 2}
    values |= {"tokens_per_sample": 32, "max_target_positions": None}
    if how == "namespace":  # fairseq's older entry point
        model = models.build_model(argparse.Namespace(arch="transnormer_lm", **values), LMTask())
    else:
        cfg = TransNormerLMConfig(**values)
        model = TransNormerLM.build_model(cfg if how == "dataclass" else OmegaConf.structured(cfg), LMTask())
    assert len(model.decoder.layers) == 2
    assert model.max_positions() == 32


@pytest.mark.parametrize(
    ("split", "order", "layers", "expected"),
    [
        ("0.5", "local_first", 6, "LLLNNN"),
        ("0.5", "local_first", 5, "LLNNN"),
        ("0.5", "linear_first", 5, "NNNLL"),
        ("0.5", "local_first", 1, "N"),
        ("0", "local_first", 4, "NNNN"),
        ("1", "linear_first", 4, "LLLL"),
        ("0.25", "local_first", 4, "LNNN"),
        ("0.75", "linear_first", 6, "NNLLLL"),  # 4.5 rounded down
        ("0.29", "local_first", 100, "L" * 29 + "N" * 71),  # 0.29 * 100 is 28.999999999999996
        ("0.58", "local_first", 50, "L" * 29 + "N" * 21),
        ("linear,local,linear", "local_first", 3, "NLN"),
        ("local, linear", "linear_first", 2, "LN"),
    ],
)
def test_layer_kinds(split, order, layers, expected):
    kinds = layer_kinds(split, order, layers)
    assert "".join({"local": "L", "linear": "N"}[kind] for kind in kinds) == expected


@pytest.mark.parametrize(
    ("split", "layers", "message"),
    [
        ("1.5", 4, r"--layer-split 1\.5 is not a share of layers"),
        ("-0.1", 4, r"--layer-split -0\.1 is not a share"),
        ("nan", 4, "--layer-split nan is not a share"),
        ("locl,linear", 2, "--layer-split locl,linear: 'locl' is neither"),
        ("", 2, "--layer-split : '' is neither"),
        ("local,linear", 3, "--layer-split names 2 layers, --decoder-layers is 3"),
    ],
)
def test_bad_splits_are_refused(split, layers, message):
    with pytest.raises(ValueError, match=f"transnormer_lm: {message}"):
        build_lm(layer_split=split, decoder_layers=layers)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"decoder_embed_dim": 0}, "--decoder-embed-dim 0 must be at least 1"),
        ({"decoder_layers": 0}, "--decoder-layers 0 must be at least 1"),
        ({"decoder_attention_heads": 0}, "--decoder-attention-heads 0"),
        (
            {"decoder_attention_heads": 3},
            r"--decoder-attention-heads 3 .*--decoder-embed-dim 16; use one of \[1, 2, 4, 8\]",
        ),
        ({"linear_attention_heads": 5}, "--linear-attention-heads 5 .*--decoder-embed-dim 16"),
        ({"linear_attention_heads": 0}, "--linear-attention-heads 0"),
        ({"decoder_attention_heads": 16}, "head width 1"),
        ({"block_size": 0}, "--block-size 0 must be at least 1"),
        ({"chunk_length": -1}, "--chunk-length -1 must be at least 1"),
        ({"ffn": "classic", "decoder_ffn_embed_dim": 0}, "--decoder-ffn-embed-dim 0 must be at least 1"),
        ({"glu_mult": 0.01}, r"--glu-mult 0\.01"),
        ({"dropout": 1.0}, r"--dropout 1\.0 is not a probability"),
        ({"attention_dropout": -0.1}, r"--attention-dropout -0\.1"),
        ({"activation_dropout": 2.0}, r"--activation-dropout 2\.0"),
        ({"norm_eps": 0.0}, r"eps 0\.0 must be above 0"),
        ({"decoder_embed_dim": 2, "decoder_attention_heads": 1}, "width of at least 4, got 2"),
    ],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_values_are_refused_with_the_name_of_the_option(bad, message):
    with pytest.raises(ValueError, match=f"transnormer_lm: .*{message}"):
        build_lm(**bad)


@pytest.mark.parametrize(
    "bad",
    [{"linear_act": "1+elo"}, {"layer_norm_type": "rms"}, {"lrpe": "2d3"}, {"causal_impl": "fast"}, {"ffn": "moe"}],
)
def test_unknown_names_are_refused(bad, capsys):
    (name, value), *_ = bad.items()
    with pytest.raises(OmegaConfBaseException, match=f"(?s){re.escape(value)}.*{name}"):
        lm_config(**bad)
    flag = "--" + name.replace("_", "-")
    with pytest.raises(SystemExit):
        parsed("transnormer_lm", flag, value)
    assert f"argument {flag}: invalid" in capsys.readouterr().err


def test_every_option_reaches_its_module():
    model = build_lm(
        decoder_layers=2,
        linear_attention_heads=4,
        block_size=5,
        chunk_length=3,
        norm_eps=1e-3,
        norm_eps_inside=True,
        causal_impl="recurrent",
        attention_dropout=0.25,
        activation_dropout=0.125,
        dropout=0.5,
        local_norm="rmsnorm",
        linear_norm="gatedrmsnorm",
        layer_norm_type="scalenorm",
        lrpe="1d1",
        lrpe_layers="linear",
    )
    local, linear = model.decoder.layers
    assert isinstance(local.attn, LocalAttention)
    assert isinstance(linear.attn, LinearAttention)
    assert (local.attn.num_heads, linear.attn.num_heads) == (2, 4)
    assert (local.attn.block_size, linear.attn.chunk_length, linear.attn.impl) == (5, 3, "recurrent")
    assert build_lm(attention_denominator=True, lrpe="none").decoder.layers[-1].attn.denominator
    assert (local.attn.dropout, local.ffn.dropout, local.dropout, model.decoder.dropout) == (0.25, 0.125, 0.5, 0.5)
    assert local.attn.lrpe is None
    assert (linear.attn.lrpe.kind, linear.attn.lrpe.v) == ("1d1", None)
    norms = [local.attn.norm, linear.attn.norm, local.attn_norm, linear.ffn_norm, model.decoder.norm]
    assert [type(norm).__name__ for norm in norms] == ["RMSNorm", "GatedRMSNorm"] + 3 * ["ScaleNorm"]
    assert {norm.eps for norm in norms} == {1e-3}
    assert all(norm.eps_inside for norm in norms)
    assert build_lm(lrpe_layers="local").decoder.layers[-1].attn.lrpe is None
    assert build_lm(lrpe_layers="local").decoder.layers[0].attn.lrpe is not None
    assert build_lm(post_norm=True).decoder.norm is None
    assert build_lm(local_norm="none").decoder.layers[0].attn.norm is None


@pytest.mark.parametrize(
    ("dim", "mult", "hidden"),
    [(512, 8 / 3, 1365), (768, 8 / 3, 2048), (32, 8 / 3, 85), (64, 8 / 3, 170), (64, 2.0, 128), (64, 4.0, 256)],
)
def test_the_gated_width_is_rounded_down(dim, mult, hidden):
    cfg = {"decoder_embed_dim": dim, "glu_mult": mult, "decoder_layers": 1}
    with torch.device("meta"):
        ffn = TransNormerLM.build_model(lm_config(**cfg), LMTask()).decoder.layers[0].ffn
    assert isinstance(ffn, GatedFeedForward)
    assert ffn.gate_and_value.weight.shape == (2 * hidden, dim)
    assert ffn.out.weight.shape == (dim, hidden)


def test_the_classic_feed_forward():
    ffn = build_lm(ffn="classic", decoder_ffn_embed_dim=7).decoder.layers[0].ffn
    assert isinstance(ffn, FeedForward)
    assert ffn.inner.weight.shape == (7, 16)
    assert ffn.activation is torch.nn.functional.relu


def test_the_preset_fields_exist_and_differ_from_the_defaults():
    defaults = {field.name: field.default for field in dataclasses.fields(TransNormerLMConfig)}
    for arch, values in PRESETS.items():
        assert not [name for name, value in values.items() if str(defaults[name]) == str(value)], arch
