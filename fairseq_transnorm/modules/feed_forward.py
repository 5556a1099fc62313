"""Feed-forward sublayers."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .activations import get_activation


class GatedFeedForward(nn.Module):
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
        self.gate_and_value = nn.Linear(dim, 2 * hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        gate = F.dropout(self.activation(gate), self.dropout, self.training)
        return self.final_activation(self.out(gate * value))


class FeedForward(nn.Module):
    """``act(x W1^T + b1) W2^T + b2``.

    Args:
        dim: model width D.
        hidden: width F.
        activation: between the two maps.
        dropout: after the activation.
    """

    def __init__(self, dim: int, hidden: int, activation: str = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = get_activation(activation)
        self.inner = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)
        self.dropout = dropout

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.out(F.dropout(self.activation(self.inner(x)), self.dropout, self.training))
