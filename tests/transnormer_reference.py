"""TransNormer from its formulas: loops over heads and positions, no blocks, no chunks; the oracle of whole modules.

It reads the weights of our modules and nothing of their code. Rows are computed one at a time and have no padding.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.data import Dictionary
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fairseq_transnorm.models.transnormer.config import TransNormerLMConfig, TransNormerMLMConfig
from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from fairseq_transnorm.models.transnormer.mlm import TransNormerMLM

PAD = 1
FEATURE_MAPS = {
    "elu": lambda z: torch.where(z > 0, z, z.clamp(max=0).exp() - 1),
    "1+elu": lambda z: torch.where(z > 0, z + 1, z.clamp(max=0).exp()),
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "relu": lambda z: z * (z > 0),
    "silu": lambda z: z / (1 + (-z).exp()),
}


def srms(x: Tensor) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True).sqrt() + 1e-8)


def lrpe(z: Tensor, n: int, theta: Tensor, v: Tensor | None) -> Tensor:
    """Encode one vector of a head at position ``n``."""
    if v is not None:
        z = z - 2 * (z @ v) * v
    out = z.clone()
    for k in range(len(z) // 2):
        c, s = torch.cos(n * theta[k]), torch.sin(n * theta[k])
        out[2 * k] = z[2 * k] * c - z[2 * k + 1] * s
        out[2 * k + 1] = z[2 * k] * s + z[2 * k + 1] * c
    return out


def heads_of(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v as ``H T K``, before feature map and positions; head h owns the h-th slice of the channels."""
    projected = [x @ w.T + b for w, b in zip(attn.qkv.weight.chunk(3), attn.qkv.bias.chunk(3), strict=True)]
    width = x.shape[-1] // attn.num_heads
    q, k, v = (torch.stack([z[:, h * width : (h + 1) * width] for h in range(attn.num_heads)]) for z in projected)
    return q, k, v


def place(attn: nn.Module, z: Tensor, positions: list[int]) -> Tensor:
    if attn.lrpe is None:
        return z
    rows = [[lrpe(row, n, attn.lrpe.theta, attn.lrpe.v) for row, n in zip(head, positions, strict=True)] for head in z]
    return torch.stack([torch.stack(head) for head in rows])


def linear_attention(attn: nn.Module, x: Tensor, act: str, causal: bool = True, norm: bool = True) -> Tensor:
    """NormAttention of one row ``T D``."""
    q, k, v = heads_of(attn, x)
    positions = list(range(len(x)))
    q, k = (place(attn, FEATURE_MAPS[act](z), positions) for z in (q, k))
    out = torch.zeros_like(v)
    for n in positions:
        for m in positions:
            if m <= n or not causal:
                out[:, n] = out[:, n] + (q[:, n] * k[:, m]).sum(-1, keepdim=True) * v[:, m]
    o = torch.cat(list(out), dim=-1)
    return (srms(o) if norm else o) @ attn.out.weight.T + attn.out.bias


def local_attention(attn: nn.Module, x: Tensor, act: str, block: int, causal: bool = True, norm: bool = True) -> Tensor:
    """DiagAttention of one row ``T D``."""
    q, k, v = heads_of(attn, x)
    scale = q.shape[-1] ** -0.5
    positions = [n % block for n in range(len(x))]
    q, k = place(attn, q * scale, positions), place(attn, k, positions)
    out = torch.zeros_like(v)
    for n in range(len(x)):
        seen = [m for m in range(len(x)) if m // block == n // block and (m <= n or not causal)]
        for h in range(len(q)):
            scores = torch.stack([q[h, n] @ k[h, m] for m in seen])
            weights = scores.exp() / scores.exp().sum() if act == "softmax" else FEATURE_MAPS[act](scores)
            out[h, n] = weights @ v[h, seen]
    o = torch.cat(list(out), dim=-1)
    return (srms(o) if norm else o) @ attn.out.weight.T + attn.out.bias


def glu(ffn: nn.Module, x: Tensor, act: str = "silu") -> Tensor:
    (w1, w2), (b1, b2) = ffn.gate_and_value.weight.chunk(2), ffn.gate_and_value.bias.chunk(2)
    return (FEATURE_MAPS[act](x @ w1.T + b1) * (x @ w2.T + b2)) @ ffn.out.weight.T + ffn.out.bias


def sinusoid(position: int, dim: int) -> Tensor:
    frequencies = [math.exp(-k * math.log(10000) / (dim // 2 - 1)) for k in range(dim // 2)]
    return torch.tensor([math.sin(position * f) for f in frequencies] + [math.cos(position * f) for f in frequencies])


def logits(model: TransNormerLM, cfg: DictConfig, tokens: Tensor) -> Tensor:
    """Return the logits ``T N`` of one row of tokens; SRMS norms, a tied output and sinusoids, as in t1 and t2."""
    decoder, dim = model.decoder, cfg.decoder_embed_dim
    E = decoder.embed_tokens.weight
    # our table is rounded to float32, like that of fairseq
    x = torch.stack([math.sqrt(dim) * E[t] + sinusoid(n + 2, dim).to(E.dtype) for n, t in enumerate(tokens.tolist())])
    for i, layer in enumerate(decoder.layers):
        if i < len(decoder.layers) // 2:
            local_norm = str(cfg.local_norm) != "none"
            x = x + local_attention(layer.attn, srms(x), str(cfg.local_act), cfg.block_size, norm=local_norm)
        else:
            x = x + linear_attention(layer.attn, srms(x), str(cfg.linear_act))
        x = x + glu(layer.ffn, srms(x), str(cfg.glu_act))
    return srms(x) @ E.T


class LMTask:
    """What building a language model needs of a task."""

    def __init__(self, num_words: int = 20) -> None:
        self.target_dictionary = Dictionary()
        for i in range(num_words):
            self.target_dictionary.add_symbol(f"word{i}")


TINY = {
    "decoder_embed_dim": 16,
    "decoder_layers": 4,
    "decoder_attention_heads": 2,
    "block_size": 8,
    "chunk_length": 8,
    "dropout": 0.0,
    "tokens_per_sample": 512,
    "max_target_positions": None,
}
T1 = {"linear_act": "elu", "local_act": "relu", "local_norm": "simplermsnorm"}
T2: dict[str, Any] = {}


def lm_config(**options: Any) -> DictConfig:
    return OmegaConf.structured(TransNormerLMConfig(**{**TINY, **options}))


def build_lm(seed: int = 0, dtype: torch.dtype = torch.float64, num_words: int = 20, **options: Any) -> TransNormerLM:
    """Build a tiny language model, in evaluation mode; ``options`` replace those of ``TINY``."""
    torch.manual_seed(seed)
    return TransNormerLM.build_model(lm_config(**options), LMTask(num_words)).to(dtype).eval()


class MLMTask:
    """All that the masked model's ``build_model`` asks of a task."""

    def __init__(self, num_words: int = 20, max_positions: int | None = None) -> None:
        self.source_dictionary = LMTask(num_words).target_dictionary
        self.mask_idx = self.source_dictionary.add_symbol("<mask>")
        self.max_positions = lambda: max_positions


MLM_TINY = {
    "encoder_embed_dim": 16,
    "encoder_layers": 4,
    "encoder_attention_heads": 2,
    "block_size": 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


def mlm_config(**options: Any) -> DictConfig:
    return OmegaConf.structured(TransNormerMLMConfig(**{**MLM_TINY, **options}))


def build_mlm(seed: int = 0, dtype: torch.dtype = torch.float64, num_words: int = 20, **options: Any) -> TransNormerMLM:
    """Build a tiny masked model, in evaluation mode, with biases and gains that are far from 0 and 1."""
    torch.manual_seed(seed)
    model = TransNormerMLM.build_model(mlm_config(**options), MLMTask(num_words)).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
            elif parameter.dim() == 2:
                parameter *= 10  # 0.02 would leave little but the biases
    return model


def random_tokens(*shape: int, seed: int = 0, num_words: int = 20) -> Tensor:
    """Draw token ids of words only, no special symbols."""
    return torch.randint(4, 4 + num_words, shape, generator=torch.Generator().manual_seed(seed))


def random_qkv(
    B: int, H: int, T: int, K: int, V: int, seed: int, dtype: torch.dtype = torch.float64, time_first: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw q, k (``B H T K``) and v (``B H T V``) that need gradients; not contiguous with ``time_first``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        shape = (B, T, H, width) if time_first else (B, H, T, width)
        x = torch.randn(shape, generator=generator, dtype=dtype)
        return (x.transpose(1, 2) if time_first else x).requires_grad_()

    return draw(K), draw(K), draw(V)


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def train_step(model: TransNormerLM, tokens: Tensor) -> Tensor:
    """Forward and backward of the usual loss; return the logits."""
    logits, _ = model(tokens[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD).backward()
    return logits


def gradients(model: TransNormerLM) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
