"""What the epochs of a run decide, mixed into a task: the end of training, and going back to the best weights."""

import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils
from torch import nn

from ..checkpointing import ends_epoch
from ..optim.rasp_exponential import RaspExponential
from .growth_log import GrowthLogConfig, check_trainer

PERFECT = "perfect"  # of ``stop_reason``
logger = logging.getLogger(__name__)


@dataclass
class PerfectStopConfig(GrowthLogConfig):
    """Options of a task whose runs can go back to their best weights."""

    reset_patience: int = field(
        default=0,
        metadata={
            "help": "after more than this many epochs without a better --best-checkpoint-metric, go on from the "
            "weights of checkpoint_best.pt with a fresh optimizer; 0 for never"
        },
    )


class PerfectStopMixin:
    """Mixed into a task of fairseq's, before it; :mod:`fairseq_transnorm.checkpointing` shows it the trainer.

    Tells ``--lr-scheduler rasp_exponential`` of each epoch whether its validation accuracy was exactly 1 (the first
    validation set alone counts), and with ``--reset-patience`` goes back to the best weights: the optimizer forgets its
    state, the learning rate stays what it is, and patience begins anew. An epoch is better where its metric is strictly
    so; a tie replaces ``checkpoint_best.pt``, as fairseq does, but is none. All of it is the same in all processes, and
    survives a restart from a checkpoint.

    Attributes:
        best_epoch: epoch of which ``checkpoint_best.pt`` is, from its validation on; None before the first.
        restored_at: epochs before which the weights of ``checkpoint_best.pt`` were taken.
        stop_reason: why training ends after this epoch, from its validation on; None where it goes on.
        patient_from: last epoch that was better, or after which the weights were restored; 0 before.
    """

    cfg: Any
    best_epoch: Optional[int] = None
    stop_reason: Optional[str] = None
    patient_from = 0
    _running_epoch = 1
    __trainer: Any = None
    _validated = 0  # sets of the validation under way

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.restored_at: List[int] = []

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update.

        Raises:
            ValueError: an option does not go with another.
            FileNotFoundError: a run goes on that can go back to its best weights, and they are gone.
        """
        self.__trainer = trainer
        if self.cfg.reset_patience:
            check_patience(self.cfg, trainer.cfg)
            if self.best_epoch is not None:
                self._best_checkpoint()
        self._restore_if_due()
        super().begin_training(trainer)  # type: ignore[misc]

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Begin an epoch, from the best weights where patience is over."""
        self._running_epoch = epoch
        if self.__trainer is not None:
            self._restore_if_due()
        super().begin_epoch(epoch, model)  # type: ignore[misc]

    def begin_valid_epoch(self, epoch: int, model: nn.Module) -> None:
        """Begin a validation."""
        self._validated = 0
        super().begin_valid_epoch(epoch, model)  # type: ignore[misc]

    def post_validate(self, model: nn.Module, stats: Dict[str, Any], agg: Any) -> None:
        """Look at the values of a validation, before checkpoints are written."""
        self._validated += 1
        if self._validated > 1:
            return
        over, scheduler = ends_epoch(self.__trainer), self.__trainer.lr_scheduler
        if over and isinstance(scheduler, RaspExponential):
            scheduler.count_epoch(stats.get("accuracy") == 1)
            if scheduler.finished:
                self.stop_reason = PERFECT
                logger.info("training ends: validation accuracy was 1 in %d epochs in a row", scheduler.perfect_epochs)
        if writes_checkpoint(self.__trainer, self._running_epoch, over):
            self._compare_with_best(stats)

    def _compare_with_best(self, stats: Dict[str, Any]) -> None:
        """Say what fairseq is about to do, and whether the metric is strictly better."""
        options = self.__trainer.cfg.checkpoint
        value = stats[options.best_checkpoint_metric]
        best = getattr(checkpoint_utils.save_checkpoint, "best", None)
        if best is None or (value > best if options.maximize_best_checkpoint_metric else value < best):
            self.patient_from = self._running_epoch
        elif value != best:
            return
        self.best_epoch = self._running_epoch

    def _restore_if_due(self) -> None:
        """Take the weights of ``checkpoint_best.pt`` before an epoch, if there was no better one for long enough."""
        passed = self._running_epoch - 1 - self.patient_from
        if self.best_epoch is None or not 0 < self.cfg.reset_patience < passed:
            return
        trainer, path, state = self.__trainer, self._best_checkpoint(), None
        if trainer.is_data_parallel_master:
            state = checkpoint_utils.load_checkpoint_to_cpu(path)["model"]
        if trainer.data_parallel_world_size > 1:
            state = distributed_utils.broadcast_object(
                state, src_rank=0, group=trainer.data_parallel_process_group, dist_device=trainer.device
            )
        trainer.get_model().load_state_dict(state, strict=True)
        trainer.optimizer.optimizer.state.clear()
        self.patient_from = self._running_epoch - 1
        self.restored_at.append(self._running_epoch)
        logger.info(
            "epoch %d begins with the weights of epoch %d, %s: %d epochs were not better",
            *(self._running_epoch, self.best_epoch, path, passed),
        )

    def _best_checkpoint(self) -> str:
        trainer = self.__trainer
        path = os.path.join(trainer.cfg.checkpoint.save_dir, f"checkpoint_best{trainer.checkpoint_suffix}.pt")
        if trainer.is_data_parallel_master and not os.path.isfile(path):
            raise FileNotFoundError(
                f"{self.cfg._name}: --reset-patience {self.cfg.reset_patience}: no {path}, the best weights, which are "
                f"of epoch {self.best_epoch}; put the file back, or go on with --reset-patience 0"
            )
        return path

    def get_checkpoint_dict(self) -> Dict[str, Any]:
        """Return what a run that goes on from a checkpoint has to know; fairseq shows it to all processes."""
        names = ("best_epoch", "restored_at", "patient_from")
        return {type(self).__name__: {name: getattr(self, name) for name in names}}

    def set_checkpoint_dict(self, state: Dict[str, Any]) -> None:
        """Take that of the checkpoint from which a run goes on; fairseq leaves it out with ``--reset-dataloader``."""
        for name, value in state.items():
            setattr(self, name, value)


def writes_checkpoint(trainer: Any, epoch: int, over: bool) -> bool:
    """Return whether fairseq writes checkpoints after a validation, ``over`` where it is at the end of the epoch."""
    options, updates = trainer.cfg.checkpoint, trainer.get_num_updates()
    every = options.save_interval_updates
    in_turn = (over and epoch % options.save_interval == 0) or (every > 0 and updates % every == 0)
    return not options.no_save and (in_turn or updates >= (trainer.cfg.optimization.max_update or math.inf))


def check_patience(cfg: Any, run: Any) -> None:
    """Raise ValueError where ``--reset-patience`` makes no sense, or there will be nothing to go back to.

    Args:
        cfg: of the task.
        run: all of the run.
    """
    option = f"{cfg._name}: --reset-patience {cfg.reset_patience}"
    if cfg.reset_patience < 0:
        raise ValueError(f"{option}: 0 (never) or more")
    for name, given in {
        "--no-save": run.checkpoint.no_save,
        "--disable-validation": run.dataset.disable_validation,
    }.items():
        if given:
            raise ValueError(f"{option} needs checkpoint_best.pt, which {name} leaves out; give one of the two")
    check_trainer(cfg._name, run, option.split(": ")[1], "--reset-patience")
