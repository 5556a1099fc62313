"""fairseq learning rate schedule ``hold_linear``: constant, then a straight line down."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, List, Optional

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II

NAME = "hold_linear"  # in messages


@dataclass
class HoldLinearConfig(FairseqDataclass):
    """Options of the schedule."""

    hold_updates: int = field(default=1000, metadata={"help": "updates S with the whole learning rate"})
    total_num_update: Optional[int] = field(
        default=None,
        metadata={"help": "update T at which a tenth of the learning rate is left (default: --max-update)"},
    )
    max_update: int = II("optimization.max_update")
    lr: List[float] = II("optimization.lr")  # noqa: RUF009  (text that omegaconf looks up)


@register_lr_scheduler("hold_linear", dataclass=HoldLinearConfig)
class HoldLinear(FairseqLRScheduler):
    """``lr`` up to update S, then ``lr (1 - 0.9 (t - S) / (T - S))``, which is 0.1 lr at T and ends at 0.

    t counts the updates made before, from 0. fairseq's ``polynomial_decay`` rises from 0 instead of holding.
    Source: the schedule ``linear`` in the code of Merrill et al. 2021, arXiv:2010.09697, which goes on below 0; its
    ``sqrt`` with S is ``--lr-scheduler inverse_sqrt --warmup-updates S --warmup-init-lr LR`` with LR that of ``--lr``.
    """

    def __init__(self, cfg: HoldLinearConfig, optimizer: Any) -> None:
        super().__init__(cfg, optimizer)
        rates = list(cfg.lr) if isinstance(cfg.lr, Collection) else [cfg.lr]
        if len(rates) > 1:
            raise ValueError(f"{NAME}: --lr {rates}: one rate; the schedule makes the others")
        self.rate, self.hold, self.end = rates[0], cfg.hold_updates, cfg.total_num_update or cfg.max_update
        if not 0 <= self.hold < self.end:
            raise ValueError(
                f"{NAME}: --hold-updates {self.hold} and --total-num-update {self.end} (without it, --max-update): the "
                "first must be 0 or more and below the second"
            )
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Set and return the rate of the next update, before which ``num_updates`` were made."""
        passed = (num_updates - self.hold) / (self.end - self.hold)
        self.optimizer.set_lr(self.rate * max(0.0, 1 - 0.9 * max(0.0, passed)))
        return self.optimizer.get_lr()
