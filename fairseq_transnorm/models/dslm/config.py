"""Options and presets of the DeepScaleLM models and their vanilla counterparts."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from ...modules.activations import ACTIVATIONS
from ...theory.deep_scale import INPUT_CORRELATION

ACTIVATION = ChoiceEnum(list(ACTIVATIONS))
INITIALISATION = ChoiceEnum(["dslm", "xavier", "normal"])


@dataclass
class DeepBertConfig(FairseqDataclass):
    """The defaults are a vanilla BERT in BERT-base's size, Post-LN."""

    encoder_embed_dim: int = field(default=768, metadata={"help": "model width D, in channels"})
    encoder_layers: int = field(default=12, metadata={"help": "number of layers L"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads H; must divide D"})
    encoder_ffn_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "width of the feed-forward (default: 4 D)"}
    )
    encoder_normalize_before: bool = field(
        default=False, metadata={"help": "Pre-LN: norm before each block and at the end; default Post-LN"}
    )
    max_positions: int = field(default=512, metadata={"help": "most tokens of a sample, with <s> and </s>"})
    num_segments: int = field(
        default=2, metadata={"help": "segments with an embedding: 2 for pairs of texts, 0 for no segment embeddings"}
    )
    activation_fn: ACTIVATION = field(
        default="relu", metadata={"help": "activation of feed-forward and masked-LM head; --dslm-init dslm: relu, gelu"}
    )
    dropout: float = field(default=0.1, metadata={"help": "dropout p of the embedding and of each block's output"})
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward"})
    dslm_init: INITIALISATION = field(
        default="xavier",
        metadata={"help": "initial weights: dslm (unit gain of every block), xavier, or normal (0.02 everywhere)"},
    )
    dslm_residual_scaling: bool = field(
        default=False,
        metadata={
            "help": "weigh skip and block by lambda and beta; without it x + block(x). On in the dslm presets: take a "
            "vanilla preset with --dslm-init dslm to be without it"
        },
    )
    dslm_k: float = field(default=1.0, metadata={"help": "k of beta^2 = k / layers^alpha, lambda^2 = 1 - beta^2"})
    dslm_alpha: float = field(default=1.0, metadata={"help": "alpha of beta^2 = k / layers^alpha"})
    dslm_beta_sq: Optional[float] = field(default=None, metadata={"help": "beta^2 itself, instead of k and alpha"})
    dslm_lambda_sq: Optional[float] = field(default=None, metadata={"help": "lambda^2 itself (default: 1 - beta^2)"})
    dslm_any_sum: bool = field(default=False, metadata={"help": "accept lambda^2 + beta^2 that is not 1"})
    dslm_input_corr: Optional[float] = field(
        default=None,
        metadata={
            "help": "correlation of two positions of the embedding before dropout (default: "
            f"{INPUT_CORRELATION} with two segments, else from Zipf's law); text without pairs: set --num-segments 0"
        },
    )
    dslm_sequence_length: Optional[int] = field(
        default=None,
        metadata={"help": "scale attention for sequences of this length, not for long ones; matters below about 100"},
    )
    pooler_dropout: float = field(default=0.1, metadata={"help": "dropout before the map of a classification head"})
    load_checkpoint_heads: bool = field(
        default=False, metadata={"help": "also load classification heads that only the checkpoint has"}
    )
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "keep layer inputs only and compute the rest again in the backward pass"}
    )
    offload_activations: bool = field(
        default=False, metadata={"help": "--checkpoint-activations, with the layer inputs in the CPU's memory"}
    )


def _sizes(layers: int, dim: int, heads: int) -> Dict[str, Any]:
    return {"encoder_layers": layers, "encoder_embed_dim": dim, "encoder_attention_heads": heads}


# 12, 48, 192 and 768 layers have the same number of parameters below the heads; 96 has twice as many
_SIZES: Dict[str, Dict[str, Any]] = {
    "bert": _sizes(12, 768, 12),
    "bert_12l": _sizes(12, 1024, 16),
    "bert_48l": _sizes(48, 512, 8),
    "bert_96l": _sizes(96, 512, 8),
    "bert_192l": _sizes(192, 256, 4),
    "bert_768l": _sizes(768, 128, 2),
    "bert_tiny": _sizes(4, 64, 2),
}
_SCALED: Dict[str, Any] = {"dslm_init": "dslm", "dslm_residual_scaling": True}
_VANILLA: Dict[str, Any] = {"dslm_init": "xavier"}
PRESETS: Dict[str, Dict[str, Any]] = {
    **{f"dslm_{name}": {**size, **_SCALED} for name, size in _SIZES.items()},
    **{f"vanilla_{name}": {**size, **_VANILLA} for name, size in _SIZES.items()},
}
