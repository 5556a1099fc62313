"""From a TransNormer config to modules: the only place that knows both."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...modules.attention import LinearAttention, LocalAttention, SelfAttention
from ...modules.feed_forward import FeedForward, GatedFeedForward, TwoStageFeedForward
from ...modules.norms import build_norm
from ...modules.transnormer_layer import TransNormerLayer
from .config import PRESETS, TransNormerLMConfig

LOCAL, LINEAR = "local", "linear"


def layer_kinds(split: str, order: str, num_layers: int) -> list[str]:
    """Return each layer's kind, ``local`` or ``linear``.

    Args:
        split: share of local layers (rounded down), or the kinds themselves, separated by commas.
        order: ``local_first`` or ``linear_first``; a list of kinds is taken as it is.
        num_layers: number of layers L.

    Raises:
        ValueError: the share is not in [0, 1], a kind is unknown, or the list does not have L entries.
    """
    try:
        share = float(split)
    except ValueError:
        kinds = [kind.strip() for kind in split.split(",")]
        if unknown := [kind for kind in kinds if kind not in (LOCAL, LINEAR)]:
            raise ValueError(
                f"--layer-split {split}: {unknown[0]!r} is neither a share nor one of the kinds local and linear"
            ) from None
        if len(kinds) != num_layers:
            raise ValueError(f"--layer-split names {len(kinds)} layers, --decoder-layers is {num_layers}") from None
        return kinds
    if not 0 <= share <= 1:
        raise ValueError(f"--layer-split {split} is not a share of layers; use a number from 0 to 1, such as 0.5")
    local = int(num_layers * share + 1e-9)  # 50 * 0.58 is 28.999...
    kinds = [LOCAL] * local + [LINEAR] * (num_layers - local)
    return kinds if order == "local_first" else kinds[::-1]


def check_options(cfg: Any) -> None:
    """Refuse option values that no model can be built from, naming the option.

    Raises:
        ValueError: a size below 1, a share outside [0, 1), heads that do not divide the width, or too few positions.
    """
    sizes = ["embed_dim", "layers", "attention_heads", "ffn_embed_dim"]
    for name in [f"decoder_{size}" for size in sizes] + ["block_size", "chunk_length"]:
        if cfg[name] < 1:
            raise ValueError(f"{_flag(name)} {cfg[name]} must be at least 1")
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        if not 0 <= cfg[name] < 1:
            raise ValueError(f"{_flag(name)} {cfg[name]} is not a probability; use a number from 0 up to below 1")
    for name in ("decoder_attention_heads", "linear_attention_heads"):
        heads, dim = cfg[name], cfg.decoder_embed_dim
        if heads is not None and (heads < 1 or dim % heads):
            near = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 4 * max(heads, 1)]
            raise ValueError(f"{_flag(name)} {heads} does not divide --decoder-embed-dim {dim}; use one of {near}")
    if cfg.max_target_positions is not None and cfg.max_target_positions < cfg.tokens_per_sample:
        # fairseq would leave out the longer sequences, that is, all but the last
        raise ValueError(
            f"--max-target-positions {cfg.max_target_positions} is too few for --tokens-per-sample "
            f"{cfg.tokens_per_sample}; leave it out, or make it at least as large"
        )
    if cfg.ffn == "glu" and int(cfg.glu_mult * cfg.decoder_embed_dim) < 1:
        raise ValueError(f"--glu-mult {cfg.glu_mult} leaves no channel of --decoder-embed-dim {cfg.decoder_embed_dim}")


def check_preset(cfg: Any) -> None:
    """Refuse the name of a preset whose values are not set: fairseq-hydra-train knows names but not presets.

    Raises:
        ValueError: every field of the preset still has the default of the model.
    """
    values = PRESETS.get(cfg.get("_name"), {})
    defaults = TransNormerLMConfig()
    if values and all(cfg[name] == getattr(defaults, name) for name in values):
        options = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise ValueError(
            f"the preset {cfg._name} is not known to fairseq-hydra-train; write _name: transnormer_lm with {options}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def build_norm_of(cfg: Any, name: str) -> nn.Module:
    return build_norm(str(name), cfg.decoder_embed_dim, cfg.norm_eps, cfg.norm_eps_inside)


def build_attention(cfg: Any, kind: str, causal: bool) -> SelfAttention:
    """Build the attention of a layer of ``kind``."""
    dim = cfg.decoder_embed_dim
    lrpe = str(cfg.lrpe) if str(cfg.lrpe_layers) in ("both", kind) else "none"
    name = str(cfg.local_norm if kind == LOCAL else cfg.linear_norm)
    norm = None if name == "none" else build_norm_of(cfg, name)
    if kind == LOCAL:
        return LocalAttention(
            dim,
            cfg.decoder_attention_heads,
            norm,
            block_size=cfg.block_size,
            activation=str(cfg.local_act),
            lrpe=lrpe,
            causal=causal,
            dropout=cfg.attention_dropout,
        )
    return LinearAttention(
        dim,
        cfg.linear_attention_heads or cfg.decoder_attention_heads,
        norm,
        activation=str(cfg.linear_act),
        lrpe=lrpe,
        causal=causal,
        impl=str(cfg.causal_impl),
        chunk_length=cfg.chunk_length,
        denominator=cfg.attention_denominator,
    )


def build_feed_forward(cfg: Any) -> TwoStageFeedForward:
    dim = cfg.decoder_embed_dim
    if str(cfg.ffn) == "classic":
        return FeedForward(dim, cfg.decoder_ffn_embed_dim, str(cfg.activation_fn), cfg.activation_dropout)
    return GatedFeedForward(
        dim, int(cfg.glu_mult * dim), str(cfg.glu_act), cfg.activation_dropout, str(cfg.glu_final_act)
    )


def build_layer(cfg: Any, kind: str, causal: bool) -> TransNormerLayer:
    """Build one layer of ``kind`` (``local`` or ``linear``)."""
    return TransNormerLayer(
        build_attention(cfg, kind, causal),
        build_feed_forward(cfg),
        build_norm_of(cfg, cfg.layer_norm_type),
        build_norm_of(cfg, cfg.layer_norm_type),
        cfg.dropout,
        cfg.post_norm,
    )
