"""The usual transformer with the switches of the induction-head experiments."""

from __future__ import annotations

import logging
from typing import Any

from fairseq.models import register_model
from torch import nn

from ...modules.induction import InductionLayer, sinusoids
from ...modules.linear import Linear
from ...registry import complete
from ..options import check_counts, check_heads
from .basic import build_feed_forward
from .config import InductionHeadFullConfig
from .shell import InductionHeadModel

NAME = "ihead_full"
logger = logging.getLogger(__name__)


@register_model("ihead_full", dataclass=InductionHeadFullConfig)
class InductionHeadFull(InductionHeadModel):
    """Pre-norm or post-norm transformer of any depth, without biases but for those of LayerNorm.

    By default the feed-forward map reads the layer's input, beside the attention, as in the original code. Source:
    Bietti et al. 2023, "Birth of a Transformer: A Memory Viewpoint", arXiv:2306.00802.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> InductionHeadFull:
        """Build from ``InductionHeadFullConfig`` and a task with a vocabulary and ``--tokens-per-sample``.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, InductionHeadFullConfig)
        try:
            check_counts(cfg, ["ihead_layers", "ihead_dim", "tokens_per_sample"])
            check_heads(cfg, "ihead_heads", "ihead_dim")
            check_options(cfg)
            return build(cls, cfg, len(task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error


def check_options(cfg: Any) -> None:
    """Raise ValueError for options that make no sense, and warn of one that starts badly."""
    if cfg.sin_cos and cfg.ihead_dim % 2:
        raise ValueError(f"--sin-cos needs an even --ihead-dim, not {cfg.ihead_dim}: it pairs the channels")
    for name in ("wv", "wo"):
        if cfg[f"no_{name}"] and cfg[f"freeze_{name}"]:
            raise ValueError(f"--no-{name} leaves nothing to --freeze-{name}; leave one of them out")
    if cfg.no_ffn and cfg.linear_ffn:
        raise ValueError("--no-ffn leaves no map that --linear-ffn could make one matrix; leave one of them out")
    if cfg.post_norm and str(cfg.ffn_input) == "residual":
        logger.warning("%s: --ffn-input residual: --post-norm reads the residual stream anyway", NAME)
    if cfg.tie_output and cfg.freeze_output:
        logger.warning("%s: --tie-output is ignored with --freeze-output, as in the original", NAME)
    elif cfg.tie_output:
        logger.warning(
            "%s: --tie-output: the embeddings are N(0, 1) and the logits are not scaled: their standard deviation is "
            "about %.0f at first, and the loss is large",
            *(NAME, cfg.ihead_dim**0.5),
        )


def build(cls: type[InductionHeadFull], cfg: Any, vocabulary: int) -> InductionHeadFull:
    """Build the model with initial values and frozen parameters."""
    dim, length = cfg.ihead_dim, cfg.tokens_per_sample
    embed_tokens = nn.Embedding(vocabulary, dim)
    embed_positions = None if cfg.sin_cos else nn.Embedding(length, dim)
    layers = nn.ModuleList(build_layer(cfg, number) for number in range(cfg.ihead_layers))
    tied = cfg.tie_output and not cfg.freeze_output
    output = None if tied else Linear(dim, vocabulary, bias=False)
    never: list[Any] = [embed_tokens, embed_positions] if cfg.freeze_embeddings else []
    never += [output] if cfg.freeze_output else []
    for name in ("wv", "wo"):
        never += [getattr(layer, name) for layer in layers] if cfg[f"freeze_{name}"] else []
    for module in never:
        if module is not None:
            module.requires_grad_(False)
    return cls(
        NAME,
        embed_tokens,
        layers,
        length,
        output=output,
        positions=sinusoids(length, dim) if cfg.sin_cos else None,
        embed_positions=embed_positions,
        norm=None if cfg.post_norm or cfg.no_norm else nn.LayerNorm(dim),
        freeze_until=cfg.freeze_until,
    )


def build_layer(cfg: Any, number: int) -> InductionLayer:
    """Build a layer; the first has number 0."""
    without = cfg.no_ffn or (cfg.no_first_layer_ffn and number == 0)
    return InductionLayer(
        cfg.ihead_dim,
        cfg.ihead_heads,
        value=not cfg.no_wv,
        output=not cfg.no_wo,
        ffn=None if without else build_feed_forward(cfg.ihead_dim, not cfg.linear_ffn),
        norm=not cfg.no_norm,
        post_norm=cfg.post_norm,
        ffn_input=str(cfg.ffn_input),
    )
