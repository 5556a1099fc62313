"""Runs that survive a kill: whole checkpoints, and the same numbers after going on.

Eight functions of fairseq are replaced when the package is imported, since no option or hook reaches them for all
commands (read in ve-fairseq 0.12.3):

* ``PathManager.copy``. A checkpoint is written under a temporary name and renamed, but then copied over
  ``checkpoint_best.pt`` and ``checkpoint_last.pt`` in place. A process killed during that copy leaves a truncated
  ``checkpoint_last.pt``, from which the run cannot go on. Here the copy gets a temporary name too.
* ``FairseqTask.get_batch_iterator``. Samples are grouped into batches in an order drawn for the epoch in which a
  process starts, and the batches are then kept for all epochs. A run that went on from epoch 2 or later had other
  batches than one that was never stopped. Here batches that are kept are always those of epoch 1. The processes that
  load data are kept as well, with the dataset as it was when they started, so that nobody tells it of a new epoch: the
  masked tokens of a masked language model were the same in all epochs, and others after going on. Here each epoch
  starts its own.
* ``checkpoint_utils.torch_persistent_save``. Some metrics, such as Matthews correlation, are numpy's numbers, which get
  into the checkpoint as its score and which torch's safe loader then refuses. Here they become Python's. And what is
  half-written goes when writing fails.
* ``checkpoint_utils.save_checkpoint``. An interrupt (Ctrl-C) while torch writes can become another error, after which
  fairseq tries again and trains on. Here it waits until all checkpoints of this moment are written.
* ``load_checkpoint_to_cpu``. For a truncated file torch says ``[Errno 22] Invalid argument`` and no name. And torch's
  safe loader refuses the Namespace in which the options of fairseq's sgd, adafactor and roberta stand, so that no such
  run could go on; here it may be one, which runs no code.
* ``Trainer.load_checkpoint``. The state of the task is saved, but never read again. Here a task with ``check_state`` is
  shown it before anything else is taken from the checkpoint, also from that of a pretraining (--finetune-from-model).
* ``Trainer.begin_epoch``. A task is never told where checkpoints go, nor that training begins: here a task with
  ``begin_training`` is shown the trainer once, when all is ready for the first update of this process.
* ``Trainer.get_train_iterator``. A task is not told either which validation ends an epoch: here the trainer keeps the
  iterator of the epoch as ``train_iterator``, of which :func:`ends_epoch` asks.

Checkpoints written with ``--write-checkpoints-asynchronously`` stay as fairseq writes them: not protected.
"""

from __future__ import annotations

import argparse
import os
import shutil
import zipfile
from collections import OrderedDict
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils
from fairseq.data.iterators import EpochBatchIterator
from fairseq.file_io import PathManager
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer

from .interrupts import held
from .whole_file import set_aside

_fairseq_copy = PathManager.copy
_fairseq_iterator = FairseqTask.get_batch_iterator
_fairseq_save = checkpoint_utils.torch_persistent_save
_fairseq_save_all = checkpoint_utils.save_checkpoint
_fairseq_load = checkpoint_utils.load_checkpoint_to_cpu
_fairseq_resume = Trainer.load_checkpoint
_fairseq_begin_epoch = Trainer.begin_epoch
_fairseq_train_iterator = Trainer.get_train_iterator
_training = ContextVar[Any]("task of the trainer that is loading a checkpoint", default=None)


def copy_atomically(src_path: str, dst_path: str, overwrite: bool = False) -> bool:
    """Copy a file so that ``dst_path`` is at any moment either the old file or the whole new one.

    Paths that are not local, and copies that must not overwrite, are left to fairseq.
    """
    if not overwrite or not PathManager.supports_rename(dst_path):
        return bool(_fairseq_copy(src_path, dst_path, overwrite=overwrite))
    temporary = f"{dst_path}.tmp"  # fairseq's own name for a checkpoint in writing
    try:
        shutil.copyfile(src_path, temporary)
        os.replace(temporary, dst_path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return True


@wraps(_fairseq_iterator)
def get_batch_iterator(self: FairseqTask, dataset: Any, *args: Any, epoch: int = 1, **kwargs: Any) -> Any:
    """Return fairseq's iterator; what it yields in an epoch does not depend on the epoch in which it is made."""
    fresh = kwargs.get("disable_iterator_cache") or kwargs.get("update_epoch_batch_itr")
    kept = not fresh and self.can_reuse_epoch_itr(dataset)
    if kept and dataset in self.dataset_to_epoch_iter:
        return _fairseq_iterator(self, dataset, *args, epoch=epoch, **kwargs)
    iterator = _fairseq_iterator(self, dataset, *args, epoch=1 if kept else epoch, **kwargs)
    if kept:
        iterator.epoch = max(epoch, 1)
    if isinstance(iterator, EpochBatchIterator):
        iterator.reuse_dataloader = iterator.persistent_workers = False
    return iterator


@wraps(_fairseq_save_all)
def save_checkpoint(*args: Any, **kwargs: Any) -> Any:
    """Write checkpoints as fairseq does; an interrupt waits until they are written."""
    with held():
        return _fairseq_save_all(*args, **kwargs)


@wraps(_fairseq_save)
def torch_persistent_save(obj: Any, filename: str, *args: Any, **kwargs: Any) -> None:
    """Write a checkpoint as fairseq does, with numpy's numbers as Python's; nothing half-written is left."""
    if isinstance(obj, dict):  # the score is among the state of the training and that of the learning rate
        tensors = ("model", "last_optimizer_state")
        obj = {key: value if key in tensors else _python_numbers(value) for key, value in obj.items()}
    try:
        _fairseq_save(obj, filename, *args, **kwargs)
    except BaseException:
        Path(f"{filename}.tmp").unlink(missing_ok=True)
        raise


def _python_numbers(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, OrderedDict):
        return type(value)((key, _python_numbers(entry)) for key, entry in value.items())
    return type(value)(map(_python_numbers, value)) if type(value) in (list, tuple) else value


@wraps(_fairseq_load)
def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
    """Load a checkpoint as fairseq does.

    Raises:
        ValueError: the file is truncated or no checkpoint; the message names it and those beside it. Or the task to be
            trained does not fit it.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = _fairseq_load(path, *args, **kwargs)
    except Exception as error:
        # torch writes zip archives, whose list of contents stands at the end: a cut file has none.
        if not os.path.isfile(path) or zipfile.is_zipfile(path):
            raise
        raise ValueError(truncated(Path(path))) from error
    if hasattr(task := _training.get(), "check_state"):
        task.check_state(state.get("task_state") or {}, path)
    return state


@wraps(_fairseq_resume)
def resume(self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Load a checkpoint into a trainer as fairseq does, if its task agrees."""
    token = _training.set(self.task)
    try:
        return _fairseq_resume(self, *args, **kwargs)
    finally:
        _training.reset(token)


@wraps(_fairseq_begin_epoch)
def begin_epoch(self: Trainer, epoch: int) -> None:
    """Begin an epoch as fairseq does; before the first one the task may look at the trainer."""
    _fairseq_begin_epoch(self, epoch)
    if not hasattr(self, "_shown_to_task") and hasattr(self.task, "begin_training"):
        self._shown_to_task = True
        self.task.begin_training(self)


@wraps(_fairseq_train_iterator)
def get_train_iterator(self: Trainer, *args: Any, **kwargs: Any) -> Any:
    """Return fairseq's iterator over the batches of an epoch, which the trainer keeps."""
    self.train_iterator = _fairseq_train_iterator(self, *args, **kwargs)
    return self.train_iterator


def ends_epoch(trainer: Trainer) -> bool:
    """Return whether all batches of the epoch are done: in a validation, whether it is the one at its end."""
    return bool(trainer.train_iterator.end_of_epoch())


def save_initial(trainer: Trainer) -> None:
    """Write ``checkpoint_init.pt`` before the first update: the model as it begins, in the layout of all checkpoints.

    ``--restore-file SAVE_DIR/checkpoint_init.pt`` trains as from the start; one that is there becomes
    ``checkpoint_init.pt.old`` (``.old2``, ..). fairseq's own names of checkpoints to be deleted do not match this one.
    To be called in all processes; the first writes.
    """
    trainer.consolidate_optimizer()  # the state that is saved asks for it
    path = os.path.join(trainer.cfg.checkpoint.save_dir, f"checkpoint_init{trainer.checkpoint_suffix}.pt")
    if trainer.should_save_checkpoint_on_current_rank:
        set_aside(path)
    start = {"version": 2, "epoch": 1, "iterations_in_epoch": 0, "shuffle": True}
    trainer.save_checkpoint(path, {"train_iterator": start, "val_loss": None})


def truncated(path: Path) -> str:
    """Say that a file is cut, and which beside it are whole."""
    others = sorted(p.name for p in path.parent.glob("*.pt") if p != path and zipfile.is_zipfile(p))
    advice = f"whole ones beside it: {', '.join(others)}" if others else "there is no other one beside it"
    return f"{path} ({path.stat().st_size:,} bytes) is truncated or no checkpoint; {advice}"


def protect() -> None:
    """Replace the functions of fairseq; a second call changes nothing."""
    PathManager.copy = staticmethod(copy_atomically)
    FairseqTask.get_batch_iterator = get_batch_iterator
    checkpoint_utils.save_checkpoint = save_checkpoint
    checkpoint_utils.torch_persistent_save = torch_persistent_save
    checkpoint_utils.load_checkpoint_to_cpu = load_checkpoint_to_cpu
    Trainer.load_checkpoint = resume
    Trainer.begin_epoch = begin_epoch
    Trainer.get_train_iterator = get_train_iterator
