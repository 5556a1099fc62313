"""What a run on a formal language writes into its save folder: its epochs, the same as text, and its results.

``epochs.jsonl`` has one JSON object an epoch:

* ``epoch``, from 1; ``updates`` made until its end; ``seconds`` of it, validation included; ``lr`` at its end;
* ``train``: the ``METRICS`` of all its batches, with dropout and while the weights change; ``valid``: those of the
  weights at its end; null is no value, as of ``attn_loss`` without supervision;
* ``best``: whether ``checkpoint_best.pt`` was written at its end; the last such epoch is that of the file;
* ``restored``: whether it began with the weights of ``checkpoint_best.pt``;
* ``stop``: why training ends after it; null where it goes on.

``training_prints.txt`` says the same to people. ``results.json`` has ``language``, ``arguments`` (where a checkpoint
was evaluated, those in it), ``epochs`` (their number), ``best_epoch``, ``stop_reason``, ``seconds`` (of all epochs) and
``evaluated``: the name of a ``checkpoint``, its ``updates``, and its ``METRICS`` on ``train``, ``valid`` and ``test``;
null where no model was evaluated.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..whole_file import whole_file
from .json_lines import Lines, LinesFile, Record, read_file, read_lines

FILE = "epochs.jsonl"
PRINTS = "training_prints.txt"
DATASET_PRINTS = "dataset_prints.txt"
RESULTS = "results.json"
# losses in nats: all, of the outputs, of the attention; shares of tokens, the mean of those of batches, of samples
METRICS = ("loss", "seq_loss", "attn_loss", "accuracy", "accuracy_batchmean", "seq_accuracy")
SPLITS = ("train", "valid", "test")
INTERRUPTED = "interrupted by user"  # why training ended
_OPTIMIZATION = ("lr", "max_epoch", "max_update", "update_freq", "clip_norm")


def plain_metrics(values: Mapping[str, Any]) -> Record:
    """Return the ``METRICS`` as numbers of Python's; None is one that is not there or not finite."""
    numbers = {name: None if values.get(name) is None else float(values[name]) for name in METRICS}
    return {name: number if number is None or math.isfinite(number) else None for name, number in numbers.items()}


def read_records(path: Path) -> Lines:
    """Read a file.

    Raises:
        ValueError: a line is no record.
    """

    def check(record: Record) -> None:
        int(record["epoch"]), int(record["updates"]), float(record["seconds"])
        record["train"]["accuracy"], record["valid"]["accuracy"], record["best"], record["restored"], record["stop"]

    return read_lines(path, check, "record of an epoch")


def read_written(folder: Path) -> list[Record]:
    """Return the records of a save folder, none where it has no file of them; errors as of :func:`read_records`."""
    return read_records(folder / FILE).records if (folder / FILE).is_file() else []


def read_epochs(path: str | Path) -> list[Record]:
    """Return the records of a run in their order; arguments and errors as of :func:`read_file`."""
    return read_file(path, FILE, read_records, "train with --task rasp_lang")


def saved(records: Sequence[Record], evaluated: Record | None) -> list[Record]:
    """Return the records, without the mark of a best model after that of ``checkpoint_best.pt``: it was never saved."""
    last = evaluated["updates"] if evaluated else 0
    return [record | {"best": record["best"] and record["updates"] <= last} for record in records]


class EpochLog:
    """The files of a run that trains: its epochs, see :class:`LinesFile`, and the same as text.

    Args:
        folder: they are in it.
        updates: those of the checkpoint the run goes on from; 0 for a new run.
        epoch: the one that comes next; records of it and of later ones are cut off.

    Attributes:
        records: those that are kept, and those written since.

    Raises:
        ValueError: the file of a run that goes on is damaged.
    """

    def __init__(self, folder: Path, updates: int, epoch: int) -> None:
        self.folder = folder
        self.file = LinesFile(folder / FILE, updates, read_records, lambda record: record["epoch"] < epoch)
        self.records = read_written(folder)

    def write(self, record: Record) -> None:
        """Append a record; errors as of :meth:`LinesFile.write`."""
        self.file.write(record, f"epoch {record['epoch']}")
        self.records.append(record)


def run_arguments(config: Mapping[str, Any]) -> Record:
    """Return the settings that tell one run from another, by the names of their flags.

    Args:
        config: fairseq's whole config, as dictionaries; a checkpoint has it under ``cfg``.
    """
    parts = {part: _options(config.get(part)) for part in ("task", "model", "criterion", "lr_scheduler", "optimizer")}
    parts["optimization"] = {name: config["optimization"].get(name) for name in _OPTIMIZATION}
    parts["dataset"] = {"batch_size": config["dataset"].get("batch_size")}
    parts["common"] = {"seed": config["common"].get("seed")}
    rates = parts["optimization"]["lr"]
    parts["optimization"]["lr"] = rates[0] if isinstance(rates, list) and len(rates) == 1 else rates
    found: Record = {"language": parts["task"].get("language"), "arch": parts["model"].get("_name")}
    for part in ("model", "criterion", "optimization", "dataset", "common", "lr_scheduler", "task", "optimizer"):
        for name, value in parts[part].items():
            elsewhere = isinstance(value, str) and value.startswith("${")  # another part of the config has it
            if not name.startswith("_") and not elsewhere:
                found.setdefault(name, value)
    found.setdefault("gamma", found.get("lr_shrink"))  # of fairseq's own schedule
    if found.get("rasp_ffn_dim", 0) is None:
        found["rasp_ffn_dim"] = 2 * found["rasp_dim"]
    return found


def _options(part: Any) -> Record:
    """Return a part of fairseq's config, which is a Namespace for optimizers such as sgd."""
    return dict(vars(part) if isinstance(part, Namespace) else part or {})


def results(arguments: Record, records: Sequence[Record], stop_reason: str | None, evaluated: Record | None) -> Record:
    """Return what ``results.json`` holds.

    Args:
        arguments: of :func:`run_arguments`.
        records: of the epochs.
        stop_reason: why training ended; None where nobody knows.
        evaluated: name and updates of a checkpoint, numbers of the splits; None where no model was evaluated.
    """
    return {
        "language": arguments["language"],
        "arguments": arguments,
        "epochs": records[-1]["epoch"] if records else 0,
        "best_epoch": max((record["epoch"] for record in records if record["best"]), default=None),
        "stop_reason": stop_reason,
        "seconds": sum((record["seconds"] for record in records), 0.0),
        "evaluated": evaluated,
    }


def write_json(path: Path, content: Record) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_prints(folder: Path, found: Record, records: Sequence[Record], sizes: Mapping[str, int]) -> None:
    """Write ``training_prints.txt`` as a whole.

    Args:
        folder: the save folder.
        found: of :func:`results`; without a reason to stop, training goes on.
        records: of the epochs.
        sizes: sequences of each split.
    """
    arguments, evaluated = found["arguments"], found["evaluated"]
    width = max(map(len, arguments))
    lines = ["arguments", *(f"  {name:{width}}  {_shown(value)}" for name, value in arguments.items()), ""]
    lines += [_batches(arguments.get("batch_size"), sizes), ""]
    for record in records:
        lines += _epoch(record)
    seconds = f"{found['seconds']:.1f} s in {len(records)} epochs"
    if found["stop_reason"] is None:
        lines.append(f"so far {seconds}")
    else:
        lines += [f"stopped training - {found['stop_reason']}", f"total time {seconds}"]
        lines += describe(evaluated)
    with whole_file(folder / PRINTS) as unfinished:
        unfinished.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _batches(size: int | None, sizes: Mapping[str, int]) -> str:
    if not size:
        return "samples: " + ", ".join(f"{split} {count}" for split, count in sizes.items())
    counts = (f"{split} {-(-count // size)} ({count} samples)" for split, count in sizes.items())
    return f"batches of {size}: " + ", ".join(counts)


def _epoch(record: Record) -> list[str]:
    lines = ["best model taken up again, with a fresh optimizer"] if record["restored"] else []
    lines += [
        f"epoch {record['epoch']}: {record['seconds']:.1f} s, {record['updates']} updates, rate {record['lr']:.6g}"
    ]
    lines += [f"  {split} {_metrics(record[split])}" for split in ("train", "valid")]
    return [*lines, "  saved as best model"] if record["best"] else lines


def describe(evaluated: Record | None) -> list[str]:
    """Return lines that say what ``results.json`` has as ``evaluated``."""
    if evaluated is None:
        return ["no model was evaluated"]
    lines = [f"{evaluated['checkpoint']} ({evaluated['updates']} updates) in evaluation mode"]
    return lines + [f"  {split:5} {_metrics(evaluated[split])}" for split in SPLITS if split in evaluated]


def _metrics(values: Record) -> str:
    names = {"loss": "loss", "seq_loss": "outputs", "attn_loss": "attention"}
    names |= {"accuracy": "accuracy", "accuracy_batchmean": "mean of batches", "seq_accuracy": "whole sequences"}
    shown = (f"{name} {_shown(values[key])}" for key, name in names.items() if values.get(key) is not None)
    return ", ".join(shown)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.6g}"
    return repr(value) if short == "1" and value != 1 else short  # all right, or nearly all, is not the same
