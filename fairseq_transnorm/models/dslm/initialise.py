"""Initial weights of a BERT: the only place that knows both the theory's standard deviations and the modules."""

from __future__ import annotations

from torch import nn

from ...modules.feed_forward import FeedForward
from ...modules.initialisation import draw_normal
from ...modules.layer import TransformerLayer
from ...modules.positions import LearnedPositions
from ...modules.softmax_attention import SoftmaxAttention
from ...theory.deep_scale import Stds
from ..masked_lm import MaskedLMEncoder


def initialise_encoder(encoder: MaskedLMEncoder, stds: Stds) -> None:
    """Draw all weights below the heads, and those of the masked-LM head, from normal distributions."""
    assert isinstance(encoder.embed_positions, LearnedPositions)
    for embedding in (encoder.embed_tokens, encoder.embed_positions.embedding, encoder.embed_segments):
        if embedding is not None:
            draw_normal(embedding, stds.embedding)
    for layer, value, out in zip(encoder.layers, stds.value, stds.attention_out, strict=True):
        assert isinstance(layer, TransformerLayer)
        initialise_layer(layer, stds.query_key, float(value), float(out), stds.feed_forward)
    draw_normal(encoder.head.dense, stds.head)


def initialise_layer(layer: TransformerLayer, query_key: float, value: float, out: float, feed_forward: float) -> None:
    """Draw the weights of one layer with these standard deviations."""
    attn, ffn = layer.attn, layer.ffn
    assert isinstance(attn, SoftmaxAttention)
    assert isinstance(ffn, FeedForward)
    dim = attn.out.out_features
    draw_normal(attn.qkv, query_key, slice(0, 2 * dim))
    draw_normal(attn.qkv, value, slice(2 * dim, None))
    draw_normal(attn.out, out)
    draw_normal(ffn.inner, feed_forward)
    draw_normal(ffn.out, feed_forward)


def initialise_pooler(pooler: nn.Linear, order: nn.Linear, stds: Stds) -> None:
    """Draw the weights of the pooler and of the sentence-order head."""
    draw_normal(pooler, stds.pooler)
    draw_normal(order, stds.order)
