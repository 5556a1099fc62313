"""From a TransNormer config to modules: the only place that knows both."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from ...modules.attention import LinearAttention, LocalAttention, SelfAttention
from ...modules.feed_forward import FeedForward, GatedFeedForward, TwoStageFeedForward
from ...modules.layer import TransformerLayer
from ...modules.norms import build_norm
from ..options import check_counts, check_heads, check_probabilities

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
    check_counts(cfg, [name for name in (*counts, "block_size", "chunk_length", "max_positions") if name in cfg])
    dropouts = ("dropout", "attention_dropout", "activation_dropout", "pooler_dropout")
    check_probabilities(cfg, [name for name in dropouts if name in cfg])
    for name in (f"{sizes.side}_attention_heads", "linear_attention_heads"):
        if cfg[name] is not None:
            check_heads(cfg, name, f"{sizes.side}_embed_dim")
    if cfg.ffn == "glu" and int(cfg.glu_mult * sizes.dim) < 1:
        raise ValueError(f"--glu-mult {cfg.glu_mult} leaves no channel of --{sizes.side}-embed-dim {sizes.dim}")


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
        "post" if post_norm else "pre",
    )
