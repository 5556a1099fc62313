"""The bidirectional TransNormer, pretrained as a masked language model."""

from __future__ import annotations

import math
from typing import Any

from fairseq.data import Dictionary
from fairseq.models import register_model
from torch import nn

from ...modules.initialisation import initialise_as_bert
from ...modules.masked_lm import MaskedLMHead
from ...modules.norms import LayerNorm
from ...modules.positions import LearnedPositions, SinusoidalPositions
from ...registry import complete, register_presets
from ..masked_lm import HeadOptions, MaskedLM, MaskedLMEncoder
from ..options import check_preset, check_task_length
from .build import Sizes, build_layers, build_norm_of, check_options
from .config import MLM_PRESETS, TransNormerMLMConfig

NAME = "transnormer_mlm"


@register_model("transnormer_mlm", dataclass=TransNormerMLMConfig)
class TransNormerMLM(MaskedLM):
    """Masked language model: by default block-diagonal attention in early layers, linear attention in late ones.

    Source: Qin et al. 2022, "The Devil in Linear Transformer", arXiv:2210.10340.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> TransNormerMLM:
        """Build from ``TransNormerMLMConfig`` and a ``masked_lm`` or ``sentence_prediction`` task.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, TransNormerMLMConfig)
        try:
            check_options(cfg)
            check_preset(cfg, NAME, MLM_PRESETS, TransNormerMLMConfig)
            check_task_length(cfg, task)
            heads = HeadOptions(
                str(cfg.pooler_activation_fn), cfg.pooler_dropout, str(cfg.pooling), cfg.load_checkpoint_heads
            )
            return cls(build_encoder(cfg, task.source_dictionary), heads)
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error


def build_encoder(cfg: Any, dictionary: Dictionary) -> MaskedLMEncoder:
    """Build the encoder with BERT's initialisation; angles and vectors of the relative positions keep their own."""
    dim = Sizes.of(cfg).dim
    positions: nn.Module | None = None
    if cfg.abs_pos == "learned":
        positions = LearnedPositions(dim, dictionary.pad(), cfg.max_positions)
    elif cfg.abs_pos == "sinusoidal":
        positions = SinusoidalPositions(dim, dictionary.pad())
    encoder = MaskedLMEncoder(
        dictionary,
        NAME,
        dim,
        build_layers(cfg, causal=False, post_norm=not cfg.pre_norm),
        MaskedLMHead(dim, len(dictionary), str(cfg.activation_fn), tied=not cfg.untied_output),
        cfg.max_positions,
        embed_positions=positions,
        embed_norm=None if cfg.no_layernorm_embedding else LayerNorm(dim),
        embed_scale=math.sqrt(dim) if cfg.scale_embedding else 1.0,
        norm=build_norm_of(cfg, cfg.layer_norm_type) if cfg.pre_norm else None,
        dropout=cfg.dropout,
        checkpoint_activations=cfg.checkpoint_activations,
    )
    initialise_as_bert(encoder)
    if cfg.small_init_embedding:
        for part in encoder.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=1e-5)
    return encoder


register_presets(NAME, TransNormerMLMConfig, MLM_PRESETS)
