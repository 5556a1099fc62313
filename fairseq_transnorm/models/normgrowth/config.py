"""Options and presets of the norm-growth language models."""

from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ...modules.growth_attention import AXES, MASKS, QKV_INITS, WEIGHT_MAPS
from ...modules.layer import NORM_PLACEMENTS

NORM_PLACEMENT = ChoiceEnum(list(NORM_PLACEMENTS))
ATTENTION_MASK = ChoiceEnum(list(MASKS))
WEIGHT_MAP = ChoiceEnum(list(WEIGHT_MAPS))
ATTENTION_AXIS = ChoiceEnum(list(AXES))
QKV_INIT = ChoiceEnum(list(QKV_INITS))
LAYER_INIT = ChoiceEnum(["independent", "copied"])
POSITIONS = ChoiceEnum(["learned", "sinusoidal"])


@dataclass
class NormGrowthLMConfig(FairseqDataclass):
    """The defaults are the paper's post-norm model, ``normgrowth_control``."""

    decoder_embed_dim: int = field(default=768, metadata={"help": "model width D, in channels"})
    decoder_ffn_embed_dim: int = field(default=512, metadata={"help": "width F of the feed-forward"})
    decoder_layers: int = field(default=12, metadata={"help": "number of layers L"})
    decoder_attention_heads: int = field(default=12, metadata={"help": "attention heads H; must divide D"})
    norm_placement: NORM_PLACEMENT = field(
        default="post",
        metadata={
            "help": "LayerNorm of a sublayer f: post, norm(x + f(x)); res_post, x + norm(f(x)), which the paper calls "
            "pre-norm; pre, x + f(norm(x))"
        },
    )
    final_norm: bool = field(default=False, metadata={"help": "LayerNorm after the last layer"})
    no_scale_scores: bool = field(default=False, metadata={"help": "do not divide attention scores by sqrt(D/H)"})
    no_layer_bias: bool = field(default=False, metadata={"help": "no biases in the linear maps of the layers"})
    no_norm_bias: bool = field(default=False, metadata={"help": "no biases in the LayerNorms"})
    no_classifier_bias: bool = field(default=False, metadata={"help": "no bias in the classifier"})
    attn_mask: ATTENTION_MASK = field(
        default="causal",
        metadata={"help": "causal; or multiplicative, the original's: scores of later positions times 0, a leak"},
    )
    weight_map: WEIGHT_MAP = field(
        default="softmax", metadata={"help": "scores to weights: softmax, or si_norm, x^2 / sum of x^2"}
    )
    attention_axis: ATTENTION_AXIS = field(
        default="time",
        metadata={"help": "time, or batch: over the sequences of a batch without a mask, the original's vaswani"},
    )
    positions: POSITIONS = field(
        default="learned", metadata={"help": "positions added to the embedding: learned, or sinusoidal and constant"}
    )
    layer_init: LAYER_INIT = field(
        default="independent", metadata={"help": "initial weights of the layers: independent, or copied from the first"}
    )
    qkv_init: QKV_INIT = field(
        default="uniform",
        metadata={"help": "of attention: uniform as of any map, or Xavier-uniform q, k, v maps and biases 0"},
    )
    dropout: float = field(default=0.0, metadata={"help": "dropout of each sublayer's output"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "keep layer inputs only and compute the rest again in the backward pass"}
    )
    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: Optional[int] = II("task.max_target_positions")


_RES_POST = {"norm_placement": "res_post"}
_BIAS_FREE = {"no_layer_bias": True, **_RES_POST, "no_scale_scores": True}
_TORCH = {"attention_dropout": 0.1, "activation_dropout": 0.1, "layer_init": "copied", "qkv_init": "xavier"}
# the names that the original code gives its variants
_VARIANTS: Dict[str, Dict[str, Any]] = {
    "control": {},
    "pre_norm": _RES_POST,
    "no_scale": {"no_scale_scores": True},
    "control_rel": {"positions": "sinusoidal"},
    "bias": {**_RES_POST, "no_scale_scores": True},
    "post_ln": {"no_layer_bias": True, "no_scale_scores": True},
    "bias_scaled": _RES_POST,
    "bias_scaled_rel": {**_RES_POST, "positions": "sinusoidal"},
    "si_softmax": _BIAS_FREE,
    "si_softmax_scaled": {"no_layer_bias": True, **_RES_POST},
    "control_drop": {"dropout": 0.1},
    "si_drop": {**_BIAS_FREE, "dropout": 0.1},
    "bias_scaled_drop": {**_RES_POST, "dropout": 0.1},
    "bias_scaled_drop3": {**_RES_POST, "dropout": 0.3},
    "vaswani": {"dropout": 0.1, **_TORCH},
    # ours
    "true_pre_norm": {"norm_placement": "pre"},
    "si_norm": {**_BIAS_FREE, "weight_map": "si_norm"},
}
PRESETS: Dict[str, Dict[str, Any]] = {f"normgrowth_{name}": values for name, values in _VARIANTS.items()}
