"""Parameters that are trained from some update on only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn


def parse_freezing(text: str | None) -> dict[str, int]:
    """Return name -> number of the first update that trains it, from ``N1:name1,N2:name2``.

    Raises:
        ValueError: it cannot be read, or a name comes twice.
    """
    stages: dict[str, int] = {}
    for part in filter(None, map(str.strip, (text or "").split(","))):
        match = re.fullmatch(r"(\d+)\s*:\s*(\S+)", part)
        if not match:
            raise ValueError(f"--freeze-until {text}: {part!r} is not NUMBER:NAME; write e.g. 300:layers.0.wk.weight")
        if match[2] in stages:
            raise ValueError(f"--freeze-until {text}: {match[2]} comes twice")
        stages[match[2]] = int(match[1])
    return stages


class StagedFreezing:
    """Switches ``requires_grad`` of parameters that are frozen until an update.

    A frozen one has no gradient, so that neither momentum nor weight decay touches it.

    Args:
        model: whose parameters they are.
        text: the option, ``N1:name1,N2:name2``.

    Raises:
        ValueError: a name is unknown, or its parameter is never trained.
    """

    def __init__(self, model: nn.Module, text: str | None) -> None:
        parameters = dict(model.named_parameters())
        trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        self.stages = []
        for name, updates in parse_freezing(text).items():
            if name not in trained:
                what = "is never trained" if name in parameters else "is no parameter of the model"
                raise ValueError(f"--freeze-until: {name!r} {what}; there are {_listed(trained)}")
            self.stages.append((updates, parameters[name]))

    def at(self, updates: int) -> None:
        """Freeze and release for the update that follows ``updates`` others."""
        for until, parameter in self.stages:
            parameter.requires_grad_(updates >= until)

    def release(self) -> None:
        """Let all of them be trained, for who looks which parameters an optimiser has to know."""
        for _, parameter in self.stages:
            parameter.requires_grad_(True)

    def check_run(self, cfg: Any) -> None:
        """Look at the config of a training.

        Raises:
            ValueError: something in it counts on all parameters having a gradient.
        """
        if not self.stages:
            return
        common, parallel = cfg.common, cfg.distributed_training
        backend = str(parallel.ddp_backend)
        if (common.fp16 or common.bf16) and not (common.memory_efficient_fp16 or common.memory_efficient_bf16):
            raise ValueError("--freeze-until does not go with --fp16, whose copies have no room for gaps; take --amp")
        if backend == "fully_sharded":
            raise ValueError("--freeze-until does not go with --ddp-backend fully_sharded; take legacy_ddp")
        waits = backend in ("c10d", "pytorch_ddp") and not parallel.find_unused_parameters
        if waits and parallel.distributed_world_size > 1:
            raise ValueError(
                f"--freeze-until: with --ddp-backend {backend} the processes would wait for gradients that never come; "
                "take --ddp-backend legacy_ddp, or add --find-unused-parameters"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
