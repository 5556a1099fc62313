"""The attention of this package's own modules while a model runs: where queries look, and other weights in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..modules.attention import LinearAttention, LocalAttention
from ..modules.growth_attention import GrowthAttention
from ..modules.induction import InductionLayer
from ..modules.local_attention import allowed_in_blocks
from ..modules.softmax_attention import SoftmaxAttention

# Numbers of the weights that are held at once: few enough for a processor's cache, or for a GPU to have few calls.
_PIECE, _PIECE_OF_A_GPU = 2**20, 2**25


def own_attention_modules(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (kind, module) of every self-attention of this package.

    The kind is ``softmax``, ``si_norm``, ``local``, ``linear``, or ``induction``: a whole :class:`InductionLayer`, as
    its softmax is no module of its own.
    """
    found: dict[str, tuple[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LinearAttention):
            found[name] = ("linear", module)
        elif isinstance(module, LocalAttention):
            found[name] = ("local", module)
        elif isinstance(module, GrowthAttention):
            found[name] = (module.weight_map, module)
        elif isinstance(module, SoftmaxAttention):
            found[name] = ("softmax", module)
        elif isinstance(module, InductionLayer):
            found[name] = ("induction", module)
    return found


def own_weights(module: Any, x: Float[Tensor, "B T D"], *args: Any, **kwargs: Any) -> Float[Tensor, "B H T S"]:
    """Return the weights of one of these modules for the input that its ``forward`` gets."""
    if isinstance(module, InductionLayer):
        return module.attention_weights(x if module.post_norm else module.attn_norm(x))
    return module.attention_weights(x, *args, **kwargs)


def unseen(module: Any, length: int, device: torch.device) -> Bool[Tensor, "T T"] | None:
    """Return which keys (across) a query (down) does not see although their weight of 0 may be the largest of all.

    There are such keys where weights can be negative, in linear attention and in blocks without a softmax; else None.
    """
    if isinstance(module, LocalAttention):
        return ~allowed_in_blocks(length, module.block_size, module.causal, None, device)
    if isinstance(module, LinearAttention) and module.causal:
        return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return None


@contextmanager
def attended_positions(model: nn.Module) -> Iterator[list[Int[Tensor, "B H T"]]]:
    """Yield a list; each self-attention that runs in the block appends the key with the largest weight of each query.

    The first of equal ones counts; later keys of a causal attention never do. With signed weights, of linear attention,
    the largest is meant, not the farthest from 0. The model runs as ever: what it returns and its gradients do not
    change in a bit. Weights of a part of the sequences are held at a time.
    """
    found: list[Tensor] = []

    @torch.no_grad()
    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x, *others = args
        # a mask of padding has to be parted too; what an induction layer gets besides is not for its attention
        masked = any(isinstance(other, Tensor) for other in [*others, *kwargs.values()])
        whole = masked and not isinstance(module, InductionLayer)
        numbers = _PIECE if x.device.type == "cpu" else _PIECE_OF_A_GPU
        rows = len(x) if whole else max(1, numbers // (module.num_heads * x.shape[1] ** 2))
        hidden, pieces = unseen(module, x.shape[1], x.device), []
        for piece in x.split(rows):
            weights = own_weights(module, piece, *others, **kwargs)
            pieces.append((weights if hidden is None else weights.masked_fill(hidden, float("-inf"))).argmax(-1))
        found.append(torch.cat(pieces))

    with ExitStack() as stack:
        for _, module in own_attention_modules(model).values():
            if getattr(module, "axis", "time") == "batch":  # it has no weights between positions
                continue
            stack.callback(module.register_forward_pre_hook(look, with_kwargs=True).remove)
        yield found


Edit = Callable[[int, Float[Tensor, "B H T S"]], Float[Tensor, "B H T S"]]  # number of a layer, from 0, and its weights


@contextmanager
def edited_weights(model: nn.Module, edit: Edit) -> Iterator[None]:
    """Have each self-attention weigh its values by ``edit(layer, weights)`` for a while, without dropout.

    Raises:
        ValueError: an attention of the model has no weights between positions.
    """
    with ExitStack() as stack:
        for layer, (name, (_, module)) in enumerate(own_attention_modules(model).items()):
            if getattr(module, "axis", "time") == "batch":
                raise ValueError(f"{name} attends over the sequences of a batch: it has no weights between positions")
            for method, replacement in _edited(module, partial(edit, layer)).items():
                setattr(module, method, replacement)
                stack.callback(delattr, module, method)  # uncovers the method of the class
        yield


def _edited(module: Any, edit: Callable[[Tensor], Tensor]) -> dict[str, Callable[..., Tensor]]:
    if isinstance(module, InductionLayer):
        return {
            "attend": lambda x, image=None: module.attend_plainly(x, edit(module.attention_weights(x))),
            "read_out": lambda x, matrix, image=None: module(x).hidden @ matrix.T,
        }

    def mix(heads: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        q, k, v = module.features(heads)
        width = heads.shape[-1]  # the values of linear attention with a denominator have one more channel
        return edit(module.dense_weights(q, k, key_padding_mask)) @ v[..., :width]

    return {"mix": mix}
