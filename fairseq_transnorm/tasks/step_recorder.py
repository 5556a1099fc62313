"""What single updates do to a model's parameters, measured and written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..measure.growth_log import GrowthLog, Record
from ..measure.parameters import Layer, by_layer, model_vector, norm, norm_and_dot, select, step_of, step_sums

_FLOOR = 1e-9  # keeps the cosine with a gradient of 0 at 0


class StepRecorder:
    """Compares the parameters of a scope before and after an update.

    One copy of them is kept for it, from the first measured update on.

    Args:
        model: the model itself, not the wrapper of several processes.
        path: the file for the records.
        scope: of :func:`fairseq_transnorm.measure.parameters.select`.
        layers, tensors: whether records have those of each layer and parameter.
    """

    def __init__(self, model: nn.Module, path: Path, scope: str, *, layers: bool, tensors: bool) -> None:
        own = dict(model.named_parameters())
        self.path, self.scope, self.tensors = path, scope, tensors
        self.parameters = {name: own[name] for name in select(model_vector(model), scope)}
        self.layers = {layer: list(found) for layer, found in by_layer(self.parameters).items()} if layers else {}
        self.copies: dict[str, Tensor] = {}

    def start(self, updates: int, epoch: int, lr: float) -> None:
        """Open the file; the first record is that of the parameters as they are."""
        self.log = GrowthLog(self.path, updates, self.scope)
        if self.log.last is None:
            record = self._about(updates, epoch, lr) | {"norm": norm(self.parameters)}
            norms = [
                _place(layer) | {"norm": norm({name: self.parameters[name] for name in names})}
                for layer, names in self.layers.items()
            ]
            self.log.write(record | ({"layers": norms} if norms else {}))

    @torch.no_grad()
    def before(self) -> None:
        """Look at parameters and gradients before an update; what has no gradient counts as having one of 0."""
        if not self.copies:
            self.copies = {name: torch.empty_like(p) for name, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            self.copies[name].copy_(parameter)
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self.gradient_norm, self.gradient_product = norm_and_dot(gradients, self.parameters)

    @torch.no_grad()
    def after(self, updates: int, epoch: int, lr: float) -> dict[str, float]:
        """Write the record of the update that was made since; return what fairseq's log is to show.

        Args:
            updates: their number with this one.
            epoch: that of training.
            lr: learning rate of this update.
        """
        sums = {name: step_sums(self.copies[name], p) for name, p in self.parameters.items()}
        step = step_of(sums.values())
        shown = {
            "norm": step.norm_after,
            "step_norm": step.step_norm,
            "product": step.product,
            "direction_cosine": step.direction_cosine,
            "alignment": step.alignment,
            "gradient_norm": self.gradient_norm,
            "gradient_product": self.gradient_product,
            "gradient_cosine": self.gradient_product / (step.norm_before * self.gradient_norm + _FLOOR),
        }
        record = self._about(updates, epoch, lr) | shown | {"norm_before": step.norm_before}
        if self.layers:
            record["layers"] = []
        for layer, names in self.layers.items():
            part = step_of(sums[name] for name in names)
            record["layers"].append(
                _place(layer)
                | {"norm": part.norm_after, "step_norm": part.step_norm, "product": part.product}
                | {"direction_cosine": part.direction_cosine, "alignment": part.alignment}
            )
            shown[f"norm_{layer.stack}_{layer.number}"] = part.norm_after
        if self.tensors:
            parts = {name: step_of([sums[name]]) for name in sums}
            record["tensors"] = {name: [s.norm_before, s.step_norm, s.product] for name, s in parts.items()}
        self.log.write(record)
        return shown

    def _about(self, updates: int, epoch: int, lr: float) -> Record:
        return {"updates": updates, "epoch": epoch, "lr": lr, "scope": self.scope}


def _place(layer: Layer) -> dict[str, Any]:
    return {"stack": layer.stack, "layer": layer.number}
