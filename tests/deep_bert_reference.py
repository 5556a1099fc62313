"""The deep BERT by loops over its formulas, and tiny models to compare with them."""

from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from fairseq_transnorm.models.dslm.bert import DeepBert
from fairseq_transnorm.models.dslm.config import DeepBertConfig
from tests.transnormer_reference import MLMTask, heads_of

TINY = {
    "encoder_embed_dim": 16,
    "encoder_layers": 3,
    "encoder_attention_heads": 2,
    "max_positions": 64,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pooler_dropout": 0.0,
}
SCALED = {"dslm_init": "dslm", "dslm_residual_scaling": True}


def config(**options: Any) -> DictConfig:
    return OmegaConf.structured(DeepBertConfig(**{**TINY, **options}))


def build(seed: int = 0, dtype: torch.dtype = torch.float64, num_words: int = 20, **options: Any) -> DeepBert:
    """Build a model as a user gets it, in evaluation mode."""
    torch.manual_seed(seed)
    return DeepBert.build_model(config(**options), MLMTask(num_words)).to(dtype).eval()


def disturbed(model: DeepBert) -> DeepBert:
    """Move biases and gains far from 0 and 1, so that a test sees them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def norm(part: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return part.weight * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + part.bias


def attention(attn: nn.Module, x: Tensor) -> Tensor:
    """Softmax attention of one row ``T D``."""
    q, k, v = heads_of(attn, x)
    weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
    return torch.cat(list(weights @ v), dim=-1) @ attn.out.weight.T + attn.out.bias


def features(model: Any, tokens: Tensor, segments: list[int], skip: float, block: float, pre: bool) -> Tensor:
    """Return the features ``T D`` of one row of tokens, by one norm before each block and one at the end."""
    encoder = model.encoder
    x = encoder.embed_tokens.weight[tokens] + encoder.embed_positions.embedding.weight[2 : 2 + len(tokens)]
    if encoder.embed_segments is not None:
        x = x + encoder.embed_segments.weight[segments]
    norms = [part for layer in encoder.layers for part in (layer.attn_norm, layer.ffn_norm)]
    # each norm stands before a block, the last one at the end
    norms = [*norms, encoder.norm] if pre else [encoder.embed_norm, *norms]
    for i, layer in enumerate(encoder.layers):
        y = norm(norms[2 * i], x)
        x = skip * (x if pre else y) + block * attention(layer.attn, y)
        y = norm(norms[2 * i + 1], x)
        hidden = F.relu(y @ layer.ffn.inner.weight.T + layer.ffn.inner.bias)
        x = skip * (x if pre else y) + block * (hidden @ layer.ffn.out.weight.T + layer.ffn.out.bias)
    return norm(norms[-1], x)
