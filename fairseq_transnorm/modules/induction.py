"""A transformer layer whose every map can be a matrix, frozen, or the identity: for models of induction heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .fused_attention import causal_attention
from .linear import Linear, linear
from .softmax_attention import masked_softmax

FFN_INPUTS = ("block", "residual")
Image = Callable[[Tensor], Tensor]  # a matrix W, O D -> x W^T, B T O


class LayerOutput(NamedTuple):
    """What a layer returns.

    Attributes:
        hidden: the residual stream after it, ``B T D``; or, with a matrix, its product, ``B T N``.
        weights: of its attention, ``B H T T``; None where nobody asked.
    """

    hidden: Tensor
    weights: Tensor | None


def sinusoids(length: int, dim: int) -> Float[Tensor, "T D"]:
    """Return ``P[t] = [sin(t f_0), cos(t f_0), sin(t f_1) ..]`` with ``f_i = 10000^(-2i/D)``, t from 0; D is even."""
    angles = rotary_angles(length, dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def rotary_angles(length: int, dim: int) -> Float[Tensor, "T half"]:
    """Return ``t 10000^(-2i/D)`` in radians and float64 for positions t and pairs of channels i.

    Raises:
        ValueError: the width is odd.
    """
    if dim % 2:
        raise ValueError(f"a width of {dim} is odd: rotary and sine/cosine positions pair the channels")
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.arange(length, dtype=torch.float64)[:, None] * frequencies


def rotate(x: Float[Tensor, "... T D"], angles: Float[Tensor, "T half"]) -> Float[Tensor, "... T D"]:
    """Turn the pairs of channels ``(2i, 2i+1)`` by their angles. Source: Su et al. 2021, arXiv:2104.09864."""
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class InductionLayer(nn.Module):
    """Causal softmax attention, then perhaps a feed-forward map, each added to the residual stream.

    Column vectors are mapped: the image of ``h`` under the map named ``wk`` is ``W_K h``. No map has a bias.

    Args:
        dim: width D.
        num_heads: heads H of D/H channels.
        query, value, output: whether ``wq``, ``wv`` and ``wo`` are matrices; else the identity, and the attribute None.
        scale: whether scores are divided by sqrt(D/H).
        rotary: whether queries and keys are turned by their positions.
        ffn: maps ``B T D`` to the same; None for none.
        norm: whether there are LayerNorms, of ``attn_norm`` and, with ``ffn``, ``ffn_norm``.
        post_norm: where: ``norm(x + f(x))``; else ``x + f(norm(x))``.
        ffn_input: what a pre-norm layer's ffn reads: ``residual``, what the attention added to; ``block``, the layer's
            input, so that attention and ffn work side by side.

    Raises:
        ValueError: heads do not divide the width, or an odd width is to be turned.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        *,
        query: bool = True,
        value: bool = True,
        output: bool = True,
        scale: bool = True,
        rotary: bool = False,
        ffn: nn.Module | None = None,
        norm: bool = False,
        post_norm: bool = False,
        ffn_input: str = "residual",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {dim}")
        if ffn_input not in FFN_INPUTS:
            raise ValueError(f"input {ffn_input!r} of the feed-forward map: one of {', '.join(FFN_INPUTS)}")
        self.num_heads = num_heads
        self.scale = math.sqrt(num_heads / dim) if scale else 1.0
        self.rotary, self.post_norm, self.ffn_input = rotary, post_norm, ffn_input
        if rotary:
            rotary_angles(1, dim // num_heads)  # an odd width fails here, not at the first batch
        self.wq = Linear(dim, dim, bias=False) if query else None
        self.wk = Linear(dim, dim, bias=False)
        self.wv = Linear(dim, dim, bias=False) if value else None
        self.wo = Linear(dim, dim, bias=False) if output else None
        self.ffn = ffn
        self.attn_norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.ffn_norm = nn.LayerNorm(dim) if norm and ffn is not None else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        return_weights: bool = False,
        matrix: Float[Tensor, "N D"] | None = None,
        image: Image | None = None,
    ) -> LayerOutput:
        """Return the residual stream after the layer, and, if asked for, the weights of its attention.

        With the weights it is computed as in the formula, ``attend_plainly``, without them by ``attend``. With a matrix
        it is what ``read_out`` returns, and there are no weights: who watches the layers of a model sees all of them.

        Args:
            x: the residual stream.
            image: a faster way to ``x W^T``, which there is in the first layer: x is made of the rows of tables.
        """
        if matrix is not None:
            return LayerOutput(self.read_out(x, matrix, image), None)
        read = x if self.post_norm else self.attn_norm(x)
        if return_weights:
            weights = self.attention_weights(read)
            attended = self.attend_plainly(read, weights)
        else:
            weights, attended = None, self.attend(read, image if read is x else None)
        hidden = x + attended
        if self.post_norm:
            hidden = self.attn_norm(hidden)
        if self.ffn is None:
            return LayerOutput(hidden, weights)
        if self.post_norm:
            return LayerOutput(self.ffn_norm(hidden + self.ffn(hidden)), weights)
        return LayerOutput(hidden + self.ffn(self.ffn_norm(x if self.ffn_input == "block" else hidden)), weights)

    def attention_weights(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T T"]:
        """Return the softmax over j <= t of ``(W_Q x_t) . (W_K x_j) scale``, at least in float32."""
        q, k = self._queries_and_keys(x, partial(linear, x))
        scores = (q @ k.transpose(-1, -2)) * self.scale
        earlier = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return masked_softmax(scores if scores.dtype == torch.float64 else scores.float(), earlier)

    def attend_plainly(self, x: Float[Tensor, "B T D"], weights: Float[Tensor, "B H T T"]) -> Float[Tensor, "B T D"]:
        """Return ``W_O W_V sum_j weights_tj x_j`` of each head: the formula, and the oracle of ``attend``."""
        values = self._heads(x if self.wv is None else self.wv(x))
        mixed = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2)
        return mixed if self.wo is None else self.wo(mixed)

    def attend(self, x: Float[Tensor, "B T D"], image: Image | None = None) -> Float[Tensor, "B T D"]:
        """Return the output of the attention by fused kernels; ``image`` is as in ``forward``.

        Those of one head move ``W_O W_V``, one matrix, in front of the average.
        """
        image = image or partial(linear, x)
        if self.num_heads == 1 and self.wv is not None and self.wo is not None:
            return self._average(x, image(self.wo.weight @ self.wv.weight), image)
        mixed = self._average(x, x if self.wv is None else image(self.wv.weight), image)
        return mixed if self.wo is None else self.wo(mixed)

    def read_out(
        self, x: Float[Tensor, "B T D"], matrix: Float[Tensor, "N D"], image: Image | None = None
    ) -> Float[Tensor, "B T N"]:
        """Return ``matrix hidden`` for the ``hidden`` of ``forward``: the logits, where the layer is the last.

        With one head and nothing after the attention, ``matrix W_O W_V x_j`` is averaged, if N is less than D.
        """
        bare = self.ffn is None and self.num_heads == 1 and isinstance(self.attn_norm, nn.Identity)
        if not bare or self.wv is None or self.wo is None or len(matrix) >= matrix.shape[1]:
            return linear(self.forward(x, image=image).hidden, matrix)
        image = image or partial(linear, x)
        return image(matrix) + self._average(x, image(matrix @ self.wo.weight @ self.wv.weight), image)

    def _average(
        self, x: Float[Tensor, "B T D"], values: Float[Tensor, "B T V"], image: Image
    ) -> Float[Tensor, "B T V"]:
        q, k = self._queries_and_keys(x, image)
        return causal_attention(q, k, self._heads(values), self.scale).transpose(1, 2).flatten(2)

    def _queries_and_keys(self, x: Tensor, image: Image) -> tuple[Tensor, Tensor]:
        q, k = self._heads(x if self.wq is None else image(self.wq.weight)), self._heads(image(self.wk.weight))
        if self.rotary:
            angles = rotary_angles(x.shape[1], q.shape[-1]).to(x.device)
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k

    def _heads(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T K"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
