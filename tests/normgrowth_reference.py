"""The norm-growth language model by loops over its formulas, and small tensors under the original code's names."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from fairseq_transnorm.models.normgrowth.config import PRESETS, NormGrowthLMConfig
from fairseq_transnorm.models.normgrowth.lm import NormGrowthLM
from tests.transnormer_reference import LMTask

D, F_, HEADS, LAYERS, WORDS, LENGTH = 8, 12, 2, 2, 7, 6
TINY = {
    "decoder_embed_dim": D,
    "decoder_ffn_embed_dim": F_,
    "decoder_layers": LAYERS,
    "decoder_attention_heads": HEADS,
    "tokens_per_sample": LENGTH,
    "max_target_positions": None,
}


def build(arch: str = "normgrowth_control", seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """Build a model as a user gets it, in evaluation mode."""
    torch.manual_seed(seed)
    cfg = OmegaConf.structured(NormGrowthLMConfig(**{**TINY, **PRESETS[arch], **options}))
    return NormGrowthLM.build_model(cfg, LMTask(WORDS)).to(dtype).eval()


def upstream_state(bias: bool = True, seed: int = 0, layers: int = LAYERS) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of the original's models other than vaswani."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (WORDS, D), "pos_embed.weight": (LENGTH, D)}
    shapes |= {"classifier.weight": (WORDS, D), "classifier.bias": (WORDS,)}
    for i in range(layers):
        maps = {f"heads.head{h}.{n}": (D // HEADS, D) for h in range(HEADS) for n in ("query", "key", "value")}
        maps |= {"heads.pooler": (D, D), "ff.net.0": (F_, D), "ff.net.2": (D, F_)}
        for name, shape in maps.items():
            shapes[f"encoder.layer{i}.{name}.weight"] = shape
            if bias:
                shapes[f"encoder.layer{i}.{name}.bias"] = shape[:1]
        for name in ("heads.lnorm", "ff.lnorm"):
            shapes |= {f"encoder.layer{i}.{name}.{kind}": (D,) for kind in ("weight", "bias")}
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def _map(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)


def _weights(scores: Tensor, mask: str, weight_map: str) -> Tensor:
    """Weights of one row of scores at a time."""
    rows = []
    for i, row in enumerate(scores):
        if weight_map == "si_norm":
            squares = row[: i + 1] ** 2
            weights = squares / squares.sum() if squares.sum() > 0 else torch.full_like(squares, 1 / (i + 1))
            rows.append(F.pad(weights, (0, len(row) - i - 1)))
        elif mask == "multiplicative":
            kept = torch.cat([row[: i + 1], torch.zeros_like(row[i + 1 :])])
            rows.append(kept.exp() / kept.exp().sum())
        else:
            rows.append(F.pad(row[: i + 1].exp() / row[: i + 1].exp().sum(), (0, len(row) - i - 1)))
    return torch.stack(rows)


def logits(
    state: dict[str, Tensor],
    words: Tensor,
    placement: str,
    scale: bool,
    mask: str,
    weight_map: str,
    drop: Callable[[Tensor], Tensor] = lambda change: change,
) -> Tensor:
    """Return the logits ``T N`` of one sentence of the original's word numbers; ``drop`` is a sublayer's dropout."""

    def add(x: Tensor, change: Tensor, norm: str) -> Tensor:
        change = drop(change)
        return _norm(state, norm, x + change) if placement == "post" else x + _norm(state, norm, change)

    x = state["embed.weight"][words] + state["pos_embed.weight"][: len(words)]
    layers = len({name.split(".")[1] for name in state if name.startswith("encoder.layer")})
    for i in range(layers):
        layer = f"encoder.layer{i}"
        heads = []
        for h in range(HEADS):
            q, k, v = (_map(state, f"{layer}.heads.head{h}.{n}", x) for n in ("query", "key", "value"))
            scores = q @ k.T / ((D // HEADS) ** 0.5 if scale else 1)
            heads.append(_weights(scores, mask, weight_map) @ v)
        x = add(x, _map(state, f"{layer}.heads.pooler", torch.cat(heads, -1)), f"{layer}.heads.lnorm")
        hidden = F.relu(_map(state, f"{layer}.ff.net.0", x))
        x = add(x, _map(state, f"{layer}.ff.net.2", hidden), f"{layer}.ff.lnorm")
    return x @ state["classifier.weight"].T + state["classifier.bias"]


def torch_encoder(layers: int = LAYERS, seed: int = 0) -> nn.TransformerEncoder:
    """torch's own encoder, as the original's vaswani has it, in float64."""
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(D, HEADS, F_, 0.1, batch_first=True, dtype=torch.float64)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
