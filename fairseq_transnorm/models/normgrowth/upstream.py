"""Tensors of the original code's language models under our names, and back.

The original has one matrix a head for queries, keys and values, ``encoder.layer{l}.heads.head{h}.query`` and so on; we
have one for all. Its ``vaswani`` has torch's own encoder. Its words are numbered from 0, without the symbols that
fairseq's dictionaries begin with; its positions from 0, ours from behind the padding's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SPECIAL_SYMBOLS = 4  # of fairseq's dictionaries: <s>, <pad>, </s>, <unk>
FIRST_POSITION = 2  # of fairseq's positions: behind that of <pad>
NEVER = -1e9  # bias of a symbol that the original does not have
_KINDS = ("weight", "bias")
_PROJECTIONS = ("query", "key", "value")
# ours -> the original's, in a layer; vaswani's second
_LAYER = {
    "attn.out": ("heads.pooler", "self_attn.out_proj"),
    "attn_norm": ("heads.lnorm", "norm1"),
    "ffn.inner": ("ff.net.0", "linear1"),
    "ffn.out": ("ff.net.2", "linear2"),
    "ffn_norm": ("ff.lnorm", "norm2"),
}


def from_upstream_state_dict(
    state: Mapping[str, Tensor], rows: Sequence[int] | None = None, num_symbols: int | None = None
) -> dict[str, Tensor]:
    """Return our state dict of ``normgrowth_lm`` for one of the original code.

    Args:
        state: the original's tensors.
        rows: number of each of its words in our dictionary; by default they follow the four special symbols.
        num_symbols: size of our dictionary; by default the largest row and one. A symbol that the original does not
            have gets a zero embedding and is never predicted (without a classifier bias its logit is 0).

    Raises:
        ValueError: a tensor is missing or unknown, or the rows do not fit.
    """
    left = dict(state)
    words = _take(left, "embed.weight")
    rows = range(SPECIAL_SYMBOLS, SPECIAL_SYMBOLS + len(words)) if rows is None else rows
    if len(rows) != len(words) or len(set(rows)) != len(rows) or min(rows) < 0:
        raise ValueError(f"{len(words)} words need as many different rows from 0 on, not {len(rows)}")
    size = max(rows) + 1 if num_symbols is None else num_symbols
    if size <= max(rows):
        raise ValueError(f"a dictionary of {size} symbols has no row {max(rows)}")
    positions = _take(left, "pos_embed.weight")
    ours = {
        "decoder.embed_tokens.weight": _spread(words, rows, size),
        "decoder.embed_positions.embedding.weight": torch.cat(
            [positions.new_zeros(FIRST_POSITION, positions.shape[1]), positions]
        ),
        "decoder.output_projection.weight": _spread(_take(left, "classifier.weight"), rows, size),
    }
    if "classifier.bias" in left:
        ours["decoder.output_projection.bias"] = _spread(left.pop("classifier.bias"), rows, size, NEVER)
    for layer in range(_count_layers(state)):
        ours |= _layer_from(left, layer)
    if left:
        raise ValueError(f"unknown tensors of the original: {', '.join(sorted(left)[:5])}")
    return ours


def to_upstream_state_dict(
    state: Mapping[str, Tensor], num_heads: int, rows: Sequence[int] | None = None, vaswani: bool = False
) -> dict[str, Tensor]:
    """Return the original's state dict for one of ours; the inverse of ``from_upstream_state_dict``.

    Args:
        state: our tensors of ``normgrowth_lm`` with learned positions.
        num_heads: heads H.
        rows: number in our dictionary of each of its words; by default all but the four special symbols.
        vaswani: name the layers as torch's encoder does.

    Raises:
        ValueError: a tensor is missing or unknown to the original.
    """
    left = dict(state)
    left.pop("decoder.version", None)
    embedding = _take(left, "decoder.embed_tokens.weight")
    chosen = list(range(SPECIAL_SYMBOLS, len(embedding)) if rows is None else rows)
    theirs = {
        "embed.weight": embedding[chosen],
        "pos_embed.weight": _take(left, "decoder.embed_positions.embedding.weight")[FIRST_POSITION:],
        "classifier.weight": _take(left, "decoder.output_projection.weight")[chosen],
    }
    if "decoder.output_projection.bias" in left:
        theirs["classifier.bias"] = left.pop("decoder.output_projection.bias")[chosen]
    for layer in sorted({int(found[1]) for name in left if (found := re.match(r"decoder\.layers\.(\d+)\.", name))}):
        theirs |= _layer_to(left, layer, num_heads, vaswani)
    if left:
        raise ValueError(f"the original has nothing for {', '.join(sorted(left)[:5])}")
    return theirs


def _layer_from(left: dict[str, Tensor], layer: int) -> dict[str, Tensor]:
    ours, prefix = {}, f"decoder.layers.{layer}."
    vaswani = f"encoder.layers.{layer}.linear1.weight" in left
    old = f"encoder.layers.{layer}." if vaswani else f"encoder.layer{layer}."
    for kind in _KINDS:
        if vaswani:
            joined = left.pop(f"{old}self_attn.in_proj_{kind}", None)
        else:
            joined = _join_heads(left, old, kind)
        if joined is not None:
            ours[f"{prefix}attn.qkv.{kind}"] = joined
        elif kind == "weight":
            raise ValueError(f"the original's state dict lacks the attention of layer {layer}")
        for new, names in _LAYER.items():
            name = f"{old}{names[vaswani]}.{kind}"
            if kind == "weight" or name in left:
                ours[f"{prefix}{new}.{kind}"] = _take(left, name)
    return ours


def _join_heads(left: dict[str, Tensor], old: str, kind: str) -> Tensor | None:
    heads = sum(name.startswith(f"{old}heads.head") and name.endswith(f".query.{kind}") for name in left)
    parts = [_take(left, f"{old}heads.head{h}.{name}.{kind}") for name in _PROJECTIONS for h in range(heads)]
    return torch.cat(parts) if parts else None


def _layer_to(left: dict[str, Tensor], layer: int, num_heads: int, vaswani: bool) -> dict[str, Tensor]:
    theirs, prefix = {}, f"decoder.layers.{layer}."
    new = f"encoder.layers.{layer}." if vaswani else f"encoder.layer{layer}."
    for kind in _KINDS:
        joined = left.pop(f"{prefix}attn.qkv.{kind}", None)
        if joined is not None and vaswani:
            theirs[f"{new}self_attn.in_proj_{kind}"] = joined
        elif joined is not None:
            places = [(name, h) for name in _PROJECTIONS for h in range(num_heads)]
            for (name, h), part in zip(places, joined.chunk(3 * num_heads), strict=True):
                theirs[f"{new}heads.head{h}.{name}.{kind}"] = part.clone()
        for ours, names in _LAYER.items():
            if kind == "weight" or f"{prefix}{ours}.{kind}" in left:
                theirs[f"{new}{names[vaswani]}.{kind}"] = _take(left, f"{prefix}{ours}.{kind}")
    return theirs


def _count_layers(state: Mapping[str, Tensor]) -> int:
    return len({found[1] for name in state if (found := re.match(r"encoder\.layers?\.?(\d+)\.", name))})


def _spread(tensor: Tensor, rows: Sequence[int], size: int, fill: float = 0.0) -> Tensor:
    spread = tensor.new_full((size, *tensor.shape[1:]), fill)
    spread[list(rows)] = tensor
    return spread


def _take(left: dict[str, Tensor], name: str) -> Tensor:
    if name not in left:
        raise ValueError(f"no tensor {name!r}; there are {', '.join(sorted(left)[:5])}")
    return left.pop(name)
