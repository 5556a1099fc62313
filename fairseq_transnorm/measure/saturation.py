"""How saturated a network is: how far its representations are those of the network with ever larger parameters.

Source: Merrill et al. 2021, arXiv:2010.09697, section 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
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


class SaturationSums(NamedTuple):
    """Sums over the tokens of some batches, for means over more of them.

    Attributes:
        hidden: sum of the cosines of each hidden state, the embedding first.
        encodings: sum of the cosines of what the classifier reads.
        tokens: how many tokens.
    """

    hidden: list[float]
    encodings: float
    tokens: int

    def __add__(self, other: SaturationSums) -> SaturationSums:  # type: ignore[override]
        hidden = [a + b for a, b in zip(self.hidden, other.hidden, strict=True)]
        return SaturationSums(hidden, self.encodings + other.encodings, self.tokens + other.tokens)


class Saturation:
    """Cosines between ``f(x; theta)`` and ``f(x; c theta)``, token by token, for as many batches as one likes.

    Args:
        model: what ``HiddenStates`` can read.
        c: factor that stands for infinity.
        scale_positions: see ``ScaledNetwork``.
    """

    def __init__(self, model: nn.Module, c: float = SATURATED, scale_positions: bool = False) -> None:
        states = model if isinstance(model, HiddenStates) else HiddenStates(model)
        self.plain = ScaledNetwork(states, 1.0)
        self.saturated = ScaledNetwork(states, c, scale_positions=scale_positions)

    def __call__(self, tokens: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"]) -> SaturationSums:
        """Return the sums of one batch, over the tokens to ``keep`` (those that are no padding)."""
        plain: States = self.plain(tokens)
        saturated: States = self.saturated(tokens)
        hidden = [float(token_cosines(a, b)[keep].sum()) for a, b in zip(plain.hidden, saturated.hidden, strict=True)]
        return SaturationSums(
            hidden, float(token_cosines(plain.encodings, saturated.encodings)[keep].sum()), int(keep.sum())
        )
