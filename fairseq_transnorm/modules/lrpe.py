"""Linearised relative positional encoding: an orthogonal map of q and k that leaves only position differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .names import look_up
from .norms import at_least_float32

# kind -> (angles are learned, vectors are reflected first)
LRPE_KINDS = {"1d3": (True, True), "1d1": (True, False), "1_3": (False, True), "1_1": (False, False)}


def rotate(x: Float[Tensor, "*rows K"], angles: Float[Tensor, "*#rows K_2"]) -> Float[Tensor, "*rows K"]:
    """Turn each adjacent channel pair (2k, 2k + 1) of a row by ``angles[row, k]`` (radians); an odd last one stays.

    ``out[2k] = x[2k] cos - x[2k+1] sin;  out[2k+1] = x[2k] sin + x[2k+1] cos``
    """
    turned = 2 * angles.shape[-1]
    if turned < x.shape[-1]:
        # complex numbers need even strides, which a copy without the last channel has
        return torch.cat([rotate(x[..., :turned].contiguous(), angles), x[..., turned:]], dim=-1)
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def reflect(x: Float[Tensor, "... K"], v: Float[Tensor, " K"]) -> Float[Tensor, "... K"]:
    """Return the Householder reflection ``x - 2 (x . v) v`` by the unit vector ``v``."""
    rows = x.reshape(-1, len(v))
    return torch.addmm(rows, rows @ v[:, None], v[None, :], alpha=-2).view(x.shape)


def encode(
    x: Float[Tensor, "*rows K"],
    positions: Int[Tensor, "*#rows"],
    theta: Float[Tensor, " K_2"],
    v: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "*rows K"]:
    """Return ``x`` reflected by ``v``, unless None, and rotated by ``positions * theta``; in float32 or float64.

    Args:
        x: queries or keys, after the feature map.
        positions: position of each row, from 0.
        theta: angle of a channel pair at position 1, in radians.
        v: unit vector of the reflection.
    """
    if v is not None:
        x = reflect(x, v.to(x.dtype))
    return rotate(x, positions[..., None].to(x.dtype) * theta.to(x.dtype))


class LRPE(nn.Module):
    """Linearised relative positional encoding, shared by the heads of a layer and by q and k.

    With reflection P and the rotation R_n by angles ``n theta``, ``(R_n P q) . (R_m P k) = q^T P R_(m-n) P k``.
    Angles and the reflection's vector stay in float32 when the model becomes half precision: n theta would otherwise
    be garbage after a few hundred positions.

    Args:
        head_dim: channels K of a head.
        kind: core matrix, angles, projection: ``1d3`` learned angles with a reflection (its vector is drawn once and
            not trained), ``1d1`` learned angles alone, ``1_3`` and ``1_1`` the same with fixed angles.

    Source: Qin et al. 2023, arXiv:2307.09270. Angles start at ``10000^(-2k/K)``, as in RoPE.
    """

    def __init__(self, head_dim: int, kind: str = "1d3") -> None:
        super().__init__()
        learned, reflected = look_up(LRPE_KINDS, kind, "LRPE kind")
        if head_dim < 2:
            raise ValueError(f"LRPE: head width {head_dim} has no channel pair to rotate; use at least 2")
        self.kind = str(kind)
        half = head_dim // 2
        # fixed angles count the rotated channels, learned ones all: they differ for odd widths only
        theta = 10000.0 ** (-2 * torch.arange(half, dtype=torch.float64) / (head_dim if learned else 2 * half))
        theta = theta.to(torch.get_default_dtype())
        if learned:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta, persistent=False)
        v = torch.randn(head_dim)
        self.v = nn.Parameter(v / v.norm(), requires_grad=False) if reflected else None

    def extra_repr(self) -> str:
        return f"kind={self.kind}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: x.data for name, x in self._all_tensors()}
        super()._apply(fn, recurse)
        for name, x in self._all_tensors():
            if x.dtype in (torch.float16, torch.bfloat16):
                x.data = at_least_float32(kept[name]).to(x.device)
                if x.grad is not None:
                    x.grad = x.grad.to(x.dtype)
        return self

    def _all_tensors(self) -> list[tuple[str, Tensor]]:
        return [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]

    def tensors(self) -> tuple[Tensor, ...]:
        """Return theta, and v where there is a reflection: what ``encode`` takes after the positions."""
        return (self.theta,) if self.v is None else (self.theta, self.v)

    def forward(self, x: Float[Tensor, "B H T K"], positions: Int[Tensor, " T"]) -> Float[Tensor, "B H T K"]:
        """Encode queries or keys at ``positions``, counted from 0."""
        return encode(x, positions, *self.tensors())
