"""Normalisations over the channels of each token. All compute in float32 or better and return the input's type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .names import look_up
from .recompute import first_order


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32 when its type is narrower, else ``x`` itself."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def rms(x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows one"]:
    """Return the root mean square over the channels; its gradient at a row of zeros is 0."""
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5


class _RMSNormalise(torch.autograd.Function):
    """x / (rms(x) + eps), keeping only x and one number a token for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        size = rms(x)
        inverse = (size + eps).reciprocal_()
        ctx.save_for_backward(x, size, inverse)
        return x * inverse

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, size, inverse = ctx.saved_tensors
        # d(x inverse) = inverse dx - x inverse^2 d(rms), d(rms) = (x . dx) / (D rms); rms = 0 has x = 0: no second term
        along = (grad * x).sum(-1, keepdim=True) * inverse.square() / (size * x.shape[-1])
        along = along.masked_fill_(size == 0, 0.0)
        return torch.addcmul(grad * inverse, x, along, value=-1), None


def rms_normalise(x: Float[Tensor, "... D"], eps: float = 1e-8, eps_inside: bool = False) -> Float[Tensor, "... D"]:
    """Return ``x / (rms(x) + eps)``, or ``x / sqrt(mean(x^2) + eps)`` with ``eps_inside``.

    rms is the root mean square over the channels. A zero row gives zero. Source: TransNormer (Qin et al. 2022,
    arXiv:2210.10340); the released code adds eps outside the root, the paper's analysis inside.
    """
    if eps_inside:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return _RMSNormalise.apply(x, eps) if torch.is_grad_enabled() else x / (rms(x) + eps)


class SimpleRMSNorm(nn.Module):
    """``x / (rms(x) + eps)`` without parameters; ``eps_inside`` puts eps under the root."""

    def __init__(self, eps: float = 1e-8, eps_inside: bool = False) -> None:
        super().__init__()
        self.eps = eps
        self.eps_inside = eps_inside

    def extra_repr(self) -> str:
        return f"eps={self.eps}" + (", eps_inside=True" if self.eps_inside else "")

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return rms_normalise(at_least_float32(x), self.eps, self.eps_inside).to(x.dtype)


class RMSNorm(SimpleRMSNorm):
    """``scale * x / (rms(x) + eps) (+ offset)``.

    Args:
        dim: channels D.
        partial: take the rms over the first ``int(partial * dim)`` channels only.
        offset: add a learned offset.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(
        self, dim: int, eps: float = 1e-8, eps_inside: bool = False, partial: float = 1.0, offset: bool = False
    ) -> None:
        super().__init__(eps, eps_inside)
        if not 0 < partial <= 1 or int(partial * dim) < 1:
            raise ValueError(f"RMSNorm: partial {partial} of {dim} channels leaves none; use a share in (0, 1]")
        self.measured = int(partial * dim)
        self.scale = nn.Parameter(torch.ones(dim))
        self.offset = nn.Parameter(torch.zeros(dim)) if offset else None

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = at_least_float32(x)
        if self.measured == x.shape[-1]:
            normal = rms_normalise(wide, self.eps, self.eps_inside)
        else:
            some = wide[..., : self.measured]
            if self.eps_inside:
                normal = wide * torch.rsqrt(some.square().mean(-1, keepdim=True) + self.eps)
            else:
                normal = wide / (rms(some) + self.eps)
        normal = self.scale * normal
        return (normal if self.offset is None else normal + self.offset).to(x.dtype)


class GatedRMSNorm(SimpleRMSNorm):
    """``scale * x / (rms(x) + eps) * sigmoid(gate * x)``; the gate sees the unnormalised x.

    Source: Zhang et al. 2021, arXiv:2104.07012 (rectified linear attention).
    """

    def __init__(self, dim: int, eps: float = 1e-8, eps_inside: bool = False) -> None:
        super().__init__(eps, eps_inside)
        self.scale = nn.Parameter(torch.ones(dim))
        self.gate = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        wide = at_least_float32(x)
        normal = rms_normalise(wide, self.eps, self.eps_inside)
        return (self.scale * normal * torch.sigmoid(self.gate * wide)).to(x.dtype)


class ScaleNorm(nn.Module):
    """``scale * x / sqrt(mean(x^2) + eps)`` with one learned number: an rms norm, not the L2 norm of the paper.

    Source: Nguyen and Salazar 2019, arXiv:1910.05895; the rms is TransNormer's reading.
    """

    def __init__(self, eps: float = 1e-5, eps_inside: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.eps_inside = eps_inside
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return (self.scale * rms_normalise(at_least_float32(x), self.eps, self.eps_inside)).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm with a gain, and a bias unless ``bias=False``, computed in float32 or better."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        weight = at_least_float32(self.weight)
        bias = None if self.bias is None else at_least_float32(self.bias)
        return nn.functional.layer_norm(at_least_float32(x), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


# name -> builder(dim, eps or None, eps_inside); None keeps each norm's own eps
NORMS: dict[str, Callable[[int, float | None, bool], nn.Module]] = {
    "simplermsnorm": lambda dim, eps, inside: SimpleRMSNorm(1e-8 if eps is None else eps, inside),
    "rmsnorm": lambda dim, eps, inside: RMSNorm(dim, 1e-8 if eps is None else eps, inside),
    "gatedrmsnorm": lambda dim, eps, inside: GatedRMSNorm(dim, 1e-8 if eps is None else eps, inside),
    # these two have eps under the root by definition
    "scalenorm": lambda dim, eps, inside: ScaleNorm(1e-5 if eps is None else eps),
    "layernorm": lambda dim, eps, inside: LayerNorm(dim, eps=1e-5 if eps is None else eps),
    "none": lambda dim, eps, inside: nn.Identity(),
}


def build_norm(name: str, dim: int, eps: float | None = None, eps_inside: bool = False) -> nn.Module:
    """Build a normalisation by name.

    Args:
        name: one of ``NORMS``.
        dim: channels D.
        eps: replaces the norm's own default.
        eps_inside: put eps under the root in the three rms norms; scalenorm and layernorm have it there anyway.

    Raises:
        ValueError: unknown name, or an eps that is not a positive number.
    """
    if eps is not None and not eps > 0:
        raise ValueError(f"norm {name}: eps {eps} must be above 0; the default is 1e-8 (rms norms) or 1e-5")
    return look_up(NORMS, name, "norm")(dim, eps, eps_inside)
