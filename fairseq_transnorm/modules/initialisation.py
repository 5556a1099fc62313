"""How weights are drawn: normal weights with a standard deviation for each part, and BERT's one for all."""

from __future__ import annotations

from torch import nn

BERT_STD = 0.02


def draw_normal(part: nn.Linear | nn.Embedding, std: float, rows: slice = slice(None)) -> None:
    """Draw the weight (or some of its rows) from N(0, std^2), with zero biases and a zero row of padding.

    Args:
        part: a linear map ``O I`` or an embedding ``N D``.
        std: standard deviation.
        rows: output channels of a map that does several things, such as q, k and v in one.
    """
    nn.init.normal_(part.weight[rows], std=std)
    if isinstance(part, nn.Embedding):
        if part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx])
    elif part.bias is not None:
        nn.init.zeros_(part.bias[rows])


def initialise_as_bert(module: nn.Module) -> None:
    """Draw every linear map and embedding below ``module`` from N(0, 0.02^2); everything else is left as it is.

    Source: Devlin et al. 2019 (BERT), arXiv:1810.04805.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            draw_normal(part, BERT_STD)
