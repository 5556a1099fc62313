"""Probes of a model on its task, for the log of its training and for its checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.utils import apply_to_sample
from torch import nn

from ..measure.memory_probes import memories_of, weight_probes
from ..measure.parameters import Vector, norm

Batch = dict[str, Any]


def task_probes(model: nn.Module, task: Any, cutoff: int) -> dict[str, float | None]:
    """Return the weight probes of a model for its task.

    Args:
        model: not wrapped.
        task: ``bigram_icl``.
        cutoff: of :func:`weight_probes`.
    """
    bigram = torch.from_numpy(task.statistics.bigram)
    return weight_probes(memories_of(model), task.fixed_triggers, bigram, cutoff)


def held_out_batches(task: Any, options: Any, device: torch.device) -> list[Batch]:
    """Return the sequences of the first validation set, in batches as those of validation.

    Args:
        task: ``bigram_icl``; the set is made where it is not there yet.
        options: fairseq's of data sets.
        device: where the batches go.
    """
    data = data_of(task, options.valid_subset.split(",")[0])
    sizes = [options.batch_size_valid, (options.max_tokens_valid or 0) // data.length]
    rows = min([size for size in sizes if size] or [1])
    parts = (range(start, min(start + rows, len(data))) for start in range(0, len(data), rows))
    batches = (data.collater(data.__getitems__(part)) for part in parts)
    return [apply_to_sample(lambda tensor: tensor.to(device), batch) for batch in batches]


def has_counter(task: Any, split: str, least: int) -> bool:
    """Return whether a sequence of a split has a counter of ``least`` or more; mostly the first one tells."""
    data = data_of(task, split)
    return any(int(data[index]["counters"].max()) >= least for index in range(len(data)))


def data_of(task: Any, split: str) -> Any:
    """Return the data set of a split, which is made where it is not there yet."""
    if split not in task.datasets:
        task.load_dataset(split)
    return task.datasets[split]


def parameter_norms(model: nn.Module) -> dict[str, float]:
    """Return ``norm_<name>``, the 2-norm of each parameter that is trained now."""
    return {f"norm_{name}": norm({name: parameter}) for name, parameter in trained(model).items()}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Return ``gradnorm_<name>``, those of their gradients; one that has none counts as 0."""
    gradients = {name: {} if p.grad is None else {name: p.grad} for name, p in trained(model).items()}
    return {f"gradnorm_{name}": norm(gradient) for name, gradient in gradients.items()}


def trained(model: nn.Module) -> Vector:
    """Return the parameters that are trained now."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
