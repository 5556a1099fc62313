"""The transformer encoder that learns formal languages, a classifier at every position."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.models import BaseFairseqModel, register_model
from jaxtyping import Int
from torch import Tensor, nn

from ...modules.attention import LinearAttention, SelfAttention
from ...modules.dropout import dropout
from ...modules.feed_forward import FeedForward
from ...modules.layer import TransformerLayer
from ...modules.length_groups import GROUPS, LengthGroups
from ...modules.linear import Linear
from ...modules.norms import build_norm
from ...modules.positions import LearnedPositions, SinusoidalPositions
from ...modules.softmax_attention import SoftmaxAttention
from ...registry import complete
from ..options import check_counts, check_heads, check_probabilities
from .config import RaspTransformerConfig

NAME = "rasp_transformer"
SMALLEST_OF_SINES = 4  # width of sinusoidal positions


@register_model("rasp_transformer", dataclass=RaspTransformerConfig)
class RaspTransformer(BaseFairseqModel):
    """Symbols and positions, post-norm layers that see the whole sequence, a class for each symbol.

    ``N`` symbols are embedded, the last one being the neutral symbol; padding has number N, one past the table, and no
    token looks at it. Logits at padding are those of the neutral symbol, and mean nothing. Source: the experiments of
    Weiss, Goldberg and Yahav 2021, "Thinking Like Transformers", arXiv:2106.06981.

    Args:
        embed_tokens: ``N D``.
        positions: added to them.
        layers: of ``TransformerLayer``, without masks of their own.
        classifier: ``D`` to ``C`` classes.
        max_length: most symbols of an input.
        positional_dropout: of the sum of symbols and positions.
        model_bos: begin each sequence with the neutral symbol, and leave out its logits.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        positions: SinusoidalPositions | LearnedPositions,
        layers: nn.ModuleList,
        classifier: nn.Linear,
        max_length: int,
        positional_dropout: float = 0.0,
        model_bos: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = embed_tokens, positions
        self.layers, self.classifier = layers, classifier
        self.max_length, self.positional_dropout, self.model_bos = max_length, positional_dropout, model_bos

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> RaspTransformer:
        """Build from ``RaspTransformerConfig`` and a task ``rasp_lang``.

        Raises:
            ValueError: an option's value cannot be used, or the model is no model for the task's language; the message
                names it.
        """
        cfg = complete(cfg, RaspTransformerConfig)
        try:
            check_options(cfg)
            check_language(cfg, task)
            return build(cls, cfg, len(task.source_dictionary), len(task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"{NAME}: {error}") from error

    def max_positions(self) -> int:
        """Most symbols of an input."""
        return self.max_length - self.model_bos

    def forward(
        self,
        src_tokens: Int[Tensor, "B n"],
        src_lengths: Tensor | None = None,
        return_attention: bool = False,
        features_only: bool = False,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits ``B n C``, and what was asked for of the layers.

        With ``--model-bos`` attention and hidden states have one more position, the first; logits have not.

        Args:
            src_tokens: padding, number N, stands behind the symbols.
            src_lengths: not looked at: padding tells them.
            return_attention: put each layer's weights (before dropout) and scores, ``B H n n``, into ``attn`` and
                ``scores``. Where the key is padding they are 0 and minus infinity.
            features_only: return what the classifier reads, ``B n D``, not logits.
            return_all_hiddens: put the embedding and each layer's output, ``n B D``, into ``inner_states``.

        Raises:
            ValueError: the sequence is longer than the model was built for, or linear attention has no such maps.
        """
        tokens = self._with_bos(src_tokens)
        if tokens.shape[1] > self.max_length:
            raise ValueError(
                f"{NAME}: {tokens.shape[1]} symbols are more than --max-positions {self.max_length}; give "
                "shorter inputs"
            )
        if return_attention and not isinstance(self.layers[0].attn, SoftmaxAttention):
            raise ValueError(f"{NAME}: linear attention has no softmax, and so no maps of weights and scores")
        padding = tokens.eq(self.embed_tokens.num_embeddings)
        columns = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        groups = None
        # measures look at a model that is evaluated, and must find its attentions called with whole batches
        if self.training or return_attention:
            groups = LengthGroups.of(padding, GROUPS if tokens.device.type == "cpu" else 1)
            tokens, columns = groups.rows(tokens), groups.rows(columns)
        x = self._embed(tokens, columns, padding.shape[1])
        mask = padding if padding.any() else None
        hiddens, maps = [x], []
        for layer in self.layers:
            assert isinstance(layer, TransformerLayer)
            if groups is None:
                x = layer(x, mask)
            else:
                x, found = layer.forward_groups(x, groups, return_attention)
                maps.append(found)
            hiddens.append(x)
        out = x if features_only else self.classifier(x)
        if groups is not None:
            out = groups.batched(out)
            hiddens = [groups.batched(hidden) for hidden in hiddens] if return_all_hiddens else []
        weights, scores = zip(*maps, strict=True) if return_attention else (None, None)
        states = [hidden.transpose(0, 1) for hidden in hiddens] if return_all_hiddens else None
        return out[:, int(self.model_bos) :], {"attn": weights, "scores": scores, "inner_states": states}

    def _with_bos(self, tokens: Tensor) -> Tensor:
        return F.pad(tokens, (1, 0), value=self.embed_tokens.num_embeddings - 1) if self.model_bos else tokens

    def _embed(self, tokens: Tensor, columns: Tensor, length: int) -> Tensor:
        # padding has the row of the neutral symbol
        x = self.embed_tokens(tokens.clamp(max=self.embed_tokens.num_embeddings - 1))
        positions = self.embed_positions(columns, length)[..., : x.shape[-1]]
        return dropout(x + positions, self.positional_dropout, self.training)

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        """Return probabilities of the classes, or their logarithms, in float32."""
        logits = net_output[0].float()
        return F.log_softmax(logits, dim=-1) if log_probs else F.softmax(logits, dim=-1)


def check_options(cfg: Any) -> None:
    """Raise ValueError for options that make no sense."""
    ffn = [] if cfg.rasp_ffn_dim is None else ["rasp_ffn_dim"]
    check_counts(cfg, ["rasp_layers", "rasp_heads", "rasp_dim", "max_positions", *ffn])
    check_heads(cfg, "rasp_heads", "rasp_dim")
    check_probabilities(cfg, ["dropout", "positional_dropout"])
    if str(cfg.positional_encoding) == "sin" and cfg.rasp_dim < SMALLEST_OF_SINES:
        raise ValueError(
            f"--rasp-dim {cfg.rasp_dim}: --positional-encoding sin needs at least {SMALLEST_OF_SINES}; or take embed"
        )


def check_language(cfg: Any, task: Any) -> None:
    """Raise ValueError for a task without a language, or a language that this model cannot learn as it is told."""
    language = getattr(task, "language", None)
    if language is None:
        raise ValueError(f"--task {task.cfg._name} has no language with an output for each symbol; use rasp_lang")
    longest = task.max_positions() + cfg.model_bos
    if longest > cfg.max_positions:
        raise ValueError(
            f"--max-positions {cfg.max_positions} is too few for inputs of up to {longest} symbols (--max-length of "
            "the task, and BOS); make one of them fit the other"
        )
    if not language.supervised:
        return
    name, (layers, heads) = language.name, language.needs
    if str(cfg.rasp_attention) != "softmax":
        raise ValueError(
            f"--rasp-attention {cfg.rasp_attention} has no softmax whose weights could be supervised, as {name} asks; "
            f"take --language {name.removesuffix('_with_attns')}, or --rasp-attention softmax"
        )
    if cfg.rasp_layers < layers or cfg.rasp_heads < heads:
        raise ValueError(
            f"--rasp-layers {cfg.rasp_layers} --rasp-heads {cfg.rasp_heads} is too small: the attention targets of "
            f"{name} are of {layers} layers and {heads} head{'s' * (heads > 1)}; take at least as many, or --language "
            f"{name.removesuffix('_with_attns')}"
        )


def build(cls: type[RaspTransformer], cfg: Any, symbols: int, classes: int) -> RaspTransformer:
    """Build the model with its initial values."""
    dim = cfg.rasp_dim
    embed_tokens = nn.Embedding(symbols, dim)  # N(0, 1)
    positions: SinusoidalPositions | LearnedPositions = (
        SinusoidalPositions(dim + dim % 2, None, interleaved=True)  # of an odd width the last channel is left out
        if str(cfg.positional_encoding) == "sin"
        else LearnedPositions(dim, None, cfg.max_positions, std=1.0)
    )
    layers = nn.ModuleList(build_layer(cfg) for _ in range(cfg.rasp_layers))
    if not cfg.independent_layer_init:
        for layer in layers[1:]:
            layer.load_state_dict(layers[0].state_dict())
    classifier = Linear(dim, classes)
    return cls(embed_tokens, positions, layers, classifier, cfg.max_positions, cfg.positional_dropout, cfg.model_bos)


def build_layer(cfg: Any) -> TransformerLayer:
    """Build a layer; queries, keys and values are drawn as one matrix, the other maps as ``nn.Linear`` does."""
    dim = cfg.rasp_dim
    attn = build_attention(cfg)
    nn.init.xavier_uniform_(attn.qkv.weight)
    nn.init.zeros_(attn.qkv.bias)
    nn.init.kaiming_uniform_(attn.out.weight, a=math.sqrt(5))
    ffn = FeedForward(dim, cfg.rasp_ffn_dim or 2 * dim, "relu", dropout=cfg.dropout)
    return TransformerLayer(attn, ffn, nn.LayerNorm(dim), nn.LayerNorm(dim), cfg.dropout, norm_placement="post")


def build_attention(cfg: Any) -> SelfAttention:
    """Build the attention of a layer, which sees the whole sequence."""
    dim, heads, kind = cfg.rasp_dim, cfg.rasp_heads, str(cfg.rasp_attention)
    if kind == "softmax":
        return SoftmaxAttention(dim, heads, dropout=cfg.dropout)
    divided = kind == "linear_denominator"
    norm = None if divided else build_norm("simplermsnorm", dim)
    return LinearAttention(dim, heads, norm, "1+elu", lrpe="none", causal=False, denominator=divided)
