"""Checks of options that the models share: each refusal names the flag, the value and what would do."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from fairseq.dataclass import FairseqDataclass

logger = logging.getLogger(__name__)


def flag(name: str) -> str:
    """Return the flag of a config's field."""
    return "--" + name.replace("_", "-")


def check_counts(cfg: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a count below 1."""
    for name in names:
        if cfg[name] < 1:
            raise ValueError(f"{flag(name)} {cfg[name]} must be at least 1")


def check_probabilities(cfg: Any, names: Iterable[str]) -> None:
    """Raise ValueError for a dropout outside [0, 1)."""
    for name in names:
        if not 0 <= cfg[name] < 1:
            raise ValueError(f"{flag(name)} {cfg[name]} is not a probability; use a number from 0 up to below 1")


def check_heads(cfg: Any, name: str, dim_name: str) -> None:
    """Raise ValueError for a number of heads that does not divide the width."""
    heads, dim = cfg[name], cfg[dim_name]
    if heads < 1 or dim % heads:
        near = [n for n in range(1, dim + 1) if dim % n == 0 and n <= 4 * max(heads, 1)]
        raise ValueError(f"{flag(name)} {heads} does not divide {flag(dim_name)} {dim}; use one of {near}")


def check_preset(
    cfg: Any, model: str, presets: Mapping[str, Mapping[str, Any]], config: type[FairseqDataclass]
) -> None:
    """Refuse the name of a preset whose values are not set: fairseq-hydra-train knows names but not presets.

    Raises:
        ValueError: every field of the preset still has the default of the model.
    """
    defaults = {field.name: field.default for field in fields(config)}
    values = presets.get(cfg.get("_name"), {})
    differing = {name: value for name, value in values.items() if value != defaults[name]}
    if differing and all(cfg[name] == defaults[name] for name in values):
        options = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise ValueError(
            f"the preset {cfg._name} is not known to fairseq-hydra-train; write _name: {model} with {options}"
        )


def warn_of_half_preset(
    cfg: Any, model: str, presets: Mapping[str, Mapping[str, Any]], config: type[FairseqDataclass]
) -> None:
    """Warn of a preset's name with defaults in place of its values, as where a YAML file has those of another one."""
    defaults = {field.name: field.default for field in fields(config)}
    values = presets.get(cfg.get("_name"), {})
    if missed := [name for name, value in values.items() if cfg[name] == defaults[name] != value]:
        found = ", ".join(f"{name} {defaults[name]}, not {values[name]}" for name in missed)
        options = ", ".join(f"{name}: {value}" for name, value in values.items())
        logger.warning(
            "%s: the preset %s is named, but the model has %s; fairseq-hydra-train does not know presets: there, write "
            "their values too: %s",
            *(model, cfg._name, found, options),
        )


def check_task_length(cfg: Any, task: Any) -> None:
    """Raise ValueError when the task makes longer samples than ``cfg.max_positions``: fairseq would leave them out."""
    asked = task.max_positions()
    if asked is not None and asked > cfg.max_positions:
        raise ValueError(
            f"--max-positions {cfg.max_positions} is too few for samples of up to {asked} tokens "
            "(--tokens-per-sample of the task); make one of them fit the other"
        )
