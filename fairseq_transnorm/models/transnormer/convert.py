"""Checkpoints of the original TransNormer code to ours and back: files, variants and configs."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from fairseq.tasks.language_modeling import LanguageModelingConfig
from omegaconf import OmegaConf
from torch import Tensor

from .build import LOCAL, layer_kinds
from .config import PRESETS, TransNormerLMConfig
from .files import Source, read, write
from .upstream import Layout, Sizes, listed, to_ours, to_theirs

# the original's architecture -> our preset; t1 and t2 have the same tensors
ARCHITECTURES = {
    "transnormer_t1": "transnormer_t1",
    "transnormer_t2": "transnormer_t2",
    "norm_glu_lm_base_pure_rms_urpe_1d3": "transnormer_t1",
    "norm_glu_lm_base_pure_rms_urpe_1d3_softmax_1+elu": "transnormer_t2",
}
T1, T2 = "transnormer_t1", "transnormer_t2"
GLU_ACTS = ("identity", "silu")
DEFAULT_TOKENS = 512  # of a sample, when nothing says how many: the paper's
# Options that the original's two architectures fix and that its tensors do not show.
FIXED = {
    "block_size": 64,
    "lrpe": "1d3",
    "lrpe_layers": "both",
    "glu_final_act": "identity",
    "norm_eps": None,
    "norm_eps_inside": False,
    "attention_denominator": False,
    "post_norm": False,
    "layernorm_embedding": False,
    "untied_output": False,
}
SAME = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "max_target_positions",
    "no_scale_embedding",
    "tokens_per_sample",
)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    arch: str | None = None,
    glu_act: str = "identity",
    data: str | Path | None = None,
    tokens_per_sample: int | None = None,
    overwrite: bool = False,
    allow_pickle: bool = False,
) -> list[str]:
    """Turn a checkpoint or bare state dict of the original code into a checkpoint of ours.

    Weights, dropouts, the language modelling task's options and the number of updates are kept; the optimiser's state
    is not, since its moments are stored in the order of the original's parameters.

    Args:
        source, target: files.
        arch: the original's architecture; needed for a bare state dict.
        glu_act: what the original computed as gate, ``identity`` (released code) or ``silu`` (before 2022-10-28).
        data: binarised data folder to store; its dictionary must fit. Default: the stored one.
        tokens_per_sample: length to store; default: the stored one, else 512.
        overwrite: replace ``target``.
        allow_pickle: load files that hold other Python objects than plain configs. Such a file can run any code.

    Returns:
        Lines that say what was done.

    Raises:
        ValueError: the file cannot be read or is not a t1 or t2 language model; tensors at fault are named.
        FileExistsError, FileNotFoundError: as their names say.
    """
    source, target = _check_paths(source, target, overwrite)
    _check_glu_act(glu_act)
    found = read(source, allow_pickle)
    if any(".attn.qkv." in name for name in found.model):
        raise ValueError(f"{source} is one of our checkpoints already; --reverse turns it into one of the original")
    if any(name.startswith("encoder.") for name in found.model):
        raise ValueError(
            f"{source} is not a causal language model (it has encoder.* tensors); only those are converted"
        )
    variant = _variant(source, found.arch, arch)
    if tokens_per_sample is not None and tokens_per_sample < 1:
        raise ValueError(f"--tokens-per-sample {tokens_per_sample} must be at least 1")
    try:
        # with softmax the original builds the norm of the local attention and does not use it
        state, layout, sizes, dropped = to_ours(found.model, local_norm_unused=variant == T2)
        model = _our_options(variant, layout, sizes, found.options, glu_act)
    except ValueError as error:
        raise ValueError(f"{source} does not fit {variant}: {error}") from error
    model |= _lengths(model, tokens_per_sample)
    write(target, _checkpoint(state, model, _task_options(found, model, data, sizes.N), found.updates))
    lines = [_summary(source, variant, layout, sizes), _gate(layout, glu_act)]
    if found.arch not in (None, *ARCHITECTURES):
        lines.append(f"its stored architecture {found.arch} is unknown here, --arch decides")
    return [*lines, f"dropped: {listed([*dropped, 'optimizer state'])}", f"wrote {target}"]


def revert(
    source: str | Path,
    target: str | Path,
    *,
    arch: str | None = None,
    glu_act: str = "identity",
    overwrite: bool = False,
    allow_pickle: bool = False,
) -> list[str]:
    """Turn a checkpoint of ours into one of the original's newest code; arguments and result as in ``convert``.

    Raises:
        ValueError: the model has an option that neither t1 nor t2 has, or that the original would not notice.
        FileExistsError, FileNotFoundError: as their names say.
    """
    source, target = _check_paths(source, target, overwrite)
    _check_glu_act(glu_act)
    found = read(source, allow_pickle)
    if not any(".attn.qkv." in name for name in found.model) or not found.options:
        raise ValueError(f"{source} is not a checkpoint of transnormer_lm with its config; --reverse needs one")
    options = _defaults(PRESETS.get(str(found.arch), {})) | found.options
    try:
        variant = _our_variant(options, glu_act, arch)
        layout = Layout(
            options["decoder_layers"],
            options["ffn"],
            options["layer_norm_type"],
            options["linear_norm"],
            options["local_norm"],
        )
        classic, dim = layout.ffn == "classic", options["decoder_embed_dim"]
        sizes = Sizes(
            N=len(found.model.get("decoder.embed_tokens.weight", ())),
            D=dim,
            F=options["decoder_ffn_embed_dim"] if classic else int(options["glu_mult"] * dim),
            K=dim // options["decoder_attention_heads"],
        )
        state = to_theirs(found.model, layout, sizes)
    except ValueError as error:
        raise ValueError(f"{source} cannot become one of the original's: {error}") from error
    model = {
        "_name": variant,
        "arch": variant,
        "decoder_embed_dim": dim,
        "decoder_input_dim": dim,
        "decoder_output_dim": dim,
        "decoder_layers": layout.layers,
        "decoder_attention_heads": options["decoder_attention_heads"],
        "decoder_ffn_embed_dim": options["decoder_ffn_embed_dim"],
        "activation_fn": options["activation_fn"],
        "decoder_normalize_before": True,
        "no_token_positional_embeddings": options["abs_pos"] == "none",
        "share_decoder_input_output_embed": True,
        **{name: options[name] for name in SAME},
    }
    write(target, _checkpoint(state, model, _task_options(found, model, None, sizes.N), found.updates))
    lines = [_summary(source, variant, layout, sizes), "dropped: optimizer state", f"wrote {target}"]
    other = {"ffn": "glu", "layer_norm_type": "simplermsnorm", "linear_norm": "simplermsnorm"}
    if told := [f"{name}={options[name]}" for name, usual in other.items() if options[name] != usual]:
        lines.insert(1, f"set these in the original's own options too: {', '.join(told)}")
    return lines


def _check_paths(source: str | Path, target: str | Path, overwrite: bool) -> tuple[Path, Path]:
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise FileNotFoundError(f"no file {source}; beside it: {sorted(x.name for x in source.parent.glob('*.pt'))}")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} for {target.name}; make it first")
    if target.is_dir() or (target.exists() and target.samefile(source)):
        raise FileExistsError(f"{target} is {'a folder' if target.is_dir() else 'the input'}; name another file")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; pass --overwrite to replace it")
    return source, target


def _check_glu_act(glu_act: str) -> None:
    if glu_act not in GLU_ACTS:
        raise ValueError(f"--glu-act {glu_act!r}: the original computed one of {', '.join(GLU_ACTS)}")


def _variant(source: Path, stored: str | None, asked: str | None) -> str:
    """Return our preset for the stored architecture and the one that the user named."""
    name = asked or stored
    if name is not None and name not in ARCHITECTURES:
        raise ValueError(
            f"{source}: architecture {name!r} is not one of {', '.join(ARCHITECTURES)}; name it with --arch"
        )
    if stored in ARCHITECTURES and asked is not None and ARCHITECTURES[stored] != ARCHITECTURES[asked]:
        raise ValueError(f"{source} says that it is {stored}, --arch says {asked}; leave --arch out")
    if name is None:
        raise ValueError(
            f"{source} does not say its architecture, and t1 and t2 have the same tensors; "
            f"pass --arch, one of {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _our_variant(options: Mapping[str, Any], glu_act: str, asked: str | None) -> str:
    """Return the original's architecture that computes what our options say."""
    acts = (options["linear_act"], options["local_act"])
    variant = {("elu", "relu"): T1, ("1+elu", "softmax"): T2}.get(acts)
    if variant is None:
        raise ValueError(
            f"linear_act {acts[0]} with local_act {acts[1]} is neither t1 (elu, relu) nor t2 (1+elu, softmax)"
        )
    if asked is not None and ARCHITECTURES.get(asked) != variant:
        raise ValueError(f"it is {variant}, --arch says {asked}; leave --arch out")
    layers, heads = options["decoder_layers"], options["decoder_attention_heads"]
    kinds = layer_kinds(str(options["layer_split"]), str(options["layer_order"]), layers)
    bad = [f"{name}={options[name]} (not {value})" for name, value in FIXED.items() if options[name] != value]
    if [kind == LOCAL for kind in kinds] != [i < layers // 2 for i in range(layers)]:
        bad.append(f"layers {','.join(kinds)} (not the first half local)")
    if options["linear_attention_heads"] not in (None, heads):
        bad.append(f"linear_attention_heads={options['linear_attention_heads']} (not {heads})")
    if options["abs_pos"] == "learned":
        bad.append("abs_pos=learned (not sinusoidal or none)")
    bad += [f"{name}=none" for name in ("linear_norm", "layer_norm_type") if options[name] == "none"]
    if (options["local_norm"] == "none") != (variant == T2):
        bad.append(f"local_norm={options['local_norm']}")
    if bad:
        raise ValueError(f"{variant} of the original differs in {'; '.join(bad)}")
    if options["ffn"] == "glu" and options["glu_act"].replace("swish", "silu") != glu_act:
        raise ValueError(
            f"its gate is {options['glu_act']}, the original's code would compute {glu_act}; pass --glu-act silu if it "
            "is meant for code from before 2022-10-28, which computed that"
        )
    return variant


def _defaults(preset: Mapping[str, Any]) -> dict[str, Any]:
    values = {f.name: f.default for f in fields(TransNormerLMConfig) if f.name != "_name"}
    return values | {"tokens_per_sample": DEFAULT_TOKENS, "max_target_positions": None} | dict(preset)


def _our_options(variant: str, layout: Layout, sizes: Sizes, stored: Mapping[str, Any], glu_act: str) -> dict[str, Any]:
    """Return the fields of ``TransNormerLMConfig``: sizes from the tensors, the rest as stored or from the preset.

    Raises:
        ValueError: a stored option contradicts the tensors or cannot be kept.
    """
    heads = sizes.D // sizes.K
    told = {"decoder_embed_dim": sizes.D, "decoder_layers": layout.layers, "decoder_attention_heads": heads}
    told |= {"share_decoder_input_output_embed": True, "decoder_normalize_before": True}
    if wrong := [f"{x}={stored[x]} (not {y})" for x, y in told.items() if stored.get(x) not in (None, y)]:
        raise ValueError(f"its stored options are not those of its tensors: {listed(wrong)}")
    model = _defaults(PRESETS[variant]) | {"_name": variant}
    model |= {name: value for name, value in told.items() if name in model}
    model |= {name: stored[name] for name in SAME if stored.get(name) is not None}
    model |= {"layer_norm_type": layout.layer_norm, "linear_norm": layout.linear_norm, "local_norm": layout.local_norm}
    model["abs_pos"] = "none" if stored.get("no_token_positional_embeddings") else "sinusoidal"
    model["ffn"] = layout.ffn
    if layout.ffn == "classic":
        return _typed(
            model | {"decoder_ffn_embed_dim": sizes.F, "activation_fn": stored.get("activation_fn") or "relu"}
        )
    # for other widths than the usual ones: half a channel more, against rounding
    shares = [model["glu_mult"], sizes.F / sizes.D, (sizes.F + 0.5) / sizes.D]
    return _typed(model | {"glu_act": glu_act, "glu_mult": next(x for x in shares if int(x * sizes.D) == sizes.F)})


def _lengths(model: Mapping[str, Any], asked: int | None) -> dict[str, Any]:
    """Return lengths that a model can have: at least as many positions as tokens in a sample; the user's wish wins."""
    tokens, positions = asked or model["tokens_per_sample"], model["max_target_positions"]
    if positions is not None and asked is not None:
        positions = max(positions, tokens)
    elif positions is not None:
        tokens = min(tokens, positions)
    return {"tokens_per_sample": tokens, "max_target_positions": positions}


def _typed(model: dict[str, Any]) -> dict[str, Any]:
    """Check the values that a stranger's file gave against the types of our fields."""
    typed = OmegaConf.merge(OmegaConf.structured(TransNormerLMConfig), model)
    return typing.cast(dict[str, Any], OmegaConf.to_container(typed, enum_to_str=True))


def _task_options(found: Source, model: Mapping[str, Any], data: str | Path | None, symbols: int) -> dict[str, Any]:
    # the task's own fields; those with an interpolation as default are other sections' (seed, batch size, ...)
    names = [f.name for f in fields(LanguageModelingConfig) if not str(f.default).startswith("${")]
    task = {x: found.task[x] for x in names if isinstance(found.task.get(x), (bool, int, str))}
    task |= {"_name": "language_modeling"} | {x: model[x] for x in ("tokens_per_sample", "max_target_positions")}
    if data is not None:
        if not (path := Path(data) / "dict.txt").is_file():
            raise FileNotFoundError(f"--data {data}: no {path}; give a folder written by fairseq-preprocess")
        if (there := len(Dictionary.load(str(path)))) != symbols:
            raise ValueError(f"--data {data}: its dictionary has {there} symbols, the checkpoint {symbols}")
        task["data"] = str(data)
    return task


def _checkpoint(state: dict[str, Tensor], model: dict[str, Any], task: dict[str, Any], updates: int) -> dict[str, Any]:
    """Return what fairseq saves, with its defaults for what has nothing to do with the model."""
    config = OmegaConf.structured(FairseqConfig)
    config.model = model
    config.task = OmegaConf.merge(OmegaConf.structured(LanguageModelingConfig), task)
    history = {
        "criterion_name": "CrossEntropyCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": updates,
    }
    return {
        "args": None,
        "cfg": OmegaConf.to_container(config, resolve=True, enum_to_str=True),
        "model": state,
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
    }


def _summary(source: Path, variant: str, layout: Layout, sizes: Sizes) -> str:
    return (
        f"{source}: {variant}, {layout.layers} layers, width {sizes.D}, {sizes.D // sizes.K} heads, {layout.ffn} "
        f"feed-forward of {sizes.F}, {sizes.N:,} symbols"
    )


def _gate(layout: Layout, glu_act: str) -> str:
    if layout.ffn == "classic":
        return "no gate, --glu-act is not used"
    if glu_act == "identity":
        return "gate: identity, as in the released code; for a checkpoint from before 2022-10-28 pass --glu-act silu"
    return f"gate: {glu_act}, as in the original before 2022-10-28"
