"""The autoregressive TransNormer language model."""

from __future__ import annotations

import math
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel, register_model
from torch import nn

from ...modules.initialisation import draw_normal
from ...modules.linear import Linear
from ...modules.norms import LayerNorm
from ...modules.positions import LearnedPositions, SinusoidalPositions
from ...registry import complete, register_presets
from ..language_model import LanguageModelDecoder, position_limit
from ..options import check_preset
from .build import build_layers, build_norm_of, check_options
from .config import PRESETS, TransNormerLMConfig

NAME = "transnormer_lm"


@register_model("transnormer_lm", dataclass=TransNormerLMConfig)
class TransNormerLM(FairseqLanguageModel):
    """Autoregressive TransNormer: by default block-diagonal attention in early layers, linear attention in late ones.

    Source: Qin et al. 2022, "The Devil in Linear Transformer", arXiv:2210.10340.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> TransNormerLM:
        """Build from ``TransNormerLMConfig`` and a language modelling task.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, TransNormerLMConfig)
        try:
            check_options(cfg)
            check_preset(cfg, NAME, PRESETS, TransNormerLMConfig)
            return cls(build_decoder(cfg, task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error


def build_decoder(cfg: Any, dictionary: Dictionary) -> LanguageModelDecoder:
    """Build the decoder with initial weights."""
    dim, padding_idx, limit = cfg.decoder_embed_dim, dictionary.pad(), position_limit(cfg)
    embed_tokens = nn.Embedding(len(dictionary), dim, padding_idx)
    if cfg.small_init_embedding:
        nn.init.normal_(embed_tokens.weight, std=1e-5)
    else:
        draw_normal(embed_tokens, std=dim**-0.5)
    embed_positions: nn.Module | None = None
    if cfg.abs_pos == "sinusoidal":
        embed_positions = SinusoidalPositions(dim, padding_idx)
    elif cfg.abs_pos == "learned":
        embed_positions = LearnedPositions(dim, padding_idx, limit)
    layers = build_layers(cfg, causal=True, post_norm=cfg.post_norm)
    output_projection: Linear | None = None
    if cfg.untied_output:
        output_projection = Linear(dim, len(dictionary), bias=False)
        nn.init.normal_(output_projection.weight, std=dim**-0.5)
    return LanguageModelDecoder(
        dictionary,
        NAME,
        embed_tokens,
        layers,
        limit,
        embed_positions=embed_positions,
        embed_norm=LayerNorm(dim) if cfg.layernorm_embedding else None,
        embed_scale=1.0 if cfg.no_scale_embedding else math.sqrt(dim),
        norm=None if cfg.post_norm else build_norm_of(cfg, cfg.layer_norm_type),
        output_projection=output_projection,
        dropout=cfg.dropout,
        checkpoint_activations=cfg.checkpoint_activations,
    )


register_presets(NAME, TransNormerLMConfig, PRESETS)
