"""Reading checkpoints that others wrote, without running what else may be in them, and writing ours whole."""

from __future__ import annotations

import argparse
import collections
import pickle
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf, base, nodes
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ...whole_file import whole_file
from .upstream import listed

# argparse's and omegaconf's containers and what they are made of; typing.Any is omegaconf's mark of an untyped value.
SAFE: list[Any] = [
    argparse.Namespace,
    DictConfig,
    ListConfig,
    base.ContainerMetadata,
    base.Metadata,
    nodes.AnyNode,
    nodes.StringNode,
    nodes.IntegerNode,
    nodes.FloatNode,
    nodes.BooleanNode,
    typing.Any,
    collections.defaultdict,
    dict,
    list,
    int,
    float,
    str,
    bool,
]


@dataclass
class Source:
    """What a file holds.

    Attributes:
        model: the state dict.
        options, task: stored options of model and task; empty for a bare state dict.
        updates: optimiser updates at the time of saving.
    """

    model: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)
    updates: int = 0

    @property
    def arch(self) -> str | None:
        """Stored name of the architecture."""
        name = self.options.get("_name") or self.options.get("arch")
        return None if name is None else str(name)


def read(path: Path, allow_pickle: bool = False) -> Source:
    """Read a fairseq checkpoint or bare state dict, unpickling nothing but tensors and plain configs.

    Raises:
        ValueError: the file is truncated, refused by the safe loader, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(SAFE):
            stored = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        refused = [line.strip() for line in str(error).splitlines() if "unsupported" in line.lower()]
        if not refused:
            raise ValueError(_broken(path, error)) from error
        raise ValueError(
            f"{path} holds Python objects other than tensors and plain configs ({refused[0][:160]}); loading them can "
            "run any code that its author put there. If you trust the author, pass --allow-pickle; or save only the "
            "entry 'model' where the file was written"
        ) from error
    except ImportError as error:
        raise ValueError(f"{path} holds objects of a package that is not installed: {error}") from error
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(_broken(path, error)) from error
    try:
        return _unpack(stored)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} is neither a fairseq checkpoint nor a state dict: {error}") from error


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Save under another name first, so that ``path`` is whole or not there."""
    with whole_file(path) as unfinished:
        torch.save(checkpoint, unfinished)


def _broken(path: Path, error: Exception) -> str:
    first = (str(error).strip() or "nothing in it").splitlines()[0][:160]
    return (
        f"{path} ({path.stat().st_size:,} bytes) is truncated or was not written by torch.save ({first}); copy it again"
    )


def _unpack(stored: Any) -> Source:
    if not isinstance(stored, Mapping):
        raise ValueError(f"it holds a {type(stored).__name__}")
    model = stored.get("model", stored)
    if not isinstance(model, Mapping):
        raise ValueError(f"its entry 'model' is a {type(model).__name__}")
    if strange := [str(name) for name, x in model.items() if not isinstance(name, str) or not isinstance(x, Tensor)]:
        raise ValueError(f"these entries are not named tensors: {listed(strange)}")
    if model is stored:
        return Source(dict(model))
    updates = (stored.get("optimizer_history") or [{}])[-1].get("num_updates", 0)
    if stored.get("args") is not None:  # written before fairseq had configs: everything in one namespace
        options = task = _plain(stored["args"])
    else:
        config = _plain(stored.get("cfg") or {})
        options, task = _plain(config.get("model") or {}), _plain(config.get("task") or {})
    return Source(dict(model), options, task, int(updates))


def _plain(section: Any) -> dict[str, Any]:
    if isinstance(section, argparse.Namespace):
        return vars(section)
    if OmegaConf.is_config(section):
        return {str(key): section[key] for key in section if not OmegaConf.is_missing(section, key)}
    if not isinstance(section, Mapping):
        raise ValueError(f"a section of its config is a {type(section).__name__}")
    return dict(section)
