"""Loading a training run's checkpoint for measuring, with errors that say what is wrong."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import tasks
from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble_and_task
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY, BaseFairseqModel
from fairseq.tasks import TASK_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

# Registers the package's models, without which fairseq cannot rebuild them.
import fairseq_transnorm  # noqa: F401
from fairseq_transnorm.checkpointing import truncated


@dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to feed it.

    Attributes:
        path: the checkpoint file.
        model: the model in evaluation mode.
        cfg: fairseq's whole training config.
        task: the task, with its dictionary and its data folder.
        updates: optimiser updates at the time of saving.
        epochs: whole epochs at the time of saving.
    """

    path: Path
    model: BaseFairseqModel
    cfg: Any
    task: Any
    updates: int
    epochs: int


def load_run(path: str | Path, data: str | Path | None = None, device: str | torch.device = "cpu") -> Run:
    """Load a checkpoint with its config and task.

    The file goes through torch's safe loader, so a checkpoint cannot run code.

    Args:
        path: a ``.pt`` file written by fairseq-train.
        data: data folder to use instead of the one named in the checkpoint; for the task ``bigram_icl`` a text, or the
            .json of its statistics.
        device: where the model goes.

    Raises:
        FileNotFoundError: no such checkpoint, data folder or dictionary; the message lists what is there.
        ValueError: the file is truncated, is no fairseq checkpoint, or does not fit the dictionary of the data; or the
            device is not there.
    """
    path = Path(path)
    check_device(device)
    state = read_state(path, data)
    task = _set_up_task(path, state["cfg"].task)
    updates = int((state.get("optimizer_history") or [{}])[-1].get("num_updates", 0))
    # fairseq keeps the epoch in which a run goes on
    epochs = (state.get("extra_state") or {}).get("train_iterator", {}).get("epoch", 1) - 1
    try:
        (model,), cfg, task = load_model_ensemble_and_task([str(path)], task=task, state=state)
    except (RuntimeError, KeyError, AssertionError, AttributeError, TypeError) as error:
        raise ValueError(_misfit(path, state, task, error)) from error
    return Run(path, model.eval().to(device), cfg, task, updates, epochs)


def data_folder(run: Run) -> Path:
    """Return the data folder of a run, the first of several.

    Raises:
        ValueError: its task has none, as ``bigram_icl``.
    """
    name = getattr(run.cfg.task, "data", None)
    if not name:
        raise ValueError(
            f"checkpoint {run.path} is of the task {run.cfg.task._name!r}, which has no data folder to take text from; "
            "give one that was trained on text"
        )
    return Path(str(name).split(os.pathsep)[0])


def check_device(device: str | torch.device) -> None:
    """Raise ValueError where a device is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here ({_first_line(error)}); try cpu") from error


def read_state(path: Path, data: str | Path | None = None) -> dict[str, Any]:
    """Read a checkpoint of fairseq's without building its model; arguments and errors as of :func:`load_run`."""
    with _reading(path):
        state = load_checkpoint_to_cpu(str(path), None if data is None else {"data": str(data)})
    if not isinstance(state, dict) or not state.get("model") or not state.get("cfg"):
        raise ValueError(_foreign(path, "no entries 'model' and 'cfg'"))
    known = {"model": {*MODEL_REGISTRY, *ARCH_MODEL_REGISTRY}, "task": set(TASK_REGISTRY)}
    for kind, names in known.items():
        if (name := state["cfg"][kind]._name) not in names:
            raise ValueError(f"checkpoint {path} needs the {kind} {name!r}, which nobody registered; import its plugin")
    if data is not None:
        _set_data(state["cfg"].task, str(data))
    return state


def read_mapped(path: Path) -> dict[str, Any]:
    """Read what a file of fairseq-train's holds, as it is, its tensors left on disk until somebody looks at them.

    So the state of the optimiser costs nothing. The config is a plain dict, or a Namespace ``args`` in older files.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: the file is truncated or is no fairseq checkpoint.
    """
    with _reading(path):
        # files of before torch 1.6 are no archives and cannot be mapped
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not model or not all(isinstance(entry, Tensor) for entry in model.values()):
        raise ValueError(_foreign(path, "no tensors under 'model'"))
    return state


def check_sums(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare tensors with the checksums in their file, which torch's loader does not look at.

    Args:
        path: a file that ``torch.save`` wrote; not every one has checksums.
        tensors: what was read from it, as it is on disk.

    Raises:
        ValueError: a tensor is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        known = {entry.CRC for entry in archive.infolist()}
    if not any(known):  # torch.serialization.set_crc32_options(False)
        return
    for name, tensor in tensors.items():
        stored = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
        if zlib.crc32(stored.numpy().data) not in known:
            raise ValueError(f"checkpoint {path} is damaged: the bytes of {name} do not have their checksum")


def trained_names(path: Path, state: dict[str, Any], data: str | Path | None = None) -> list[str]:
    """Return the names of the trainable parameters of a checkpoint's model, tied ones once, by building that model.

    Args:
        path: the checkpoint, for messages.
        state: of :func:`read_mapped`.
        data: data folder to use instead of the one named in the checkpoint.

    Raises:
        Exception: whatever keeps the model from being built, such as a data folder that is gone.
        ValueError: there is no config, or the file lacks a parameter of the model that is built.
    """
    if not state.get("cfg"):
        raise ValueError(f"checkpoint {path} was written by an older fairseq, without a config")
    config = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
    if data is not None:
        _set_data(config.task, str(data))
    model = _set_up_task(path, config.task).build_model(config.model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if missing := sorted(set(names) - set(state["model"])):
        raise ValueError(f"checkpoint {path} lacks {missing[:3]}, which its model has")
    return names


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a checkpoint into errors that say what is wrong with the file."""
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        beside = sorted(p.name for p in folder.glob("*.pt"))
        what = "a folder, not a checkpoint" if path.is_dir() else "not there"
        raise FileNotFoundError(f"checkpoint {path} is {what}; {folder}/ holds {beside or 'no .pt files'}")
    try:
        # the options of fairseq's models without a config, such as roberta, are a Namespace; it runs no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            yield
    except (PermissionError, ValueError):
        raise  # these name the file themselves, the second in fairseq_transnorm.checkpointing
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(truncated(path)) from error
        refused = [line.strip() for line in str(error).splitlines() if "Unsupported" in line]
        raise ValueError(
            f"checkpoint {path} holds objects that torch's safe loader refuses ({(refused or [str(error)])[0]:.200}); "
            "it was written by an older fairseq, or is not one of fairseq's"
        ) from error
    except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(truncated(path)) from error
        raise ValueError(_foreign(path, f"{type(error).__name__}: {_first_line(error)}")) from error


def _set_data(config: Any, data: str) -> None:
    """Let the task of a config read something else; that of fairseq's own tasks is always called ``data``."""
    kind = TASK_REGISTRY.get(config._name)
    if hasattr(kind, "set_data"):
        kind.set_data(config, data)
    elif "data" in config:
        config.data = data


def _set_up_task(path: Path, config: Any) -> Any:
    # fairseq takes several folders in one string; the first holds the dictionary.
    name = getattr(config, "data", None)
    folder = Path(str(name).split(os.pathsep)[0]) if name else None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(
            f"checkpoint {path} was trained on the data folder {folder}, which is not here; "
            "give the folder with --data (data= in Python)"
        )
    try:
        return tasks.setup_task(config, from_checkpoint=True)
    except (FileNotFoundError, UnicodeError) as error:
        if folder is None:
            raise FileNotFoundError(f"checkpoint {path}: {error}; give it with --data (data= in Python)") from error
        there = sorted(p.name for p in folder.iterdir())[:12]
        raise FileNotFoundError(
            f"data folder {folder} lacks a dictionary that the task {config._name!r} of checkpoint {path} needs "
            f"({error}); it holds {there or 'nothing'}; give a folder written by fairseq-preprocess with --data"
        ) from error


def _misfit(path: Path, state: dict[str, Any], task: Any, error: Exception) -> str:
    symbols = len(task.source_dictionary) if getattr(task, "source_dictionary", None) is not None else None
    rows = [len(t) for name, t in (state.get("model") or {}).items() if name.endswith("embed_tokens.weight")]
    if symbols is not None and rows and symbols not in rows:
        data = task.data_of(state["cfg"].task) if hasattr(task, "data_of") else state["cfg"].task.get("data")
        return (
            f"dictionary mismatch: checkpoint {path} was trained with {rows[0]} symbols, the dictionary in {data} has "
            f"{symbols}; give the data folder that it was trained on with --data (data= in Python)"
        )
    model = getattr(state["cfg"].model, "_name", None)
    return (
        f"checkpoint {path} does not fit the model {model!r} that its own config builds: {error}; "
        "it was written by another version of the package"
    )


def _foreign(path: Path, reason: str) -> str:
    return f"{path} is not a fairseq checkpoint ({reason}); give a .pt file that fairseq-train wrote"


def _first_line(error: Exception) -> str:
    # torch's messages go on for a page
    return (str(error).strip() or "nothing in it").splitlines()[0].split(". ")[0][:200]
