"""Options of the transformer on formal languages."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

ATTENTIONS = ("softmax", "linear", "linear_denominator")
POSITIONS = ("sin", "embed")
RASP_ATTENTION = ChoiceEnum(list(ATTENTIONS))
POSITIONAL_ENCODING = ChoiceEnum(list(POSITIONS))


@dataclass
class RaspTransformerConfig(FairseqDataclass):
    """A transformer encoder with a classifier at every position."""

    rasp_layers: int = field(default=1, metadata={"help": "number of layers L"})
    rasp_heads: int = field(default=1, metadata={"help": "attention heads H; must divide D"})
    rasp_dim: int = field(default=128, metadata={"help": "model width D, in channels"})
    rasp_ffn_dim: Optional[int] = field(default=None, metadata={"help": "channels of the feed-forward; default: 2 D"})
    dropout: float = field(
        default=0.0, metadata={"help": "dropout of attention weights, feed-forward channels and sublayers"}
    )
    positional_dropout: float = field(default=0.0, metadata={"help": "dropout of the sum of symbols and positions"})
    positional_encoding: POSITIONAL_ENCODING = field(
        default="sin", metadata={"help": "positions that are added: sin, sines and cosines, or embed, learned"}
    )
    max_positions: int = field(default=5000, metadata={"help": "most symbols of an input, BOS included"})
    rasp_attention: RASP_ATTENTION = field(
        default="softmax",
        metadata={
            "help": "softmax; linear: bidirectional linear attention with a norm of its output (TransNormer's); or "
            "linear_denominator: with a division by the sum of the weights instead"
        },
    )
    independent_layer_init: bool = field(
        default=False, metadata={"help": "draw the initial values of each layer; default: all begin with the same"}
    )
    model_bos: bool = field(
        default=False,
        metadata={"help": "add a BOS symbol inside the model, at which nothing is asked; not the languages' _bos"},
    )
