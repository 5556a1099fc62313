"""The original's two models as literally as their description: tensors by its names, float64, loops.

Nothing here comes from our modules, so that it can judge them.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]
BLOCK = 64
# how a norm names its tensors, with their shapes as functions of the width
NORMS = {
    "simplermsnorm": {},
    "rmsnorm": {"scale": 1},
    "gatedrmsnorm": {"scale": 1, "gate": 1},
    "scalenorm": {"scala": 0},
    "layernorm": {"weight": 1, "bias": 1},
}


def make_state(
    symbols: int,
    dim: int = 32,
    heads: int = 4,
    layers: int = 4,
    hidden: int | None = None,
    classic: bool = False,
    layer_norm: str = "simplermsnorm",
    linear_norm: str = "simplermsnorm",
    local_norm: str = "simplermsnorm",
    local_norm_name: str = "norm",
    old_v: bool = False,
    seed: int = 0,
) -> State:
    """Draw a state dict of the original; biases and gains are far from 0 and 1, so that forgetting one shows."""
    rng = torch.Generator().manual_seed(seed)
    state: State = {"decoder.version": torch.tensor([3.0])}
    width = dim // heads

    def linear(name: str, rows: int, columns: int) -> None:
        state[f"{name}.weight"] = torch.randn(rows, columns, generator=rng) * columns**-0.5
        state[f"{name}.bias"] = 0.3 * torch.randn(rows, generator=rng)

    def norm(name: str, kind: str) -> None:
        for tensor, dimensions in NORMS[kind].items():
            state[f"{name}.{tensor}"] = 1 + 0.5 * torch.randn([dim] * dimensions, generator=rng)

    state["decoder.embed_tokens.weight"] = torch.randn(symbols, dim, generator=rng) * dim**-0.5
    state["decoder.embed_positions._float_tensor"] = torch.tensor([0.7])
    hidden = int(8 / 3 * dim) if hidden is None else hidden
    for i in range(layers):
        layer = f"decoder.layers.{i}"
        for x in "qkv":
            linear(f"{layer}.self_attn.{x}_proj", dim, dim)
        linear(f"{layer}.self_attn.out_proj", dim, dim)
        theta = 10000.0 ** (-2 * torch.arange(width // 2) / width) + 0.05 * torch.randn(width // 2, generator=rng)
        state[f"{layer}.self_attn.urpe.theta"] = theta.reshape(1, 1, -1)
        v = torch.randn(width, generator=rng)
        state[f"{layer}.self_attn.urpe.v"] = (v / v.norm()).reshape((1, -1, 1) if old_v else (-1,))
        if classic:
            linear(f"{layer}.fc1", hidden, dim)
            linear(f"{layer}.fc2", dim, hidden)
        else:
            linear(f"{layer}.glu.l1", hidden, dim)
            linear(f"{layer}.glu.l2", hidden, dim)
            linear(f"{layer}.glu.l3", dim, hidden)
        if i < layers // 2:
            norm(f"{layer}.self_attn.{local_norm_name}", local_norm)
        else:
            norm(f"{layer}.self_attn.layer_norm", linear_norm)
        norm(f"{layer}.self_attn_layer_norm", layer_norm)
        norm(f"{layer}.final_layer_norm", layer_norm)
    norm("decoder.layer_norm", layer_norm)
    state["decoder.output_projection.weight"] = state["decoder.embed_tokens.weight"]
    return state


def make_masked_state(symbols: int, positions: int = 64, heads_of: tuple[int, ...] = (), **options: Any) -> State:
    """Draw a state dict of the original's masked model, of the options of ``make_state``.

    Args:
        symbols: with ``<mask>``.
        positions: most tokens.
        heads_of: classes of classification heads, which are called head0 and so on.
    """
    prefix, rng = "encoder.sentence_encoder", torch.Generator().manual_seed(99)
    causal = make_state(symbols, **options)
    dim = causal["decoder.embed_tokens.weight"].shape[1]
    left_out = ("decoder.layer_norm.", "decoder.output_projection.", "decoder.embed_positions.")
    state = {name.replace("decoder", prefix, 1): x for name, x in causal.items() if not name.startswith(left_out)}
    shapes = {
        f"{prefix}.embed_positions.weight": (positions + 2, dim),
        **{f"{prefix}.layernorm_embedding.{x}": (dim,) for x in ("weight", "bias")},
        "encoder.lm_head.bias": (symbols,),
        "encoder.lm_head.dense.weight": (dim, dim),
        "encoder.lm_head.dense.bias": (dim,),
        **{f"encoder.lm_head.layer_norm.{x}": (dim,) for x in ("weight", "bias")},
    }
    for i, classes in enumerate(heads_of):
        for name, rows in (("dense", dim - 1), ("out_proj", classes)):
            columns = dim if name == "dense" else dim - 1
            shapes[f"classification_heads.head{i}.{name}.weight"] = (rows, columns)
            shapes[f"classification_heads.head{i}.{name}.bias"] = (rows,)
    state |= {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    return state | {"encoder.lm_head.weight": state[f"{prefix}.embed_tokens.weight"]}


def save_checkpoint(path: Path, state: State, **options: object) -> Path:
    """Write a checkpoint as an old fairseq did: all options in one ``argparse.Namespace``, optimiser state beside."""
    history = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam", "num_updates": 7}
    torch.save(
        {
            "args": argparse.Namespace(**{"task": "language_modeling", **options}),
            "model": state,
            "optimizer_history": [history],
            "extra_state": {"train_iterator": {"epoch": 3}},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        },
        path,
    )
    return path


def logits(state: State, tokens: Tensor, variant: str, glu_act: str = "identity") -> Tensor:
    """Return the logits ``N x V`` of one sequence without padding, for ``variant`` t1 or t2."""
    state = {name: x.double() for name, x in state.items()}
    E = state["decoder.embed_tokens.weight"]
    dim, N = E.shape[1], len(tokens)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("decoder.layers."))
    x = math.sqrt(dim) * E[tokens] + torch.stack([sinusoid(2 + n, dim) for n in range(N)])
    for i in range(layers):
        layer = Layer(state, f"decoder.layers.{i}.", variant, glu_act)
        attention = layer.diag_attention if i < layers // 2 else layer.norm_attention
        x = x + attention(layer.norm(x, "self_attn_layer_norm"))
        x = x + layer.feed_forward(layer.norm(x, "final_layer_norm"))
    return Layer(state, "decoder.", variant, glu_act).norm(x, "layer_norm") @ E.T


def masked_features(state: State, tokens: Tensor, variant: str, glu_act: str = "identity") -> Tensor:
    """Return the last layer's output ``N x d`` of the masked model for one sequence without padding."""
    state = {name: x.double() for name, x in state.items()}
    prefix = "encoder.sentence_encoder."
    layers = 1 + max(int(name.split(".")[3]) for name in state if name.startswith(f"{prefix}layers."))
    e = state[f"{prefix}embed_tokens.weight"][tokens]
    e = e + state[f"{prefix}embed_positions.weight"][2 : 2 + len(tokens)]
    x = Layer(state, prefix, variant, glu_act).norm(e, "layernorm_embedding")
    for i in range(layers):
        layer = Layer(state, f"{prefix}layers.{i}.", variant, glu_act, causal=False)
        attention = layer.diag_attention if i < layers // 2 else layer.norm_attention
        x = layer.norm(x + attention(x), "self_attn_layer_norm")
        x = layer.norm(x + layer.feed_forward(x), "final_layer_norm")
    return x


def masked_logits(state: State, tokens: Tensor, variant: str, glu_act: str = "identity") -> Tensor:
    """Return the logits ``N x V`` of the masked model for one sequence without padding."""
    x = masked_features(state, tokens, variant, glu_act)
    state = {name: x.double() for name, x in state.items()}
    head = Layer(state, "encoder.lm_head.", variant, glu_act)
    h = head.linear(x, "dense")
    h = head.norm(h * (1 + torch.erf(h / math.sqrt(2))) / 2, "layer_norm")
    return h @ state["encoder.sentence_encoder.embed_tokens.weight"].T + head["bias"]


def sinusoid(p: int, dim: int) -> Tensor:
    H = dim // 2
    f = [math.exp(-k * math.log(10000) / (H - 1)) for k in range(H)]
    return torch.tensor([math.sin(p * a) for a in f] + [math.cos(p * a) for a in f], dtype=torch.float64)


def elu(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, z.exp() - 1)


def rms(x: Tensor) -> Tensor:
    return (x**2).mean(-1, keepdim=True).sqrt()


class Layer:
    """The tensors under a prefix, and what is computed with them."""

    def __init__(self, state: State, prefix: str, variant: str, glu_act: str, causal: bool = True) -> None:
        self.state, self.prefix, self.variant, self.glu_act = state, prefix, variant, glu_act
        self.causal = causal

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        """The norm whose tensors there are under ``name``; without any, the simple one."""
        has = {kind for kind in ("gate", "scale", "scala", "weight") if f"{self.prefix}{name}.{kind}" in self.state}
        if "weight" in has:
            centred = x - x.mean(-1, keepdim=True)
            scaled = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
            return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]
        if "scala" in has:
            return self[f"{name}.scala"] * x / ((x**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        out = x / (rms(x) + 1e-8)
        if "scale" in has:
            out = self[f"{name}.scale"] * out
        if "gate" in has:
            out = out * 1 / (1 + (-self[f"{name}.gate"] * x).exp())
        return out

    def feed_forward(self, x: Tensor) -> Tensor:
        if f"{self.prefix}fc1.weight" in self.state:
            return self.linear(self.linear(x, "fc1").clamp(min=0), "fc2")
        gate = self.linear(x, "glu.l1")
        if self.glu_act == "silu":
            gate = gate / (1 + (-gate).exp())
        return self.linear(gate * self.linear(x, "glu.l2"), "glu.l3")

    def lrpe(self, z: Tensor, n: int) -> Tensor:
        """Reflect the vector ``z``, then rotate its channel pairs by the angles of position ``n``."""
        v, theta = self["self_attn.urpe.v"].flatten(), self["self_attn.urpe.theta"].flatten()
        z = z - 2 * (z @ v) * v
        out = z.clone()
        for k, angle in enumerate(theta.tolist()):
            cos, sin = math.cos(n * angle), math.sin(n * angle)
            out[2 * k] = z[2 * k] * cos - z[2 * k + 1] * sin
            out[2 * k + 1] = z[2 * k] * sin + z[2 * k + 1] * cos
        return out

    def heads(self, x: Tensor) -> list[slice]:
        width = self["self_attn.urpe.v"].numel()
        return [slice(j, j + width) for j in range(0, x.shape[1], width)]

    def norm_attention(self, x: Tensor) -> Tensor:
        q, k, v = (self.linear(x, f"self_attn.{name}_proj") for name in "qkv")
        q, k = elu(q), elu(k)
        if self.variant == "t2":
            q, k = 1 + q, 1 + k
        o = torch.zeros_like(x)
        for head in self.heads(x):
            products = [torch.outer(self.lrpe(k[n, head], n), v[n, head]) for n in range(len(x))]
            for n in range(len(x)):
                total = sum(products[: n + 1] if self.causal else products)
                o[n, head] = self.lrpe(q[n, head], n) @ total
        return self.linear(self.norm(o, "self_attn.layer_norm"), "self_attn.out_proj")

    def diag_attention(self, x: Tensor) -> Tensor:
        q, k, v = (self.linear(x, f"self_attn.{name}_proj") for name in "qkv")
        o = torch.zeros_like(x)
        for head in self.heads(x):
            scale = (head.stop - head.start) ** -0.5
            keys = [self.lrpe(k[n, head], n % BLOCK) for n in range(len(x))]
            for n in range(len(x)):
                query = self.lrpe(scale * q[n, head], n % BLOCK)
                start = n - n % BLOCK
                seen = range(start, n + 1 if self.causal else min(start + BLOCK, len(x)))
                scores = torch.stack([query @ keys[m] for m in seen])
                if self.variant == "t1":
                    weights = scores.clamp(min=0)
                else:
                    weights = (scores - scores.max()).exp()
                    weights = weights / weights.sum()
                o[n, head] = sum(w * v[m, head] for w, m in zip(weights, seen, strict=True))
        if self.variant == "t1":
            name = "norm" if f"{self.prefix}self_attn.gated_rms_norm.scale" not in self.state else "gated_rms_norm"
            o = self.norm(o, f"self_attn.{name}")
        return self.linear(o, "self_attn.out_proj")
