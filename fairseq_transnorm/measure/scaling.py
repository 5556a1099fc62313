"""A network with all its parameters multiplied by c: ``f(x; c theta)``, and the network that saturates.

Source: Merrill et al. 2021, arXiv:2010.09697: the saturated network is the limit of ``f(x; c theta)`` for growing c.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .hidden_states import evaluating

SATURATED = 1000.0  # the factor that stands for infinity


class ScaledNetwork:
    """``f(x; c theta)`` of a module whose own parameters are left as they are.

    Every parameter is scaled: embeddings, gains and biases of norms, all maps and their biases, the classifier. Not
    so buffers, constants and parameters that are not trained, such as the unit vector of a reflection. Calls run in
    evaluation mode, in float32 or wider, and without gradients; scores reach 1e16, where float16 ends at 65504.

    Args:
        module: any module; wrap a model in ``HiddenStates`` to see more than its output.
        c: the factor.
        masks: parameter name -> True where an entry is scaled; parameters that are not named are not scaled at all.
            None scales all that are trained.
        scale_positions: also multiply sinusoidal positions, which are no parameters, and would vanish beside embeddings
            that are; see ``sinusoidal_positions``.

    Raises:
        ValueError: c is not positive and finite, or a mask names no parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        c: float = SATURATED,
        masks: Mapping[str, Tensor] | None = None,
        scale_positions: bool = False,
    ) -> None:
        if not 0 < c < float("inf"):
            raise ValueError(f"a scaling factor c must be positive and finite, got {c}")
        parameters = dict(module.named_parameters())
        if masks is not None and (unknown := sorted(set(masks) - set(parameters))):
            raise ValueError(f"masks name {unknown[0]!r}, which is no parameter; there are {sorted(parameters)[:8]}")
        self.module, self.c = module, c
        self.positions = list(sinusoidal_positions(module).values()) if scale_positions else []
        with torch.no_grad():
            self.tensors = {name: _scaled(p, c, name, masks) for name, p in parameters.items()}
            self.tensors |= {n: b.float() for n, b in module.named_buffers() if b.dtype in (torch.half, torch.bfloat16)}

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module with the scaled parameters."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.module))
            for positions in self.positions:
                stack.callback(positions.register_forward_hook(lambda _m, _in, out: self.c * out).remove)
            return functional_call(self.module, self.tensors, args, kwargs, tie_weights=True)


def _scaled(parameter: Tensor, c: float, name: str, masks: Mapping[str, Tensor] | None) -> Tensor:
    wide = parameter.float() if parameter.dtype in (torch.half, torch.bfloat16) else parameter.detach()
    if masks is None:
        return wide if c == 1.0 or not parameter.requires_grad else c * wide
    return wide if name not in masks else torch.where(masks[name], c * wide, wide)


def sinusoidal_positions(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that add positions which are no parameters.

    They are not scaled, so that in the saturated network the positions vanish beside the embeddings, unless they are
    asked to be.
    """
    return {name: m for name, m in module.named_modules() if "Sinusoidal" in type(m).__name__}
