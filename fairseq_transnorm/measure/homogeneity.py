"""How soon a network becomes the saturated one when its parameters grow, and how homogeneous it is.

A network f is k-homogeneous when ``f(x; c theta) = c^k f(x; theta)``. Those of the norm-growth experiments end in a
LayerNorm (post-norm), or add the outputs of LayerNorms up (``res_post``): they are 1-homogeneous in the limit.

Source: Merrill et al. 2021, arXiv:2010.09697, section 4 and appendix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from fairseq.data import Dictionary
from torch import Tensor, nn

from .checkpoints import Run
from .efficiency import build_model
from .hidden_states import HiddenStates
from .saturated_heads import mask_of
from .scaling import SATURATED, ScaledNetwork

# option values, whatever the variant has; the biases of LayerNorms begin at 0, so that "none" is "no linear" there
BIASES: dict[str, dict[str, bool]] = {
    "all": {"no_layer_bias": False, "no_norm_bias": False},
    "no linear": {"no_layer_bias": True, "no_norm_bias": False},
    "none": {"no_layer_bias": True, "no_norm_bias": True},
}
LINEAR, LOG = "linear", "log"
GRIDS = {  # factors c: the original's, and one up to the network that stands for the limit
    LINEAR: tuple(1 + 9 * k / 19 for k in range(20)),
    LOG: (*(a * 10.0**k for k in range(3) for a in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)), SATURATED),
}
SENTENCES, LENGTH, WORDS = 10, 10, 10  # of the made-up text
PRE_NORM, CONTROL = "pre_norm", "control"
SHOWN = (1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)  # factors of the short table


class Size(NamedTuple):
    """Layers L, model width D, feed-forward width F and heads H of a model."""

    layers: int
    dim: int
    ffn_dim: int
    heads: int


def random_sentences(dictionary: Dictionary, seed: int) -> Tensor:
    """Draw 10 sentences of 10 words from the first 10 words of a dictionary, without special symbols.

    Raises:
        ValueError: the dictionary has no words.
    """
    first, last = dictionary.nspecial, min(len(dictionary), dictionary.nspecial + WORDS)
    if first == last:
        raise ValueError("the dictionary has special symbols only; there are no words to make sentences of")
    return torch.randint(first, last, (SENTENCES, LENGTH), generator=torch.Generator().manual_seed(seed))


def new_model(variant: str, size: Size, seed: int, **options: Any) -> nn.Module:
    """Return a norm-growth model with random weights.

    Args:
        variant: its architecture is ``normgrowth_`` and this.
        seed: of the weights.
        options: by their names in the model's config.
    """
    more = {"decoder_ffn_embed_dim": size.ffn_dim, **options}
    vocabulary = Dictionary().nspecial + WORDS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(f"normgrowth_{variant}", LENGTH, size.dim, size.layers, size.heads, vocabulary, **more)


class Curve:
    """Encodings of one text as one vector ``v(c)``, for networks with all parameters times c.

    Args:
        model: what ``HiddenStates`` can read.
        tokens: ``B T``, without padding.
        scale_positions: see ``ScaledNetwork``.
    """

    def __init__(self, model: nn.Module, tokens: Tensor, scale_positions: bool = False) -> None:
        self.states, self.scale_positions = HiddenStates(model), scale_positions
        self.tokens = tokens
        self.plain, self.saturated = self.vector(1.0), self.vector(SATURATED)

    def vector(self, c: float) -> Tensor:
        """Return ``v(c)`` in float64.

        Raises:
            ValueError: it is not finite.
        """
        vector = ScaledNetwork(self.states, c, None, self.scale_positions)(self.tokens).encodings.double().flatten()
        if not vector.isfinite().all():
            raise ValueError(f"the encodings of the network scaled by {c:g} are not finite")
        return vector

    def at(self, c: float) -> dict[str, float]:
        """Return the cosine of ``v(c)`` and ``v(1000)``, and ``|v(c) - c v(1)| / |c v(1)|``."""
        vector = self.vector(c)
        line = c * self.plain
        return {
            "cosine": float(vector @ self.saturated / (vector.norm() * self.saturated.norm())),
            "relative_error": float((vector - line).norm() / line.norm()),
        }

    def tail_exponent(self) -> float:
        """Return ``log2(|v(2000)| / |v(1000)|)``, the degree k of the limit."""
        return math.log2(float(self.vector(2 * SATURATED).norm() / self.saturated.norm()))


def curve_rows(
    model: nn.Module,
    tokens: Tensor,
    grids: Iterable[str],
    facts: Mapping[str, Any],
    scale_positions: bool = False,
) -> list[dict[str, Any]]:
    """Return one row a grid and factor c: the facts, then ``grid``, ``c``, ``cosine``, ``relative_error``, and the
    ``tail_exponent`` of the model.

    Args:
        grids: names in ``GRIDS``.
        facts: what all rows begin with.
        scale_positions: see ``ScaledNetwork``.
    """
    curve = Curve(model, tokens, scale_positions)
    exponent = curve.tail_exponent()
    return [
        {**facts, "grid": grid, "c": c, **curve.at(c), "tail_exponent": exponent} for grid in grids for c in GRIDS[grid]
    ]


def variant_rows(
    variant: str,
    biases: str,
    mask: str,
    size: Size,
    seed: int,
    device: str = "cpu",
    grids: Sequence[str] = (LINEAR, LOG),
    scale_positions: bool = False,
) -> list[dict[str, Any]]:
    """Measure one norm-growth model at its start; arguments as of ``new_model``, ``BIASES`` and ``curve_rows``."""
    model = new_model(variant, size, seed, attn_mask=mask, **BIASES[biases]).to(device)
    tokens = random_sentences(model.decoder.dictionary, seed).to(device)  # type: ignore[union-attr]
    facts = {"model": variant, "biases": biases, "mask": mask, "seed": seed, **size._asdict()}
    return curve_rows(model, tokens, grids, facts, scale_positions)


def checkpoint_rows(
    label: str, run: Run, seed: int, grids: Sequence[str] = (LINEAR, LOG), scale_positions: bool = False
) -> list[dict[str, Any]]:
    """Measure a trained model, with the biases that it has, on random sentences."""
    tokens = random_sentences(run.task.source_dictionary, seed).to(next(run.model.parameters()).device)
    facts = {"model": label, "biases": "trained", "mask": mask_of(run.model), "seed": seed}
    return curve_rows(run.model, tokens, grids, facts | dict.fromkeys(Size._fields), scale_positions)


Key = tuple[str, str, str]  # model, mask and biases


def lines_of(rows: Iterable[dict[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    """Return the rows of each model, mask and level of biases, all seeds and grids together."""
    found: dict[Key, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["model"], row["mask"], row["biases"]), []).append(row)
    return found


def mean_at(rows: Iterable[dict[str, Any]], c: float, column: str = "cosine") -> float:
    """Return the mean over the seeds at one factor of the grids.

    Raises:
        ValueError: the rows lack that factor.
    """
    found = {row["seed"]: row[column] for row in rows if math.isclose(row["c"], c)}
    if not found:
        raise ValueError(f"the table has no factor c = {c:g}; measure again")
    return sum(found.values()) / len(found)


def violations(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return what new ``control`` and ``pre_norm`` models fail to show, each in a sentence; empty if nothing.

    The cosine is above 0.99 at c = 100; at c = 1 it is above 0.6 for pre_norm and below 0.35 for control; without
    biases it is larger at c = 10 than with all of them; the tail exponent is 1.00.

    Raises:
        ValueError: there are no such models.
    """
    lines = {key: mine for key, mine in lines_of(rows).items() if key[0] in (PRE_NORM, CONTROL) and key[2] in BIASES}
    if not lines:
        raise ValueError(f"nothing to check: there are demands on new {PRE_NORM} and {CONTROL} models only")
    found = []
    for key, mine in lines.items():
        name = ", ".join(key) + " biases"
        found += [f"{name}: {demand}" for demand, met in _demands(key, mine, lines) if not met]
    return found


def _demands(
    key: Key, mine: list[dict[str, Any]], lines: dict[Key, list[dict[str, Any]]]
) -> Iterator[tuple[str, bool]]:
    model, mask, biases = key
    first, exponent = mean_at(mine, 1.0), mean_at(mine, SATURATED, "tail_exponent")
    last = mean_at(mine, 100.0)
    yield f"the cosine at c = 100 is {last:.4f}, not above 0.99", last > 0.99
    if model == PRE_NORM:
        yield f"the cosine at c = 1 is {first:.3f}, not above 0.6", first > 0.6
    else:
        yield f"the cosine at c = 1 is {first:.3f}, not below 0.35", first < 0.35
    yield f"the tail exponent is {exponent:.4f}, not 1.00", abs(exponent - 1) < 0.005
    if biases != "all" and (model, mask, "all") in lines:
        free, biased = mean_at(mine, 10.0), mean_at(lines[model, mask, "all"], 10.0)
        yield f"the cosine at c = 10 is {free:.4f}, not above the {biased:.4f} with biases", free > biased
