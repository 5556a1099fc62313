"""Gradients in the attention scores of a trained language model, and how far its norms bound them.

The paper's first claim on a real model: ``theory.gradient_bounds`` and ``score_gradients`` have it in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from ..modules.attention import DENOMINATOR_FLOOR, LinearAttention, LocalAttention, SelfAttention
from ..modules.local_attention import allowed_in_blocks, weigh
from ..modules.norms import SimpleRMSNorm, at_least_float32, rms
from ..theory.gradient_bounds import norm_attention_sharp_bound
from .checkpoints import Run


@torch.no_grad()
def norm_gain(norm: SimpleRMSNorm, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows"]:
    """Return ``1 / (rms + eps)`` of each token, ``1 / sqrt(rms^2 + eps)`` with eps inside.

    It is the most by which a SimpleRMSNorm multiplies the size of a gradient; a scale or gate behind it is not counted.
    A row of zeros has the largest, 1 / eps, or eps^(-1/2) with eps inside.
    """
    size = rms(at_least_float32(x)).squeeze(-1)
    return torch.as_tensor(norm_attention_sharp_bound(1.0, 1.0, size, norm.eps, eps_inside=norm.eps_inside))


def _larger(so_far: float, values: Tensor) -> float:
    """Return the largest of both, not a number where there is one among them."""
    return float(np.maximum(so_far, float(values.max()) if values.numel() else so_far))


@contextmanager
def largest_norm_gains(model: nn.Module) -> Iterator[dict[str, float]]:
    """Keep the largest ``norm_gain`` of every rms norm of ``model`` while the block runs: a hook for debugging.

    A gain near 1 / eps tells that rows of zeros reach a norm, whose gradients then blow up; one that is not a number,
    that such numbers do. ScaleNorm and LayerNorm are not watched.

    Example:
        >>> with largest_norm_gains(model) as gains:
        ...     trainer.train_step(samples)
        >>> max(gains, key=gains.get)
        'decoder.layers.5.attn.norm'
    """
    gains: dict[str, float] = {}

    def watch(name: str, norm: SimpleRMSNorm, inputs: tuple[Tensor]) -> None:
        gains[name] = _larger(gains.get(name, 0.0), norm_gain(norm, inputs[0]))

    with ExitStack() as stack:
        for name, norm in model.named_modules():
            if isinstance(norm, SimpleRMSNorm):
                hook = norm.register_forward_pre_hook(lambda norm, x, name=name: watch(name, norm, x))
                stack.callback(hook.remove)
        yield gains


@dataclass
class _Seen:
    """What went through one attention: its input, the joined heads before the norm, and after it; ``B T D`` each."""

    attn: SelfAttention
    x: Tensor = field(init=False)
    mixed: Tensor = field(init=False)
    out: Tensor = field(init=False)


@contextmanager
def _watched(attentions: dict[str, SelfAttention]) -> Iterator[dict[str, _Seen]]:
    seen = {name: _Seen(attn) for name, attn in attentions.items()}

    def keep(record: _Seen, *fields: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for name in fields:
                setattr(record, name, inputs[0])

        return hook

    with ExitStack() as stack:
        for record in seen.values():
            attn = record.attn
            stack.callback(attn.qkv.register_forward_pre_hook(keep(record, "x")).remove)
            if attn.norm is None:
                stack.callback(attn.out.register_forward_pre_hook(keep(record, "mixed", "out")).remove)
            else:
                stack.callback(attn.norm.register_forward_pre_hook(keep(record, "mixed")).remove)
                stack.callback(attn.out.register_forward_pre_hook(keep(record, "out")).remove)
        yield seen


@torch.no_grad()
def score_gradients(attn: SelfAttention, x: Tensor, grad: Tensor) -> Float[Tensor, "B H T T"]:
    """Return ``dL / ds`` of the scores ``s = q k^T`` (scaled in local attention), 0 where no key is seen.

    Args:
        attn: causal linear or local attention.
        x: input of the attention, ``B T D``.
        grad: ``dL / dO``, O the joined heads before the norm, ``B T D``.

    Raises:
        ValueError: the attention is not causal.
    """
    if not attn.causal:
        raise ValueError("gradients in scores are measured in causal attention only")
    q, k, v = attn.features(attn.heads(attn.qkv(x)))
    scores = q @ k.transpose(-1, -2)
    v = v[..., : q.shape[-1]]  # without the channel of ones that sums up to a denominator
    g = at_least_float32(grad).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
    for_weights = g @ v.transpose(-1, -2)
    if isinstance(attn, LocalAttention):
        allowed = allowed_in_blocks(x.shape[1], attn.block_size, True, None, x.device)
        with torch.enable_grad():
            weights = weigh(scores.requires_grad_(), allowed, attn.activation)
        return torch.autograd.grad(weights, scores, for_weights)[0]
    assert isinstance(attn, LinearAttention)
    for_scores = for_weights.tril()
    if attn.denominator:
        scores = scores.tril()
        total = scores.sum(-1, keepdim=True)
        divisor = total.clamp(min=DENOMINATOR_FLOOR)
        average = (scores * for_scores).sum(-1, keepdim=True) / divisor
        # a sum that is kept at the floor does not change with its scores
        for_scores = ((for_scores - average.masked_fill(total < DENOMINATOR_FLOOR, 0.0)) / divisor).tril()
    return for_scores


def gradient_rows(run: Run, label: str, tokens: Tensor, batch: int = 1) -> list[dict[str, Any]]:
    """Measure, for every layer, the largest gradient in a score, and the bound that its norm gives.

    The loss is the sum over the tokens of -log p(next token), dropout off.

    Args:
        run: a trained causal language model of this package.
        label: its name in the table.
        tokens: token ids, sequences x length, no padding.
        batch: sequences at a time; memory grows with batch x heads x length^2.

    Returns:
        Rows with ``model``, ``updates``, ``layer`` (from 1), ``kind`` (``linear``; ``scaled linear`` with denominator;
        the activation of local attention), ``length``, ``sequences``, ``score_gradient`` (largest |dL / ds|), ``bound``
        (largest over the tokens i of c1_i c2 / (rms_i + eps); None but for linear attention with a SimpleRMSNorm),
        ``norm_gain`` and ``median_norm_gain`` (of 1 / (rms_i + eps) over the tokens; None without a SimpleRMSNorm).

    Raises:
        ValueError: the model has no such attention, the sequences are too short or too long for it, or a gradient is
            not a finite number.
    """
    attentions = {name: m for name, m in run.model.named_modules() if isinstance(m, SelfAttention)}
    if not attentions:
        raise ValueError(f"{run.path}: no linear or local attention of this package to take gradients in")
    length, limit = tokens.shape[1] - 1, run.model.max_positions()
    if length < 1:
        raise ValueError(f"{tokens.shape[1]} token a sequence has no next token; use --length 1 or more")
    if isinstance(limit, int) and length > limit:
        raise ValueError(f"{run.path}: {length} tokens are more than the {limit} positions of the model; use --length")
    device = next(run.model.parameters()).device
    largest = {name: {"score_gradient": 0.0, "bound": 0.0} for name in attentions}
    gains: dict[str, list[Tensor]] = {name: [] for name in attentions}
    with ExitStack() as stack:
        stack.callback(run.model.train, run.model.training)
        run.model.eval()
        for part in tqdm(tokens.split(batch), desc=label, disable=None, leave=False):
            with _watched(attentions) as seen:
                logits = run.model(part[:, :-1].to(device))[0]
            loss = F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].to(device).flatten(), reduction="sum")
            grads = iter(torch.autograd.grad(loss, [t for r in seen.values() for t in (r.mixed, r.out)]))
            for name, record in seen.items():
                before, after, found = next(grads), next(grads), largest[name]
                in_scores = score_gradients(record.attn, record.x, before).abs()
                found["score_gradient"] = _larger(found["score_gradient"], in_scores)
                if type(record.attn.norm) is SimpleRMSNorm:
                    gain = norm_gain(record.attn.norm, record.mixed)
                    found["bound"] = _larger(found["bound"], _reach(record, after) * gain)
                    gains[name].append(gain.flatten().cpu())
    if broken := [name for name, found in largest.items() if not math.isfinite(sum(found.values()))]:
        raise ValueError(f"{run.path}: gradients that are not finite numbers in {', '.join(broken)}")
    return [
        {
            "model": label,
            "updates": run.updates,
            "layer": layer,
            "kind": _kind(attn),
            "length": length,
            "sequences": len(tokens),
            "score_gradient": largest[name]["score_gradient"],
            "bound": largest[name]["bound"] if gains[name] and _kind(attn) == "linear" else None,
            "norm_gain": float(torch.cat(gains[name]).max()) if gains[name] else None,
            "median_norm_gain": float(torch.cat(gains[name]).median()) if gains[name] else None,
        }
        for layer, (name, attn) in enumerate(attentions.items(), start=1)
    ]


@torch.no_grad()
def _reach(record: _Seen, grad: Tensor) -> Float[Tensor, "B T"]:
    """Return c1_i c2: the size of each token's gradient after the norm, times the longest value of any head."""
    value = record.attn.heads(record.attn.qkv(record.x))[:, :, 2 * record.attn.num_heads :]
    return at_least_float32(grad).norm(dim=-1) * value.norm(dim=-1).max()


def _kind(attn: SelfAttention) -> str:
    if isinstance(attn, LocalAttention):
        return attn.activation
    return "scaled linear" if isinstance(attn, LinearAttention) and attn.denominator else "linear"
