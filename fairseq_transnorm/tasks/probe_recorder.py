"""Lines of the log of probes: what training knows of each, put together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairseq.logging import metrics

from ..measure.copying import ATTENTION, OF_TRIGGERS, PREDICTION, in_context_accuracy, ratios, summed
from ..measure.json_lines import Record
from ..measure.memory_probes import probe_names
from ..measure.probe_log import ProbeLog
from .growth_log import check_trainer
from .task_probes import gradient_norms, has_counter, held_out_batches, parameter_norms, task_probes

NAME = "bigram_icl"  # of the criterion, and in messages


class ProbeRecorder:
    """Gathers the values of an update, or of a validation, and writes them as one line.

    An update's sums over predictions and attention are complete when fairseq reduces the metrics of it, which is after
    the step; its weights and gradients have to be looked at before.

    Args:
        task: has ``statistics``, ``fixed_triggers`` and the validation sequences.
        trainer: before the first update of this process.

    Raises:
        ValueError: an option does not go with the probes, or the file of the run is damaged.
    """

    def __init__(self, task: Any, trainer: Any) -> None:
        cfg, options = trainer.cfg, trainer.cfg.criterion
        check_trainer(NAME, cfg, "--log-probes", "--log-norms" if options.log_norms else None)
        self.task, self.trainer, self.options = task, trainer, options
        self.validating = False
        self.pending: Record | None = None  # what was seen before an update, until its sums are there
        self.probes: dict[str, float | None] = {}
        self.begin_validation()
        self.start = time.perf_counter()
        self.log: ProbeLog | None = None
        if trainer.is_data_parallel_master:
            self.log = ProbeLog(Path(cfg.checkpoint.save_dir) / options.probe_file, trainer.get_num_updates())
            self.batches = held_out_batches(task, cfg.dataset, next(trainer.get_model().parameters()).device)

    def before_update(self, update_num: int, epoch: int) -> None:
        """Look at weights and gradients, where this update is to be noted."""
        self.pending = None
        if self.log is None or update_num % self.options.probe_interval:
            return
        model = self.trainer.get_model()
        self.pending = self._about(update_num, epoch)
        self.pending |= {"acc_end_test": in_context_accuracy(model, self.batches, self.options.probe_end_length)}
        self.pending |= self._weight_probes()
        if self.options.log_norms:
            self.pending |= parameter_norms(model) | gradient_norms(model)

    def collect(self, logging_outputs: Sequence[Mapping[str, Any]]) -> None:
        """Take the sums of an update, of all its micro-batches and processes, or those of a batch of a validation."""
        if self.validating:
            if not self.sequences:
                self.probes = self._weight_probes()
                show(self.probes)
            self.sequences += int(sum(log["nsentences"] for log in logging_outputs))
            for name, (total, count) in summed(logging_outputs).items():
                before = self.sums.get(name, (0.0, 0.0))
                self.sums[name] = before[0] + total, before[1] + count
        elif self.log is not None and self.pending is not None:
            line, self.pending = self.pending, None
            show({name: line[name] for name in ("acc_end_test", *probe_names(self.options.probe_position_cutoff))})
            self.log.write(line | ratios(summed(logging_outputs)))

    def begin_validation(self) -> None:
        """Forget the sums of the last one."""
        self.sums: dict[str, tuple[float, float]] = {}
        self.sequences = 0

    def end_validation(self, split: str, epoch: int) -> None:
        """Write the line of a validation, if there were any sequences."""
        if self.log is not None and self.sequences:
            line = self._about(self.trainer.get_num_updates(), epoch) | {"split": split, "sequences": self.sequences}
            self.log.write(line | self.probes | ratios(self.sums))
        self.begin_validation()

    def _about(self, updates: int, epoch: int) -> Record:
        return {"iter": updates, "epoch": epoch, "wall": time.perf_counter() - self.start}

    def _weight_probes(self) -> dict[str, float | None]:
        return task_probes(self.trainer.get_model(), self.task, self.options.probe_position_cutoff)


def is_on(criterion: Any) -> bool:
    """Return whether the config of a criterion asks for probes."""
    return criterion._name == NAME and bool(criterion.log_probes)


def check_metric(task: Any, trainer: Any) -> None:
    """Look at ``--best-checkpoint-metric`` before the first update.

    Raises:
        ValueError: it is the name of no metric, or a validation set or the model cannot give it a value.
    """
    cfg, options = trainer.cfg, trainer.cfg.criterion
    metric = str(cfg.checkpoint.best_checkpoint_metric)
    if metric == "loss" or cfg.dataset.disable_validation:
        return
    names, message = probe_names(options.probe_position_cutoff), f"{NAME}: --best-checkpoint-metric {metric}"
    known = (*PREDICTION, *ATTENTION, *names) if is_on(options) else PREDICTION
    if metric not in known:
        probed = metric in (*ATTENTION, *names)
        why = (
            "is measured with --log-probes only; add it, or take" if probed else "is no metric of this criterion; take"
        )
        raise ValueError(f"{message} {why} one of {', '.join(known)}")
    if metric in names:
        if task_probes(trainer.get_model(), task, options.probe_position_cutoff)[metric] is None:
            raise ValueError(f"{message} has no value for this model and these triggers; take another, as loss")
    elif metric != "loss_bigram":
        least = 1 if metric in OF_TRIGGERS else 2
        for split in cfg.dataset.valid_subset.split(","):
            if has_counter(task, split, least):
                continue
            if (why := task.settings(split).never_again) is not None:
                valued = ("loss", "loss_bigram", *(OF_TRIGGERS if task.settings(split).num_triggers else ()))
                raise ValueError(f"{message} never has a value with {why}; take one of {', '.join(valued)}")
            raise ValueError(
                f"{message}: no sequence of {split!r} has a trigger {'again' if least == 2 else 'at all'}; give longer "
                "or more sequences, or take another, as loss"
            )


def check_best(metric: str, stats: Mapping[str, Any], split: str) -> None:
    """Raise ValueError where a validation has no value of ``--best-checkpoint-metric``."""
    if metric not in stats:
        raise ValueError(
            f"{NAME}: --best-checkpoint-metric {metric}: validation on {split!r} has no such value, only "
            f"{', '.join(sorted(stats))}; one of them, or longer and more sequences, so that triggers come again"
        )


def show(values: Mapping[str, float | None]) -> None:
    """Put values into fairseq's own log; those that are none are left out."""
    for name, value in values.items():
        if value is not None:
            metrics.log_scalar(name, value, round=4)
