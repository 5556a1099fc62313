"""Linear attention without a denominator, in forms that agree exactly: pure functions of q, k and v.

All take ``q, k: B H T K`` after feature map and positions, and ``v: B H T V``, of any strides, in float32 or float64.
The scale of the output grows with the number of keys; it is left to the norm that follows.
Source: Qin et al. 2022 (TransNormer), arXiv:2210.10340; the chunkwise form is the usual split into a part inside a
chunk and a part carried by the state ``sum over s of k[s]^T v[s]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

State = Float[Tensor, "B H K V"]

# Numbers of one operand that a step of the chunkwise form holds. On a CPU the scratch must stay in the cache (1 MiB in
# float32: time per token is then flat in T); an accelerator wants few, large steps.
_SEGMENT_NUMBERS = {"cpu": 2**18}
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
        state = state + k[:, :, t, :, None] * v[:, :, t, None, :]
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
    not depend on ``chunk_length``. Only q, k, v and the first state are kept for the backward pass, which computes the
    states again; gradients flow into and out of both states. Second derivatives are not available.

    Args:
        q, k, v: any strides.
        chunk_length: positions a chunk; about K is fastest.
        state: what earlier positions left; zeros when None.

    Raises:
        ValueError: ``chunk_length`` is below 1.
    """
    if chunk_length < 1:
        raise ValueError(f"chunkwise_linear_attention: chunk_length {chunk_length} must be at least 1; try 64")
    if state is None:
        state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    return _Chunkwise.apply(q, k, v, state, chunk_length)


class _Segments:
    """Cuts T into segments of some chunks each; reads and writes them as batches of chunks."""

    def __init__(self, q: Tensor, v: Tensor, chunk_length: int) -> None:
        self.B, self.H, self.T, K = q.shape
        self.c = max(1, min(chunk_length, self.T))
        budget = _SEGMENT_NUMBERS.get(q.device.type, _SEGMENT_NUMBERS_ELSEWHERE)
        chunk_numbers = self.B * self.H * self.c * max(K, v.shape[-1])
        self.length = self.c * max(1, min(budget // max(1, chunk_numbers), -(-self.T // self.c)))

    def forwards(self) -> Iterator[slice]:
        return (slice(s, min(s + self.length, self.T)) for s in range(0, self.T, self.length))

    def backwards(self) -> Iterator[slice]:
        return reversed(list(self.forwards()))

    def read(self, x: Tensor, part: slice) -> Tensor:
        """Return positions ``part`` of ``B H T X`` as chunks ``(B H m) c X``, filled up with zeros."""
        width = x.shape[-1]
        size = part.stop - part.start
        if size % self.c == 0:
            return x[:, :, part].reshape(-1, self.c, width)
        filled = x.new_zeros(self.B, self.H, -(-size // self.c) * self.c, width)
        filled[:, :, :size] = x[:, :, part]
        return filled.view(-1, self.c, width)

    def write(self, chunks: Tensor, target: Tensor, part: slice) -> None:
        size = part.stop - part.start
        target[:, :, part] = chunks.view(self.B, self.H, -1, chunks.shape[-1])[:, :, :size]

    def like(self, x: Tensor) -> Tensor:
        """Return an empty ``B H T X`` whose memory is ``B T H X``, so that joining the heads is free."""
        return x.new_empty(self.B, self.T, self.H, x.shape[-1]).transpose(1, 2)

    def states(self, first: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state before each chunk, ``(B H m) K V``, and the one after the last, ``(B H) K V``."""
        updates = updates.view(self.B * self.H, -1, *updates.shape[1:])
        states = torch.empty_like(updates)
        for j in range(updates.shape[1]):
            states[:, j] = first
            first = first + updates[:, j]
        return states.view(-1, *updates.shape[2:]), first

    def suffix_states(self, last: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the state after each chunk, and of the one before the first."""
        updates = updates.view(self.B * self.H, -1, *updates.shape[1:])
        states = torch.empty_like(updates)
        for j in reversed(range(updates.shape[1])):
            states[:, j] = last
            last = last + updates[:, j]
        return states.view(-1, *updates.shape[2:]), last


class _Chunkwise(torch.autograd.Function):
    """Names: Q, K, V, G are the chunks of q, k, v and of the output's gradient; S the state before a chunk."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, state: Tensor, chunk_length: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, state)
        ctx.chunk_length = chunk_length
        segments = _Segments(q, v, chunk_length)
        out = segments.like(v)
        last = state.reshape(-1, *state.shape[2:])
        for part in segments.forwards():
            Q, K, V = (segments.read(x, part) for x in (q, k, v))
            S, last = segments.states(last, torch.bmm(K.transpose(1, 2), V))
            scores = torch.bmm(Q, K.transpose(1, 2)).tril_()
            segments.write(torch.bmm(Q, S).baddbmm_(scores, V), out, part)
        return out, last.view_as(state).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        q, k, v, state = ctx.saved_tensors
        segments = _Segments(q, v, ctx.chunk_length)
        dq, dk, dv = segments.like(q), segments.like(k), segments.like(v)

        # dQ = G S^T + ((G V^T) * lower) K, with the states transposed from the start: S^T gains V^T K
        last = state.transpose(2, 3).reshape(-1, v.shape[-1], q.shape[-1])
        for part in segments.forwards():
            K, V, G = (segments.read(x, part) for x in (k, v, grad))
            S, last = segments.states(last, torch.bmm(V.transpose(1, 2), K))
            scores = torch.bmm(G, V.transpose(1, 2)).tril_()
            segments.write(torch.bmm(G, S).baddbmm_(scores, K), dq, part)

        # R = what later chunks send back to the state; dK = V R^T + ((V G^T) * upper) Q, dV = K R + ((K Q^T) * upper) G
        last = grad_state.reshape(-1, *grad_state.shape[2:])
        for part in segments.backwards():
            Q, K, V, G = (segments.read(x, part) for x in (q, k, v, grad))
            R, last = segments.suffix_states(last, torch.bmm(Q.transpose(1, 2), G))
            scores = torch.bmm(V, G.transpose(1, 2)).triu_()
            segments.write(torch.bmm(V, R.transpose(1, 2)).baddbmm_(scores, Q), dk, part)
            scores = torch.bmm(K, Q.transpose(1, 2)).triu_()
            segments.write(torch.bmm(K, R).baddbmm_(scores, G), dv, part)
        return dq, dk, dv, last.view_as(state), None


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
