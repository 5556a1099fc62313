"""What a run on a formal language writes of its epochs, mixed into its task."""

import time
from pathlib import Path
from typing import Any, Dict, Optional

from fairseq.logging import metrics
from fairseq.logging.meters import AverageMeter, MetersDict
from omegaconf import OmegaConf
from torch import nn

from ..checkpointing import ends_epoch
from ..data.language_samples import SPLITS
from ..interrupts import held, interrupts
from ..measure.epoch_log import (
    DATASET_PRINTS,
    METRICS,
    RESULTS,
    EpochLog,
    plain_metrics,
    results,
    run_arguments,
    write_prints,
)
from ..whole_file import set_aside, whole_file

SPLIT = "valid"  # the validation that counts


class EpochLogMixin:
    """Mixed into a task of fairseq's, before it; :mod:`fairseq_transnorm.checkpointing` shows it the trainer.

    At the end of each epoch, when ``valid`` has been validated, the first process writes
    :mod:`fairseq_transnorm.measure.epoch_log`; when training begins, ``dataset_prints.txt``. Files of an older run get
    another name. Training itself is not changed in a bit.
    """

    cfg: Any
    datasets: Dict[str, Any]
    samples: Any
    language: Any
    _trainer: Any = None
    _epochs: Optional[EpochLog] = None
    _iterated = ""  # the split of the last iterator
    _epoch_start = 0.0
    _epoch_number = 1

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: the file of a run that goes on is damaged.
        """
        folder, updates = Path(trainer.cfg.checkpoint.save_dir), trainer.get_num_updates()
        if trainer.is_data_parallel_master and not updates:  # what is evaluated, or gone back to, must be of this run
            for name in ("checkpoint_best.pt", "checkpoint_last.pt", RESULTS):
                set_aside(folder / name)
        super().begin_training(trainer)  # type: ignore[misc]
        if trainer.is_data_parallel_master:
            (folder / RESULTS).unlink(missing_ok=True)  # of when this run was stopped
            self._trainer, self._epochs = trainer, EpochLog(folder, updates, self._epoch_number)
            with whole_file(folder / DATASET_PRINTS) as unfinished:
                unfinished.write_text(dataset_prints(self), encoding="utf-8")
            self._write_prints()
        self._epoch_start = time.perf_counter()

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Note the time."""
        self._epoch_start, self._epoch_number = time.perf_counter(), epoch
        super().begin_epoch(epoch, model)  # type: ignore[misc]

    def train_step(self, *args: Any, **kwargs: Any) -> Any:
        """Train on a batch, unless an interrupt came and was lost."""
        interrupts.again()
        return super().train_step(*args, **kwargs)  # type: ignore[misc]

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator; a validation begins with one."""
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)  # type: ignore[misc]
        self._iterated = next((split for split, known in self.datasets.items() if known is dataset), "")
        return iterator

    def post_validate(self, model: nn.Module, stats: Any, agg: MetersDict) -> None:
        """Write the record of an epoch, where this validation is at its end, or at that of training."""
        super().post_validate(model, stats, agg)  # type: ignore[misc]
        if self._epochs is None or self._iterated != SPLIT:
            return
        updates, most = self._trainer.get_num_updates(), self._trainer.cfg.optimization.max_update
        if not (ends_epoch(self._trainer) or 0 < most <= updates):
            return
        epoch = self._epoch_number
        record = {
            "epoch": epoch,
            "updates": updates,
            "seconds": time.perf_counter() - self._epoch_start,
            "lr": float(self._trainer.get_lr()),
            "train": unrounded(metrics.get_meters("train")),
            "valid": unrounded(agg),
            "best": self.best_epoch == epoch,  # type: ignore[attr-defined]
            "restored": epoch in self.restored_at,  # type: ignore[attr-defined]
            "stop": self.stop_reason,  # type: ignore[attr-defined]
        }
        with held():
            self._epochs.write(record)
            self._write_prints()

    def _write_prints(self) -> None:
        assert self._epochs is not None
        found = results(arguments(self._trainer.cfg), self._epochs.records, None, None)
        write_prints(self._epochs.folder, found, self._epochs.records, sizes(self))


def unrounded(meters: MetersDict) -> Dict[str, Optional[float]]:
    """Return the values of a validation, or of an epoch of training; fairseq's own log has them rounded."""
    values = {}
    for name in METRICS:
        if name in meters:
            meter = meters[name]
            values[name] = meter.avg if isinstance(meter, AverageMeter) else meters.get_smoothed_value(name)
    return plain_metrics(values)


def arguments(cfg: Any) -> Dict[str, Any]:
    """Return the settings of a run whose whole config this is."""
    container: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
    return run_arguments(container)


def sizes(task: Any) -> Dict[str, int]:
    """Return how many sequences each split has."""
    return {split: len(task.samples.indices(split)) for split in SPLITS}


def dataset_prints(task: Any) -> str:
    """Return the text of ``dataset_prints.txt``: sizes and lengths of the splits, what they share, a sample of each."""
    language = task.language
    made = {split: dataset.texts for split, dataset in task.datasets.items()}
    texts = {split: made.get(split) or task.samples.draw(language.sampler, split) for split in SPLITS}
    known = set(texts["train"])
    lines = [f"language {language.name}, task {language.task}"]
    lines += [f"alphabet of {len(language.alphabet)} symbols: {''.join(language.alphabet)!r}"]
    lines += [f"output classes: {len(language.classes)}: {' '.join(map(repr, language.classes))}"]
    for split, mine in texts.items():
        length = sum(map(len, mine)) / len(mine) + language.bos
        lines += ["", f"{split}: {len(mine)} samples of mean length {length:.2f}{' with BOS' * language.bos}"]
        if split != "train":
            lines += [f"  {sum(text in known for text in mine)} of its inputs occur in train"]
        lines += [f"  first input  {language.with_bos(mine[0])!r}", f"  first target {language.outputs(mine[0])}"]
    return "\n".join([*lines, ""])
