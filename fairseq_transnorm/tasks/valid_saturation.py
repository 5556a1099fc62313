"""Saturation of a model on the first sentences of a validation set, over all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.logging import metrics
from torch import Tensor, nn

from ..measure.saturation import EncodingSums, Saturation, mean_pair_cosine


class ValidSaturation:
    """One validation set's numbers, as sums that fairseq adds up over batches and processes.

    Args:
        most: sentences of this process that are looked at.
        factor: of all parameters of the saturated network.
    """

    def __init__(self, most: int, factor: float) -> None:
        self.left, self.factor = most, factor
        self.network: Saturation | None = None
        self.units: Tensor | None = None
        self.squares, self.tokens = 0.0, 0

    def __call__(self, model: nn.Module, tokens: Tensor, keep: Tensor) -> dict[str, Any]:
        """Return the sums of a batch for the log of its criterion, 0 when enough sentences have been seen.

        Args:
            model: as trained, alone or wrapped for several processes.
            tokens: ``B T``.
            keep: which of them are no padding, ``B T``.
        """
        if self.network is None:
            self.network = Saturation(unwrapped(model), self.factor)
        if self.left or self.units is None:
            sums = self.network(tokens[: self.left], keep[: self.left])
            self.left -= min(self.left, len(tokens))
            self.units = torch.zeros_like(sums.units) if self.units is None else self.units
        else:  # all processes must log the same sums
            sums = EncodingSums(0.0, torch.zeros_like(self.units), 0.0, 0)
        return {f"sat_{name}": value for name, value in sums._asdict().items()}

    def log(self, logging_outputs: Sequence[dict[str, Any]]) -> None:
        """Log the mean cosine of these batches, and that of all pairs of tokens so far."""
        logs = [log for log in logging_outputs if "sat_tokens" in log]
        tokens = int(sum(log["sat_tokens"] for log in logs))
        if not tokens:
            return
        metrics.log_scalar("sat", float(sum(log["sat_cosines"] for log in logs)) / tokens, tokens, round=4)
        units = sum(log["sat_units"].cpu() for log in logs)
        self.units = units if self.units is None else self.units.cpu() + units
        self.squares += float(sum(log["sat_squares"] for log in logs))
        self.tokens += tokens
        metrics.log_scalar("collapse", mean_pair_cosine(self.units, self.squares, self.tokens), weight=0, round=4)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside the wrappers of parallel training."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model
