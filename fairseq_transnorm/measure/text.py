"""Stretches of real text to run a language model on."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from fairseq.data import data_utils
from torch import Tensor

from .checkpoints import Run, data_folder, load_run


def token_windows(run: Run, split: str, length: int, count: int, seed: int) -> Tensor:
    """Draw ``count`` stretches of ``length`` consecutive tokens from the data folder of a language model's run.

    The split is read as one stream, each sentence with its ``</s>``, and cut every ``length`` tokens; the stretches are
    drawn from those without repetition, so they do not overlap. The same seed gives the same ones for every model.

    Returns:
        Token ids, ``count x length``, on the CPU.

    Raises:
        ValueError: the task has no data folder, a number below 1, or the split is too short.
        FileNotFoundError: the folder lacks the split; the message lists those that are there.
    """
    if length < 1 or count < 1:
        raise ValueError(f"asked for {count} stretches of {length} tokens; both must be at least 1")
    folder = data_folder(run)
    dataset = data_utils.load_indexed_dataset(str(folder / split), run.task.source_dictionary)
    if dataset is None:
        there = sorted(p.stem for p in folder.glob("*.idx"))
        raise FileNotFoundError(f"data folder {folder} has no split {split!r}; it has {there or 'none'}")
    ends = np.cumsum(dataset.sizes)
    available = int(ends[-1]) // length if len(ends) else 0
    if count > available:
        raise ValueError(
            f"split {split!r} in {folder} holds {int(ends[-1]) if len(ends) else 0} tokens, {available} stretches of "
            f"{length}; asked for {count}: take fewer, shorter ones, or a larger split"
        )
    picked = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:count].sort().values
    rows = []
    for start in (int(index) * length for index in picked):
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, start + length, side="left"))
        text = torch.cat([dataset[i] for i in range(first, last + 1)])
        offset = start - (int(ends[first - 1]) if first else 0)
        rows.append(text[offset : offset + length].long())
    return torch.stack(rows)


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which text the checkpoints of an analysis read."""
    parser.add_argument("--data", help="data folder to read, when not the one that each model was trained on")
    parser.add_argument("--split", default="valid", help="split to read (default: %(default)s)")
    parser.add_argument("--length", type=int, help="tokens a sequence (default: the smallest --tokens-per-sample)")
    parser.add_argument("--sequences", type=int, default=8, help="stretches of text to read (default: %(default)s)")


def runs_with_text(options: argparse.Namespace, further: int = 0) -> list[tuple[str, Run, Tensor]]:
    """Load the checkpoints of ``options.inputs``; return name, run and the same stretches of text for each.

    Args:
        options: of ``analysis_parser`` with inputs and a device, and of ``add_text_options``.
        further: tokens that each stretch has beyond ``--length``, such as one to predict.

    Raises:
        ValueError: two checkpoints with the same name, or what ``load_run`` and ``token_windows`` raise.
    """
    runs = {label: load_run(path, options.data, options.device) for label, path in options.inputs}
    if len(runs) < len(options.inputs):
        raise ValueError(f"two checkpoints share a name in {[label for label, _ in options.inputs]}; write LABEL=PATH")
    length = options.length
    if length is None:
        length = min(run.cfg.task.tokens_per_sample for run in runs.values())
    elif length < 1:
        raise ValueError(f"--length {length} must be at least 1")
    return [
        (label, run, token_windows(run, options.split, length + further, options.sequences, options.seed))
        for label, run in runs.items()
    ]
