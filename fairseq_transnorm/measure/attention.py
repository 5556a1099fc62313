"""Attention weights of every layer of a trained model, one number per head, query and key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modules.attention import LinearAttention, LocalAttention


class LayerResult(NamedTuple):
    """What was made of one layer's weights.

    Attributes:
        module: dotted name of the attention in the model.
        kind: ``softmax``, ``local`` or ``linear``.
        value: what ``reduce`` returned.
    """

    module: str
    kind: str
    value: Any


def attention_modules(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (kind, module) of every self-attention whose weights can be had."""
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LinearAttention):
            found[name] = ("linear", module)
        elif isinstance(module, LocalAttention):
            found[name] = ("local", module)
        elif isinstance(module, MultiheadAttention) and module.self_attention:
            found[name] = ("softmax", module)
    return found


@torch.no_grad()
def each_attention(model: nn.Module, tokens: Tensor, reduce: Callable[[Tensor], Any]) -> list[LayerResult]:
    """Run ``model`` on ``tokens`` and return ``reduce(weights)`` of every self-attention, in execution order.

    ``weights`` is ``B H T S``: the factor of each value vector in the output, before the norm. For TransNormer layers
    they are signed and their rows need not sum to 1; for fairseq's they are the softmax. Dropout is off, whatever the
    mode of the model. One layer's weights are held at a time.

    Args:
        model: a model of this package, or one built on fairseq's ``MultiheadAttention``.
        tokens: token ids ``B T``, without padding.
        reduce: what to keep of the weights.

    Raises:
        ValueError: the model has no attention that is known here.
    """
    modules = attention_modules(model)
    if not modules:
        raise ValueError(
            f"no attention in {type(model).__name__} that can be looked into; known are the linear and local attention "
            "of this package and fairseq's MultiheadAttention"
        )
    results: list[LayerResult] = []
    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        for name, (kind, module) in modules.items():
            stack.callback(_watch(module, kind, _collector(results, name, kind, reduce)).remove)
        model(tokens)
    assert {r.module for r in results} == set(modules), f"{set(modules) - {r.module for r in results}} did not run"
    return results


def _collector(
    results: list[LayerResult], name: str, kind: str, reduce: Callable[[Tensor], Any]
) -> Callable[[Tensor], None]:
    return lambda weights: results.append(LayerResult(name, kind, reduce(weights)))


def _watch(module: Any, kind: str, collect: Callable[[Tensor], None]) -> RemovableHandle:
    """Have ``collect`` called with the weights of ``module`` each time that it runs."""

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        collect(_softmax_weights(module, *args, **kwargs) if kind == "softmax" else module.attention_weights(args[0]))

    return module.register_forward_pre_hook(look, with_kwargs=True)


def _softmax_weights(module: Any, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """Return fairseq's softmax weights ``B H T S``.

    On its usual path fairseq leaves the work to torch, which averages over the heads even when ``need_head_weights`` is
    set. An incremental state, empty here, takes it to its own code, which does return the heads.
    """
    masks = {name: kwargs.get(name) for name in ("key_padding_mask", "attn_mask")}
    _, weights = module.forward(query, key, value, **masks, incremental_state={}, need_head_weights=True)
    return weights.transpose(0, 1)  # fairseq: H B T S
