"""The language model of the norm-growth experiments, with all its variants."""

from __future__ import annotations

from typing import Any

from fairseq.data import Dictionary
from fairseq.models import FairseqLanguageModel, register_model
from torch import nn

from ...modules.feed_forward import FeedForward
from ...modules.growth_attention import GrowthAttention
from ...modules.layer import TransformerLayer
from ...modules.linear import Linear
from ...modules.norms import LayerNorm
from ...modules.positions import LearnedPositions, SinusoidalPositions
from ...registry import complete, register_presets
from ..language_model import LanguageModelDecoder, position_limit
from ..options import check_counts, check_heads, check_preset, check_probabilities, warn_of_half_preset
from .config import PRESETS, NormGrowthLMConfig

NAME = "normgrowth_lm"


@register_model("normgrowth_lm", dataclass=NormGrowthLMConfig)
class NormGrowthLM(FairseqLanguageModel):
    """Causal transformer with a choice of norms, biases, attention masks and weights; the classifier is not tied.

    Source: Merrill et al. 2021, "Effects of Parameter Norm Growth During Transformer Training", arXiv:2010.09697.
    """

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> NormGrowthLM:
        """Build from ``NormGrowthLMConfig`` and a language modelling task.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, NormGrowthLMConfig)
        try:
            check_counts(cfg, [f"decoder_{name}" for name in ("embed_dim", "ffn_embed_dim", "layers")])
            check_heads(cfg, "decoder_attention_heads", "decoder_embed_dim")
            check_probabilities(cfg, ("dropout", "attention_dropout", "activation_dropout"))
            check_preset(cfg, NAME, PRESETS, NormGrowthLMConfig)
            check_mask(cfg)
            warn_of_half_preset(cfg, NAME, PRESETS, NormGrowthLMConfig)
            return cls(build_decoder(cfg, task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error


def check_mask(cfg: Any) -> None:
    """Raise ValueError for a mask where there is none."""
    if str(cfg.attention_axis) == "batch" and str(cfg.attn_mask) != "causal":
        raise ValueError(
            f"--attn-mask {cfg.attn_mask} does nothing with --attention-axis batch, which attends over sentences of "
            "a batch without a mask; leave one of the two out"
        )


def build_decoder(cfg: Any, dictionary: Dictionary) -> LanguageModelDecoder:
    """Build the decoder with torch's default initial weights: embeddings N(0, 1), maps uniform in +-1/sqrt(inputs)."""
    dim, padding_idx, limit = cfg.decoder_embed_dim, dictionary.pad(), position_limit(cfg)
    embed_tokens = nn.Embedding(len(dictionary), dim, padding_idx)
    if str(cfg.positions) == "learned":
        positions: nn.Module = LearnedPositions(dim, padding_idx, limit, std=1.0)
    else:
        positions = SinusoidalPositions(dim, padding_idx, interleaved=True)
    layers = nn.ModuleList(build_layer(cfg) for _ in range(cfg.decoder_layers))
    if str(cfg.layer_init) == "copied":
        for layer in layers[1:]:
            layer.load_state_dict(layers[0].state_dict())
    return LanguageModelDecoder(
        dictionary,
        NAME,
        embed_tokens,
        layers,
        limit,
        embed_positions=positions,
        norm=LayerNorm(dim, bias=not cfg.no_norm_bias) if cfg.final_norm else None,
        output_projection=Linear(dim, len(dictionary), bias=not cfg.no_classifier_bias),
        checkpoint_activations=cfg.checkpoint_activations,
    )


def build_layer(cfg: Any) -> TransformerLayer:
    """Build one layer."""
    dim, bias = cfg.decoder_embed_dim, not cfg.no_layer_bias
    attention = GrowthAttention(
        dim,
        cfg.decoder_attention_heads,
        cfg.attention_dropout,
        scale=not cfg.no_scale_scores,
        bias=bias,
        mask=str(cfg.attn_mask),
        weight_map=str(cfg.weight_map),
        axis=str(cfg.attention_axis),
        qkv_init=str(cfg.qkv_init),
    )
    return TransformerLayer(
        attention,
        FeedForward(dim, cfg.decoder_ffn_embed_dim, "relu", cfg.activation_dropout, bias),
        LayerNorm(dim, bias=not cfg.no_norm_bias),
        LayerNorm(dim, bias=not cfg.no_norm_bias),
        cfg.dropout,
        str(cfg.norm_placement),
    )


register_presets(NAME, NormGrowthLMConfig, PRESETS)
