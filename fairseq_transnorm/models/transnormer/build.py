"""From a TransNormer config to modules: the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from fairseq.dataclass import FairseqDataclass
from torch import nn

from ...modules.attention import LinearAttention, LocalAttention, SelfAttention
from ...modules.feed_forward import FeedForward, GatedFeedForward, TwoStageFeedForward
from ...modules.layer import TransformerLayer
from ...modules.norms import build_norm

LOCAL, LINEAR = "local", "linear"


class Sizes(NamedTuple):
    """Width D, layers L, heads H and width F of the classic feed-forward of a ``decoder`` or ``encoder``."""

    side: str
    dim: int
    layers: int
    heads: int
    ffn_dim: int

    @classmethod
    def of(cls, cfg: Any) -> Sizes:
        side = "encoder" if "encoder_embed_dim" in cfg else "decoder"
        return cls(
            side, *(cfg[f"{side}_{name}"] for name in ("embed_dim", "layers", "attention_heads", "ffn_embed_dim"))
        )


def layer_kinds(split: str, order: str, num_layers: int, side: str = "decoder") -> list[str]:
    """Return each layer's kind, ``local`` or ``linear``.

    Args:
        split: share of local layers (rounded down), or the kinds themselves, separated by commas.
        order: ``local_first`` or ``linear_first``; a list of kinds is taken as it is.
        num_layers: number of layers L.
        side: ``decoder`` or ``encoder``, for messages.

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
            raise ValueError(f"--layer-split names {len(kinds)} layers, --{side}-layers is {num_layers}") from None
        return kinds
    if not 0 <= share <= 1:
        raise ValueError(f"--layer-split {split} is not a share of layers; use a number from 0 to 1, such as 0.5")
    local = int(num_layers * share + 1e-9)  # 50 * 0.58 is 28.999...
    kinds = [LOCAL] * local + [LINEAR] * (num_layers - local)
    return kinds if order == "local_first" else kinds[::-1]


def check_options(cfg: Any) -> None:
    """Refuse option values that no model can be built from, naming the option.

    Raises:
        ValueError: a size below 1, a share outside [0, 1), or heads that do not divide the width.
    """
    sizes = Sizes.of(cfg)
    counts = [f"{sizes.side}_{name}" for name in ("embed_dim", "layers", "attention_heads", "ffn_embed_dim")]
    for name in [*counts, "block_size", "chunk_length", "max_positions"]:
        if name in cfg and cfg[name] < 1:
            raise ValueError(f"{_flag(name)} {cfg[name]} must be at least 1")
    for name in ("dropout", "attention_dropout", "activation_dropout", "pooler_dropout"):
        if name in cfg and not 0 <= cfg[name] < 1:
            raise ValueError(f"{_flag(name)} {cfg[name]} is not a probability; use a number from 0 up to below 1")
    for name in (f"{sizes.side}_attention_heads", "linear_attention_heads"):
        heads, dim = cfg[name], sizes.dim
        if heads is not None and (heads < 1 or dim % heads):
            near = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 4 * max(heads, 1)]
            raise ValueError(f"{_flag(name)} {heads} does not divide --{sizes.side}-embed-dim {dim}; use one of {near}")
    if cfg.ffn == "glu" and int(cfg.glu_mult * sizes.dim) < 1:
        raise ValueError(f"--glu-mult {cfg.glu_mult} leaves no channel of --{sizes.side}-embed-dim {sizes.dim}")


def check_preset(
    cfg: Any, model: str, presets: Mapping[str, Mapping[str, Any]], config: type[FairseqDataclass]
) -> None:
    """Refuse the name of a preset whose values are not set: fairseq-hydra-train knows names but not presets.

    Raises:
        ValueError: every field of the preset still has the default of the model.
    """
    values = presets.get(cfg.get("_name"), {})
    defaults = {field.name: field.default for field in fields(config)}
    if values and all(cfg[name] == defaults[name] for name in values):
        options = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise ValueError(
            f"the preset {cfg._name} is not known to fairseq-hydra-train; write _name: {model} with {options}"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def build_norm_of(cfg: Any, name: str) -> nn.Module:
    return build_norm(str(name), Sizes.of(cfg).dim, cfg.norm_eps, cfg.norm_eps_inside)


def build_attention(cfg: Any, kind: str, causal: bool) -> SelfAttention:
    """Build the attention of a layer of ``kind``."""
    sizes = Sizes.of(cfg)
    lrpe = str(cfg.lrpe) if str(cfg.lrpe_layers) in ("both", kind) else "none"
    name = str(cfg.local_norm if kind == LOCAL else cfg.linear_norm)
    norm = None if name == "none" else build_norm_of(cfg, name)
    if kind == LOCAL:
        return LocalAttention(
            sizes.dim,
            sizes.heads,
            norm,
            block_size=cfg.block_size,
            activation=str(cfg.local_act),
            lrpe=lrpe,
            causal=causal,
            dropout=cfg.attention_dropout,
        )
    return LinearAttention(
        sizes.dim,
        cfg.linear_attention_heads or sizes.heads,
        norm,
        activation=str(cfg.linear_act),
        lrpe=lrpe,
        causal=causal,
        denominator=cfg.attention_denominator,
        **({"impl": str(cfg.causal_impl), "chunk_length": cfg.chunk_length} if causal else {}),
    )


def build_feed_forward(cfg: Any) -> TwoStageFeedForward:
    sizes = Sizes.of(cfg)
    if str(cfg.ffn) == "classic":
        return FeedForward(sizes.dim, sizes.ffn_dim, str(cfg.activation_fn), cfg.activation_dropout)
    return GatedFeedForward(
        sizes.dim, int(cfg.glu_mult * sizes.dim), str(cfg.glu_act), cfg.activation_dropout, str(cfg.glu_final_act)
    )


def build_layers(cfg: Any, causal: bool, post_norm: bool) -> nn.ModuleList:
    """Build all layers, local and linear ones as ``layer_kinds`` says."""
    sizes = Sizes.of(cfg)
    kinds = layer_kinds(str(cfg.layer_split), str(cfg.layer_order), sizes.layers, sizes.side)
    return nn.ModuleList(build_layer(cfg, kind, causal, post_norm) for kind in kinds)


def build_layer(cfg: Any, kind: str, causal: bool, post_norm: bool) -> TransformerLayer:
    """Build one layer of ``kind`` (``local`` or ``linear``)."""
    return TransformerLayer(
        build_attention(cfg, kind, causal),
        build_feed_forward(cfg),
        build_norm_of(cfg, cfg.layer_norm_type),
        build_norm_of(cfg, cfg.layer_norm_type),
        cfg.dropout,
        post_norm,
    )
