"""What the epochs of a run decide, mixed into a task: the end of training, and going back to the best weights."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from torch import nn

from .growth_log import GrowthLogConfig


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

    Attributes:
        best_epoch: epoch of which ``checkpoint_best.pt`` is, from its validation on; None before the first.
        restored_at: epochs before which the weights of ``checkpoint_best.pt`` were taken.
        stop_reason: why training ends after this epoch, from its validation on; None where it goes on.
    """

    cfg: Any
    best_epoch: Optional[int] = None
    restored_at: List[int] = []
    stop_reason: Optional[str] = None

    def begin_training(self, trainer: Any) -> None:
        """Look at the trainer before the first update."""
        super().begin_training(trainer)  # type: ignore[misc]

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Begin an epoch."""
        super().begin_epoch(epoch, model)  # type: ignore[misc]

    def post_validate(self, model: nn.Module, stats: Dict[str, Any], agg: Any) -> None:
        """Look at the values of a validation."""
