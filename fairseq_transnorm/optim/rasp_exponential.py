"""fairseq learning rate schedule ``rasp_exponential``: each epoch has its rate, and training ends when all is right."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Dict, List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

NAME = "rasp_exponential"  # in messages


@dataclass
class RaspExponentialConfig(FairseqDataclass):
    """Options of the schedule."""

    gamma: float = field(default=0.98, metadata={"help": "factor of the learning rate from one epoch to the next"})
    perfect_acc_cut: int = field(
        default=3,
        metadata={
            "help": "training ends after so many epochs in a row with a validation accuracy of exactly 1 (--criterion "
            "rasp_loss); 0 or less for never"
        },
    )
    stop_min_lr: float = II("optimization.stop_min_lr")
    lr: List[float] = II("optimization.lr")  # noqa: RUF009  (text that omegaconf looks up)


@register_lr_scheduler("rasp_exponential", dataclass=RaspExponentialConfig)
class RaspExponential(FairseqLRScheduler):
    """``lr gamma^(e - 1)`` in the whole of epoch e = 1, 2, ..; ends training when validation was perfect long enough.

    The same rates are those of ``--lr-scheduler fixed --force-anneal 2 --lr-shrink GAMMA``. fairseq ends training
    after an epoch, its validation and its checkpoints, when the rate is not above ``--stop-min-lr``: that is what this
    schedule then says. The count of epochs is part of checkpoints.
    """

    def __init__(self, cfg: RaspExponentialConfig, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        rates = list(cfg.lr) if isinstance(cfg.lr, Collection) else [cfg.lr]
        if len(rates) > 1:
            raise ValueError(f"{NAME}: --lr {rates}: one rate; the schedule makes the others")
        if not 0 < cfg.gamma <= 1:
            raise ValueError(f"{NAME}: --gamma {cfg.gamma}: above 0, and at most 1, which keeps the rate")
        self.first_rate = self.rate = rates[0]
        self.perfect_epochs = 0  # in a row, up to the last validation at the end of an epoch

    @property
    def finished(self) -> bool:
        """Whether training ends with the epoch of the last validation."""
        return 0 < self.cfg.perfect_acc_cut <= self.perfect_epochs

    def count_epoch(self, perfect: bool) -> None:
        """Take the validation at the end of an epoch into account."""
        self.perfect_epochs = self.perfect_epochs + 1 if perfect else 0

    def state_dict(self) -> Dict[str, Any]:
        """Return the number of perfect epochs in a row."""
        return {**super().state_dict(), "perfect_epochs": self.perfect_epochs}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Take the state of a checkpoint; that of another schedule knows of no perfect epochs."""
        super().load_state_dict({"best": None, **state_dict})
        self.perfect_epochs = state_dict.get("perfect_epochs", 0)

    def step_begin_epoch(self, epoch: int) -> float:
        """Set and return the rate of an epoch, from 1."""
        self.rate = self.first_rate * self.cfg.gamma ** (epoch - 1)
        return self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate of the next update; one that ends training where there is to be none."""
        self.optimizer.set_lr(min(-1.0, self.cfg.stop_min_lr) if self.finished else self.rate)
        return self.optimizer.get_lr()
