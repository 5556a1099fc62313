"""The induction-head models by loops over their formulas, one sequence and one column vector at a time."""

import math
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from fairseq_transnorm.models.birth.basic import InductionHeadBasic
from fairseq_transnorm.models.birth.config import InductionHeadBasicConfig, InductionHeadFullConfig
from fairseq_transnorm.models.birth.full import InductionHeadFull

V, D, T = 7, 8, 6
Weights = dict[str, Tensor]


def build(model: str = "ihead_basic", seed: int = 0, **options: Any) -> Any:
    """Build a model as a user gets it, in float64."""
    torch.manual_seed(seed)
    cls, config = {
        "ihead_basic": (InductionHeadBasic, InductionHeadBasicConfig),
        "ihead_full": (InductionHeadFull, InductionHeadFullConfig),
    }[model]
    values = {
        "ihead_dim": D,
        "tokens_per_sample": T,
        **({"ihead_heads": 2} if model == "ihead_full" else {}),
        **options,
    }
    task = SimpleNamespace(target_dictionary=range(V))
    return cls.build_model(OmegaConf.structured(config(**values)), task).double()


def basic_logits(state: Weights, tokens: list[int], *, rope: bool = False, scale: bool = True) -> Tensor:
    """Logits ``T V`` of the simplified model, of what its tensors are; W_U times h."""
    residual = [state["embed_tokens.weight"][v] + (0 if rope else state["positions"][t]) for t, v in enumerate(tokens)]
    for layer in (0, 1):
        maps = {name: state[f"layers.{layer}.{name}.weight"] for name in ("wk", "wv", "wo")}
        turn = turned if rope and layer == 0 else lambda x, t: x
        outs = []
        for t in range(len(tokens)):
            query = turn(residual[t], t)
            scores = [query @ turn(maps["wk"] @ residual[j], j) / (math.sqrt(D) if scale else 1) for j in range(t + 1)]
            weights = torch.stack(scores).softmax(0)
            mean = sum(weights[j] * residual[j] for j in range(t + 1))
            outs.append(maps["wo"] @ (maps["wv"] @ mean))
        residual = [h + out for h, out in zip(residual, outs, strict=True)]
        residual = [h + feed_forward(state, layer, h) for h in residual]
    return torch.stack([state["output.weight"] @ h for h in residual])


def turned(x: Tensor, t: int) -> Tensor:
    """Pairs of channels (2i, 2i+1) turned by t 10000^(-2i/D)."""
    out = x.clone()
    for i in range(D // 2):
        angle = t * 10000 ** (-2 * i / D)
        out[2 * i] = x[2 * i] * math.cos(angle) - x[2 * i + 1] * math.sin(angle)
        out[2 * i + 1] = x[2 * i] * math.sin(angle) + x[2 * i + 1] * math.cos(angle)
    return out


def feed_forward(state: Weights, layer: int, h: Tensor) -> Any:
    """The feed-forward map of a layer: one matrix, an MLP, or 0 where there is none."""
    if (matrix := state.get(f"layers.{layer}.ffn.weight")) is not None:
        return matrix @ h
    if (inner := state.get(f"layers.{layer}.ffn.inner.weight")) is not None:
        return state[f"layers.{layer}.ffn.out.weight"] @ (inner @ h).clamp(min=0)
    return 0


def normed(state: Weights, name: str, h: Tensor) -> Tensor:
    """LayerNorm with epsilon 1e-5, or nothing where the model has none."""
    if f"{name}.weight" not in state:
        return h
    centred = h - h.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def full_logits(
    state: Weights, tokens: list[int], *, heads: int = 2, post: bool = False, ffn_input: str = "block"
) -> Tensor:
    """Logits ``T V`` of the usual transformer, of what its tensors are."""
    positions = state["embed_positions.weight" if "embed_positions.weight" in state else "positions"]
    residual = [state["embed_tokens.weight"][v] + positions[t] for t, v in enumerate(tokens)]
    for layer in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))):
        prefix = f"layers.{layer}."
        reads = residual if post else [normed(state, prefix + "attn_norm", h) for h in residual]
        attended = [h + attention(state, prefix, reads, t, heads) for t, h in enumerate(residual)]
        if post:
            attended = [normed(state, prefix + "attn_norm", h) for h in attended]
            has_ffn = any(name.startswith(prefix + "ffn.") for name in state)
            after = [h + feed_forward(state, layer, h) for h in attended]
            residual = [normed(state, prefix + "ffn_norm", h) for h in after] if has_ffn else attended
        else:
            inputs = residual if ffn_input == "block" else attended
            fed = [feed_forward(state, layer, normed(state, prefix + "ffn_norm", h)) for h in inputs]
            residual = [h + f for h, f in zip(attended, fed, strict=True)]
    output = state.get("output.weight", state["embed_tokens.weight"])
    return torch.stack([output @ normed(state, "norm", h) for h in residual])


def attention(state: Weights, prefix: str, reads: list[Tensor], t: int, heads: int) -> Tensor:
    """Output of the attention at position t; a map that is not there is the identity."""

    def image(name: str, h: Tensor) -> Tensor:
        matrix = state.get(f"{prefix}{name}.weight")
        return h if matrix is None else matrix @ h

    size, parts = D // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        query = image("wq", reads[t])[part]
        scores = [query @ image("wk", reads[j])[part] / math.sqrt(size) for j in range(t + 1)]
        weights = torch.stack(scores).softmax(0)
        parts.append(sum(weights[j] * image("wv", reads[j])[part] for j in range(t + 1)))
    return image("wo", torch.cat(parts))
