"""How well a model copies in context without one kind of look: what an induction head cannot do without.

A look is a set of keys for each query, in one layer, in all its heads. Their weights become 0; the others stay as they
are. Where weights have signs and no sum, as in linear attention, the largest one tells little of what a layer does;
this tells what it needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .attention_windows import generated, load_trigger_run
from .copying import Triggered, in_context_sum
from .own_attention import edited_weights, own_attention_modules

NOTHING = "nothing"
# name -> layer, from 0, and look; an induction head can do without the last two
CUTS = {
    "layer 1, the position before": (0, "back"),
    "layer 2, behind the same token": (1, "behind"),
    "layer 1, the position itself": (0, "itself"),
    "layer 2, the position itself": (1, "itself"),
}


def looked_at(x: Int[Tensor, "B T"], look: str) -> Bool[Tensor, "B T T"]:
    """Return which keys (across) a look of a query (down) is at.

    ``back``: the position before; ``itself``; ``behind``: all up to the query before which the query's own token stood.
    """
    place = torch.arange(x.shape[1], device=x.device)
    if look == "behind":
        before = torch.cat([torch.full_like(x[:, :1], -1), x[:, :-1]], dim=1)
        return (x[:, :, None] == before[:, None, :]) & (place <= place[:, None])
    distance = {"back": 1, "itself": 0}[look]
    return (place[:, None] - distance == place).expand(len(x), -1, -1)


@torch.no_grad()
def cut_sums(model: nn.Module, batch: Triggered, layer: int = 0, look: str | None = None) -> Float[Tensor, " 4"]:
    """Run a model without one look of a layer; return sums.

    Args:
        model: of this package.
        batch: sequences.
        layer: number of the layer, from 0.
        look: None to cut nothing.

    Returns:
        The number of right predictions of outputs seen before, the number of all of them, and the sum and number of the
        shares of the weight that was cut, in absolute values: in the first layer of positions after a trigger that came
        for the first time, in others of triggers that came before.
    """
    keys = looked_at(batch.x, look)[:, None] if look else None
    first = torch.nn.functional.pad(batch.c == 1, (1, -1))
    queries = first if layer == 0 else batch.c >= 2
    shares: list[Tensor] = []

    def edit(number: int, weights: Tensor) -> Tensor:
        if keys is None or number != layer:
            return weights
        sizes = weights.abs()
        share = (sizes * keys).sum(-1) / sizes.sum(-1).clamp_min(torch.finfo(sizes.dtype).tiny)
        shares.append(share.mean(1)[queries])
        return weights.masked_fill(keys, 0.0)

    with edited_weights(model, edit):
        predicted = model(batch.x)[0].argmax(-1)
    right, known = in_context_sum(batch, predicted, end_length=batch.x.shape[1])
    share = torch.cat(shares) if shares else queries.new_zeros(0, dtype=torch.float32)
    return torch.stack([right, known, share.double().sum(), torch.tensor(len(share), device=right.device)]).double()


def ablation_rows(
    label: str,
    path: str | Path,
    sequences: int = 256,
    seed: int = 0,
    batch: int = 64,
    device: str = "cpu",
    data: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Return the in-context accuracy of a model as it is, and without each of ``CUTS`` that it has a layer for.

    Args:
        label: name of the model.
        path: a checkpoint of the task ``bigram_icl``, of a model of this package.
        sequences: number of test sequences.
        seed: of these sequences; that of the training was its ``--data-seed``.
        batch: sequences that run at once.
        device: where the model runs.
        data: corpus or its statistics, when that of the training is gone.

    Returns:
        Rows with ``model``, ``source``, ``updates``, ``sequences``, ``cut``, ``accuracy`` and ``share`` of the weight,
        None where nothing is cut.

    Raises:
        ValueError: no trigger comes twice, or as of ``load_trigger_run``.
    """
    run = load_trigger_run(path, data, device)
    parts = (x.to(device).split(batch) for x in generated(run, range(sequences), "test", seed))
    batches = [Triggered(*part) for part in zip(*parts, strict=True)]
    layers = len(own_attention_modules(run.model))
    cuts = {NOTHING: (0, None)} | {name: cut for name, cut in CUTS.items() if cut[0] < layers}
    rows = []
    for name, (layer, look) in cuts.items():
        sums = torch.stack([cut_sums(run.model, part, layer, look) for part in batches]).sum(0)
        right, known, share, count = sums.tolist()
        if not known:
            raise ValueError(f"{path}: no trigger comes twice in {sequences} sequences; take more, or longer ones")
        rows.append(
            {"model": label, "source": str(path), "updates": run.updates, "sequences": sequences, "cut": name}
            | {"accuracy": right / known, "share": share / count if count else None}
        )
    return rows
