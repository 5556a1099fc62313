"""The simplified two-layer model in which weight matrices are associative memories."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models import register_model
from torch import Tensor, nn

from ...modules.feed_forward import FeedForward
from ...modules.induction import InductionLayer, sinusoids
from ...modules.linear import Linear
from ...registry import complete
from ..options import check_counts
from .config import InductionHeadBasicConfig
from .shell import InductionHeadModel

NAME = "ihead_basic"


@register_model("ihead_basic", dataclass=InductionHeadBasicConfig)
class InductionHeadBasic(InductionHeadModel):
    """Two layers of one head; the query is the residual stream itself; no norms, no biases.

    ``W_V`` of both layers and ``W_O`` of the first stay at their random initial values. Source: Bietti et al. 2023,
    "Birth of a Transformer: A Memory Viewpoint", arXiv:2306.00802.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> InductionHeadBasic:
        """Build from ``InductionHeadBasicConfig`` and a task with a vocabulary and ``--tokens-per-sample``.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, InductionHeadBasicConfig)
        try:
            check_counts(cfg, ["ihead_dim", "tokens_per_sample"])
            check_options(cfg)
            return build(cls, cfg, len(task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error


def check_options(cfg: Any) -> None:
    """Raise ValueError for options that make no sense."""
    for flag, width in (("--use-rope", cfg.use_rope), ("--sin-cos", cfg.sin_cos)):
        if width and cfg.ihead_dim % 2:
            raise ValueError(f"{flag} needs an even --ihead-dim, not {cfg.ihead_dim}: it pairs the channels")
    if cfg.use_rope and cfg.sin_cos:
        raise ValueError("--use-rope and --sin-cos: rotary positions replace those that are added; leave one out")
    for kind in ("first", "final"):
        if cfg[f"mlp_{kind}_ffn"] and not cfg[f"{kind}_ffn"]:
            raise ValueError(f"--mlp-{kind}-ffn says what --{kind}-ffn is; give both")


def build(cls: type[InductionHeadBasic], cfg: Any, vocabulary: int) -> InductionHeadBasic:
    """Build the model with initial values and frozen parameters."""
    dim, scale = cfg.ihead_dim, cfg.ihead_dim**-0.5
    embed_tokens = nn.Embedding(vocabulary, dim)
    positions = None if cfg.use_rope else draw_positions(cfg)
    if cfg.sqrtd_embeddings:
        with torch.no_grad():
            embed_tokens.weight *= scale
        positions = None if positions is None else positions * scale
    layers = [
        InductionLayer(
            dim,
            query=False,
            scale=not cfg.no_sqrtd,
            rotary=cfg.use_rope and kind == "first",
            ffn=build_feed_forward(dim, cfg[f"mlp_{kind}_ffn"]) if cfg[f"{kind}_ffn"] else None,
        )
        for kind in ("first", "final")
    ]
    output = Linear(dim, vocabulary, bias=False)
    if cfg.tie_output and cfg.freeze_output:
        with torch.no_grad():
            output.weight.copy_(embed_tokens.weight * scale)
    never: list[Any] = [layers[0].wv, layers[0].wo, layers[1].wv]
    never += [embed_tokens] if cfg.freeze_embeddings else []
    never += [output] if cfg.freeze_output else []
    for module in never:
        module.requires_grad_(False)
    tied_scale = scale if cfg.freeze_output else scale**2
    return cls(
        NAME,
        embed_tokens,
        nn.ModuleList(layers),
        cfg.tokens_per_sample,
        output=None if cfg.tie_output and not cfg.freeze_output else output,
        output_scale=tied_scale if cfg.tie_output else 1.0,
        positions=positions,
        freeze_until=cfg.freeze_until,
    )


def draw_positions(cfg: Any) -> Tensor:
    """Return the constant vectors of the positions, ``T D``: N(0, 1), or sines and cosines."""
    size = (cfg.tokens_per_sample, cfg.ihead_dim)
    return sinusoids(*size) if cfg.sin_cos else torch.randn(size)


def build_feed_forward(dim: int, mlp: bool) -> nn.Module:
    """Return a ReLU MLP of 4 D channels, or one matrix, without biases."""
    return FeedForward(dim, 4 * dim, "relu", bias=False) if mlp else Linear(dim, dim, bias=False)
