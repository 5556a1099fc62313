"""Looking into a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from typing import Any

from torch import nn


@contextmanager
def record(model: nn.Module, pattern: str, reduce: Callable[[Any], Any]) -> Iterator[list[dict[str, Any]]]:
    """Collect ``reduce(output)`` of every module whose dotted name matches ``pattern``, in execution order.

    The hooks are gone after the block. A module that runs twice gives two rows; one that is skipped gives none.

    Args:
        model: any module.
        pattern: shell pattern for dotted names, such as ``decoder.layers.*.attn``; ``*`` also crosses dots.
        reduce: turns a module's output into what is kept. Keep numbers, not activations of the whole run.

    Raises:
        LookupError: no module matches.
    """
    found = [(name, module) for name, module in model.named_modules() if fnmatch(name, pattern)]
    if not found:
        raise LookupError(f"no module matches {pattern!r}; at the top are {[n for n, _ in model.named_children()]}")
    rows: list[dict[str, Any]] = []

    def collector(name: str) -> Callable[..., None]:
        def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
            rows.append({"module": name, "value": reduce(output)})

        return collect

    with ExitStack() as stack:
        for name, module in found:
            stack.callback(module.register_forward_hook(collector(name)).remove)
        yield rows
