"""The shell of every language model of the package: embedding, layers, output, and decoding step by step.

A system gives it its modules, already initialised, and registers it with a config of its own. It works with fairseq's
``language_modeling`` task and everything that is built on it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqIncrementalDecoder
from torch import Tensor, nn

from ..modules.layer import TransformerLayer
from ..modules.linear import Linear, linear
from ..modules.positions import find_padding, number_positions, padding_of
from ..modules.recompute import through_layers


def position_limit(cfg: Any) -> int:
    """Return the longest sequence: ``--max-target-positions``, by default ``--tokens-per-sample``.

    Raises:
        ValueError: fairseq would leave out the longer sequences, that is, all but the last.
    """
    if cfg.max_target_positions is None:
        return int(cfg.tokens_per_sample)
    if cfg.max_target_positions < cfg.tokens_per_sample:
        raise ValueError(
            f"--max-target-positions {cfg.max_target_positions} is too few for --tokens-per-sample "
            f"{cfg.tokens_per_sample}; leave it out, or make it at least as large"
        )
    return int(cfg.max_target_positions)


class LanguageModelDecoder(FairseqIncrementalDecoder):
    """Embedding, layers, final norm and output projection; batch first inside.

    Args:
        dictionary: of inputs and outputs; without padding where its ``pad()`` is None.
        name: registered name of the model, for messages.
        embed_tokens: token embedding, ``N D``.
        layers: of ``TransformerLayer`` with causal attention.
        max_positions: most tokens of a sequence.
        embed_positions: ``LearnedPositions``, ``SinusoidalPositions`` or None.
        embed_norm: norm of the embedding; None for none.
        embed_scale: factor of the token embedding.
        norm: after the last layer; None for none.
        output_projection: what gives the logits; None takes the token embedding.
        dropout: after the embedding.
        checkpoint_activations: keep the layers' inputs only and compute the rest again in the backward pass.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        name: str,
        embed_tokens: nn.Embedding,
        layers: nn.ModuleList,
        max_positions: int,
        embed_positions: nn.Module | None = None,
        embed_norm: nn.Module | None = None,
        embed_scale: float = 1.0,
        norm: nn.Module | None = None,
        output_projection: Linear | None = None,
        dropout: float = 0.0,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(dictionary)
        self.name = name
        self.padding_idx = dictionary.pad()
        self.embed_tokens = embed_tokens
        self.embed_positions = embed_positions
        self.embed_norm = embed_norm
        self.embed_scale = embed_scale
        self.layers = layers
        self.norm = norm
        self.output_projection = output_projection
        self.limit = max_positions
        self.dropout = dropout
        self.checkpoint_activations = checkpoint_activations

    def max_positions(self) -> int:
        """Most tokens of one sequence."""
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
            raise ValueError(f"{self.name}: an empty batch, {tuple(prev_output_tokens.shape)} tokens")
        if prev_output_tokens.shape[1] > self.limit:
            raise ValueError(
                f"{self.name}: a sequence of {prev_output_tokens.shape[1]} tokens is longer than the "
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
        if self.output_projection is not None:
            return self.output_projection(features)
        return linear(features, self.embed_tokens.weight)

    def output_matrix(self) -> Tensor:
        """Return the matrix ``N D`` that gives the logits, without a bias."""
        return (self.embed_tokens if self.output_projection is None else self.output_projection).weight

    def position_vectors(self) -> Tensor | None:
        """Return what is added to the embeddings of as many tokens as the model takes, ``T D``; None for nothing."""
        if self.embed_positions is None:
            return None
        tokens = torch.zeros(1, self.limit, dtype=torch.long, device=self.embed_tokens.weight.device)
        return self.embed_positions(*number_positions(tokens, self.padding_idx, None))[0]

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
            raise ValueError(f"{self.name}: {error}") from None
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
                f"{self.name}: {tokens.shape[1]} tokens given, all of the {first} already read; with "
                "incremental_state pass all tokens so far, the new ones at the end"
            )
        # padding in a single later step is a finished row of a beam, whose output nobody reads
        if (first == 0 or new.shape[1] > 1) and find_padding(new, self.padding_idx) is not None:
            raise ValueError(
                f"{self.name}: rows read together with incremental_state must have equal length, no padding"
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
                f"{self.name}: dictionary mismatch: the checkpoint was trained with {len(trained)} symbols, "
                f"dict.txt of the data folder has {self.embed_tokens.num_embeddings}; use the data of its training"
            )

    def reorder_incremental_state(self, incremental_state: dict[str, Any], new_order: Tensor) -> None:
        """Put the rows of every layer's state into ``new_order``, as beam search asks."""
        state: dict[str, Any] | None = self.get_incremental_state(incremental_state, "layers")
        if state is not None:
            layers = [tuple(tensor.index_select(0, new_order) for tensor in past) for past in state["layers"]]
            self.set_incremental_state(incremental_state, "layers", {**state, "layers": layers})
