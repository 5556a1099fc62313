"""Norm growth over a grid of learning rates and weight decays; every cell is a training of its own from one seed.

A cell is what ``fairseq-train`` computes with the same flags, to the bit, and a file: an interrupted grid goes on with
the cells that are not there yet. Source: Merrill et al. 2021, arXiv:2010.09697, section 3.3 and figure 6.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer
from fairseq_cli import train
from omegaconf import OmegaConf
from torch import nn
from tqdm import tqdm

import fairseq_transnorm

from ..data.fetch import exclusive, file_sha256
from ..data.parallel import processes
from ..whole_file import whole_file
from .checkpoints import check_device
from .commands import quiet
from .parameters import linear_column_norm, model_vector, norm, select

QUANTITIES = ("layers", "all", "linear")
OPTIMIZERS = ("adam", "sgd")
# What a cell has unless the user's flags say otherwise.
_USUAL = "--task language_modeling --sample-break-mode eos --batch-size 16 --required-batch-size-multiple 1"
_USUAL += " --max-epoch 1 --num-workers 0"
# Validation, logs and checkpoints change nothing in what is measured.
_QUIET = "--disable-validation --no-save --no-progress-bar --log-format none --distributed-world-size 1"
_OURS = ("--lr", "--weight-decay", "--wd", "--optimizer", "--seed", "--save-dir", "--cpu")
# Parts of fairseq's configuration that a training reads, and what does not change its result.
_PARTS = (
    *("common", "dataset", "optimization", "checkpoint", "ema"),
    *("task", "model", "criterion", "optimizer", "lr_scheduler"),
)
_NEUTRAL = ("_name", "data", "save_dir", "user_dir", "lr", "weight_decay", "no_seed_provided")

Row = dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """What all cells of a grid have in common.

    Attributes:
        data: data folder.
        flags: further flags of fairseq-train, such as ``--arch``.
        optimizer: ``adam``, whose weight decay is decoupled as in AdamW, or ``sgd``, where it is part of the gradient.
        seed: of the initial weights, the order of the batches and dropout.
        device: where cells are trained.
    """

    data: Path
    flags: tuple[str, ...]
    optimizer: str = "adam"
    seed: int = 0
    device: str = "cpu"

    def arguments(self, lr: float, weight_decay: float, save_dir: str = "-") -> list[str]:
        """Return the flags of fairseq-train for one cell."""
        cell = ["--optimizer", self.optimizer, "--lr", repr(lr), "--weight-decay", repr(weight_decay)]
        cell += ["--seed", str(self.seed), "--save-dir", save_dir, *(["--cpu"] if self.device == "cpu" else [])]
        return [str(self.data), *_USUAL.split(), *self.flags, *_QUIET.split(), *cell]


def settings_of(grid: Grid) -> dict[str, Any]:
    """Return everything that decides the numbers of a cell, besides its learning rate and weight decay.

    That is fairseq's whole configuration of the training with all defaults, the content of the data and the versions.

    Raises:
        ValueError: a flag that the grid itself sets, an unknown optimiser, or no such device.
        FileNotFoundError: a data folder, its dictionary or its text is missing.
    """
    if taken := [flag for flag in grid.flags if flag.split("=")[0] in _OURS]:
        raise ValueError(f"{' '.join(taken)} cannot stand after --: the grid has options of its own for that")
    if grid.optimizer not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {grid.optimizer!r}; known: {', '.join(OPTIMIZERS)}")
    check_device(grid.device)
    cfg = _configure(grid.arguments(0.0, 0.0))
    settings: dict[str, Any] = {}
    foreign = {key for part in cfg if part not in _PARTS and cfg[part] is not None for key in cfg[part]}
    for part in _PARTS:
        of_part: Any = cfg[part]
        if isinstance(of_part, Namespace):
            # an older part of fairseq's, such as SGD, has all flags that there are, those of other parts too
            values: Any = {key: value for key, value in vars(of_part).items() if key not in foreign - {"_name"}}
        else:
            values = OmegaConf.to_container(of_part, resolve=True, enum_to_str=True)
        settings |= values | ({part: values["_name"]} if "_name" in values else {})
    settings = {key: value for key, value in sorted(settings.items()) if key not in _NEUTRAL}
    settings |= {"data_sha256": _data_sha256(str(grid.data), cfg.dataset.train_subset), "device": grid.device}
    settings |= {"torch": torch.__version__, "fairseq_transnorm": fairseq_transnorm.__version__}
    return json.loads(json.dumps(settings, default=str))


def _configure(arguments: Sequence[str]) -> Any:
    parser = options.get_training_parser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of hydra, about the way in which fairseq calls it
        return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, list(arguments)))


def _data_sha256(folders: str, subset: str) -> str:
    found: list[str] = []
    for folder in map(Path, folders.split(os.pathsep)):
        files = sorted([*folder.glob("dict*.txt"), *folder.glob(f"{subset}*.bin"), *folder.glob(f"{subset}*.idx")])
        if not {".bin", ".idx", ".txt"} <= {file.suffix for file in files}:
            there = ", ".join(sorted(path.name for path in folder.glob("*"))[:20]) or "nothing"
            raise FileNotFoundError(f"{folder} lacks dict.txt, {subset}.bin or {subset}.idx; it has: {there}")
        found += [f"{file.name} {file_sha256(file)}" for file in files]
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def norms(model: nn.Module) -> dict[str, float]:
    """Return the norms of the layers and of all parameters, and the mean norm of a column of the linear maps."""
    vector = model_vector(model)
    found = {scope: norm(select(vector, scope)) for scope in ("layers", "all")}
    return found | {"linear": linear_column_norm(select(vector, "linear"))}


class _Watched(Trainer):
    """fairseq's trainer, which measures before the first update and stays at hand."""

    last: _Watched | None = None
    before: Mapping[str, float] | None = None

    def begin_epoch(self, epoch: int) -> None:
        super().begin_epoch(epoch)
        if self.before is None:
            self.before = norms(self.get_model())
            _Watched.last = self


@contextmanager
def _no_search_for_nan() -> Iterator[None]:
    """Keep quiet what fairseq finds where a cell diverges."""
    loggers = [logging.getLogger(name) for name in ("fairseq.nan_detector", "fairseq.trainer")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train_cell(grid: Grid, lr: float, weight_decay: float) -> Row:
    """Train one cell through fairseq-train's own main function; return its row.

    A cell whose gradients or norms are no longer finite is ``diverged``; its norms are those before the update that
    could not be made, None where they are infinite.
    """
    if grid.device != "cpu":
        torch.cuda.set_device(torch.device(grid.device))
    diverged, usual = False, train.Trainer
    train.Trainer, _Watched.last = _Watched, None
    try:
        with tempfile.TemporaryDirectory() as folder, _no_search_for_nan():
            train.main(_configure(grid.arguments(lr, weight_decay, folder)))
    except (FloatingPointError, RuntimeError) as error:
        # fairseq looks for the module that fails, and may itself fail at that where a layer is computed again
        diverged = isinstance(error, FloatingPointError) or isinstance(error.__context__, FloatingPointError)
        if not diverged:
            raise
    finally:
        train.Trainer = usual
    trainer, _Watched.last = _Watched.last, None
    if trainer is None or trainer.before is None:
        raise ValueError(f"no epoch of {grid.data} was trained; is --max-epoch or --max-update 0?")
    model = trainer.get_model()
    before, after = trainer.before, norms(model)
    vector = model_vector(model)
    row: Row = {"optimizer": grid.optimizer, "lr": lr, "weight_decay": weight_decay, "seed": grid.seed}
    row["updates"] = int(trainer.get_num_updates())
    row["diverged"] = diverged or not all(map(math.isfinite, after.values()))
    for scope in QUANTITIES:
        row |= {f"{scope}_before": before[scope], f"{scope}_after": after[scope]}
        if scope != "linear":
            row[f"{scope}_parameters"] = sum(p.numel() for p in select(vector, scope).values())
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def run_grid(
    grid: Grid, rates: Sequence[float], decays: Sequence[float], folder: str | Path, workers: int = 1
) -> list[Row]:
    """Train all cells that are not in the folder yet; return the rows of all, by learning rate, then weight decay.

    Each cell is computed by one thread, so that the number of processes changes nothing.

    Args:
        grid: what the cells have in common.
        rates, decays: learning rates eta and weight decays lambda.
        folder: gets a file a cell, whole or not there.
        workers: processes; with 1 all is done in this one.

    Raises:
        ValueError: the folder holds a cell of other settings, or a file that is no cell; or as :func:`settings_of`.
        OSError: another process is working on the folder.
    """
    folder, settings = Path(folder), settings_of(grid)
    cells = [(float(lr), float(decay)) for lr, decay in product(rates, decays)]
    if bad := [cell for cell in cells if not all(math.isfinite(x) and x > 0 for x in cell)]:
        raise ValueError(f"learning rate {bad[0][0]:g}, weight decay {bad[0][1]:g}: the axes are logarithmic, above 0")
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, "training cells"):
        found = {path.name: read_cell(path, settings) for path in sorted(folder.glob("lr*_wd*.json"))}
        missing = [cell for cell in dict.fromkeys(cells) if _name(*cell) not in found]
        if missing and settings["fp16"] and grid.device == "cpu":
            raise ValueError("--fp16 trains on a GPU only; give a --device such as cuda, or leave it out")
        with tqdm(total=len(cells), initial=len(cells) - len(missing), desc="cells", disable=None) as bar:
            for row in _train_all(grid, missing, folder, settings, workers):
                found[_name(row["lr"], row["weight_decay"])] = row
                bar.update()
    rows = [found[_name(*cell)] for cell in cells]
    for scope in QUANTITIES:
        assert len({row[f"{scope}_before"] for row in rows}) == 1, "cells of one seed begin with the same weights"
    return rows


def _train_all(
    grid: Grid, cells: Sequence[tuple[float, float]], folder: Path, settings: Mapping[str, Any], workers: int
) -> Iterator[Row]:
    if min(workers, len(cells)) < 2:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for cell in cells:
                yield _train_and_keep(grid, *cell, folder, settings)
        finally:
            torch.set_num_threads(threads)
        return
    try:
        with processes(min(workers, len(cells)), _prepare) as pool:
            for future in as_completed([pool.submit(_train_and_keep, grid, *cell, folder, settings) for cell in cells]):
                yield future.result()
    except BrokenProcessPool:
        raise OSError(
            f"a process that trained cells ended, perhaps for want of memory; what is finished lies in {folder}, and "
            "the same command goes on from there, also with fewer --processes"
        ) from None


def _prepare() -> None:
    quiet()
    torch.set_num_threads(1)


def _train_and_keep(grid: Grid, lr: float, weight_decay: float, folder: Path, settings: Mapping[str, Any]) -> Row:
    row = train_cell(grid, lr, weight_decay)
    with whole_file(folder / _name(lr, weight_decay)) as path:
        path.write_text(
            json.dumps({"cell": row, "fingerprint": _fingerprint(settings), "settings": settings}, indent=1)
        )
    return row


def _name(lr: float, weight_decay: float) -> str:
    return f"lr{lr!r}_wd{weight_decay!r}.json"


def _fingerprint(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_cell(path: Path, settings: Mapping[str, Any]) -> Row:
    """Return the row of a cell's file.

    Raises:
        ValueError: it is no such file, or the cell was trained with other settings; the text names them.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        row, theirs, fingerprint = content["cell"], content["settings"], content["fingerprint"]
        row["lr"], row["weight_decay"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no cell of a grid ({error!r}); remove it or give another folder") from None
    if fingerprint != _fingerprint(settings):
        differing = [key for key in sorted({*theirs, *settings}) if theirs.get(key) != settings.get(key)]
        values = ", ".join(f"{key} {theirs.get(key)} (now {settings.get(key)})" for key in differing[:4])
        raise ValueError(
            f"{path} was trained with {values or 'settings that it does not hold whole'}"
            f"{', and more' if differing[4:] else ''}; give another folder for the cells, or remove them to begin anew"
        )
    return row


def change(row: Mapping[str, Any], quantity: str) -> float | None:
    """Return by how much a quantity of a cell grew; None where the cell diverged."""
    return None if row["diverged"] else row[f"{quantity}_after"] - row[f"{quantity}_before"]


# What --check demands of the change of the norm of the layers: its name, of which cells, and the sign.
_DEMANDS: tuple[tuple[str, Callable[[float, float], bool], int], ...] = (
    ("growth where η is 0.01 or more", lambda eta, decay: eta >= 0.01 * (1 - 1e-6), 1),
    ("growth at η 0.001, λ 0.001 or less", lambda eta, decay: _same(eta, 0.001) and decay <= 0.001 * (1 + 1e-6), 1),
    ("decay at η 0.001, λ 0.1", lambda eta, decay: _same(eta, 0.001) and _same(decay, 0.1), -1),
)


def refuse_without_demands(optimizer: str, rates: Sequence[float], decays: Sequence[float]) -> None:
    """Say before the first cell is trained that :func:`demands` will have nothing to compare.

    Raises:
        ValueError: the cells are of another optimiser than ``adam``, or no cell is subject to a demand.
    """
    if optimizer != "adam":
        raise ValueError(f"--check is about --optimizer adam, not {optimizer}")
    if not any(belongs(*cell) for cell in product(rates, decays) for _, belongs, _ in _DEMANDS):
        raise ValueError(
            "nothing to --check: no cell has a learning rate of 0.01 or more, or of 0.001 with a weight decay of 0.1, "
            "or of 0.001 or less"
        )


def demands(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Compare a grid with what AdamW does to the layers of a small residual model in some hundred updates.

    Returns:
        A line a demand: how many cells it is about, the least or largest change among them, and ``ok``.

    Raises:
        ValueError: as :func:`refuse_without_demands`.
    """
    rates, decays = ([row[name] for row in rows] for name in ("lr", "weight_decay"))
    for optimizer in sorted({row["optimizer"] for row in rows}, reverse=True):
        refuse_without_demands(optimizer, rates, decays)
    lines: list[Row] = []
    for demand, belongs, sign in _DEMANDS:
        changes = [change(row, "layers") for row in rows if belongs(row["lr"], row["weight_decay"])]
        whole = [value for value in changes if value is not None]
        if changes:
            extreme = (min if sign > 0 else max)(whole, default=None)
            ok = len(whole) == len(changes) and all(sign * value > 0 for value in whole)
            lines.append({"demand": demand, "cells": len(changes), "worst": extreme, "ok": "yes" if ok else "NO"})
    return lines


def _same(value: float, wanted: float) -> bool:
    return math.isclose(value, wanted, rel_tol=1e-6)
