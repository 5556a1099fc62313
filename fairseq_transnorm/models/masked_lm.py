"""The shell of every masked language model of the package: embedding, layers, heads, checkpoints, hub interface.

A system gives it layers and an initialisation, and registers it with a config of its own. It works with fairseq's
``masked_lm`` and ``sentence_prediction`` tasks and criterions, in the place of fairseq's ``roberta``, whose checkpoints
torch >= 2.6 refuses to load.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoder, FairseqEncoderModel
from torch import Tensor, nn

from ..modules.masked_lm import ClassificationHead, MaskedLMHead
from ..modules.positions import LearnedPositions, number_positions, padding_of
from ..modules.recompute import through_layers
from .masked_lm_hub import MaskedLMHub, load_hub

logger = logging.getLogger(__name__)


class MaskedLMEncoder(FairseqEncoder):
    """Embedding, layers and masked-LM head; batch first inside.

    Args:
        dictionary: of inputs and outputs.
        name: registered name of the model, for messages.
        dim: model width D.
        layers: each maps ``x: B T D`` and the padding mask ``B T`` (or None) to ``B T D``.
        head: what gives the logits.
        max_positions: most tokens of a sample.
        embed_positions: ``LearnedPositions``, ``SinusoidalPositions`` or None.
        embed_norm: norm of the embedding; None for none.
        embed_scale: factor of the token embedding.
        norm: after the last layer; None for none.
        dropout: after the embedding.
        embed_segments: embedding of the segment that a token belongs to, ``num_segments D``; None for none.
        norm_after_dropout: the embedding goes through dropout before ``embed_norm``, not after it.
        checkpoint_activations: keep the layers' inputs only and compute the rest again in the backward pass.
        offload_activations: the same, and keep these inputs in the memory of the CPU.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        name: str,
        dim: int,
        layers: nn.ModuleList,
        head: MaskedLMHead,
        max_positions: int,
        embed_positions: nn.Module | None = None,
        embed_norm: nn.Module | None = None,
        embed_scale: float = 1.0,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
        embed_segments: nn.Embedding | None = None,
        norm_after_dropout: bool = False,
        checkpoint_activations: bool = False,
        offload_activations: bool = False,
    ) -> None:
        super().__init__(dictionary)
        self.name = name
        self.padding_idx = dictionary.pad()
        self.end_idx = dictionary.eos()
        self.embed_tokens = nn.Embedding(len(dictionary), dim, self.padding_idx)
        self.embed_positions = embed_positions
        self.embed_segments = embed_segments
        self.embed_norm = embed_norm
        self.norm_after_dropout = norm_after_dropout
        self.embed_scale = embed_scale
        self.layers = layers
        self.norm = norm
        self.head = head
        self.limit = max_positions
        self.dropout = dropout
        self.checkpoint_activations = checkpoint_activations or offload_activations
        self.offload_activations = offload_activations

    @property
    def num_segments(self) -> int:
        """Segments that the model tells apart; 0 without segment embeddings."""
        return 0 if self.embed_segments is None else self.embed_segments.num_embeddings

    def max_positions(self) -> int:
        """Most tokens of one sample."""
        return self.limit

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        masked_tokens: Tensor | None = None,
        segment_ids: Tensor | None = None,
        **unused: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return logits ``B T N`` (features ``B T D`` with ``features_only``) and fairseq's dictionary of extras.

        Args:
            src_tokens: token ids ``B T``, padded on the right only.
            return_all_hiddens: put the embedding's and each layer's output, ``T B D``, into ``inner_states``.
            masked_tokens: True where logits are wanted, ``B T``; they are then ``M N``, M being the number of these.
            segment_ids: the segment of each token, ``B T``; by default 0 up to and with the first ``</s>``, then 1,
                and 0 at padding. A model without segment embeddings takes none but 0.

        Raises:
            ValueError: an empty batch, a sample longer than ``max_positions``, padding before a token, or a segment
                that the model does not have.
        """
        if not src_tokens.numel():
            raise ValueError(f"{self.name}: an empty batch, {tuple(src_tokens.shape)} tokens")
        if src_tokens.shape[1] > self.limit:
            raise ValueError(
                f"{self.name}: a sample of {src_tokens.shape[1]} tokens is longer than the {self.limit} positions of "
                "the model (--max-positions); cut it (--shorten-method truncate) or train a model with more"
            )
        try:
            padding = padding_of(src_tokens, self.padding_idx)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        checkpointed = self.checkpoint_activations and self.training
        embedded = self.embed(src_tokens, padding, segment_ids)
        offloaded = checkpointed and self.offload_activations
        states = []
        for x in through_layers(self.layers, embedded, padding, checkpointed, offloaded):
            if return_all_hiddens:
                states.append(x.transpose(0, 1))
        if self.norm is not None:
            x = self.norm(x)
        extra = {"inner_states": states if return_all_hiddens else None}
        return (x if features_only else self.output_layer(x, masked_tokens)), extra

    def embed(self, tokens: Tensor, padding: Tensor | None, segment_ids: Tensor | None = None) -> Tensor:
        """Return ``dropout(norm(scale * E[token] + P[position] + S[segment]))``, ``B T D``; 0 at padding.

        With ``norm_after_dropout`` it is ``norm(dropout(..))``.
        """
        x = self.embed_scale * self.embed_tokens(tokens)
        if self.embed_positions is not None:
            x = x + self.embed_positions(*number_positions(tokens, self.padding_idx, padding))
        if self.embed_segments is not None or segment_ids is not None:
            segments = self.segments(tokens, padding) if segment_ids is None else self._checked(segment_ids, tokens)
            x = x if self.embed_segments is None else x + self.embed_segments(segments)
        if self.embed_norm is not None and not self.norm_after_dropout:
            x = self.embed_norm(x)
        x = F.dropout(x, self.dropout, self.training)
        if self.embed_norm is not None and self.norm_after_dropout:
            x = self.embed_norm(x)
        return x if padding is None else x.masked_fill(padding[..., None], 0.0)

    def segments(self, tokens: Tensor, padding: Tensor | None) -> Tensor:
        """Return the segments ``B T`` of ``<s> A </s> B </s>``: 0 up to and with the first ``</s>``, 1 in the rest.

        They are 0 at padding, and everywhere in a model with one segment.
        """
        ends = tokens.eq(self.end_idx)
        segments = (ends.cumsum(1) - ends.long()).clamp(max=min(1, self.num_segments - 1))
        return segments if padding is None else segments.masked_fill(padding, 0)

    def _checked(self, segment_ids: Tensor, tokens: Tensor) -> Tensor:
        if segment_ids.shape != tokens.shape or segment_ids.is_floating_point():
            raise ValueError(
                f"{self.name}: segment_ids are whole numbers of the shape of the tokens, {tuple(tokens.shape)}, not "
                f"{segment_ids.dtype} of shape {tuple(segment_ids.shape)}"
            )
        least, most = torch.stack(segment_ids.aminmax()).tolist()
        if least < 0:
            raise ValueError(f"{self.name}: a token of segment {least}; the first segment is 0")
        if most >= max(1, self.num_segments):
            raise ValueError(
                f"{self.name}: a token of segment {most}, the model has {self.num_segments} segment embeddings; train "
                f"one with --num-segments {most + 1}, or use data without pairs"
            )
        return segment_ids

    def output_layer(self, features: Tensor, masked_tokens: Tensor | None = None) -> Tensor:
        """Project features ``B T D``, of the masked tokens only where these are given, to logits."""
        if masked_tokens is not None:
            features = features[masked_tokens]
        return self.head(features, self.embed_tokens.weight)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Check the embeddings of a checkpoint before it is loaded.

        Raises:
            RuntimeError: they belong to another dictionary, or another number of positions or segments.
        """
        trained = state_dict.get(f"{name}.embed_tokens.weight")
        if trained is not None and len(trained) != self.embed_tokens.num_embeddings:
            raise RuntimeError(
                f"{self.name}: dictionary mismatch: the checkpoint was trained with {len(trained)} symbols, "
                f"dict.txt of the data folder (with <mask>) has {self.embed_tokens.num_embeddings}; prepare the data "
                "with the dictionary of its training"
            )
        segments = state_dict.get(f"{name}.embed_segments.weight")
        found = 0 if segments is None else len(segments)
        if trained is not None and found != self.num_segments:
            raise RuntimeError(
                f"{self.name}: the checkpoint has {found} segment embeddings, the model {self.num_segments}; pass "
                f"--num-segments {found}"
            )
        if isinstance(self.embed_positions, LearnedPositions):
            rows = state_dict.get(f"{name}.embed_positions.embedding.weight")
            if rows is not None and len(rows) != self.embed_positions.embedding.num_embeddings:
                raise RuntimeError(
                    f"{self.name}: the checkpoint has positions for {len(rows) - self.padding_idx - 1} tokens, the "
                    f"model for {self.limit}; pass --max-positions {len(rows) - self.padding_idx - 1}"
                )


@dataclass(frozen=True)
class HeadOptions:
    """What ``register_classification_head`` builds; and whether heads that only a checkpoint has are kept."""

    activation: str = "tanh"
    dropout: float = 0.0
    pooling: str = "first"
    load_from_checkpoint: bool = False


class MaskedLM(FairseqEncoderModel):
    """A masked language model with any number of classification heads.

    Args:
        encoder: embedding, layers, masked-LM head.
        heads: how classification heads are built.
    """

    encoder: MaskedLMEncoder
    # matrices of a classification head, whose rows are the sizes that build it
    head_matrices: tuple[str, ...] = ("out_proj", "dense")
    # between the two texts of a pair stands a second </s>, as in RoBERTa
    double_separator = True

    def __init__(self, encoder: MaskedLMEncoder, heads: HeadOptions) -> None:
        super().__init__(encoder)
        self.head_options = heads
        self.classification_heads = nn.ModuleDict()

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        features_only: bool = False,
        return_all_hiddens: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return what the encoder returns, or the logits ``B N`` of a classification head.

        Raises:
            ValueError: no head of that name, or what the encoder refuses.
        """
        if classification_head_name is None:
            return self.encoder(src_tokens, src_lengths, features_only, return_all_hiddens, **kwargs)
        head = self.classification_head(classification_head_name)
        x, extra = self.encoder(src_tokens, src_lengths, True, return_all_hiddens, **kwargs)
        return self.classify(head, x, src_tokens), extra

    def classify(self, head: nn.Module, features: Tensor, tokens: Tensor) -> Tensor:
        """Return the logits ``B N`` that ``head`` makes of the features ``B T D`` of ``tokens``."""
        return head(features, padding=padding_of(tokens, self.encoder.padding_idx))

    def classification_head(self, name: str) -> nn.Module:
        """Return the head called ``name``.

        Raises:
            ValueError: there is none; the message lists those that are there.
        """
        if name not in self.classification_heads:
            known = ", ".join(self.classification_heads) or "none"
            raise ValueError(
                f"{self.encoder.name}: no classification head {name!r}, there are: {known}; add one with "
                "register_classification_head"
            )
        return self.classification_heads[name]

    def register_classification_head(
        self, name: str, num_classes: int | None = None, inner_dim: int | None = None, **unused: Any
    ) -> None:
        """Add a head with new weights; one of that name is replaced.

        Args:
            name: of the head.
            num_classes: classes, or regression targets; must be given.
            inner_dim: its inner width, by default the model's.

        Raises:
            ValueError: fewer than one class.
        """
        if num_classes is None or num_classes < 1:
            raise ValueError(
                f"{self.encoder.name}: classification head {name!r} with {num_classes} classes; at least 1"
            )
        if name in self.classification_heads:
            logger.warning("%s: classification head %r is replaced by a new one", self.encoder.name, name)
        weight = self.encoder.embed_tokens.weight
        head = self.build_head(weight.shape[1], num_classes, inner_dim)
        self.classification_heads[name] = head.to(weight).train(self.training)

    def build_head(self, dim: int, num_classes: int, inner_dim: int | None) -> nn.Module:
        """Return a new classification head for features of width ``dim``."""
        options = self.head_options
        return ClassificationHead(
            dim, inner_dim or dim, num_classes, options.activation, options.dropout, options.pooling
        )

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """Return probabilities, or their logarithms, of the logits in ``net_output``; in float32 or wider."""
        logits = net_output[0] if net_output[0].dtype.itemsize > 2 else net_output[0].float()
        return F.log_softmax(logits, dim=-1) if log_probs else F.softmax(logits, dim=-1)

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        """Fit the classification heads of a checkpoint to those of the model.

        A head that only the checkpoint has is registered with ``load_checkpoint_heads``, else left out with a warning,
        as is one of another shape; a head that only the model has keeps its new weights.

        Raises:
            RuntimeError: the checkpoint has only a part of a head.
        """
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}.classification_heads." if name else "classification_heads."
        found = {key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)}
        for head in sorted(found):
            names = [f"{prefix}{head}.{part}.weight" for part in self.head_matrices]
            if missing := [name for name in names if name not in state_dict]:
                raise RuntimeError(
                    f"{self.encoder.name}: the checkpoint has half of classification head {head!r}, no {missing[0]}"
                )
            sizes = tuple(len(state_dict[name]) for name in names)
            if head not in self.classification_heads and self.head_options.load_from_checkpoint:
                self.register_classification_head(head, *sizes)
            here = dict(self.classification_heads.items()).get(head)
            if getattr(here, "sizes", None) != sizes:
                why = "the model has none of that name" if here is None else "the model's has another shape"
                logger.warning("%s: leaving out classification head %r: %s", self.encoder.name, head, why)
                for key in [key for key in state_dict if key.startswith(f"{prefix}{head}.")]:
                    del state_dict[key]
        for key, value in self.classification_heads.state_dict().items():
            state_dict.setdefault(prefix + key, value)

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "checkpoint_best.pt",
        data_name_or_path: str = ".",
        bpe: str | None = None,
        **kwargs: Any,
    ) -> MaskedLMHub:
        """Load a checkpoint with its heads as a :class:`MaskedLMHub`; see :func:`load_hub` for the arguments."""
        return load_hub(model_name_or_path, checkpoint_file, data_name_or_path, bpe, **kwargs)
