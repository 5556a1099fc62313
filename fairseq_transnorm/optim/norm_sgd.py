"""Stochastic gradient descent whose steps do not depend on the size of the gradient."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

NAME = "norm_sgd"  # in messages


@dataclass
class NormSGDConfig(FairseqDataclass):
    """The options of torch's SGD."""

    momentum: float = field(default=0.0, metadata={"help": "momentum factor"})
    dampening: float = field(default=0.0, metadata={"help": "the new direction enters the momentum with 1 - dampening"})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov momentum"})
    weight_decay: float = field(default=0.0, metadata={"help": "times the parameter, added to the unit gradient"})
    lr: List[float] = II("optimization.lr")  # noqa: RUF009  (text that omegaconf looks up)


@register_optimizer("norm_sgd", dataclass=NormSGDConfig)
class NormSGD(FairseqOptimizer):
    """SGD with the gradient of each parameter tensor divided by its 2-norm; a gradient of 0 stays 0.

    ``d = g / |g| + weight_decay * p``; with momentum, ``b = d`` at first and ``b = momentum * b + (1 - dampening) * d``
    later, and then ``b`` for ``d``, or ``d + momentum * b`` with Nesterov's; ``p <- p - lr * d``. With ``--fp16`` add
    ``--fp16-no-flatten-grads``: parameters joined to one vector would have one norm.

    Source: the optimiser of that name in the code of Merrill et al. 2021, arXiv:2010.09697, where a gradient of 0 gives
    NaN.
    """

    def __init__(self, cfg: Any, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        if cfg.nesterov and (cfg.momentum <= 0 or cfg.dampening != 0):
            raise ValueError(
                f"{NAME}: --nesterov needs --momentum above 0 and --dampening 0, not {cfg.momentum:g} and "
                f"{cfg.dampening:g}"
            )
        self._optimizer = _UnitSGD(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> Dict[str, Any]:
        """Arguments of torch's SGD."""
        lr = self.cfg.lr
        return {"lr": lr[0] if isinstance(lr, Sequence) else lr} | {
            name: self.cfg[name] for name in ("momentum", "dampening", "nesterov", "weight_decay")
        }

    @property
    def supports_flat_params(self) -> bool:
        """No: see the class."""
        return False


class _UnitSGD(torch.optim.SGD):
    """torch's SGD on unit gradients; what it does after that, decay and momentum, is what is wanted."""

    @torch.no_grad()
    def step(self, closure: Optional[Any] = None) -> Any:
        """Divide the gradients, in place, and make a step."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            # first by the largest entry, so that no square overflows or vanishes; 0 / tiny is 0
            for order in (float("inf"), 2.0):
                norms = torch._foreach_norm(gradients, order)
                torch._foreach_div_(gradients, [norm.clamp(min=torch.finfo(norm.dtype).tiny) for norm in norms])
        return super().step(closure)
