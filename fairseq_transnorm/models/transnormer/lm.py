"""The autoregressive TransNormer language model."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder, FairseqLanguageModel, register_model
from torch import Tensor, nn

from ...modules.layer import TransformerLayer
from ...modules.linear import Linear, linear
from ...modules.norms import LayerNorm
from ...modules.positions import LearnedPositions, SinusoidalPositions, number_positions, padding_of
from ...modules.recompute import through_layers
from ...registry import complete, register_presets
from ..options import check_preset
from .build import build_layers, build_norm_of, check_options
from .config import PRESETS, TransNormerLMConfig


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
            check_preset(cfg, "transnormer_lm", PRESETS, TransNormerLMConfig)
            _check_positions(cfg)
            return cls(TransNormerDecoder(cfg, task.target_dictionary))
        except ValueError as error:
            raise ValueError(f"transnormer_lm: {error}") from error


def _check_positions(cfg: Any) -> None:
    if cfg.max_target_positions is not None and cfg.max_target_positions < cfg.tokens_per_sample:
        # fairseq would leave out the longer sequences, that is, all but the last
        raise ValueError(
            f"--max-target-positions {cfg.max_target_positions} is too few for --tokens-per-sample "
            f"{cfg.tokens_per_sample}; leave it out, or make it at least as large"
        )


class TransNormerDecoder(FairseqIncrementalDecoder):
    """Embedding, layers, final norm and output projection; batch first inside.

    Args:
        cfg: options, ``TransNormerLMConfig``.
        dictionary: of inputs and outputs.
    """

    def __init__(self, cfg: Any, dictionary: Dictionary) -> None:
        super().__init__(dictionary)
        dim, self.padding_idx = cfg.decoder_embed_dim, dictionary.pad()
        limit = cfg.max_target_positions
        self.limit: int = cfg.tokens_per_sample if limit is None else limit
        self.embed_scale = 1.0 if cfg.no_scale_embedding else math.sqrt(dim)
        self.dropout = cfg.dropout
        self.checkpoint_activations = cfg.checkpoint_activations

        self.embed_tokens = nn.Embedding(len(dictionary), dim, self.padding_idx)
        if cfg.small_init_embedding:
            nn.init.normal_(self.embed_tokens.weight, std=1e-5)
        else:
            nn.init.normal_(self.embed_tokens.weight, std=dim**-0.5)
            nn.init.zeros_(self.embed_tokens.weight[self.padding_idx])
        self.embed_positions: nn.Module | None = None
        if cfg.abs_pos == "sinusoidal":
            self.embed_positions = SinusoidalPositions(dim, self.padding_idx)
        elif cfg.abs_pos == "learned":
            self.embed_positions = LearnedPositions(dim, self.padding_idx, self.limit)
        self.embed_norm = LayerNorm(dim) if cfg.layernorm_embedding else None

        self.layers = build_layers(cfg, causal=True, post_norm=cfg.post_norm)
        self.norm = None if cfg.post_norm else build_norm_of(cfg, cfg.layer_norm_type)
        self.output_projection: Linear | None = None
        if cfg.untied_output:
            self.output_projection = Linear(dim, len(dictionary), bias=False)
            nn.init.normal_(self.output_projection.weight, std=dim**-0.5)

    def max_positions(self) -> int:
        """Most tokens of one sequence; ``--max-target-positions``, by default ``--tokens-per-sample``."""
        return self.limit

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: dict[str, Any] | None = None,
        features_only: bool = False,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits ``B T N`` (features ``B T D`` with ``features_only``) and fairseq's dictionary of extras.

        Args:
            prev_output_tokens: token ids ``B T``, padded on the right only.
            incremental_state: remembers a batch between calls. Each call passes all tokens so far; the ones that are
                new since the last call are read (one or many), and only their outputs are returned.
            return_all_hiddens: put each layer's output, ``T B D``, into ``inner_states``.

        Raises:
            ValueError: the sequence is longer than ``max_positions``, has padding before a token, or, with
                ``incremental_state``, has no new token.
        """
        if not prev_output_tokens.numel():
            raise ValueError(f"transnormer_lm: an empty batch, {tuple(prev_output_tokens.shape)} tokens")
        if prev_output_tokens.shape[1] > self.limit:
            raise ValueError(
                f"transnormer_lm: a sequence of {prev_output_tokens.shape[1]} tokens is longer than the "
                f"{self.limit} positions of the model; pass a larger --max-target-positions (for a trained model "
                "with --model-overrides), or shorter input"
            )
        if incremental_state is None:
            x, hiddens = self._read_all(prev_output_tokens)
        else:
            x, hiddens = self._read_new(prev_output_tokens, incremental_state)
        if self.norm is not None:
            x = self.norm(x)
        extra = {"attn": [None], "inner_states": [h.transpose(0, 1) for h in hiddens] if return_all_hiddens else None}
        return (x if features_only else self.output_layer(x)), extra

    def extract_features(self, prev_output_tokens: Tensor, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """Return features ``B T D`` instead of logits."""
        return self(prev_output_tokens, features_only=True, **kwargs)

    def output_layer(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Project features ``... D`` to logits ``... N``."""
        layer = self.embed_tokens if self.output_projection is None else self.output_projection
        return linear(features, layer.weight)

    def _embed(self, tokens: Tensor, first: int, padding: Tensor | None) -> Tensor:
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.embed_positions is not None:
            x = x + self.embed_positions(*number_positions(tokens, self.padding_idx, padding, first))
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        return F.dropout(x, self.dropout, self.training)

    def _read_all(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        try:
            padding = padding_of(tokens, self.padding_idx)
        except ValueError as error:
            raise ValueError(f"transnormer_lm: {error}") from None
        checkpointed = self.checkpoint_activations and self.training
        hiddens = list(through_layers(self.layers, self._embed(tokens, 0, padding), padding, checkpointed))
        return hiddens[-1], hiddens

    def _read_new(self, tokens: Tensor, incremental_state: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
        state: dict[str, Any] = self.get_incremental_state(incremental_state, "layers") or {
            "position": 0,
            "layers": [None] * len(self.layers),
        }
        first = state["position"]
        new = tokens[:, first:]
        if new.shape[1] == 0:
            raise ValueError(
                f"transnormer_lm: {tokens.shape[1]} tokens given, all of the {first} already read; with "
                "incremental_state pass all tokens so far, the new ones at the end"
            )
        # padding in a single later step is a finished row of a beam, whose output nobody reads
        if (first == 0 or new.shape[1] > 1) and new.eq(self.padding_idx).any():
            raise ValueError(
                "transnormer_lm: rows read together with incremental_state must have equal length, no padding"
            )
        x = self._embed(new, first, None)
        hiddens, states = [x], []
        for layer, past in zip(self.layers, state["layers"], strict=True):
            assert isinstance(layer, TransformerLayer)
            x, past = layer.step(x, past, first)
            hiddens.append(x)
            states.append(past)
        self.set_incremental_state(incremental_state, "layers", {"position": first + new.shape[1], "layers": states})
        return x, hiddens

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Check a checkpoint's embedding before it is loaded.

        Raises:
            RuntimeError: it belongs to another dictionary.
        """
        trained = state_dict.get(f"{name}.embed_tokens.weight")
        if trained is not None and len(trained) != self.embed_tokens.num_embeddings:
            raise RuntimeError(
                f"transnormer_lm: dictionary mismatch: the checkpoint was trained with {len(trained)} symbols, "
                f"dict.txt of the data folder has {self.embed_tokens.num_embeddings}; use the data of its training"
            )

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Put the rows of every layer's state into ``new_order``, as beam search asks."""
        state: dict[str, Any] | None = self.get_incremental_state(incremental_state, "layers")
        if state is not None:
            layers = [tuple(tensor.index_select(0, new_order) for tensor in past) for past in state["layers"]]
            self.set_incremental_state(incremental_state, "layers", {**state, "layers": layers})


register_presets("transnormer_lm", TransNormerLMConfig, PRESETS)
