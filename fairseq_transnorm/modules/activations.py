"""Pointwise maps, by the names that options and configs use."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .names import look_up

Activation = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    return x


def one_plus_elu(x: Tensor) -> Tensor:
    """1 + ELU(x): x + 1 for x > 0, exp(x) otherwise; never negative."""
    return F.elu(x) + 1


def two_plus_elu(x: Tensor) -> Tensor:
    return F.elu(x) + 2


def squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, Activation] = {
    "elu": F.elu,
    "1+elu": one_plus_elu,
    "2+elu": two_plus_elu,
    "relu": F.relu,
    "squared_relu": squared_relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    # no subtraction of a maximum: one per key would change the keys' relative weights
    "exp": torch.exp,
    "identity": identity,
    "leaky_relu": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "sine": torch.sin,
    "tanh": torch.tanh,
}
NEVER_NEGATIVE = ("1+elu", "2+elu", "relu", "squared_relu", "exp", "sigmoid")


def get_activation(name: str) -> Activation:
    """Return the activation called ``name``.

    Raises:
        ValueError: no such activation; the message names the nearest one.
    """
    return look_up(ACTIVATIONS, name, "activation")
