"""Linear attention without a denominator, in forms that agree exactly: pure functions of q, k and v.

All take ``q, k: B H T K`` after feature map and positions, and ``v: B H T V``, of any strides, in float32 or float64.
The scale of the output grows with the number of keys; it is left to the norm that follows.
Source: Qin et al. 2022 (TransNormer), arXiv:2210.10340; the chunkwise form is the usual split into a part inside a
chunk and a part carried by the state ``sum over s of k[s]^T v[s]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from .recompute import SEGMENT_NUMBERS, GradientsByParts, first_order, no_autocast

State = Float[Tensor, "B H K V"]

# numbers of one operand that a step of the chunkwise form holds: on a CPU what its cache takes, elsewhere few big steps
_SEGMENT_NUMBERS = {"cpu": SEGMENT_NUMBERS}
_SEGMENT_NUMBERS_ELSEWHERE = 2**25


def quadratic_linear_attention(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T V"], causal: bool = True
) -> Float[Tensor, "B H T V"]:
    """Return linear attention in O(T^2): the oracle of the other forms.

    ``out[t] = sum over s of (q[t] . k[s]) v[s]``, over s <= t when ``causal``, over all s otherwise.
    """
    scores = torch.einsum("bhtk,bhsk->bhts", q, k)
    if causal:
        scores = scores.tril()
    return torch.einsum("bhts,bhsv->bhtv", scores, v)


def bidirectional_linear_attention(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T V"]
) -> Float[Tensor, "B H T V"]:
    """Return ``out[t] = q[t] . sum over all s of k[s]^T v[s]`` in O(T)."""
    return q @ (k.transpose(-1, -2) @ v)


def recurrent_linear_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    state: State | None = None,
) -> tuple[Float[Tensor, "B H T V"], State]:
    """Return causal linear attention one position at a time, and the state after the last one.

    ``state <- state + k[t]^T v[t];  out[t] = q[t] . state``, from ``state`` or from zeros.
    """
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        state = torch.addcmul(state, k[:, :, t, :, None], v[:, :, t, None, :])
        outputs.append(q[:, :, t : t + 1] @ state)
    return torch.cat(outputs, dim=2), state


def chunkwise_linear_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    chunk_length: int = 64,
    state: State | None = None,
) -> tuple[Float[Tensor, "B H T V"], State]:
    """Return causal linear attention in O(T), and the state after the last position.

    Inside a chunk the scores are computed and masked; what came before it enters through the state. The result does
    not depend on ``chunk_length``. Only q, k, v and few states are kept for the backward pass; gradients flow into and
    out of both states. Second derivatives are not available.

    Args:
        q, k, v: any strides.
        chunk_length: positions a chunk; about K is fastest.
        state: what earlier positions left; zeros when None.

    Raises:
        ValueError: ``chunk_length`` is below 1.
    """
    rows = (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return chunkwise_from_rows(heads_first, rows, (), chunk_length, state)


def heads_first(*rows: Tensor) -> tuple[Tensor, ...]:
    """Return ``B T H X`` as ``B H T X``."""
    return tuple(x.transpose(1, 2) for x in rows)


def chunkwise_from_rows(
    prepare: Callable[..., tuple[Tensor, ...]],
    rows: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    chunk_length: int = 64,
    state: State | None = None,
) -> tuple[Float[Tensor, "B H T V"], State]:
    """Return causal linear attention of ``q, k, v = prepare(*rows, *shared)``, and the state after the last position.

    ``prepare`` runs on a few positions at a time, again in the backward pass: q, k and v never exist as a whole.

    Args:
        prepare: maps positions ``B t ...`` of the rows to q, k ``B H t K`` and v ``B H t V``, each position by itself.
        rows: tensors ``B T ...``.
        shared: tensors that all positions need.
        chunk_length, state: as in ``chunkwise_linear_attention``.

    Raises:
        ValueError: ``chunk_length`` is below 1.
    """
    if chunk_length < 1:
        raise ValueError(f"chunkwise_linear_attention: chunk_length {chunk_length} must be at least 1; try 64")
    with no_autocast(rows[0].device):
        if state is None:
            with torch.no_grad():
                q, _, v = prepare(*(row[:, :1] for row in rows), *shared)
            state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
        return _Chunkwise.apply(prepare, chunk_length, len(rows), state, *rows, *shared)


class _Segments:
    """Cuts ``B T`` into parts of some sequences and some chunks, whose operands fit into the cache."""

    def __init__(self, rows: Tensor, state: Tensor, chunk_length: int) -> None:
        self.B, self.T = rows.shape[:2]
        self.H, self.K, self.V = state.shape[1:]
        self.c = max(1, min(chunk_length, self.T))
        budget = _SEGMENT_NUMBERS.get(rows.device.type, _SEGMENT_NUMBERS_ELSEWHERE)
        chunks = max(1, budget // (self.H * max(self.K, self.V) * self.c))
        self.length = self.c * max(1, min(chunks, -(-self.T // self.c)))
        self.sequences = max(1, chunks * self.c // self.length)

    def batches(self) -> list[slice]:
        return [slice(b, b + self.sequences) for b in range(0, self.B, self.sequences)]

    def times(self) -> list[slice]:
        return [slice(t, min(t + self.length, self.T)) for t in range(0, self.T, self.length)]

    def chunks(self, x: Tensor) -> Tensor:
        """Return ``b H t X`` as chunks ``(b H m) c X``, filled up with zeros."""
        if filled := -x.shape[2] % self.c:
            x = F.pad(x, (0, 0, 0, filled))
        return x.reshape(-1, self.c, x.shape[-1])

    def join(self, chunks: Tensor, size: int) -> Tensor:
        """Return chunks as ``b H t X`` with t = ``size``: undo ``chunks``."""
        m = -(-size // self.c)
        return chunks.view(-1, self.H, m * self.c, chunks.shape[-1])[:, :, :size]

    def states(self, first: Tensor, updates: Tensor, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """Sum ``updates``, ``(b H m) X Y``, onto ``first``, ``b H X Y``: the sums before each chunk, and after all."""
        updates = updates.view(*first.shape[:2], -1, *first.shape[2:])
        sums = torch.empty_like(updates)
        order = range(updates.shape[2])
        for j in reversed(order) if backwards else order:
            sums[:, :, j] = first
            first = first + updates[:, :, j]
        return sums.view(-1, *first.shape[2:]), first


class _Chunkwise(torch.autograd.Function):
    """Names: Q, K, V, G are chunks of q, k, v and of the output's gradient; S is the state before each chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        prepare: Callable[..., tuple[Tensor, ...]],
        chunk_length: int,
        num_rows: int,
        state: Tensor,
        *inputs: Tensor,
    ) -> tuple[Tensor, Tensor]:
        rows, shared = inputs[:num_rows], inputs[num_rows:]
        segments = _Segments(rows[0], state, chunk_length)
        # this order of memory makes joining the heads free
        out = state.new_empty(segments.B, segments.T, segments.H, segments.V).transpose(1, 2)
        last = torch.empty_like(state)
        starts = state.new_empty(len(segments.times()), *state.shape)
        for batch in segments.batches():
            past = state[batch]
            for i, time in enumerate(segments.times()):
                starts[i, batch] = past
                q, k, v = prepare(*(row[batch, time] for row in rows), *shared)
                Q, K, V = segments.chunks(q), segments.chunks(k), segments.chunks(v)
                S, past = segments.states(past, torch.bmm(K.transpose(1, 2), V))
                scores = torch.bmm(Q, K.transpose(1, 2)).tril_()
                out[batch, :, time] = segments.join(torch.bmm(Q, S).baddbmm_(scores, V), q.shape[2])
            last[batch] = past
        ctx.save_for_backward(starts, *inputs)
        ctx.prepare, ctx.chunk_length, ctx.num_rows = prepare, chunk_length, num_rows
        return out, last

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        with no_autocast(grad.device):
            return _Chunkwise._backward(ctx, grad, grad_state)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        starts, *inputs = ctx.saved_tensors
        segments = _Segments(inputs[0], starts[0], ctx.chunk_length)
        grads = GradientsByParts(inputs, ctx.num_rows, ctx.needs_input_grad[4:])
        first = torch.empty_like(grad_state)
        for batch in segments.batches():
            future = grad_state[batch]
            for i, time in reversed(list(enumerate(segments.times()))):
                parts = grads.parts((batch, time))
                with torch.enable_grad():
                    prepared = ctx.prepare(*parts)
                Q, K, V = (segments.chunks(x.detach()) for x in prepared)
                G = segments.chunks(grad[batch, :, time])
                # dQ = G S^T + ((G V^T) * lower) K; the transposed state gains V^T K
                S, _ = segments.states(starts[i, batch].transpose(2, 3), torch.bmm(V.transpose(1, 2), K))
                scores = torch.bmm(G, V.transpose(1, 2)).tril_()
                dQ = torch.bmm(G, S).baddbmm_(scores, K)
                # R = what later chunks send back to the state; dK = V R^T + ((V G^T) * upper) Q
                R, future = segments.states(future, torch.bmm(Q.transpose(1, 2), G), backwards=True)
                dK = torch.bmm(V, R.transpose(1, 2)).baddbmm_(scores.transpose(1, 2), Q)
                # dV = K R + ((K Q^T) * upper) G
                scores = torch.bmm(K, Q.transpose(1, 2)).triu_()
                dV = torch.bmm(K, R).baddbmm_(scores, G)
                size = prepared[0].shape[2]
                grads.add(prepared, tuple(segments.join(x, size) for x in (dQ, dK, dV)))
            first[batch] = future
        return None, None, None, first, *grads.totals


def fla_linear_attention(
    q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T V"]
) -> Float[Tensor, "B H T V"]:
    """Return causal linear attention by the CUDA kernels of flash-linear-attention (package ``fla-core``).

    Raises:
        ValueError: the tensors are not on a GPU.
        ModuleNotFoundError: fla-core is not installed.
    """
    if not q.is_cuda:
        raise ValueError(f"causal_impl 'fla' needs a GPU, the tensors are on {q.device}; use 'chunk'")
    try:
        from fla.ops.linear_attn import chunk_linear_attn
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "causal_impl 'fla' needs fla-core: pip install 'fairseq_transnorm[gpu]', or use 'chunk'"
        ) from error
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    out, _ = chunk_linear_attn(q, k, v, scale=1.0, normalize=False)
    return out.transpose(1, 2)


CAUSAL_FORMS = ("chunk", "quadratic", "recurrent", "fla")


def causal_linear_attention(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T V"],
    impl: str = "chunk",
    chunk_length: int = 64,
) -> Float[Tensor, "B H T V"]:
    """Return causal linear attention by the form ``impl``, one of ``CAUSAL_FORMS``; all give the same numbers."""
    if impl == "chunk":
        return chunkwise_linear_attention(q, k, v, chunk_length)[0]
    if impl == "quadratic":
        return quadratic_linear_attention(q, k, v)
    if impl == "recurrent":
        return recurrent_linear_attention(q, k, v)[0]
    if impl == "fla":
        return fla_linear_attention(q, k, v)
    raise ValueError(f"unknown causal_impl {impl!r}; known: {', '.join(CAUSAL_FORMS)}")
