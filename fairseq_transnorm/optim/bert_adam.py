"""Adam as BERT is trained with it: no weight decay on biases and norms."""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II


@dataclass
class BertAdamConfig(FairseqDataclass):
    """The flags of fairseq's adam."""

    adam_betas: Any = field(default=(0.9, 0.999), metadata={"help": "betas for Adam optimizer"})
    adam_eps: float = field(default=1e-8, metadata={"help": "epsilon for Adam optimizer"})
    weight_decay: float = field(default=0.0, metadata={"help": "of matrices; biases and norms have none"})
    lr: List[float] = II("optimization.lr")  # noqa: RUF009  (text that omegaconf looks up)


@register_optimizer("bert_adam", dataclass=BertAdamConfig)
class BertAdam(FairseqOptimizer):
    """torch's AdamW with two groups: what has two dimensions or more decays, biases and norms do not.

    The decay is decoupled, ``p <- p - lr * weight_decay * p``, as in fairseq's adam. With ``--fp16`` add
    ``--fp16-no-flatten-grads``: parameters joined to one vector cannot be told apart.
    """

    def __init__(self, cfg: Any, params: Iterable[torch.nn.Parameter]) -> None:
        super().__init__(cfg)
        params = list(params)
        matrices: dict[str, Any] = {"params": [p for p in params if p.dim() > 1]}
        others: dict[str, Any] = {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0}
        self._optimizer = torch.optim.AdamW(
            [matrices, others],
            fused=True,
            **self.optimizer_config,
        )

    @property
    def optimizer_config(self) -> dict[str, Any]:
        """Arguments of torch's AdamW."""
        lr, betas = self.cfg.lr, self.cfg.adam_betas
        return {
            "lr": lr[0] if isinstance(lr, Sequence) else lr,
            "betas": tuple(ast.literal_eval(betas) if isinstance(betas, str) else betas),
            "eps": self.cfg.adam_eps,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_flat_params(self) -> bool:
        """No: see the class."""
        return False

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Load a state; an override of the weight decay concerns the matrices only."""
        super().load_state_dict(state_dict, optimizer_overrides)
        self.param_groups[1]["weight_decay"] = 0.0
