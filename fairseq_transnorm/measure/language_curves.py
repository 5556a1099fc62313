"""Losses and accuracies of the epochs of a run as flat rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .epoch_log import read_epochs

COLUMNS = ("run", "source", "epoch", "best", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy")


def epoch_rows(label: str, path: str | Path) -> list[dict[str, Any]]:
    """Return a row an epoch with ``COLUMNS``; the loss includes that of the attention with its weight, in nats.

    Args:
        label: of the run; seeds of it may share one.
        path: a save folder, or its ``epochs.jsonl``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or empty.
    """
    rows = []
    for record in read_epochs(path):
        row = {"run": label, "source": str(path), "epoch": record["epoch"], "best": record["best"]}
        for metric in ("loss", "accuracy"):
            row |= {f"{split}_{metric}": record[split][metric] for split in ("train", "valid")}
        rows.append(row)
    return rows
