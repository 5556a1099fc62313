"""BERT of any depth, vanilla or with DeepScaleLM's initialisation and residual weights."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import register_model
from torch import Tensor, nn

from ...modules.feed_forward import FeedForward
from ...modules.initialisation import BERT_STD
from ...modules.layer import TransformerLayer
from ...modules.linear import Linear
from ...modules.masked_lm import MaskedLMHead, PooledHead
from ...modules.norms import LayerNorm
from ...modules.positions import LearnedPositions
from ...modules.softmax_attention import SoftmaxAttention
from ...registry import complete, register_presets
from ...theory.blocks import ACTIVATIONS
from ...theory.deep_scale import (
    PLAIN,
    FeedForwardSizes,
    ResidualWeights,
    Stds,
    attention_gain,
    constant_stds,
    correlations,
    deep_scale_stds,
    input_correlation,
    residual_weights,
    xavier_stds,
)
from ..masked_lm import HeadOptions, MaskedLM, MaskedLMEncoder
from ..options import check_counts, check_heads, check_preset, check_probabilities, check_task_length, flag
from .config import PRESETS, DeepBertConfig
from .initialise import initialise_encoder, initialise_pooler

NAME = "deep_bert"


@register_model("deep_bert", dataclass=DeepBertConfig)
class DeepBert(MaskedLM):
    """BERT of any depth, Post-LN or Pre-LN, for --task bert_sop_lm --criterion bert_sop and for sentence tasks.

    ``x <- lambda x + dropout(beta block(x))`` with LayerNorms before the blocks or after the sums. The presets
    ``dslm_bert*`` are DeepScaleLM (Kedia et al. 2024, arXiv:2403.09635), ``vanilla_bert*`` plain transformers.

    Args:
        encoder: embedding, layers, masked-LM head.
        heads: how classification heads are built.
    """

    head_matrices = ("out_proj",)
    double_separator = False

    def __init__(self, encoder: MaskedLMEncoder, heads: HeadOptions) -> None:
        super().__init__(encoder, heads)
        dim = encoder.embed_tokens.embedding_dim
        self.pooler = Linear(dim, dim)
        self.order_head = Linear(dim, 2)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> DeepBert:
        """Build from ``DeepBertConfig`` and any task of masked language models or of sentences.

        Raises:
            ValueError: an option's value cannot be used; the message names it.
        """
        cfg = complete(cfg, DeepBertConfig)
        try:
            check_options(cfg)
            check_task_length(cfg, task)
            heads = HeadOptions(dropout=cfg.pooler_dropout, load_from_checkpoint=cfg.load_checkpoint_heads)
            weights = residual_weights_of(cfg)
            stds = stds_of(cfg, len(task.source_dictionary), weights)
            model = cls(build_encoder(cfg, task.source_dictionary, weights, stds.head_scale), heads)
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error
        initialise_encoder(model.encoder, stds)
        initialise_pooler(model.pooler, model.order_head, stds)
        return model

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        masked_tokens: Tensor | None = None,
        sentence_order: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return what :meth:`MaskedLM.forward` does; with ``sentence_order`` also its logits ``B 2`` in the extras.

        They are under ``sentence_order``: of the two texts in order, and swapped.

        Raises:
            ValueError: a classification head and the order at once, or what the encoder refuses.
        """
        if not sentence_order:
            return super().forward(
                src_tokens,
                src_lengths,
                features_only,
                return_all_hiddens,
                classification_head_name,
                masked_tokens=masked_tokens,
                **kwargs,
            )
        if classification_head_name is not None:
            raise ValueError(f"{NAME}: the sentence order is not of the head {classification_head_name!r}; ask for one")
        x, extra = self.encoder(src_tokens, src_lengths, True, return_all_hiddens, **kwargs)
        extra["sentence_order"] = self.order_head(self.pool(x))
        return (x if features_only else self.encoder.output_layer(x, masked_tokens)), extra

    def pool(self, features: Tensor) -> Tensor:
        """Return ``tanh(W x_0 + b)``, ``B D``, of the features ``B T D``."""
        return torch.tanh(self.pooler(features[:, 0]))

    def classify(self, head: nn.Module, features: Tensor, tokens: Tensor) -> Tensor:
        return head(self.pool(features))

    def build_head(self, dim: int, num_classes: int, inner_dim: int | None) -> nn.Module:
        """Return a map of the pooled vector; ``inner_dim`` does not count, the pooler has its own."""
        return PooledHead(dim, num_classes, self.head_options.dropout)


def check_options(cfg: Any) -> None:
    """Refuse option values that no model can be built from, naming the option.

    Raises:
        ValueError: such a value.
    """
    counts = ["encoder_embed_dim", "encoder_layers", "encoder_attention_heads", "max_positions"]
    check_counts(cfg, counts + [n for n in ("encoder_ffn_embed_dim", "dslm_sequence_length") if cfg[n] is not None])
    check_probabilities(cfg, ("dropout", "attention_dropout", "activation_dropout", "pooler_dropout"))
    check_heads(cfg, "encoder_attention_heads", "encoder_embed_dim")
    if cfg.num_segments not in (0, 1, 2):
        raise ValueError(f"--num-segments {cfg.num_segments}: 2 for pairs of texts, 1 or 0")
    corr = cfg.dslm_input_corr
    if corr is not None and not 0 < corr <= 1:
        raise ValueError(f"--dslm-input-corr {corr:g} is not in (0, 1]; English in two segments has 0.221")
    _check_effect(cfg)
    if str(cfg.dslm_init) == "dslm" and str(cfg.activation_fn) not in ACTIVATIONS:
        known = " and ".join(ACTIVATIONS)
        raise ValueError(f"--dslm-init dslm knows the gain of {known}, not of --activation-fn {cfg.activation_fn}")
    check_preset(cfg, NAME, PRESETS, DeepBertConfig)


def _check_effect(cfg: Any) -> None:
    """Raise ValueError for an option that has been set and would do nothing."""
    defaults = {field.name: field.default for field in fields(DeepBertConfig)}
    needs = {
        "--dslm-residual-scaling": ("dslm_k", "dslm_alpha", "dslm_beta_sq", "dslm_lambda_sq", "dslm_any_sum"),
        "--dslm-init dslm": ("dslm_input_corr", "dslm_sequence_length"),
        "a beta^2 of k and alpha: leave out --dslm-beta-sq and --dslm-lambda-sq": ("dslm_k", "dslm_alpha"),
    }
    given = cfg.dslm_beta_sq is not None or cfg.dslm_lambda_sq is not None
    met = (cfg.dslm_residual_scaling, str(cfg.dslm_init) == "dslm", not given)
    for (need, names), is_met in zip(needs.items(), met, strict=True):
        for name in names:
            if not is_met and cfg[name] != defaults[name]:
                raise ValueError(f"{flag(name)} {cfg[name]} has no effect without {need}")


def ffn_dim(cfg: Any) -> int:
    return cfg.encoder_ffn_embed_dim or 4 * cfg.encoder_embed_dim


def residual_weights_of(cfg: Any) -> ResidualWeights:
    """Return lambda^2 and beta^2 that the config asks for.

    Raises:
        ValueError: they cannot be used.
    """
    if cfg.dslm_residual_scaling:
        try:
            return residual_weights(
                cfg.encoder_layers, cfg.dslm_k, cfg.dslm_alpha, cfg.dslm_lambda_sq, cfg.dslm_beta_sq, cfg.dslm_any_sum
            )
        except ValueError as error:
            flags = "--dslm-beta-sq (beta^2), --dslm-lambda-sq, or --dslm-k and --dslm-alpha"
            raise ValueError(f"--dslm-residual-scaling: {error} (set by {flags})") from error
    return PLAIN


def stds_of(cfg: Any, symbols: int, weights: ResidualWeights) -> Stds:
    """Return the standard deviations of the initial weights.

    Args:
        symbols: size of the dictionary.
        weights: of skip and block.

    Raises:
        ValueError: a value outside the domain of the theory.
    """
    layers, dim = cfg.encoder_layers, cfg.encoder_embed_dim
    if str(cfg.dslm_init) == "normal":
        return constant_stds(BERT_STD, layers)
    if str(cfg.dslm_init) == "xavier":
        return xavier_stds(dim, ffn_dim(cfg), cfg.encoder_attention_heads, layers)
    activation: Any = str(cfg.activation_fn)
    sizes = FeedForwardSizes(dim, ffn_dim(cfg), activation, cfg.activation_dropout)
    start = input_correlation(cfg.num_segments, symbols) if cfg.dslm_input_corr is None else cfg.dslm_input_corr
    r, _ = correlations(layers, start, cfg.dropout, sizes, weights, post_norm=not cfg.encoder_normalize_before)
    gains = attention_gain(dim, r, cfg.dropout, cfg.attention_dropout, cfg.dslm_sequence_length)
    return deep_scale_stds(sizes, gains, cfg.dropout, tables=2 + (cfg.num_segments > 0))


def build_layer(cfg: Any, weights: ResidualWeights) -> TransformerLayer:
    """Build one layer; its weights are drawn later, for its place."""
    dim = cfg.encoder_embed_dim
    return TransformerLayer(
        SoftmaxAttention(dim, cfg.encoder_attention_heads, dropout=cfg.attention_dropout),
        FeedForward(dim, ffn_dim(cfg), str(cfg.activation_fn), cfg.activation_dropout),
        LayerNorm(dim),
        LayerNorm(dim),
        cfg.dropout,
        "pre" if cfg.encoder_normalize_before else "post",
        skip_weight=weights.skip,
        change_weight=weights.change,
    )


def build_encoder(cfg: Any, dictionary: Dictionary, weights: ResidualWeights, head_scale: float) -> MaskedLMEncoder:
    """Build the encoder; its weights are drawn later."""
    dim, pre_norm = cfg.encoder_embed_dim, cfg.encoder_normalize_before
    return MaskedLMEncoder(
        dictionary,
        NAME,
        dim,
        nn.ModuleList(build_layer(cfg, weights) for _ in range(cfg.encoder_layers)),
        MaskedLMHead(dim, len(dictionary), str(cfg.activation_fn), scale=head_scale),
        cfg.max_positions,
        embed_positions=LearnedPositions(dim, dictionary.pad(), cfg.max_positions),
        # with Post-LN each norm ends a sum: that of the embedding comes before the first block
        embed_norm=None if pre_norm else LayerNorm(dim),
        norm=LayerNorm(dim) if pre_norm else None,
        dropout=cfg.dropout,
        embed_segments=nn.Embedding(cfg.num_segments, dim) if cfg.num_segments else None,
        norm_after_dropout=True,
        checkpoint_activations=cfg.checkpoint_activations,
        offload_activations=cfg.offload_activations,
    )


register_presets(NAME, DeepBertConfig, PRESETS)
