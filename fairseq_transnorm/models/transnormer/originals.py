"""The original's two models, as their checkpoints show them: names, fixed options, options that both sides have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.tasks.language_modeling import LanguageModelingConfig
from fairseq.tasks.masked_lm import MaskedLMConfig

from .config import MLM_PRESETS, PRESETS, TransNormerLMConfig, TransNormerMLMConfig
from .upstream import CAUSAL, MASKED, Family, Layout, Sizes

DEFAULT_TOKENS = 512  # of a sample, when nothing says how many: the paper's
# What both models fix and their tensors do not show.
_FIXED = {
    "block_size": 64,
    "lrpe": "1d3",
    "lrpe_layers": "both",
    "glu_final_act": "identity",
    "norm_eps": None,
    "norm_eps_inside": False,
    "attention_denominator": False,
    "untied_output": False,
}


@dataclass(frozen=True)
class Original:
    """One of the original's models and ours in its place.

    Attributes:
        model: our registered model.
        side: ``decoder`` or ``encoder``, in the names of sizes on both sides.
        architectures: the original's architecture -> our preset; t1 and t2 have the same tensors.
        variants: our presets of t1 and t2.
        family: names of tensors.
        config, presets: options of our model.
        task, task_config, criterion: fairseq's, as they stand in a checkpoint.
        fixed: our options that must have these values for the original to compute the same.
        told: the original's options with a set value, where they are stored.
        same: options with one name and meaning on both sides.
        abs_pos: kind of absolute positions, unless there are none.
    """

    model: str
    side: str
    architectures: Mapping[str, str]
    variants: tuple[str, str]
    family: Family
    config: type[FairseqDataclass]
    presets: Mapping[str, Mapping[str, Any]]
    task: str
    task_config: type[FairseqDataclass]
    criterion: str
    fixed: Mapping[str, Any]
    told: Mapping[str, Any]
    same: tuple[str, ...]
    abs_pos: str

    def size(self, name: str) -> str:
        """Return the option of a size, such as ``decoder_layers``."""
        return f"{self.side}_{name}"

    def defaults(self, preset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return all options of our model with the values of a preset."""
        values = {f.name: f.default for f in fields(self.config) if f.name != "_name"}
        if "tokens_per_sample" in values:  # else it is the task's alone
            values |= {"tokens_per_sample": DEFAULT_TOKENS, "max_target_positions": None}
        return values | dict(preset or {})

    def lengths(self, stored: Mapping[str, Any], sizes: Sizes, asked: int | None) -> dict[str, int | None]:
        """Return tokens a sample, and the option that holds the most positions: lengths that a model can have.

        Args:
            stored: options of model and task.
            sizes: of the tensors; a table of positions counts more than any option.
            asked: tokens a sample that the user wants.

        Raises:
            ValueError: the user asks for more than the table of positions has.
        """
        tokens = asked or stored.get("tokens_per_sample") or DEFAULT_TOKENS
        if self.side == "encoder":
            most = sizes.P - 2 if sizes.P else max(tokens, stored.get("max_positions") or DEFAULT_TOKENS)
            if asked is not None and asked > most:
                raise ValueError(f"--tokens-per-sample {asked}, but its table of positions is for {most} tokens")
            return {"tokens_per_sample": min(tokens, most), "max_positions": most}
        most = stored.get("max_target_positions")
        if most is not None and asked is not None:
            most = max(most, tokens)
        elif most is not None:
            tokens = min(tokens, most)
        return {"tokens_per_sample": tokens, "max_target_positions": most}

    def their_options(self, options: Mapping[str, Any], layout: Layout, variant: str) -> dict[str, Any]:
        """Return the options of the original's model that computes what ours with ``options`` does."""
        dim = options[self.size("embed_dim")]
        own = {"decoder_input_dim": dim, "decoder_output_dim": dim} if self.side == "decoder" else {}
        return {
            "_name": variant,
            "arch": variant,
            self.size("embed_dim"): dim,
            self.size("layers"): layout.layers,
            self.size("attention_heads"): options[self.size("attention_heads")],
            self.size("ffn_embed_dim"): options[self.size("ffn_embed_dim")],
            "activation_fn": options["activation_fn"],
            "no_token_positional_embeddings": options["abs_pos"] == "none",
            **own,
            **self.told,
            **{name: options[name] for name in self.same},
        }


_DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
LM = Original(
    model="transnormer_lm",
    side="decoder",
    architectures={
        "transnormer_t1": "transnormer_t1",
        "transnormer_t2": "transnormer_t2",
        "norm_glu_lm_base_pure_rms_urpe_1d3": "transnormer_t1",
        "norm_glu_lm_base_pure_rms_urpe_1d3_softmax_1+elu": "transnormer_t2",
    },
    variants=("transnormer_t1", "transnormer_t2"),
    family=CAUSAL,
    config=TransNormerLMConfig,
    presets=PRESETS,
    task="language_modeling",
    task_config=LanguageModelingConfig,
    criterion="CrossEntropyCriterion",
    fixed=_FIXED | {"post_norm": False, "layernorm_embedding": False},
    told={"share_decoder_input_output_embed": True, "decoder_normalize_before": True},
    same=(*_DROPOUTS, "max_target_positions", "no_scale_embedding", "tokens_per_sample"),
    abs_pos="sinusoidal",
)
MLM = Original(
    model="transnormer_mlm",
    side="encoder",
    architectures={
        "roberta_transnormer_t1": "roberta_transnormer_t1",
        "roberta_transnormer_t2": "roberta_transnormer_t2",
        "roberta_glu_all_rms_layer_ln_rms_urpe_1d3": "roberta_transnormer_t1",
        "roberta_glu_all_rms_layer_ln_rms_urpe_1d3_softmax_1+elu": "roberta_transnormer_t2",
    },
    variants=("roberta_transnormer_t1", "roberta_transnormer_t2"),
    family=MASKED,
    config=TransNormerMLMConfig,
    presets=MLM_PRESETS,
    task="masked_lm",
    task_config=MaskedLMConfig,
    criterion="MaskedLmLoss",
    fixed=_FIXED | {"pre_norm": False, "no_layernorm_embedding": False, "scale_embedding": False, "pooling": "first"},
    told={
        "encoder_normalize_before": False,
        "layernorm_embedding": True,
        "no_scale_embedding": True,
        "untie_weights_roberta": False,
    },
    same=(*_DROPOUTS, "pooler_dropout", "pooler_activation_fn", "max_positions"),
    abs_pos="learned",
)
ORIGINALS = (LM, MLM)
ARCHITECTURES = (*LM.architectures, *MLM.architectures)
