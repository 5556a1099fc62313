"""Attention of every layer of a trained model: its weights, one number per head, query and key, and others in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from fairseq.modules import MultiheadAttention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..modules.attention import LocalAttention
from ..modules.growth_attention import GrowthAttention
from ..modules.local_attention import SOFTMAX, allowed_in_blocks
from ..modules.softmax_attention import SoftmaxAttention
from .hardmax import hardmax
from .hidden_states import evaluating
from .own_attention import own_attention_modules, own_weights


class LayerResult(NamedTuple):
    """What was made of one layer's weights.

    Attributes:
        module: dotted name of the attention in the model.
        kind: ``softmax``, ``si_norm``, ``local``, ``linear`` or ``induction``.
        value: what ``reduce`` returned.
    """

    module: str
    kind: str
    value: Any


def attention_modules(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (kind, module) of every self-attention whose weights can be had, this package's and fairseq's."""
    own = own_attention_modules(model)
    fairseqs = {
        name: ("softmax", module)
        for name, module in model.named_modules()
        if isinstance(module, MultiheadAttention) and module.self_attention
    }
    return own | fairseqs


@torch.no_grad()
def each_attention(model: nn.Module, tokens: Tensor, reduce: Callable[[Tensor], Any]) -> list[LayerResult]:
    """Run ``model`` on ``tokens`` and return ``reduce(weights)`` of every self-attention, in execution order.

    ``weights`` is ``B H T S``: the factor of each value vector in the output, before the norm. For TransNormer layers
    they are signed and their rows need not sum to 1; for the others they are the softmax. Dropout is off, whatever the
    mode of the model. One layer's weights are held at a time.

    Args:
        model: a model of this package, or one built on fairseq's ``MultiheadAttention``.
        tokens: token ids ``B T``, padded on the right where the model takes padding.
        reduce: what to keep of the weights.

    Raises:
        ValueError: the model has no attention that is known here, or one with no weights between positions.
    """
    modules = attention_modules(model)
    if not modules:
        raise ValueError(
            f"no attention in {type(model).__name__} that can be looked into; known are the linear, local and softmax "
            "attention of this package and fairseq's MultiheadAttention"
        )
    results: list[LayerResult] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, (kind, module) in modules.items():
            stack.callback(_watch(module, _collector(results, name, kind, reduce)).remove)
        model(tokens)
    assert {r.module for r in results} == set(modules), f"{set(modules) - {r.module for r in results}} did not run"
    return results


def _collector(
    results: list[LayerResult], name: str, kind: str, reduce: Callable[[Tensor], Any]
) -> Callable[[Tensor], None]:
    return lambda weights: results.append(LayerResult(name, kind, reduce(weights)))


def _watch(module: Any, collect: Callable[[Tensor], None]) -> RemovableHandle:
    """Have ``collect`` called with the weights of ``module`` each time that it runs."""

    def look(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if isinstance(module, MultiheadAttention):
            collect(_of_fairseq(module, *args, **kwargs)[0].weights())
        else:
            collect(own_weights(module, *args, **kwargs))

    return module.register_forward_pre_hook(look, with_kwargs=True)


class Competition(NamedTuple):
    """What the softmax of one attention chooses from.

    Attributes:
        scores: ``B H T S``, scaled, and masked as the attention masks them: minus infinity where a key cannot win, 0
            on later keys under the multiplicative mask.
        allowed: which keys a query is meant to see, broadcasts against the scores; None for all. Under the
            multiplicative mask others win too.
        own: the attention's own map from these scores to weights.
    """

    scores: Tensor
    allowed: Tensor | None
    own: Callable[[Tensor], Tensor]

    def weights(self) -> Tensor:
        """Return the attention's own weights."""
        return self.own(self.scores)


Weigh = Callable[[str, Competition], Tensor]  # name of an attention and its scores -> weights B H T S


def softmax_attentions(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (kind, module) of every self-attention that weighs its keys by comparing their scores.

    These are the softmax over the sequence or over blocks of it, and ``si_norm``.

    Raises:
        ValueError: the model has none, or one that attends over the batch.
    """
    modules = attention_modules(model)
    found = {
        name: (kind, module)
        for name, (kind, module) in modules.items()
        if kind in ("softmax", "si_norm") or getattr(module, "activation", None) == SOFTMAX
    }
    if not found:
        kinds = sorted({kind for kind, _ in modules.values()})
        raise ValueError(
            f"no attention of {type(model).__name__} has a softmax that could saturate; there is "
            f"{' and '.join(kinds) or 'none that is known'} attention"
        )
    for name, (_, module) in found.items():
        if getattr(module, "axis", "time") == "batch":
            raise ValueError(f"{name} attends over the sequences of a batch: it has no weights between positions")
    return found


@contextmanager
def replaced_weights(model: nn.Module, weigh: Weigh) -> Iterator[None]:
    """Have every attention with a softmax take its weights from ``weigh`` for a while, without dropout.

    Args:
        model: what ``softmax_attentions`` knows; its linear attention is left as it is.
        weigh: called with the name of the attention and its scores each time that it runs.

    Raises:
        ValueError: as of ``softmax_attentions``, or an attention of fairseq's with keys that no token has.
    """
    with ExitStack() as stack:
        for name, (_, module) in softmax_attentions(model).items():
            if isinstance(module, MultiheadAttention):
                _check_plain(name, module)
                module.forward = _fairseq_forward(name, module, weigh)
                stack.callback(delattr, module, "forward")  # uncovers the method of the class
            else:
                module.mix = _mix(name, module, weigh)  # type: ignore[assignment]
                stack.callback(delattr, module, "mix")
        yield


def hardmax_of(model: nn.Module, tolerance: float = 0.0) -> Weigh:
    """Return what gives the attentions of ``model`` the weights that they saturate to, for ``replaced_weights``.

    That is the exact hardmax; ``si_norm``, which has no softmax, stays. Arguments and errors as of :func:`hardmax`.
    """
    kinds = {name: kind for name, (kind, _) in softmax_attentions(model).items()}

    def weigh(name: str, competition: Competition) -> Tensor:
        # the weights of si_norm are the same at every scale: they are their own limit
        return competition.weights() if kinds[name] == "si_norm" else hardmax(competition.scores, None, tolerance)

    return weigh


def _mix(name: str, module: Any, weigh: Weigh) -> Callable[[Tensor, Tensor | None], Tensor]:
    def mix(heads: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        q, k, v = module.features(heads)
        compete = _of_blocks if isinstance(module, LocalAttention) else _of_sequence
        return weigh(name, compete(module, q, k, key_padding_mask)) @ v

    return mix


def _of_blocks(module: LocalAttention, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Competition:
    allowed = allowed_in_blocks(q.shape[2], module.block_size, module.causal, key_padding_mask, q.device)
    return _masked(q @ k.transpose(-1, -2), allowed)


def _of_sequence(module: SoftmaxAttention, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Competition:
    scores, allowed = module.scores(q, k), module.allowed(q.shape[2], k.shape[2], key_padding_mask, q.device)
    if isinstance(module, GrowthAttention) and module.weight_map == "si_norm":
        return Competition(scores, allowed, lambda x: module.weigh(x, allowed))
    if isinstance(module, GrowthAttention) and module.mask == "multiplicative" and allowed is not None:
        return Competition(scores.masked_fill(~allowed, 0.0), allowed, _softmax)
    return _masked(scores, allowed)


def _masked(scores: Tensor, allowed: Tensor | None) -> Competition:
    return Competition(scores if allowed is None else scores.masked_fill(~allowed, float("-inf")), allowed, _softmax)


def _softmax(scores: Tensor) -> Tensor:
    # a row of padding only has no key to look at
    return torch.softmax(scores, dim=-1).masked_fill(scores == float("-inf"), 0.0)


def _check_plain(name: str, module: MultiheadAttention) -> None:
    if module.bias_k is not None or module.add_zero_attn or module.use_xformers:
        raise ValueError(f"{name} has keys that belong to no token, or another package's kernels; it cannot be redone")


def _fairseq_forward(name: str, module: MultiheadAttention, weigh: Weigh) -> Callable[..., tuple[Tensor, Any]]:
    def forward(*args: Any, need_weights: bool = True, need_head_weights: bool = False, **kwargs: Any) -> Any:
        competition, values = _of_fairseq(module, *args, **kwargs)
        weights = weigh(name, competition)
        out = module.out_proj((weights @ values).permute(2, 0, 1, 3).flatten(2))
        if need_head_weights:
            return out, weights.transpose(0, 1)
        return out, weights.mean(1) if need_weights else None

    return forward


def _of_fairseq(
    module: MultiheadAttention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    **_unused: Any,
) -> tuple[Competition, Tensor]:
    """Return the scores of fairseq's attention, and its values ``B H S V``, from its arguments."""

    def heads(projection: nn.Module) -> Tensor:
        # T B D -> B H T K
        return projection(query).unflatten(-1, (module.num_heads, -1)).permute(1, 2, 0, 3)

    scores = heads(module.q_proj) @ heads(module.k_proj).transpose(-1, -2) / math.sqrt(module.head_dim)
    allowed = None if key_padding_mask is None else ~key_padding_mask.bool()[:, None, None, :]
    if attn_mask is not None:  # minus infinity where forbidden, or True there; other numbers are added
        forbidden = attn_mask if attn_mask.dtype == torch.bool else attn_mask == float("-inf")
        allowed = ~forbidden if allowed is None else allowed & ~forbidden
        scores = scores if attn_mask.dtype == torch.bool else scores + attn_mask
    return _masked(scores, allowed), heads(module.v_proj)
