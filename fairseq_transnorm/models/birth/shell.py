"""What both induction-head models share: embedding, layers, output, and parameters that are frozen for a while."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from fairseq.models import BaseFairseqModel
from torch import Tensor, nn

from ...modules.induction import Image
from ...modules.linear import linear
from .freezing import StagedFreezing


class InductionHeadModel(BaseFairseqModel):
    """Embedding, ``InductionLayer``s and output; batch first, no padding, no dropout.

    Args:
        name: registered name of the model, for messages.
        embed_tokens: token embedding, ``N D``.
        layers: of ``InductionLayer``.
        max_length: most tokens of a sequence, T.
        output: gives the logits, without bias; None takes the token embedding.
        output_scale: factor of the logits.
        positions: constant vectors that are added to the embedding, ``T D``.
        embed_positions: learned ones, in place of those.
        norm: after the last layer.
        freeze_until: see :class:`StagedFreezing`; what is never trained must be frozen already.
    """

    positions: Tensor | None

    def __init__(
        self,
        name: str,
        embed_tokens: nn.Embedding,
        layers: nn.ModuleList,
        max_length: int,
        *,
        output: nn.Linear | None,
        output_scale: float = 1.0,
        positions: Tensor | None = None,
        embed_positions: nn.Embedding | None = None,
        norm: nn.Module | None = None,
        freeze_until: str | None = None,
    ) -> None:
        super().__init__()
        self.name, self.max_length, self.output_scale = name, max_length, output_scale
        self.embed_tokens = embed_tokens
        self.register_buffer("positions", positions)
        self.embed_positions = embed_positions
        self.layers = layers
        self.norm = norm
        self.output = output
        self.freezing = StagedFreezing(self, freeze_until)

    def max_positions(self) -> int:
        """Most tokens of a sequence."""
        return self.max_length

    def set_num_updates(self, num_updates: int) -> None:
        """Freeze and release parameters for the update that follows ``num_updates`` others."""
        super().set_num_updates(num_updates)
        self.freezing.at(num_updates)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load as fairseq's models do; see there.

        A run that goes on tells the number of updates, loads this and makes the optimiser, which must know what is
        released later.
        """
        loaded = super().load_state_dict(*args, **kwargs)
        self.freezing.release()
        return loaded

    def position_vectors(self) -> Tensor | None:
        """Return what is added to the embeddings, ``T D``; None where positions are rotary."""
        return self.positions if self.embed_positions is None else self.embed_positions.weight

    def output_matrix(self) -> Tensor:
        """Return the matrix ``N D`` that gives the logits, all factors included."""
        weight = self.embed_tokens.weight if self.output is None else self.output.weight
        return weight if self.output_scale == 1.0 else weight * self.output_scale

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_attention: bool = False,
        features_only: bool = False,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits ``B T N``, and under ``attn`` each layer's attention, ``B H T T``, where asked for.

        Args:
            src_tokens: ``B T``, all of one length.
            src_lengths: not looked at: there is no padding.
            return_attention: compute it as in the formula; else by faster forms that give the same logits.
            features_only: return what the output matrix reads, ``B T D``, not logits.
            return_all_hiddens: put the embedding and each layer's output, ``T B D``, into ``inner_states``.

        Raises:
            ValueError: the sequence is longer than the model was built for.
        """
        length = src_tokens.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"{self.name}: a sequence of {length} tokens is longer than the {self.max_length} of "
                "--tokens-per-sample; give shorter ones"
            )
        x = self._embed(src_tokens)
        if not (return_attention or features_only or return_all_hiddens):
            return self._logits(src_tokens, x), {"attn": None}
        hiddens, maps = [x], []
        for layer in self.layers:
            x, weights = layer(x, return_weights=return_attention)
            hiddens.append(x)
            maps.append(weights)
        if self.norm is not None:
            x = self.norm(x)
        states = [hidden.transpose(0, 1) for hidden in hiddens] if return_all_hiddens else None
        extra = {"attn": maps if return_attention else None, "inner_states": states}
        return (x if features_only else linear(x, self.output_matrix())), extra

    def _logits(self, tokens: Tensor, x: Tensor) -> Tensor:
        # to map the tables is less work where they have fewer rows than there are tokens
        rows = self.embed_tokens.num_embeddings + tokens.shape[1]
        image: Image | None = partial(self._embed, tokens) if rows < tokens.numel() else None
        for layer in self.layers[:-1]:
            x, image = layer(x, image=image).hidden, None
        last = self.layers[-1]
        if self.norm is None:
            return last(x, matrix=self.output_matrix(), image=image).hidden
        return linear(self.norm(last(x, image=image).hidden), self.output_matrix())

    def _embed(self, tokens: Tensor, matrix: Tensor | None = None) -> Tensor:
        """Return the embedding ``B T D``, or its image ``B T O`` under a matrix ``O D``, which maps the tables."""

        def mapped(table: Tensor) -> Tensor:
            return table if matrix is None else linear(table, matrix)

        x = F.embedding(tokens, mapped(self.embed_tokens.weight))
        vectors = self.position_vectors()
        return x if vectors is None else x + mapped(vectors[: tokens.shape[1]])

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        """Return probabilities of the next token, or their logarithms, in float32."""
        logits = net_output[0].float()
        return F.log_softmax(logits, dim=-1) if log_probs else F.softmax(logits, dim=-1)
