"""Attention dilution: how much of the attention stays near the token that asks.

The paper's second claim is that linear attention without a softmax spreads over long sequences, and softmax and local
attention do not. Source: Qin et al. 2022, arXiv:2210.10340; the rule at the borders of the sequence is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fairseq.models import FairseqLanguageModel
from torch import Tensor
from tqdm import tqdm

from .attention import each_attention
from .checkpoints import Run

FRACTIONS = tuple(k / 20 for k in range(1, 21))


def neighbourhoods(length: int, fractions: Sequence[float], causal: bool) -> tuple[Tensor, Tensor]:
    """Return the first and one past the last key of every neighbourhood, both ``R x N`` (fraction, query).

    With m = max(1, round(r N)): centred, m keys around query i, moved inwards at the borders,
    start = clamp(i - floor(m / 2), 0, N - m); causal, the past half of that and the query itself,
    max(0, i - floor(m / 2)) .. i.

    Raises:
        ValueError: a fraction outside (0, 1].
    """
    if bad := [r for r in fractions if not 0 < r <= 1]:
        raise ValueError(f"fractions of the sequence {bad} must be above 0 and at most 1")
    size = torch.tensor([max(1, round(r * length)) for r in fractions])[:, None]
    query = torch.arange(length)[None, :]
    if causal:
        return (query - size // 2).clamp(min=0), (query + 1).expand(len(fractions), length)
    start = torch.minimum((query - size // 2).clamp(min=0), length - size)
    return start, start + size


def locality(weights: Tensor, fractions: Sequence[float] = FRACTIONS, *, causal: bool) -> tuple[Tensor, int]:
    """Sum up, over rows, how much of each row's attention lies in the neighbourhood of its query.

    l(i, r) = sum of p_ij over the neighbourhood of i with p_ij = |w_ij| / sum_j |w_ij|. When
    ``causal``, only rows i >= N / 2 count: early rows have nowhere else to look. Rows of zeros, which a rectified
    attention can have, count nowhere.

    Args:
        weights: ``... N N``, queries down, keys across; signed, of any scale.
        fractions: neighbourhood sizes r as shares of N.
        causal: which neighbourhoods and rows; see :func:`neighbourhoods`.

    Returns:
        The sums over rows (R numbers, float64), and how many rows they are of; divide for the average.
    """
    length = weights.shape[-1]
    start, stop = (t.to(weights.device) for t in neighbourhoods(length, fractions, causal))
    rows = torch.arange((length + 1) // 2 if causal else 0, length, device=weights.device)
    sizes = weights.double().abs().reshape(-1, length, length)[:, rows]
    before = torch.nn.functional.pad(sizes.cumsum(-1), (1, 0))  # before[j]: the sum over keys < j
    total = before[..., -1]
    kept = total > 0
    sums = []
    for first, last in zip(start[:, rows], stop[:, rows], strict=True):  # per fraction, to hold one at a time
        index = torch.stack([first, last], dim=-1).expand(len(before), -1, -1)
        low, high = before.gather(-1, index).unbind(-1)
        sums.append(((high - low)[kept] / total[kept]).sum())
    return torch.stack(sums).cpu(), int(kept.sum())


def uniform_locality(length: int, fractions: Sequence[float] = FRACTIONS, *, causal: bool) -> list[float]:
    """Return the curve of attention that looks at all it may see alike: what full dilution gives.

    Causal, the mean over i >= N / 2 of min(1, (floor(m / 2) + 1) / (i + 1)); centred, m / N.
    """
    start, stop = neighbourhoods(length, fractions, causal)
    rows = torch.arange((length + 1) // 2 if causal else 0, length)
    seen = (rows + 1 if causal else torch.full_like(rows, length)).double()
    return ((stop - start)[:, rows] / seen).mean(-1).tolist()


def dilution_rows(
    run: Run, label: str, tokens: Tensor, fractions: Sequence[float] = FRACTIONS, batch: int = 1
) -> list[dict[str, Any]]:
    """Measure the locality curve of every layer, averaged over rows, heads and sequences.

    Language models get the causal rule, all others the centred one.

    Args:
        run: the trained model.
        label: its name in the table.
        tokens: token ids, sequences x length, no padding.
        fractions: neighbourhood sizes as shares of the length.
        batch: sequences at a time; memory grows with batch x heads x length^2.

    Returns:
        Rows with ``model``, ``updates``, ``layer`` (from 1), ``kind``, ``rule``, ``length`` (tokens), ``sequences``,
        ``fraction``, ``locality``, ``uniform``, ``rows`` (averaged over; heads and sequences counted).

    Raises:
        ValueError: the sequences are longer than the model allows, or a layer's weights are all zero.
    """
    length = tokens.shape[1]
    if length < 2:
        raise ValueError(f"{length} token a sequence has no neighbours; use --length 2 or more")
    limit = run.model.max_positions()
    if isinstance(limit, int) and length > limit:
        raise ValueError(f"{run.path}: {length} tokens are more than the {limit} positions of the model; use --length")
    causal = isinstance(run.model, FairseqLanguageModel)
    device = next(run.model.parameters()).device
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    kinds: dict[str, str] = {}
    batches = tokens.split(batch)
    for part in tqdm(batches, desc=label, disable=None, leave=False):
        for name, kind, (total, count) in each_attention(
            run.model, part.to(device), lambda weights: locality(weights, fractions, causal=causal)
        ):
            sums[name] = sums.get(name, 0) + total
            counts[name] = counts.get(name, 0) + count
            kinds[name] = kind
    if empty := [name for name, count in counts.items() if not count]:
        raise ValueError(f"{run.path}: every attention weight of {empty} is zero; there is nothing to average")
    uniform = uniform_locality(length, fractions, causal=causal)
    return [
        {
            "model": label,
            "updates": run.updates,
            "layer": layer,
            "kind": kinds[name],
            "rule": "causal" if causal else "centred",
            "length": length,
            "sequences": len(tokens),
            "fraction": fraction,
            "locality": value,
            "uniform": baseline,
            "rows": counts[name],
        }
        for layer, name in enumerate(sums, start=1)
        for fraction, value, baseline in zip(fractions, (sums[name] / counts[name]).tolist(), uniform, strict=True)
    ]
