"""Options and presets of the TransNormer models."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from omegaconf import II

from ...modules.activations import ACTIVATIONS
from ...modules.linear_attention import CAUSAL_FORMS
from ...modules.local_attention import SOFTMAX
from ...modules.lrpe import LRPE_KINDS
from ...modules.masked_lm import POOLINGS
from ...modules.norms import NORMS

ACTIVATION = ChoiceEnum(list(ACTIVATIONS))
LOCAL_ACTIVATION = ChoiceEnum([SOFTMAX, *ACTIVATIONS])
NORM = ChoiceEnum(list(NORMS))
LRPE_KIND = ChoiceEnum(["none", *LRPE_KINDS])
LRPE_LAYERS = ChoiceEnum(["both", "linear", "local"])
LAYER_ORDER = ChoiceEnum(["local_first", "linear_first"])
ABSOLUTE_POSITIONS = ChoiceEnum(["sinusoidal", "learned", "none"])
FEED_FORWARD = ChoiceEnum(["glu", "classic"])
POOLING = ChoiceEnum(list(POOLINGS))
CAUSAL_FORM = ChoiceEnum(list(CAUSAL_FORMS))


@dataclass
class DecoderSizes(FairseqDataclass):
    """Sizes of the language model."""

    decoder_embed_dim: int = field(default=512, metadata={"help": "model width D, in channels"})
    decoder_layers: int = field(default=6, metadata={"help": "number of layers L"})
    decoder_attention_heads: int = field(default=8, metadata={"help": "attention heads H; must divide D"})
    decoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "width of the classic feed-forward"})


@dataclass
class EncoderSizes(FairseqDataclass):
    """Sizes of the masked language model."""

    encoder_embed_dim: int = field(default=768, metadata={"help": "model width D, in channels"})
    encoder_layers: int = field(default=12, metadata={"help": "number of layers L"})
    encoder_attention_heads: int = field(default=12, metadata={"help": "attention heads H; must divide D"})
    encoder_ffn_embed_dim: int = field(default=3072, metadata={"help": "width of the classic feed-forward"})


@dataclass
class LayerOptions(FairseqDataclass):
    """What both models choose for their layers; the defaults are t2's."""

    linear_attention_heads: Optional[int] = field(
        default=None, metadata={"help": "heads of the linear layers, when not those of all"}
    )
    layer_split: str = field(
        default="0.5",
        metadata={"help": "share of layers with local attention, rounded down; or each layer's kind: local,linear,..."},
    )
    layer_order: LAYER_ORDER = field(
        default="local_first", metadata={"help": "which kind comes first when --layer-split is a share"}
    )
    linear_act: ACTIVATION = field(default="1+elu", metadata={"help": "feature map of q and k in linear layers"})
    local_act: LOCAL_ACTIVATION = field(default="softmax", metadata={"help": "map of the scores in local layers"})
    linear_norm: NORM = field(default="simplermsnorm", metadata={"help": "norm of the linear attention's output"})
    local_norm: NORM = field(default="none", metadata={"help": "norm of the local attention's output"})
    layer_norm_type: NORM = field(
        default="simplermsnorm", metadata={"help": "norm around the sublayers and at the end"}
    )
    norm_eps: Optional[float] = field(
        default=None,
        metadata={"help": "eps of all norms; default 1e-8 for rms norms, 1e-5 for scalenorm and layernorm"},
    )
    norm_eps_inside: bool = field(default=False, metadata={"help": "put eps under the root in the rms norms"})
    attention_denominator: bool = field(
        default=False,
        metadata={
            "help": "divide linear attention by the sum of its weights (plain linear attention); needs --lrpe none"
        },
    )
    block_size: int = field(default=64, metadata={"help": "positions a block of local attention"})
    lrpe: LRPE_KIND = field(
        default="1d3", metadata={"help": "relative positions of q and k: rotation by learned (d) or fixed angles"}
    )
    lrpe_layers: LRPE_LAYERS = field(default="both", metadata={"help": "layers that use --lrpe"})
    abs_pos: ABSOLUTE_POSITIONS = field(default="sinusoidal", metadata={"help": "positions added to the embedding"})
    ffn: FEED_FORWARD = field(default="glu", metadata={"help": "gated or classic feed-forward"})
    glu_act: ACTIVATION = field(
        default="silu", metadata={"help": "activation of the gate; the original's released code computed identity"}
    )
    glu_mult: float = field(default=8 / 3, metadata={"help": "gated feed-forward width over D, product rounded down"})
    glu_final_act: ACTIVATION = field(default="identity", metadata={"help": "activation of the gated output"})
    activation_fn: ACTIVATION = field(default="relu", metadata={"help": "activation of the classic feed-forward"})
    dropout: float = field(default=0.1, metadata={"help": "dropout after the embedding and each sublayer"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout of local attention weights"})
    activation_dropout: float = field(default=0.0, metadata={"help": "dropout inside the feed-forward"})
    small_init_embedding: bool = field(default=False, metadata={"help": "draw embeddings from N(0, (1e-5)^2)"})
    untied_output: bool = field(default=False, metadata={"help": "output projection of its own, not the embedding"})
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "keep layer inputs only and compute the rest again in the backward pass"}
    )


@dataclass
class TransNormerLMConfig(LayerOptions, DecoderSizes):
    """The defaults are the paper's t2 language model on WikiText-103."""

    causal_impl: CAUSAL_FORM = field(
        default="chunk",
        metadata={"help": "how causal linear attention is computed; same numbers, 'fla' needs a GPU and fla-core"},
    )
    chunk_length: int = field(default=64, metadata={"help": "positions a chunk of --causal-impl chunk"})
    post_norm: bool = field(default=False, metadata={"help": "norm after each residual sum instead of before it"})
    layernorm_embedding: bool = field(default=False, metadata={"help": "LayerNorm on the embedding"})
    no_scale_embedding: bool = field(default=False, metadata={"help": "do not multiply embeddings by sqrt(D)"})
    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: Optional[int] = II("task.max_target_positions")


@dataclass
class TransNormerMLMConfig(LayerOptions, EncoderSizes):
    """The defaults are the paper's t2 masked language model on WikiText-103."""

    max_positions: int = field(default=512, metadata={"help": "most tokens of a sample, with <s> and </s>"})
    abs_pos: ABSOLUTE_POSITIONS = field(default="learned", metadata={"help": "positions added to the embedding"})
    activation_fn: ACTIVATION = field(
        default="gelu", metadata={"help": "activation of the classic feed-forward and of the masked-LM head"}
    )
    attention_dropout: float = field(default=0.1, metadata={"help": "dropout of local attention weights"})
    pre_norm: bool = field(
        default=False, metadata={"help": "norm before each sublayer and at the end, instead of after each residual sum"}
    )
    no_layernorm_embedding: bool = field(default=False, metadata={"help": "no LayerNorm on the embedding"})
    scale_embedding: bool = field(default=False, metadata={"help": "multiply embeddings by sqrt(D)"})
    pooling: POOLING = field(
        default="first",
        metadata={"help": "what a classification head reads: the first token, <s>, or the mean of all tokens"},
    )
    pooler_activation_fn: ACTIVATION = field(
        default="tanh", metadata={"help": "activation of the classification heads"}
    )
    pooler_dropout: float = field(default=0.0, metadata={"help": "dropout before both maps of a classification head"})
    load_checkpoint_heads: bool = field(
        default=False, metadata={"help": "also load classification heads that only the checkpoint has"}
    )


T1 = {"linear_act": "elu", "local_act": "relu", "local_norm": "simplermsnorm"}
PRESETS: dict = {
    "transnormer_t1": T1,
    "transnormer_t2": {},
    "transnormer_lm_tiny": {
        "decoder_embed_dim": 64,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "block_size": 16,
        "chunk_length": 16,
    },
}
MLM_PRESETS: dict = {
    "roberta_transnormer_t1": T1,
    "roberta_transnormer_t2": {},
    "transnormer_mlm_tiny": {
        "encoder_embed_dim": 64,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "block_size": 16,
    },
}
