"""The checkpoints of one run in order: fairseq's files, or folders of Hugging Face models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checkpoints import read_mapped, trained_names

# What a state dict holds beside parameters: versions, a marker of fairseq's positions, statistics, frequencies.
_NO_PARAMETER = re.compile(r"(?:version|_float_tensor|running_mean|running_var|inv_freq)$")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # or these with .index.json, for weights in several files
# not any number that a name ends in: t5 and gpt2 are no steps, and step_20k is not step 20
_STEP = re.compile(r"(?:.*[-_.])?(?:global_?)?(?:checkpoint|ckpt|step|iter|iteration|update)s?[-_=]?(\d+)", re.I)


class Saved(NamedTuple):
    """What was saved after a number of optimiser updates.

    Attributes:
        updates: at the time of saving.
        paths: files, or folders of Hugging Face models, which should hold the same; the first is the one to read.
    """

    updates: int
    paths: list[Path]


class Series(NamedTuple):
    """Checkpoints that hold the same parameters, by their updates.

    Attributes:
        saved: one for each number of updates.
        names: the parameters, tied ones once.
        unreadable: what is wrong with each that cannot be read.
        note: how the parameters were told from the rest where the model could not be built; else None.
    """

    saved: list[Saved]
    names: list[str]
    unreadable: list[str]
    note: str | None


def find_checkpoints(path: Path) -> list[Path]:
    """Return the checkpoints that a path names.

    Args:
        path: a file of fairseq-train's, a folder of such files, a folder of a Hugging Face model, or a folder of such
            folders, whose names tell the step: ``checkpoint-500``, ``step1000``, ``step-1000``, ``iter_500``.

    Raises:
        FileNotFoundError: none is there.
    """
    if path.is_file() or _is_hugging_face(path):
        return [path]
    if path.is_dir():
        if files := sorted(path.glob("checkpoint*.pt")):
            return files
        if folders := sorted(folder for folder in path.iterdir() if folder.is_dir() and _is_hugging_face(folder)):
            return folders
    place = path if path.is_dir() else path.parent
    there = sorted(p.name for p in place.iterdir())[:12] if place.is_dir() else []
    raise FileNotFoundError(
        f"no checkpoint*.pt and no folders of Hugging Face models in {path}; {place}/ holds {there or 'nothing'}"
    )


def read_checkpoint(path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Return the updates, what has the form of parameters, and all else that the checkpoint holds.

    Numbers stay on disk until somebody looks at them; tensors that are tied come once, whole numbers and single numbers
    not at all.

    Raises:
        ValueError: the file is no checkpoint, is cut, or does not tell its updates.
        OSError: it cannot be read.
        ImportError: safetensors is missing.
    """
    if path.is_dir():
        return _step(path), _parameters(_hugging_face(path)), {}
    state = read_mapped(path)
    try:
        updates = int(state["optimizer_history"][-1]["num_updates"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"checkpoint {path} does not tell its number of updates") from error
    return updates, _parameters(state["model"]), state


def collect(paths: Iterable[Path], data: str | Path | None = None) -> Series:
    """Find the checkpoints in all paths, put them in order and make sure that they are of one model.

    Files with the same updates come by their names, ``checkpoint_best.pt`` and ``checkpoint_last.pt`` as the last.

    Args:
        paths: as of :func:`find_checkpoints`.
        data: data folder with the dictionary, where the one that fairseq's checkpoints name is gone.

    Raises:
        FileNotFoundError: a path has no checkpoints.
        ValueError: two checkpoints are of different models, or none can be read.
        ImportError: safetensors is missing.
    """
    found = [each for path in paths for each in find_checkpoints(path)]
    copies = ("checkpoint_best.pt", "checkpoint_last.pt")
    saved: dict[int, list[Path]] = {}
    unreadable: list[str] = []
    first: tuple[Path, dict[str, torch.Size]] | None = None
    names: list[str] = []
    note = None
    for path in sorted(dict.fromkeys(found), key=lambda p: (p.name in copies, str(p))):
        try:
            updates, parameters, rest = read_checkpoint(path)
        except (OSError, ValueError) as error:
            unreadable.append(str(error))
            continue
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        if first is None:
            first = path, shapes
            trained, note = _trained(path, rest, data)
            names = [name for name in shapes if trained is None or name in trained]
        else:
            _check_same(first, (path, shapes))
        saved.setdefault(updates, []).append(path)
    if first is None:
        raise ValueError("; ".join(unreadable))
    return Series([Saved(*each) for each in sorted(saved.items())], names, unreadable, note)


def _trained(path: Path, state: dict[str, Any], data: str | Path | None) -> tuple[set[str] | None, str | None]:
    """Return the names of the trainable parameters by building the model; or why that fails."""
    if not state:
        return None, None
    try:
        return set(trained_names(path, state, data)), None
    except Exception as error:  # a task or model may raise anything; its parameters can be measured all the same
        return None, f"took for parameters what looks like them, since the model of {path} cannot be built: {error}"


def _parameters(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[tuple[int, torch.Size], tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dim() and tensor.numel() and not _NO_PARAMETER.search(name):
            found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor))
    return dict(found.values())


def _check_same(first: tuple[Path, Mapping[str, Any]], other: tuple[Path, Mapping[str, Any]]) -> None:
    (path, shapes), (other_path, others) = first, other
    if shapes == others:
        return
    name = next(n for n in [*shapes, *others] if shapes.get(n) != others.get(n))
    sizes = [str(tuple(each[name])) if name in each else "missing" for each in (shapes, others)]
    raise ValueError(
        f"{path} and {other_path} are checkpoints of different models: {name} is {sizes[0]} in the first, {sizes[1]} "
        "in the second; measure them as two runs"
    )


def _is_hugging_face(folder: Path) -> bool:
    return any((folder / f"{name}{more}").is_file() for name in _WEIGHTS for more in ("", ".index.json"))


def _step(folder: Path) -> int:
    if (found := _STEP.fullmatch(folder.absolute().name)) is None:
        raise ValueError(f"{folder} does not tell its step; name it like checkpoint-500, step1000 or iter_500")
    return int(found[1])


def _hugging_face(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            if file.suffix == ".safetensors":
                tensors |= _safetensors(file)
            else:
                tensors |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except (OSError, ImportError):
            raise
        except Exception as error:  # each format has errors of its own
            raise ValueError(f"{file} cannot be read, it is cut or no file of weights: {error}") from error
    return tensors


def _weight_files(folder: Path) -> Sequence[Path]:
    name = next(n for n in _WEIGHTS for m in ("", ".index.json") if (folder / f"{n}{m}").is_file())
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    try:
        return [folder / part for part in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} does not say where the weights are: {error!r}") from error


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            f"{file} needs the package safetensors; install it with pip install 'fairseq_transnorm[hf]'"
        ) from error
    return load_file(str(file))
