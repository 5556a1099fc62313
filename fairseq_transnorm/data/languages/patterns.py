"""Matrices of queries and keys from which attention targets are made; rows are queries, all are Bool.

>>> import torch
>>> codes = torch.tensor([[2, 1, 2]])
>>> (equal(codes) & earlier(codes)).int().tolist()
[[[0, 0, 0], [0, 0, 0], [1, 0, 0]]]
>>> placed(torch.tensor([[1, 2, 0]])).int().tolist()
[[[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def equal(values: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Return where the key has the value of the query."""
    return values[:, None, :] == values[:, :, None]


def less(values: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Return where the key has less than the query."""
    return values[:, None, :] < values[:, :, None]


def greater(values: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Return where the key has more than the query."""
    return values[:, None, :] > values[:, :, None]


def earlier(values: Int[Tensor, "B T"]) -> Bool[Tensor, "T T"]:
    """Return where the key stands before the query, whatever their values."""
    T = values.shape[1]
    return torch.ones(T, T, dtype=torch.bool, device=values.device).tril(-1)


def first(values: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Return which positions have a value that none before them has."""
    return ~(equal(values) & earlier(values)).any(-1)


def placed(places: Int[Tensor, "B T"]) -> Bool[Tensor, "B T T"]:
    """Return where the query is the place of the key."""
    return torch.arange(places.shape[1], device=places.device)[:, None] == places[:, None, :]
