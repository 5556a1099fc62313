"""How saturated a network is: how far its representations are those of the network with ever larger parameters.

Source: Merrill et al. 2021, arXiv:2010.09697, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .hidden_states import HiddenStates, States
from .scaling import SATURATED, ScaledNetwork

_FLOOR = 1e-9  # keeps the cosine of two zero vectors at 0


def token_cosines(a: Float[Tensor, "B T D"], b: Float[Tensor, "B T D"]) -> Float[Tensor, "B T"]:
    """Return ``<a, b> / (|a| |b| + 1e-9)`` of each token, in float64."""
    a, b = a.double(), b.double()
    sizes = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    return (a * b).sum(-1) / (sizes + _FLOOR)


def mean_pair_cosine(units: Float[Tensor, " D"], squares: float, tokens: int) -> float | None:
    """Return the mean cosine of two different tokens, 1 where all point the same way; None for fewer than two tokens.

    All pairs at once: the squared length of the sum of the unit vectors is the sum over all pairs, those of a token
    with itself included.

    Args:
        units: sum of the tokens' unit vectors.
        squares: sum of their squared lengths, which are 1, or 0 for a token that is a zero vector.
        tokens: how many.
    """
    return (float(units.square().sum()) - squares) / (tokens * (tokens - 1)) if tokens > 1 else None


class EncodingSums(NamedTuple):
    """Sums over the tokens of a batch, for means over several.

    Attributes:
        cosines: of the cosines between ``f(x; theta)`` and ``f(x; c theta)``.
        units: of the unit vectors of ``f(x; theta)``, float64.
        squares: of the squared lengths of these.
        tokens: how many tokens.
    """

    cosines: float
    units: Float[Tensor, " D"]
    squares: float
    tokens: int


class Saturation:
    """Compares the encodings ``f(x; theta)`` and ``f(x; c theta)``, what the classifier reads, batch by batch.

    Args:
        model: what ``HiddenStates`` can read; it must not be trained meanwhile.
        c: factor that stands for infinity.
    """

    def __init__(self, model: nn.Module, c: float = SATURATED) -> None:
        states = HiddenStates(model)
        self.plain, self.saturated = ScaledNetwork(states, 1.0), ScaledNetwork(states, c)

    def __call__(self, tokens: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> EncodingSums:
        """Return the sums of one batch, over the tokens to ``keep`` (those that are no padding)."""
        plain, saturated = (self._encodings(network(tokens), keep) for network in (self.plain, self.saturated))
        units = F.normalize(plain, dim=-1)
        cosines = float(token_cosines(plain, saturated).sum())
        return EncodingSums(cosines, units.sum(0), float(units.square().sum()), len(units))

    @staticmethod
    def _encodings(states: States, keep: Bool[Tensor, "B T"]) -> Float[Tensor, "n D"]:
        return states.encodings[keep].double()
