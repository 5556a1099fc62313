"""Loss and accuracy of a model on the splits of its formal language, as training validates."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from fairseq.logging import metrics

from ..tasks.epoch_log import arguments, sizes, unrounded
from .checkpoints import Run, load_run
from .epoch_log import FILE, RESULTS, SPLITS, Record, read_written, results, write_json, write_prints
from .json_lines import write_lines
from .language_runs import TASK, read_results

UNKNOWN = "for a reason that nobody noted"
logger = logging.getLogger(__name__)
_BATCH = 50  # sequences, of a run that has --max-tokens alone


def evaluate(run: Run, splits: Sequence[str] = SPLITS) -> Record:
    """Return what ``results.json`` has as ``evaluated``: the metrics of the run's criterion, in evaluation mode.

    Sequences are taken in the order of their numbers, also those of train, in batches of the validation's size.

    Args:
        run: a checkpoint of the task ``rasp_lang``, on any device.
        splits: of ``train``, ``valid`` and ``test``.

    Raises:
        ValueError: the run is of another task, or there is no such split.
    """
    if run.cfg.task._name != TASK:
        raise ValueError(f"{run.path} is of the task {run.cfg.task._name!r}; only models of {TASK} are evaluated here")
    criterion = run.task.build_criterion(run.cfg.criterion).eval()
    found: Record = {"checkpoint": run.path.name, "updates": run.updates}
    for split in splits:
        with metrics.aggregate(new_root=True) as meters:
            for batch in _batches(run, split):
                _, _, log = run.task.valid_step(batch, run.model, criterion)
                run.task.reduce_metrics([log], criterion)
        found[split] = unrounded(meters)
    return found


def _batches(run: Run, split: str) -> Iterator[Any]:
    if split not in run.task.datasets:
        run.task.load_dataset(split)
    dataset, options = run.task.dataset(split), run.cfg.dataset
    size = options.batch_size_valid or options.batch_size or _BATCH
    device = next(run.model.parameters()).device
    for start in range(0, len(dataset), size):
        batch = dataset.collater([dataset[number] for number in range(start, min(start + size, len(dataset)))])
        yield batch if device.type == "cpu" else utils.move_to_cuda(batch, device)


def write_results(folder: Path, task: Any, found: Record, records: Sequence[Record]) -> None:
    """Write ``epochs.jsonl``, where there are epochs, ``training_prints.txt``, and last of all ``results.json``.

    Args:
        folder: the save folder.
        task: that of the run.
        found: of :func:`results`.
        records: of the epochs.
    """
    if records:
        write_lines(folder / FILE, records)
    write_prints(folder, found, records, sizes(task))
    write_json(folder / RESULTS, found)


def write_evaluation(run: Run, evaluated: Record) -> None:
    """Write an evaluation on all splits into the files of the run's folder, which keep what else they say.

    What nobody wrote before, as after plain fairseq-train, is taken from the checkpoint and the epochs.

    Raises:
        ValueError: a file of the folder is damaged.
    """
    folder = run.path.parent
    before, records = read_results(folder) or {}, read_written(folder)
    stop = before.get("stop_reason") or (records[-1]["stop"] if records else None) or UNKNOWN
    found = results(before.get("arguments") or arguments(run.cfg), records, stop, evaluated)
    write_results(folder, run.task, found, records)


def load_first(paths: Sequence[Path], device: str | torch.device = "cpu") -> Run:
    """Return the first checkpoint that can be read; the others before it are warned of.

    Raises:
        ValueError: all are damaged; that of the last one.
    """
    *first, last = paths
    for path in first:
        try:
            return load_run(path, device=device)
        except ValueError as error:
            logger.warning("%s", error)
    return load_run(last, device=device)
