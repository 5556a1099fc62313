"""Probes of memories and of the induction head, seen while a model trains: mixed into a task of triggers."""

from typing import Any, Optional

from torch import nn

from .probe_recorder import ProbeRecorder, check_best, check_metric, is_on


class ProbeLogMixin:
    """Mixed into a task of fairseq's, before it; :mod:`fairseq_transnorm.checkpointing` shows it the trainer.

    The options are those of ``--criterion bigram_icl``. With ``--log-probes`` the task writes
    :mod:`fairseq_transnorm.measure.probe_log`, and shows the probes in fairseq's log. The first process alone writes,
    and runs the validation sequences for ``acc_end_test``; the sums over predictions and attention are those of all.
    Training itself is not changed in a bit.
    """

    cfg: Any
    _probes: Optional[ProbeRecorder] = None
    _split = ""
    _best_metric = ""

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: an option does not go with another, no validation will have ``--best-checkpoint-metric``, or the
                file of the run is damaged.
        """
        check_metric(self, trainer)
        super().begin_training(trainer)  # type: ignore[misc]
        self._best_metric = str(trainer.cfg.checkpoint.best_checkpoint_metric)
        self._probes = ProbeRecorder(self, trainer) if is_on(trainer.cfg.criterion) else None

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Remember the epoch."""
        super().begin_epoch(epoch, model)  # type: ignore[misc]
        self._probe_epoch = epoch

    def train_step(
        self, sample: Any, model: Any, criterion: Any, optimizer: Any, update_num: int, **kwargs: Any
    ) -> Any:
        """Make forward and backward as the task does; the criterion hears the number of the update."""
        if hasattr(criterion, "set_num_updates"):
            criterion.set_num_updates(update_num)
        if self._probes is not None:
            self._probes.validating = False
        return super().train_step(sample, model, criterion, optimizer, update_num, **kwargs)  # type: ignore[misc]

    def optimizer_step(self, optimizer: Any, model: nn.Module, update_num: int) -> None:
        """Make the update; where it is its turn, look at weights and gradients before."""
        if self._probes is not None:
            self._probes.before_update(update_num, self._probe_epoch)
        super().optimizer_step(optimizer, model=model, update_num=update_num)  # type: ignore[misc]

    def get_batch_iterator(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return fairseq's iterator; a validation begins with one."""
        self._split = dataset.split
        if self._probes is not None:
            self._probes.begin_validation()
        return super().get_batch_iterator(dataset, *args, **kwargs)  # type: ignore[misc]

    def valid_step(self, sample: Any, model: nn.Module, criterion: Any, **kwargs: Any) -> Any:
        """Validate a batch as the task does."""
        if self._probes is not None:
            self._probes.validating = True
        return super().valid_step(sample, model, criterion, **kwargs)  # type: ignore[misc]

    def reduce_metrics(self, logging_outputs: Any, criterion: Any) -> None:
        """Log what the criterion does, and the probes; all batches of an update are through, or one of a validation."""
        super().reduce_metrics(logging_outputs, criterion)  # type: ignore[misc]
        if self._probes is not None:
            self._probes.collect(logging_outputs)

    def post_validate(self, model: nn.Module, stats: Any, agg: Any) -> None:
        """Note a validation whose batches are all through.

        Raises:
            ValueError: ``--best-checkpoint-metric`` is one that has no value, or is not there.
        """
        if self._probes is not None:
            self._probes.end_validation(self._split, self._probe_epoch)
        check_best(self._best_metric, stats, self._split)
