"""Dropout whose random numbers are cheap: 16 bits each, where torch's own spends a whole draw on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 2**16


def dropout(x: Tensor, probability: float, training: bool = True) -> Tensor:
    """Return ``x`` with each number 0 with the probability, the others grown so that the mean stays.

    The probability is rounded to a multiple of 1/65536, at least one. On a CPU this takes a quarter of the time of
    torch's own, and one more number of memory for each of ``x``.
    """
    if not training or not probability:
        return x
    steps = max(1, round(probability * STEPS))
    kept = x.new_empty(x.shape)
    if x.device.type == "cpu":
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        torch.ge(draws[: x.numel()].view(x.shape), steps - STEPS // 2, out=kept)
    else:
        torch.ge(torch.rand_like(kept, dtype=torch.float32), steps / STEPS, out=kept)
    return x * kept.mul_(STEPS / (STEPS - steps))
