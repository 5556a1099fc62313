"""Registering models with fairseq: named presets, and configs of older checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.dataclass.utils import merge_with_parent
from fairseq.models import register_model_architecture
from omegaconf import DictConfig, OmegaConf


def register_presets(model: str, config: type[FairseqDataclass], presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Register one ``--arch`` a preset of ``model``; a flag that the user typed wins over the preset.

    fairseq calls an architecture function on a namespace that holds only what the user typed, and again on a
    complete config. Filling what is missing, and only that, is right both times.

    Args:
        model: registered model name.
        config: the model's config dataclass.
        presets: architecture name -> field values that differ from the dataclass defaults.

    Raises:
        KeyError: a preset sets a field that ``config`` lacks.
    """
    names = {field.name for field in fields(config)}
    for arch, values in presets.items():
        if unknown := set(values) - names:
            raise KeyError(f"preset {arch!r} sets {sorted(unknown)}, which {config.__name__} lacks")
        register_model_architecture(model, arch)(_filler(values))


def _filler(values: Mapping[str, Any]) -> Callable[[Any], None]:
    def fill(args: Any) -> None:
        for name, value in values.items():
            if not hasattr(args, name):
                setattr(args, name, value)

    return fill


def complete(cfg: Any, config: type[FairseqDataclass]) -> Any:
    """Return ``cfg`` as an omegaconf config with the fields that an older checkpoint lacks, at their defaults.

    fairseq completes a loaded config by itself only when the model was trained without a preset; from its older entry
    points comes a dataclass.
    """
    return merge_with_parent(config(), cfg) if isinstance(cfg, DictConfig) else OmegaConf.structured(cfg)
