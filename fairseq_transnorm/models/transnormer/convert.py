"""Checkpoints of the original TransNormer code to ours and back: files, variants and configs."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.dataclass.configs import FairseqConfig
from omegaconf import OmegaConf
from torch import Tensor

from .build import LOCAL, layer_kinds
from .files import Source, read, write
from .originals import ARCHITECTURES, MLM, ORIGINALS, Original
from .upstream import Layout, Sizes, find_heads, listed, to_ours, to_theirs

GLU_ACTS = ("identity", "silu")


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

    Weights (those of classification heads too), dropouts, the options of the task (language_modeling or masked_lm) and
    the number of updates are kept; the optimiser's state is not, since its moments are stored in the order of the
    original's parameters.

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
        ValueError: the file cannot be read or is not a t1 or t2 model; tensors at fault are named.
        FileExistsError, FileNotFoundError: as their names say.
    """
    source, target = _check_paths(source, target, overwrite)
    _check_glu_act(glu_act)
    found = read(source, allow_pickle)
    if any(".attn.qkv." in name for name in found.model):
        raise ValueError(f"{source} is one of our checkpoints already; --reverse turns it into one of the original")
    original = next(
        (x for x in ORIGINALS if any(n.startswith(f"{x.family.theirs}.layers.") for n in found.model)), None
    )
    if original is None:
        raise ValueError(
            f"{source}: no tensor is called {' or '.join(f'{x.family.theirs}.layers.0.*' for x in ORIGINALS)}; "
            f"found: {listed(found.model, 8) or 'none at all'}"
        )
    variant = _variant(source, original, found.arch, arch)
    if tokens_per_sample is not None and tokens_per_sample < 1:
        raise ValueError(f"--tokens-per-sample {tokens_per_sample} must be at least 1")
    try:
        # with softmax the original builds the norm of the local attention and does not use it
        unused = variant == original.variants[1]
        state, layout, sizes, dropped = to_ours(found.model, unused, original.family)
        lengths = original.lengths(found.task | found.options, sizes, tokens_per_sample)
        model = _our_options(original, variant, layout, sizes, found.options, lengths, glu_act)
    except ValueError as error:
        raise ValueError(f"{source} does not fit {variant}: {error}") from error
    task = _task_options(original, found, lengths, data, sizes.N)
    write(target, _checkpoint(original, state, model, task, found.updates))
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
    original = next((x for x in ORIGINALS if x.size("embed_dim") in found.options), None)
    if not any(".attn.qkv." in name for name in found.model) or original is None:
        names = " or ".join(x.model for x in ORIGINALS)
        raise ValueError(f"{source} is not a checkpoint of {names} with its config; --reverse needs one")
    options = original.defaults(original.presets.get(str(found.arch), {})) | found.options
    try:
        variant = _their_variant(original, options, glu_act, arch)
        layout, sizes = _their_layout(original, options, found.model)
        state = to_theirs(found.model, layout, sizes, original.family)
    except ValueError as error:
        raise ValueError(f"{source} cannot become one of the original's: {error}") from error
    lengths = {name: found.task.get(name, options.get(name)) for name in original.lengths({}, sizes, None)}
    task = _task_options(original, found, lengths, None, sizes.N)
    model = original.their_options(options, layout, variant)
    write(target, _checkpoint(original, state, model, task, found.updates))
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


def _variant(source: Path, original: Original, stored: str | None, asked: str | None) -> str:
    """Return our preset for the stored architecture and the one that the user named."""
    known, name = original.architectures, asked or stored
    if name is not None and name not in known:
        raise ValueError(f"{source}: architecture {name!r} is not one of {', '.join(known)}; name it with --arch")
    if stored is not None and stored in known and asked is not None and known[stored] != known[asked]:
        raise ValueError(f"{source} says that it is {stored}, --arch says {asked}; leave --arch out")
    if name is None:
        raise ValueError(
            f"{source} does not say its architecture, and t1 and t2 have the same tensors; "
            f"pass --arch, one of {', '.join(known)}"
        )
    return known[name]


def _their_layout(original: Original, options: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Layout, Sizes]:
    """Return what our options and tensors say of the original's."""
    layers, dim = options[original.size("layers")], options[original.size("embed_dim")]
    heads, ffn_dim = options[original.size("attention_heads")], options[original.size("ffn_embed_dim")]
    layout = Layout(
        layers,
        options["ffn"],
        options["layer_norm_type"],
        options["linear_norm"],
        options["local_norm"],
        positions=options["abs_pos"] == "learned",
        heads=find_heads(state),
    )
    prefix = original.family.ours
    return layout, Sizes(
        N=len(state.get(f"{prefix}.embed_tokens.weight", ())),
        D=dim,
        F=ffn_dim if layout.ffn == "classic" else int(options["glu_mult"] * dim),
        K=dim // heads,
        P=len(state.get(f"{prefix}.embed_positions.embedding.weight", ())),
    )


def _their_variant(original: Original, options: Mapping[str, Any], glu_act: str, asked: str | None) -> str:
    """Return the original's architecture that computes what our options say."""
    acts, (t1, t2) = (options["linear_act"], options["local_act"]), original.variants
    variant = {("elu", "relu"): t1, ("1+elu", "softmax"): t2}.get(acts)
    if variant is None:
        raise ValueError(
            f"linear_act {acts[0]} with local_act {acts[1]} is neither t1 (elu, relu) nor t2 (1+elu, softmax)"
        )
    if asked is not None and original.architectures.get(asked) != variant:
        raise ValueError(f"it is {variant}, --arch says {asked}; leave --arch out")
    layers, heads = options[original.size("layers")], options[original.size("attention_heads")]
    kinds = layer_kinds(str(options["layer_split"]), str(options["layer_order"]), layers, original.side)
    bad = [f"{name}={options[name]} (not {value})" for name, value in original.fixed.items() if options[name] != value]
    if [kind == LOCAL for kind in kinds] != [i < layers // 2 for i in range(layers)]:
        bad.append(f"layers {','.join(kinds)} (not the first half local)")
    if options["linear_attention_heads"] not in (None, heads):
        bad.append(f"linear_attention_heads={options['linear_attention_heads']} (not {heads})")
    if options["abs_pos"] not in (original.abs_pos, "none"):
        bad.append(f"abs_pos={options['abs_pos']} (not {original.abs_pos} or none)")
    bad += [f"{name}=none" for name in ("linear_norm", "layer_norm_type") if options[name] == "none"]
    if (options["local_norm"] == "none") != (variant == t2):
        bad.append(f"local_norm={options['local_norm']}")
    if bad:
        raise ValueError(f"{variant} of the original differs in {'; '.join(bad)}")
    if options["ffn"] == "glu" and options["glu_act"].replace("swish", "silu") != glu_act:
        raise ValueError(
            f"its gate is {options['glu_act']}, the original's code would compute {glu_act}; pass --glu-act silu if it "
            "is meant for code from before 2022-10-28, which computed that"
        )
    return variant


def _our_options(
    original: Original,
    variant: str,
    layout: Layout,
    sizes: Sizes,
    stored: Mapping[str, Any],
    lengths: Mapping[str, Any],
    glu_act: str,
) -> dict[str, Any]:
    """Return the fields of our config: sizes from the tensors, the rest as stored or from the preset.

    Raises:
        ValueError: a stored option contradicts the tensors or cannot be kept.
    """
    told = {
        original.size("embed_dim"): sizes.D,
        original.size("layers"): layout.layers,
        original.size("attention_heads"): sizes.D // sizes.K,
        **original.told,
    }
    if wrong := [f"{x}={stored[x]} (not {y})" for x, y in told.items() if stored.get(x) not in (None, y)]:
        raise ValueError(f"its stored options are not those of its tensors: {listed(wrong)}")
    model = original.defaults(original.presets[variant]) | {"_name": variant}
    kept = told | {name: stored[name] for name in original.same if stored.get(name) is not None} | dict(lengths)
    model |= {name: value for name, value in kept.items() if name in model}
    model |= {"layer_norm_type": layout.layer_norm, "linear_norm": layout.linear_norm, "local_norm": layout.local_norm}
    absent = not layout.positions if original is MLM else stored.get("no_token_positional_embeddings")
    model |= {"abs_pos": "none" if absent else original.abs_pos, "ffn": layout.ffn}
    if original is MLM or layout.ffn == "classic":  # the masked-LM head has it too
        model["activation_fn"] = stored.get("activation_fn") or model["activation_fn"]
    if layout.ffn == "classic":
        model[original.size("ffn_embed_dim")] = sizes.F
    else:
        # for other widths than the usual ones: half a channel more, against rounding
        shares = [model["glu_mult"], sizes.F / sizes.D, (sizes.F + 0.5) / sizes.D]
        model |= {"glu_act": glu_act, "glu_mult": next(x for x in shares if int(x * sizes.D) == sizes.F)}
    # a stranger's file gave these values: check them against the types of our fields
    typed = OmegaConf.merge(OmegaConf.structured(original.config), model)
    return typing.cast(dict[str, Any], OmegaConf.to_container(typed, enum_to_str=True))


def _task_options(
    original: Original, found: Source, lengths: Mapping[str, Any], data: str | Path | None, symbols: int
) -> dict[str, Any]:
    # the task's own fields; those with an interpolation as default are other sections' (seed, batch size, ...)
    names = [f.name for f in fields(original.task_config) if not str(f.default).startswith("${")]
    task = {x: found.task[x] for x in names if isinstance(found.task.get(x), (bool, int, str))}
    task |= {"_name": original.task} | {name: value for name, value in lengths.items() if name in names}
    if data is not None:
        if not (path := Path(data) / "dict.txt").is_file():
            raise FileNotFoundError(f"--data {data}: no {path}; give a folder written by fairseq-preprocess")
        there = len(Dictionary.load(str(path))) + (original is MLM)  # <mask>
        if there != symbols:
            raise ValueError(f"--data {data}: its dictionary has {there} symbols, the checkpoint {symbols}")
        task["data"] = str(data)
    return task


def _checkpoint(
    original: Original, state: dict[str, Tensor], model: dict[str, Any], task: dict[str, Any], updates: int
) -> dict[str, Any]:
    """Return what fairseq saves, with its defaults for what has nothing to do with the model."""
    config = OmegaConf.structured(FairseqConfig)
    config.model = model
    config.task = OmegaConf.merge(OmegaConf.structured(original.task_config), task)
    history = {
        "criterion_name": original.criterion,
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
        + (f", {sizes.P - 2} positions" if sizes.P else "")
        + (f", classification heads {', '.join(layout.heads)}" if layout.heads else "")
    )


def _gate(layout: Layout, glu_act: str) -> str:
    if layout.ffn == "classic":
        return "no gate, --glu-act is not used"
    if glu_act == "identity":
        return "gate: identity, as in the released code; for a checkpoint from before 2022-10-28 pass --glu-act silu"
    return f"gate: {glu_act}, as in the original before 2022-10-28"
