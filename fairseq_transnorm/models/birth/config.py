"""Options of the induction-head models."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ...modules.induction import FFN_INPUTS

FFN_INPUT = ChoiceEnum(list(FFN_INPUTS))


@dataclass
class InductionHeadConfig(FairseqDataclass):
    """What both models are told."""

    freeze_embeddings: bool = field(
        default=False, metadata={"help": "never train the token embeddings (nor learned positions)"}
    )
    freeze_output: bool = field(default=False, metadata={"help": "never train the output matrix"})
    tie_output: bool = field(
        default=False,
        metadata={"help": "logits by the token embeddings; ihead_basic divides them by the width, ihead_full does not"},
    )
    sin_cos: bool = field(default=False, metadata={"help": "positions of sines and cosines"})
    freeze_until: Optional[str] = field(
        default=None,
        metadata={
            "help": "N1:name1,N2:name2: each named parameter is trained from update N on only, as "
            "300:layers.0.wk.weight; names as in checkpoints"
        },
    )
    tokens_per_sample: int = II("task.tokens_per_sample")


@dataclass
class InductionHeadBasicConfig(InductionHeadConfig):
    """The simplified model of two layers, without norms, biases and query maps."""

    ihead_dim: int = field(default=64, metadata={"help": "model width D, in channels"})
    first_ffn: bool = field(default=False, metadata={"help": "feed-forward map in layer 1"})
    final_ffn: bool = field(default=False, metadata={"help": "feed-forward map in layer 2"})
    mlp_first_ffn: bool = field(
        default=False, metadata={"help": "that of layer 1 is a ReLU MLP of 4 D channels, not one matrix"}
    )
    mlp_final_ffn: bool = field(
        default=False, metadata={"help": "that of layer 2 is a ReLU MLP of 4 D channels, not one matrix"}
    )
    use_rope: bool = field(
        default=False, metadata={"help": "rotary positions in layer 1 in place of the positions added to embeddings"}
    )
    sqrtd_embeddings: bool = field(
        default=False, metadata={"help": "token embeddings and positions of variance 1/D, not 1"}
    )
    no_sqrtd: bool = field(default=False, metadata={"help": "do not divide attention scores by sqrt(D)"})


@dataclass
class InductionHeadFullConfig(InductionHeadConfig):
    """The usual transformer, with the switches of the original."""

    ihead_layers: int = field(default=2, metadata={"help": "number of layers L"})
    ihead_dim: int = field(default=128, metadata={"help": "model width D, in channels"})
    ihead_heads: int = field(default=4, metadata={"help": "attention heads H; must divide D"})
    post_norm: bool = field(
        default=False,
        metadata={"help": "LayerNorm after each sublayer, norm(x + f(x)); default before, and at the end"},
    )
    no_norm: bool = field(default=False, metadata={"help": "no LayerNorm at all"})
    no_ffn: bool = field(default=False, metadata={"help": "no feed-forward map in any layer"})
    no_first_layer_ffn: bool = field(default=False, metadata={"help": "no feed-forward map in layer 1"})
    linear_ffn: bool = field(
        default=False, metadata={"help": "feed-forward maps of one matrix, not ReLU MLPs of 4 D channels"}
    )
    freeze_wv: bool = field(default=False, metadata={"help": "never train the value matrices"})
    freeze_wo: bool = field(default=False, metadata={"help": "never train the output matrices of the attentions"})
    no_wv: bool = field(default=False, metadata={"help": "the identity in place of the value matrices"})
    no_wo: bool = field(
        default=False, metadata={"help": "the identity in place of the output matrices of the attentions"}
    )
    ffn_input: FFN_INPUT = field(
        default="block",
        metadata={
            "help": "what the feed-forward of a pre-norm layer reads: block, the layer's input, as in the original; "
            "residual, what the attention has added to, as in the usual transformer"
        },
    )
