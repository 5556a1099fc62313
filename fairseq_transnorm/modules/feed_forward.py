"""Feed-forward sublayers, each in two stages: what lies between them is kept, the rest computed again."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .activations import get_activation
from .linear import Linear
from .recompute import by_segments, in_parts, recompute

Dropout = Callable[..., Tensor]  # of numbers, probability and whether there is any: F.dropout, or a faster one


class TwoStageFeedForward(nn.Module):
    """A feed-forward sublayer as ``narrow(widen(x))``."""

    dropout: float

    def widen(self, x: Tensor) -> Tensor:
        """Return the wide hidden channels, before the activation."""
        raise NotImplementedError

    def narrow(self, hidden: Tensor, drop: Dropout = F.dropout) -> Tensor:
        """Return the sublayer's output from what ``widen`` returned; ``drop`` makes dropout."""
        raise NotImplementedError

    def forward(
        self, x: Float[Tensor, "B T D"], before: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Return the sublayer's output, keeping x and the wide channels for the backward pass.

        Args:
            x: input of the sublayer, or of ``before``.
            before: what comes first and is cheap enough to compute again: the sublayer's norm.
        """

        def run(rows: Tensor) -> Tensor:
            wide = recompute(lambda rows: self.widen(rows if before is None else before(rows)), rows)
            return recompute(self.narrow, wide, random=self.training and self.dropout > 0)

        return in_parts(run, x)


class GatedFeedForward(TwoStageFeedForward):
    """``final((act(x W1^T + b1) * (x W2^T + b2)) W3^T + b3)``; W1 and W2 stand in one matrix, W1 first.

    Args:
        dim: model width D.
        hidden: width F of the gated product; TransNormer takes ``int(8/3 D)``.
        activation: of the gate; ``silu`` in the paper, ``identity`` in the original's released code.
        dropout: on the gate.
        final_activation: of the output.

    Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU, here with biases).
    """

    def __init__(
        self, dim: int, hidden: int, activation: str = "silu", dropout: float = 0.0, final_activation: str = "identity"
    ) -> None:
        super().__init__()
        self.activation = get_activation(activation)
        self.final_activation = get_activation(final_activation)
        self.gate_and_value = Linear(dim, 2 * hidden)
        self.out = Linear(hidden, dim)
        self.dropout = dropout

    def widen(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows twoF"]:
        """Return gate and value, before the activation."""
        return self.gate_and_value(x)

    def narrow(self, hidden: Float[Tensor, "*rows twoF"], drop: Dropout = F.dropout) -> Float[Tensor, "*rows D"]:
        """Return the sublayer's output from what ``widen`` returned."""
        if self.dropout and self.training:
            gate, value = hidden.chunk(2, dim=-1)
            product = drop(self.activation(gate), self.dropout) * value
        else:
            rows = hidden.flatten(0, -2)
            product = by_segments(self._product, (rows,)).view(*hidden.shape[:-1], -1)
        return self.final_activation(self.out(product))

    def _product(self, hidden: Tensor) -> Tensor:
        gate, value = hidden.chunk(2, dim=-1)
        return self.activation(gate) * value


class FeedForward(TwoStageFeedForward):
    """``act(x W1^T + b1) W2^T + b2``.

    Args:
        dim: model width D.
        hidden: width F.
        activation: between the two maps.
        dropout: after the activation.
        bias: whether there are b1 and b2.
    """

    def __init__(
        self, dim: int, hidden: int, activation: str = "relu", dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.activation = get_activation(activation)
        self.inner = Linear(dim, hidden, bias)
        self.out = Linear(hidden, dim, bias)
        self.dropout = dropout

    def widen(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows F"]:
        """Return the hidden channels, before the activation."""
        return self.inner(x)

    def narrow(self, hidden: Float[Tensor, "*rows F"], drop: Dropout = F.dropout) -> Float[Tensor, "*rows D"]:
        """Return the sublayer's output from what ``widen`` returned."""
        return self.out(drop(self.activation(hidden), self.dropout, self.training))
