"""Cheap parts of a layer are computed again in the backward pass, instead of keeping what they produced.

Two tools. ``recompute`` keeps the inputs of a stretch of code only. ``by_segments`` also runs it a few rows at a time,
so that on a CPU everything between its inputs and its output stays in the cache and never reaches memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

# rows of a segment hold about this many numbers: 1 MiB of float32, the size of a core's own cache
SEGMENT_NUMBERS = 2**18


def no_autocast(device: torch.device) -> torch.autocast:
    """Return a context without autocast on ``device``, also where the caller switched it on."""
    return torch.autocast(device.type, enabled=False)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Make a Function's backward, which autograd cannot differentiate, refuse ``create_graph``.

    torch's ``once_differentiable`` lets it pass, with wrong zeros, where the incoming gradient is a constant.
    """

    @wraps(backward)
    def checked(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "second derivatives (create_graph=True) do not go through this package's own backward passes"
            )
        return backward(ctx, *grads)

    return checked


def recompute(function: Callable[..., Tensor], *inputs: Tensor | None, random: bool = False) -> Tensor:
    """Return ``function(*inputs)``, keeping only the inputs for the backward pass.

    A matrix product that ends ``function`` is not computed again: only its operands are.

    Args:
        random: the function draws random numbers, which must then be the same again.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=random)


def through_layers(
    layers: Iterable[Callable[..., Tensor]],
    x: Tensor,
    padding: Tensor | None,
    checkpointed: bool,
    offloaded: bool = False,
) -> Iterator[Tensor]:
    """Yield ``x`` and what each layer makes of the one before, ``layer(x, padding)``.

    Args:
        checkpointed: keep the layers' inputs only, for the backward pass.
        offloaded: keep them in the memory of the CPU.
    """
    yield x
    for layer in layers:
        with save_on_cpu(pin_memory=x.is_cuda) if offloaded else nullcontext():
            x = checkpoint(layer, x, padding, use_reentrant=False) if checkpointed else layer(x, padding)
        yield x


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, rows: int = 2048) -> Tensor:
    """Return ``function(x)``, on a CPU for some tokens at a time: big intermediates then share memory.

    Args:
        function: maps rows ``R D`` to rows ``R D``, each by itself.
        x: ``B T D``.
        rows: tokens of a part; enough for matrix products at full speed.
    """
    tokens = x.flatten(0, 1)
    if x.device.type != "cpu" or len(tokens) <= rows:
        return function(tokens).view(x.shape)
    return torch.cat([function(part) for part in tokens.split(rows)]).view(x.shape)


def by_segments(function: Callable[..., Tensor], rows: tuple[Tensor, ...], shared: tuple[Tensor, ...] = ()) -> Tensor:
    """Return ``function(*rows, *shared)``, computed a segment of rows at a time on a CPU.

    Args:
        function: maps the rows of a segment, and everything shared, to one tensor with as many rows. Each row's result
            depends on that row alone. It draws no random numbers, and reaches tensors that need gradients only through
            its arguments.
        rows: tensors with the same first dimension.
        shared: tensors that every segment needs.
    """
    length = max(1, SEGMENT_NUMBERS * len(rows[0]) // max(1, rows[0].numel()))
    if rows[0].device.type != "cpu" or length >= len(rows[0]):
        return function(*rows, *shared)
    return _BySegments.apply(function, length, len(rows), *rows, *shared)


class GradientsByParts:
    """Runs code again on parts of its inputs, and gathers the gradients of the inputs.

    Args:
        inputs: tensors that are cut into parts, then tensors that every part needs.
        num_cut: how many are cut.
        wanted: which inputs need a gradient.
    """

    def __init__(self, inputs: Sequence[Tensor], num_cut: int, wanted: Sequence[bool]) -> None:
        self.inputs, self.num_cut = inputs, num_cut
        self.wanted = [i for i, want in enumerate(wanted) if want]
        self.totals: list[Tensor | None] = [None] * len(inputs)  # None where no gradient is wanted
        for i in self.wanted:
            # parts overwrite the whole of a cut tensor; a plain layout makes that one run of memory a row
            self.totals[i] = inputs[i].new_empty(inputs[i].shape) if i < num_cut else torch.zeros_like(inputs[i])

    def parts(self, where: tuple[slice, ...]) -> list[Tensor]:
        """Return the inputs of part ``where``, apart from the graph they came from, ready to be differentiated."""
        self._where = where
        self._parts = [(x[where] if i < self.num_cut else x).detach() for i, x in enumerate(self.inputs)]
        for i in self.wanted:
            self._parts[i].requires_grad_()
        return self._parts

    def add(self, outputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> None:
        """Add the gradients that ``outputs``, computed from the last parts, send back to them."""
        if not self.wanted:
            return
        pairs = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out.requires_grad]
        found = torch.autograd.grad(
            [out for out, _ in pairs], [self._parts[i] for i in self.wanted], [g for _, g in pairs]
        )
        for i, grad in zip(self.wanted, found, strict=True):
            total = self.totals[i]
            assert total is not None
            if i < self.num_cut:
                total[self._where] = grad
            else:
                total += grad


class _BySegments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], length: int, num_rows: int, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.function, ctx.length, ctx.num_rows = function, length, num_rows
        rows, shared = inputs[:num_rows], inputs[num_rows:]
        out: Tensor | None = None
        for start in range(0, len(rows[0]), length):
            part = function(*(row[start : start + length] for row in rows), *shared)
            if out is None:
                out = part.new_empty(len(rows[0]), *part.shape[1:])
            out[start : start + length] = part
        assert out is not None
        return out

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = GradientsByParts(ctx.saved_tensors, ctx.num_rows, ctx.needs_input_grad[3:])
        for start in range(0, len(grad), ctx.length):
            part = slice(start, start + ctx.length)
            inputs = grads.parts((part,))
            with torch.enable_grad(), no_autocast(grad.device):
                out = ctx.function(*inputs)
            grads.add((out,), (grad[part],))
        return None, None, None, *grads.totals
