"""What the evaluations of language models on the splits of a data folder have in common."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils

from ..whole_file import whole_file
from .checkpoints import Run, data_folder

LOGITS = 2**27  # numbers of a batch: 0.5 GB, and the softmax needs some copies of them
_LINES = 10_000  # of a split, counted at once


def load_split(run: Run, subset: str) -> Any:
    """Return a split of the run's data as fairseq's indexed dataset.

    Raises:
        FileNotFoundError: no such split; the message lists those that are there.
        ValueError: the split is empty, or the run has no data folder.
    """
    folder = data_folder(run)
    dataset = data_utils.load_indexed_dataset(str(folder / subset), run.task.source_dictionary)
    if dataset is None:
        there = sorted(path.stem for path in folder.glob("*.idx"))
        raise FileNotFoundError(f"data folder {folder} has no split {subset!r}; it has {', '.join(there) or 'none'}")
    if not dataset.sizes.sum():
        raise ValueError(f"split {subset!r} in {folder} is empty: there is nothing to evaluate")
    return dataset


def count_tokens(run: Run, subset: str) -> int:
    """Return the tokens of a split of the run's data, the ``</s>`` of each line included; raises as ``load_split``."""
    dataset = load_split(run, subset)  # its sizes lie in a file that is closed when nothing refers to it
    return int(dataset.sizes.sum())


def symbol_counts(run: Run, subset: str, first: int = 0) -> np.ndarray:
    """Return how often each symbol of the dictionary occurs in a split, ``</s>`` included; raises as ``load_split``.

    Args:
        run: whose data it is.
        subset: name of the split.
        first: place in its line from which on a symbol counts.
    """
    dataset, symbols = load_split(run, subset), len(run.task.source_dictionary)
    counts = np.zeros(symbols, dtype=np.int64)
    for start in range(0, len(dataset), _LINES):
        text = torch.cat([dataset[i][first:] for i in range(start, min(start + _LINES, len(dataset)))])
        counts += np.bincount(text.numpy(), minlength=symbols)
    return counts


def unigram_perplexity(targets: np.ndarray, counts: np.ndarray) -> float:
    """Return what a model without any context reaches: the frequencies of a training text, one added to each.

    Args:
        targets: how often each symbol is predicted.
        counts: how often it occurs in the training text.
    """
    probabilities = (counts + 1) / (counts.sum() + len(counts))
    return math.exp(-float(targets @ np.log(probabilities)) / int(targets.sum()))


def evaluation_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every evaluation has: checkpoint, data, splits, length of the sequences, output."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint")
    parser.add_argument("data", help="data folder, with the dictionary of the training")
    parser.add_argument("--gen-subset", default="valid,test", metavar="SPLITS", help="default: %(default)s")
    parser.add_argument("--tokens-per-sample", type=int, metavar="N", help="default: that of the training")
    parser.add_argument("--json", metavar="FILE", help="also write the rows into FILE")
    return parser


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON into a file that is there whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(rows, indent=1) + "\n")
