"""A model's parameters as one vector: which of them (the scope), lengths and products, and steps between two vectors.

All sums are taken in float64, a piece of a tensor at a time, so that no float64 copy of a model is ever made: the
direction of a trained model changes by less from one checkpoint to the next than float32 resolves.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

Vector = Mapping[str, Tensor]  # dotted name -> parameter
SCOPES = ("layers", "all", "linear", "matrices")

# fairseq, this package and most others: layers.N; Hugging Face: layer.N, h.N, block.N
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks?|h)\.(\d+)\.")
_STACK = re.compile(r"(?:^|\.)(encoder|decoder)\.")
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:wte|wpe|shared)\.|relative_attention_bias")
# the linear maps of GPT-2 in Hugging Face are stored in x out
_TRANSPOSED = re.compile(r"(?:^|\.)(?:c_attn|q_attn|c_proj|c_fc)\.weight$")
# Numbers that are held in float64 at once: few enough for a processor's cache, or for a GPU to have few calls.
_PIECE, _PIECE_OF_A_GPU = 2**17, 2**24


class Layer(NamedTuple):
    """Where a parameter stands: ``encoder``, ``decoder`` or ``model``, and the number of the layer from 1."""

    stack: str
    number: int


def layer_of(name: str) -> Layer | None:
    """Return the layer that a parameter's dotted name belongs to; None outside the layers."""
    if (found := _LAYER.search(name)) is None:
        return None
    before = _STACK.findall(name[: found.start() + 1])
    return Layer(before[-1] if before else "model", int(found[1]) + 1)


def model_vector(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters of a model, tied ones once, detached but not copied."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def select(parameters: Vector, scope: str) -> dict[str, Tensor]:
    """Return the parameters that belong to a scope.

    Args:
        parameters: dotted name -> parameter.
        scope: ``layers``, everything with at least one dimension in the stacks of layers; ``all``, everything with at
            least one dimension; ``linear``, the matrices of linear maps in the layers and after them, classifier
            included, embeddings not; ``matrices``, what has two dimensions in the layers.

    Raises:
        ValueError: the scope is unknown, or nothing belongs to it.
    """
    if scope not in SCOPES:
        raise ValueError(f"unknown scope {scope!r}; known: {', '.join(SCOPES)}")
    chosen = {name: p for name, p in parameters.items() if p.dim() > 0 and _belongs(name, p, scope)}
    if not chosen:
        raise ValueError(f"no parameter belongs to the scope {scope!r}; there are {sorted(parameters)[:8]}")
    return chosen


def _belongs(name: str, parameter: Tensor, scope: str) -> bool:
    if scope == "linear":
        return parameter.dim() == 2 and not _EMBEDDING.search(name)
    return scope == "all" or (layer_of(name) is not None and (scope == "layers" or parameter.dim() == 2))


def by_layer(parameters: Vector) -> dict[Layer, dict[str, Tensor]]:
    """Return the parameters of each layer, in the order of the layers; those outside are left out."""
    found: dict[Layer, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        if (layer := layer_of(name)) is not None:
            found.setdefault(layer, {})[name] = parameter
    return dict(sorted(found.items()))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    size = _PIECE if flat[0].device.type == "cpu" else _PIECE_OF_A_GPU
    for start in range(0, flat[0].numel(), size):
        yield tuple(tensor[start : start + size].double() for tensor in flat)


def dot(first: Vector, second: Vector) -> float:
    """Return the inner product of two vectors with the same names, in float64."""
    parts = [torch.dot(a, b) for name in first for a, b in _pieces(first[name], second[name])]
    return math.fsum(torch.stack(parts).tolist()) if parts else 0.0  # one transfer from a GPU


def norm_and_dot(first: Vector, second: Vector) -> tuple[float, float]:
    """Return the norm of the first of two vectors, and its inner product with the second, reading both once."""
    parts = [
        torch.stack([torch.dot(a, a), torch.dot(a, b)]) for name in first for a, b in _pieces(first[name], second[name])
    ]
    square, product = torch.stack(parts).sum(0).tolist() if parts else (0.0, 0.0)
    return math.sqrt(square), product


def norm(parameters: Vector) -> float:
    """Return the 2-norm, in float64."""
    return math.sqrt(dot(parameters, parameters))


def smallest_rms(parameters: Vector) -> float:
    """Return the least root mean square of the entries of a matrix, over the parameters with two dimensions.

    Raises:
        ValueError: there are no matrices.
    """
    sizes = [norm({name: p}) / math.sqrt(p.numel()) for name, p in parameters.items() if p.dim() == 2 and p.numel()]
    if not sizes:
        raise ValueError(f"no matrices among {sorted(parameters)[:8]}")
    return min(sizes)


def linear_column_norm(parameters: Vector) -> float:
    """Return the mean 2-norm of a column of the linear maps (out x in), over all columns of all of them.

    A column holds what one input feature is multiplied with, so wide maps weigh more. GPT-2's maps in Hugging Face's
    library, which are in x out, are known by their names.

    Args:
        parameters: those of the scope ``linear``.
    """
    columns = [
        torch.linalg.vector_norm(p.detach(), dim=1 if _TRANSPOSED.search(name) else 0, dtype=torch.float64)
        for name, p in parameters.items()
    ]
    return float(torch.cat(columns).mean())


class Step(NamedTuple):
    """What a step delta from theta to theta' did, all 2-norms.

    Attributes:
        norm_before, norm_after: of theta and theta'.
        step_norm: of delta = theta' - theta.
        product: theta . delta.
        direction_cosine: cos(theta, theta'), kappa.
        alignment: cos(theta, delta), alpha; 0 where nothing moved.
    """

    norm_before: float
    norm_after: float
    step_norm: float
    product: float
    direction_cosine: float
    alignment: float


def step_between(before: Vector, after: Vector) -> Step:
    """Compare two vectors with the same names; nothing is taken from differences of large sums.

    Source: Merrill et al. 2021, arXiv:2010.09697, section 3.
    """
    return step_of(step_sums(before[name], after[name]) for name in before)


def step_sums(before: Tensor, after: Tensor) -> tuple[float, float, float, float]:
    """Return theta . theta, theta' . theta', delta . delta and theta . delta of one parameter, in float64."""
    parts = []
    for a, b in _pieces(before, after):
        delta = b - a
        parts.append(torch.stack([torch.dot(x, y) for x, y in ((a, a), (b, b), (delta, delta), (a, delta))]))
    first, second, moved, product = torch.stack(parts).sum(0).tolist() if parts else (0.0,) * 4
    return first, second, moved, product


def step_of(sums: Iterable[tuple[float, float, float, float]]) -> Step:
    """Join parts of a vector, each with its theta . theta, theta' . theta', delta . delta and theta . delta."""
    first, second, moved, product = (math.fsum(parts) for parts in zip(*sums, strict=True))
    rho, rho_after, size = math.sqrt(first), math.sqrt(second), math.sqrt(moved)
    # theta . theta' = theta . theta + theta . delta
    kappa = (first + product) / (rho * rho_after) if rho and rho_after else 0.0
    return Step(rho, rho_after, size, product, kappa, product / (rho * size) if rho and size else 0.0)
