"""Tensor names of the original TransNormer code and of ours: one table, read in both directions. Plain torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int | str, ...]  # letters stand for the sizes in ``Sizes``
State = Mapping[str, Tensor]

# norm -> name of each of its tensors, here and in the original, and the tensor's shape
NORM_TENSORS: dict[str, dict[str, tuple[str, Shape]]] = {
    "simplermsnorm": {},
    "rmsnorm": {"scale": ("scale", ("D",))},
    "gatedrmsnorm": {"scale": ("scale", ("D",)), "gate": ("gate", ("D",))},
    "scalenorm": {"scale": ("scala", ())},
    "layernorm": {"weight": ("weight", ("D",)), "bias": ("bias", ("D",))},
}
# name in the original -> the norm that has it, the most telling first
TELLING = {"gate": "gatedrmsnorm", "scale": "rmsnorm", "scala": "scalenorm", "weight": "layernorm", "bias": "layernorm"}


@dataclass(frozen=True)
class Rule:
    """Our tensor ``ours`` is the original's tensors ``theirs`` on top of each other.

    Attributes:
        shape: of each of the original's tensors, in our form; None: any, the same on both sides.
        written: the same in the original's form, where that differs.
        also_read: another shape that some of the original's checkpoints have.
    """

    ours: str
    theirs: tuple[str, ...]
    shape: Shape | None
    written: Shape | None = None
    also_read: Shape | None = None


@dataclass(frozen=True)
class Layout:
    """What decides which tensors there are.

    Attributes:
        layers: number of layers L, of which the first L // 2 are local.
        ffn: ``glu`` or ``classic``.
        layer_norm, linear_norm, local_norm: norm around the sublayers, and inside the two attentions; ``none`` too.
        local_norm_name: the original's name of the last of these.
        positions: there is a table of learned positions.
        heads: names of the classification heads.
    """

    layers: int
    ffn: str = "glu"
    layer_norm: str = "simplermsnorm"
    linear_norm: str = "simplermsnorm"
    local_norm: str = "simplermsnorm"
    local_norm_name: str = "norm"
    positions: bool = False
    heads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Symbols N, width D, feed-forward width F, channels K of a head, rows P of the table of positions."""

    N: int
    D: int
    F: int
    K: int
    P: int = 0

    def of(self, shape: Shape, pieces: int = 1) -> tuple[int, ...]:
        """Turn letters into numbers; ``K/2`` counts channel pairs. ``pieces`` stand on top of each other."""
        sizes = {"N": self.N, "D": self.D, "F": self.F, "K": self.K, "K/2": self.K // 2, "P": self.P}
        found = tuple(x if isinstance(x, int) else sizes[x] for x in shape)
        return found if pieces == 1 else (pieces * found[0], *found[1:])


@dataclass(frozen=True)
class Family:
    """Where a kind of model keeps its layers, and which tensors of the original it does without.

    Attributes:
        theirs, ours: prefix of the layers' names.
        copies: the original's copy of a tied weight -> the tensor that it copies.
        ignored: tensors that carry nothing.
        final_norm: there is a norm after the last layer.
        further: tensors beside layers and embedding.
    """

    theirs: str
    ours: str
    copies: Mapping[str, str]
    ignored: tuple[str, ...]
    final_norm: bool
    further: tuple[Rule, ...] = ()


def _pairs(ours: str, theirs: tuple[str, ...], shape: Shape) -> Iterator[Rule]:
    """Return the rules of a weight and a bias."""
    yield Rule(f"{ours}.weight", tuple(f"{x}.weight" for x in theirs), shape)
    yield Rule(f"{ours}.bias", tuple(f"{x}.bias" for x in theirs), shape[:1])


CAUSAL = Family(
    theirs="decoder",
    ours="decoder",
    copies={"decoder.output_projection.weight": "decoder.embed_tokens.weight"},
    ignored=("decoder.version", "decoder.embed_positions._float_tensor"),
    final_norm=True,
)
_SENTENCE_ENCODER = "encoder.sentence_encoder"
MASKED = Family(
    theirs=_SENTENCE_ENCODER,
    ours="encoder",
    copies={"encoder.lm_head.weight": f"{_SENTENCE_ENCODER}.embed_tokens.weight"},
    ignored=(f"{_SENTENCE_ENCODER}.version",),
    final_norm=False,
    further=(
        *_pairs("encoder.embed_norm", (f"{_SENTENCE_ENCODER}.layernorm_embedding",), ("D",)),
        *_pairs("encoder.head.dense", ("encoder.lm_head.dense",), ("D", "D")),
        *_pairs("encoder.head.norm", ("encoder.lm_head.layer_norm",), ("D",)),
        Rule("encoder.head.bias", ("encoder.lm_head.bias",), ("N",)),
    ),
)
_POSITIONS = "embed_positions.weight"
_HEAD = re.compile(r"classification_heads\.(.+)\.(dense|out_proj)\.(weight|bias)")


def rules(layout: Layout, family: Family) -> list[Rule]:
    """Return the whole table of a model."""
    ours, theirs = family.ours, family.theirs
    table = [Rule(f"{ours}.embed_tokens.weight", (f"{theirs}.embed_tokens.weight",), ("N", "D"))]
    for i in range(layout.layers):
        table += _layer_rules(layout, f"{ours}.layers.{i}", f"{theirs}.layers.{i}", local=i < layout.layers // 2)
    if family.final_norm:
        table += _norm_rules(layout.layer_norm, f"{ours}.norm", f"{theirs}.layer_norm")
    if layout.positions:
        table.append(Rule(f"{ours}.embed_positions.embedding.weight", (f"{theirs}.{_POSITIONS}",), ("P", "D")))
    heads = [f"classification_heads.{x}.{y}" for x in layout.heads for y in ("dense", "out_proj")]
    table += [Rule(f"{x}.{y}", (f"{x}.{y}",), None) for x in heads for y in ("weight", "bias")]
    return table + list(family.further)


def _layer_rules(layout: Layout, ours: str, theirs: str, local: bool) -> Iterator[Rule]:
    attention = f"{theirs}.self_attn"
    projections = tuple(f"{attention}.{x}_proj" for x in "qkv")
    yield from _pairs(f"{ours}.attn.qkv", projections, ("D", "D"))
    yield from _pairs(f"{ours}.attn.out", (f"{attention}.out_proj",), ("D", "D"))
    yield Rule(f"{ours}.attn.lrpe.theta", (f"{attention}.urpe.theta",), ("K/2",), written=(1, 1, "K/2"))
    yield Rule(f"{ours}.attn.lrpe.v", (f"{attention}.urpe.v",), ("K",), also_read=(1, "K", 1))
    if layout.ffn == "glu":
        yield from _pairs(f"{ours}.ffn.gate_and_value", (f"{theirs}.glu.l1", f"{theirs}.glu.l2"), ("F", "D"))
        yield from _pairs(f"{ours}.ffn.out", (f"{theirs}.glu.l3",), ("D", "F"))
    else:
        yield from _pairs(f"{ours}.ffn.inner", (f"{theirs}.fc1",), ("F", "D"))
        yield from _pairs(f"{ours}.ffn.out", (f"{theirs}.fc2",), ("D", "F"))
    yield from _norm_rules(layout.layer_norm, f"{ours}.attn_norm", f"{theirs}.self_attn_layer_norm")
    yield from _norm_rules(layout.layer_norm, f"{ours}.ffn_norm", f"{theirs}.final_layer_norm")
    inner, name = (layout.local_norm, layout.local_norm_name) if local else (layout.linear_norm, "layer_norm")
    yield from _norm_rules(inner, f"{ours}.attn.norm", f"{attention}.{name}")


def _norm_rules(norm: str, ours: str, theirs: str) -> Iterator[Rule]:
    for name, (their_name, shape) in NORM_TENSORS.get(norm, {}).items():
        # the gain of a scalenorm is one number, whatever its shape
        yield Rule(f"{ours}.{name}", (f"{theirs}.{their_name}",), shape, also_read=None if shape else (1,))


def find_layout(names: Iterable[str], local_norm_unused: bool, family: Family) -> Layout:
    """Tell a layout from the names in the original's state dict.

    Args:
        names: of all tensors. Wrong ones are no error here; they will not match the layout.
        local_norm_unused: the variant leaves the norm of the local attention unused (t2).
    """
    names = set(names)
    layers = len({match[1] for x in names if (match := re.match(rf"{re.escape(family.theirs)}\.layers\.(\d+)\.", x))})
    first, last = f"{family.theirs}.layers.0", f"{family.theirs}.layers.{layers - 1}"
    old_name = any(".self_attn.gated_rms_norm." in x for x in names)
    local_norm_name = "gated_rms_norm" if old_name else "norm"
    return Layout(
        layers,
        ffn="classic" if f"{first}.fc1.weight" in names else "glu",
        layer_norm=_find_norm(names, f"{first}.self_attn_layer_norm"),
        linear_norm=_find_norm(names, f"{last}.self_attn.layer_norm"),
        local_norm="none" if local_norm_unused else _find_norm(names, f"{first}.self_attn.{local_norm_name}"),
        local_norm_name=local_norm_name,
        positions=f"{family.theirs}.{_POSITIONS}" in names,
        heads=find_heads(names),
    )


def find_heads(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the classification heads, which are the same on both sides."""
    return tuple(sorted({match[1] for name in names if (match := _HEAD.fullmatch(name))}))


def _find_norm(names: set[str], prefix: str) -> str:
    found = {name[len(prefix) + 1 :] for name in names if name.startswith(f"{prefix}.")}
    return next((norm for name, norm in TELLING.items() if name in found), "simplermsnorm")


def to_ours(
    theirs: State, local_norm_unused: bool, family: Family
) -> tuple[dict[str, Tensor], Layout, Sizes, list[str]]:
    """Rename, reshape and stack the original's tensors; every bit of every number is kept.

    Args:
        theirs: the original's state dict.
        local_norm_unused: as in ``find_layout``.

    Returns:
        Our state dict, the layout and sizes found, and the names of tensors that were dropped.

    Raises:
        ValueError: unknown or missing tensors, wrong shapes, mixed types, or a tied copy that differs; all by name.
    """
    layout = find_layout(theirs, local_norm_unused, family)
    if layout.layers == 0:
        raise ValueError(f"no tensor is called {family.theirs}.layers.0.*; found: {listed(theirs, 8) or 'none at all'}")
    table = rules(layout, family)
    dropped = [name for name in (*family.ignored, *family.copies) if name in theirs]
    if local_norm_unused:
        dropped += [name for name in theirs if _is_unused_norm(name, layout, family)]
    _check_names(set(theirs) - set(dropped), {name for rule in table for name in rule.theirs})
    for copy, original in family.copies.items():
        if copy in theirs and not same_bits(theirs[copy], theirs[original]):
            raise ValueError(
                f"{copy} differs from {original}, of which it should be a copy; "
                "a model with an output projection of its own is neither t1 nor t2"
            )
    ffn = "glu.l1" if layout.ffn == "glu" else "fc1"
    first = f"{family.theirs}.layers.0"
    sizes = Sizes(
        *_matrix_shape(theirs, f"{family.theirs}.embed_tokens.weight"),
        F=_matrix_shape(theirs, f"{first}.{ffn}.weight")[0],
        K=theirs[f"{first}.self_attn.urpe.v"].numel(),
        P=_matrix_shape(theirs, f"{family.theirs}.{_POSITIONS}")[0] if layout.positions else 0,
    )
    _check_shapes(theirs, _their_shapes(table, sizes))
    if sizes.K < 2 or sizes.D % sizes.K:
        raise ValueError(f"heads of {sizes.K} channels (from {first}.self_attn.urpe.v) do not divide width {sizes.D}")
    if layout.positions and sizes.P < 3:
        raise ValueError(f"{family.theirs}.{_POSITIONS} has {sizes.P} rows: no position is left for a token")
    for head in layout.heads:
        inner = _matrix_shape(theirs, f"classification_heads.{head}.out_proj.weight")[1]
        if _matrix_shape(theirs, f"classification_heads.{head}.dense.weight") != (inner, sizes.D):
            raise ValueError(f"wrong shape: classification_heads.{head}.dense.weight is not ({inner}, {sizes.D})")
    mixed = [name for rule in table if len({theirs[x].dtype for x in rule.theirs}) > 1 for name in rule.theirs]
    if mixed:
        raise ValueError(f"tensors that become one have different types: {listed(mixed)}")
    ours = {}
    for rule in table:
        pieces = [theirs[name].detach() for name in rule.theirs]
        if rule.shape is not None:
            pieces = [piece.reshape(sizes.of(rule.shape)) for piece in pieces]
        ours[rule.ours] = torch.cat(pieces) if len(pieces) > 1 else pieces[0].clone()
    return ours, layout, sizes, dropped


def to_theirs(ours: State, layout: Layout, sizes: Sizes, family: Family) -> dict[str, Tensor]:
    """Do the opposite of ``to_ours``, in the names and shapes of the original's newest code.

    The tied copy is written again, and so are the tensors that carry nothing: without ``version`` fairseq would take
    the checkpoint for one of a model that has no final norm.

    Raises:
        ValueError: unknown or missing tensors, or wrong shapes; all by name.
    """
    table = rules(layout, family)
    _check_names(set(ours), {rule.ours for rule in table})
    shapes = {rule.ours: [sizes.of(rule.shape, len(rule.theirs))] for rule in table if rule.shape is not None}
    _check_shapes(ours, shapes)
    theirs: dict[str, Tensor] = {}
    for rule in table:
        whole = ours[rule.ours].detach()
        shape = sizes.of(rule.written or rule.shape) if rule.shape is not None else whole.shape
        pieces = whole.chunk(len(rule.theirs)) if rule.shape else [whole]
        theirs |= {name: piece.reshape(shape).clone() for name, piece in zip(rule.theirs, pieces, strict=True)}
    theirs |= {name: torch.tensor([3.0]) if name.endswith(".version") else torch.zeros(1) for name in family.ignored}
    return theirs | {copy: theirs[original] for copy, original in family.copies.items()}


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are the same to the bit: not-a-number equals itself, 0 differs from -0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(x.detach().contiguous().view(-1).view(torch.uint8) for x in (a, b)))


def listed(names: Iterable[str], most: int = 20) -> str:
    """Join names for a message."""
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _is_unused_norm(name: str, layout: Layout, family: Family) -> bool:
    known = {theirs for norm in NORM_TENSORS.values() for theirs, _ in norm.values()} | {"offset"}
    match = re.fullmatch(
        rf"{re.escape(family.theirs)}\.layers\.(\d+)\.self_attn\.{layout.local_norm_name}\.({'|'.join(known)})", name
    )
    return match is not None and int(match[1]) < layout.layers // 2


def _their_shapes(table: list[Rule], sizes: Sizes) -> dict[str, list[tuple[int, ...]]]:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    for rule in table:
        if rule.shape is None:
            continue
        accepted = [rule.shape if rule.written is None else rule.written]
        accepted += [] if rule.also_read is None else [rule.also_read]
        shapes |= {name: [sizes.of(shape) for shape in accepted] for name in rule.theirs}
    return shapes


def _matrix_shape(state: State, name: str) -> tuple[int, int]:
    if state[name].dim() != 2:
        raise ValueError(f"wrong shape: {name} is {tuple(state[name].shape)}, not a matrix")
    rows, columns = state[name].shape
    return rows, columns


def _check_names(have: set[str], want: set[str]) -> None:
    problems = [
        f"{what}: {listed(names)}"
        for what, names in (("unknown tensors", have - want), ("missing tensors", want - have))
        if names
    ]
    if problems:
        raise ValueError("; ".join(problems))


def _check_shapes(state: State, accepted: Mapping[str, list[tuple[int, ...]]]) -> None:
    wrong = [
        f"{name} is {tuple(state[name].shape)}, not {' or '.join(map(str, shapes))}"
        for name, shapes in accepted.items()
        if tuple(state[name].shape) not in shapes
    ]
    if wrong:
        raise ValueError(f"wrong shapes: {listed(wrong)}")
