"""How a model copies in context: losses, accuracies and attention on sequences with triggers, as sums and counts.

After each trigger comes its own output, always the same within a sequence. In what follows ``x``, ``y`` and ``c`` are
the tokens, the next tokens and the counters, ``B T``: ``c`` is the number of times that the trigger at a position has
come up until then, 0 where there is none. ``S_n`` are the positions with ``c >= n``, p is the prediction, and ``a1``
and ``a2`` are the positions with the largest weight in the attention of the first and the second layer. A share is a
fraction of 1; ``LOSSES`` are in nats.

Of predictions (``prediction_sums``):

* ``loss``: mean loss over the positions that are trained on;
* ``loss_bigram``, ``loss_head``: mean loss where c = 0, and over S_2;
* ``acc_tot``: share of S_1 with p = y; ``acc_start``: of its positions ``t < start_length``;
* ``acc_end``: share of S_2 with p = y, of the last ``end_length`` positions: the in-context accuracy;
* ``repeat_frac``: share of S_1 with x = y, where the output is the trigger itself.

Of attention (``attention_sums``), for layers of one head:

* ``score_acc``: share of S_1, but for the last position, where ``a1 = t`` at position t + 1: the position after a
  trigger looks at the trigger; ``score_start_acc``: of the positions with c = 1;
* ``score2_next_acc``, ``pred_attended_acc``: shares of S_2 where the attended token ``x_a2`` is y, and p;
* ``score2_acc``: share of S_2 where ``x`` at ``a2 - 1``, before the attended token, is the current trigger;
* ``score_cond_acc``: share of the positions of S_2 with ``a2 >= 1`` where ``a1 = a2 - 1`` at position a2: the attended
  position has itself looked at the one before it;
* ``score1_repeat_val_acc``, ``score2_repeat_val_acc``: shares of the positions of S_2 with x = y where ``x_a1``, and
  ``x_a2``, is y.

Source: the original code of Bietti et al. 2023, "Birth of a Transformer: A Memory Viewpoint", arXiv:2306.00802.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .hidden_states import evaluating

LOSSES = ("loss", "loss_bigram", "loss_head")
PREDICTION = (*LOSSES, "acc_tot", "acc_start", "acc_end", "repeat_frac")
ATTENTION = (
    "score_acc",
    "score_start_acc",
    "score2_next_acc",
    "pred_attended_acc",
    "score2_acc",
    "score_cond_acc",
    "score1_repeat_val_acc",
    "score2_repeat_val_acc",
)
OF_TRIGGERS = ("acc_tot", "acc_start", "repeat_frac", "score_acc", "score_start_acc")  # over S_1, not only over S_2
TABLES = {"prediction_sums": PREDICTION, "attention_sums": ATTENTION}  # what logs of batches have, as of ``packed``


class Sum(NamedTuple):
    """A sum over positions and the number of these; both are scalars."""

    total: Tensor
    positions: Tensor


class Triggered(NamedTuple):
    """Tokens, next tokens and counters of a batch, ``B T`` each."""

    x: Int[Tensor, "B T"]
    y: Int[Tensor, "B T"]
    c: Int[Tensor, "B T"]


def triggered(sample: Mapping[str, Any]) -> Triggered:
    """Return what a batch of the task ``bigram_icl`` holds; raise ValueError for one of another task."""
    if "counters" not in sample:
        raise ValueError("no counters of triggers in the batch; the criterion bigram_icl needs --task bigram_icl")
    return Triggered(sample["net_input"]["src_tokens"], sample["target"], sample["counters"])


def prediction_sums(
    batch: Triggered,
    nats: Float[Tensor, "B T"],
    counted: Bool[Tensor, "B T"],
    predicted: Int[Tensor, "B T"],
    start_length: int = 10,
    end_length: int = 500,
) -> dict[str, Sum]:
    """Return name -> sum of all of ``PREDICTION``.

    Args:
        nats: loss of each position.
        counted: positions that are trained on.
        predicted: likeliest next tokens.
        start_length, end_length: positions, from the start and from the end.
    """
    x, y, c = batch
    position = torch.arange(x.shape[1], device=x.device)
    trigger, known, right = c >= 1, c >= 2, predicted == y
    return {
        "loss": _total(nats, counted),
        "loss_bigram": _total(nats, c == 0),
        "loss_head": _total(nats, known),
        "acc_tot": _share(right, trigger),
        "acc_start": _share(right, trigger & (position < start_length)),
        "acc_end": in_context_sum(batch, predicted, end_length),
        "repeat_frac": _share(x == y, trigger),
    }


def attention_sums(
    batch: Triggered, predicted: Int[Tensor, "B T"], a1: Int[Tensor, "B T"], a2: Int[Tensor, "B T"] | None
) -> dict[str, Sum]:
    """Return name -> sum of all of ``ATTENTION``.

    Args:
        predicted: likeliest next tokens.
        a1, a2: position with the largest weight of each query, in the first and the second layer; ``a2`` is None for a
            model of one layer, and what it would tell has count 0.
    """
    x, y, c = batch
    position = torch.arange(x.shape[1], device=x.device)
    trigger, known = c >= 1, c >= 2
    repeated = known & (x == y)
    found = a1[:, 1:] == position[:-1]
    sums = {
        "score_acc": _share(found, trigger[:, :-1]),
        "score_start_acc": _share(found, c[:, :-1] == 1),
        "score1_repeat_val_acc": _share(x.gather(1, a1) == y, repeated),
    }
    if a2 is None:
        nowhere = torch.zeros_like(known)
        return {name: sums.get(name, _share(known, nowhere)) for name in ATTENTION}
    attended, before = x.gather(1, a2), (a2 - 1).clamp(min=0)
    inside = a2 >= 1
    sums |= {
        "score2_next_acc": _share(attended == y, known),
        "pred_attended_acc": _share(attended == predicted, known),
        "score2_acc": _share(inside & (x.gather(1, before) == x), known),
        "score_cond_acc": _share(a1.gather(1, a2) == a2 - 1, known & inside),
        "score2_repeat_val_acc": _share(attended == y, repeated),
    }
    return sums


def attended_sums(
    batch: Triggered, predicted: Int[Tensor, "B T"], attended: Sequence[Int[Tensor, "B H T"]]
) -> dict[str, Sum]:
    """Return ``attention_sums`` from what each layer attends to; nothing where one of the first two has several heads.

    Args:
        predicted: likeliest next tokens.
        attended: of :func:`fairseq_transnorm.measure.own_attention.attended_positions`.
    """
    first = attended[:2]
    if not first or any(layer.shape[1] != 1 for layer in first):
        return {}
    a1, a2 = first[0][:, 0], first[1][:, 0] if len(first) > 1 else None
    return attention_sums(batch, predicted, a1, a2)


def in_context_sum(batch: Triggered, predicted: Int[Tensor, "B T"], end_length: int = 500) -> Sum:
    """Return the sum of ``acc_end`` alone."""
    position = torch.arange(predicted.shape[1], device=predicted.device)
    last = position >= predicted.shape[1] - end_length
    return _share(predicted == batch.y, (batch.c >= 2) & last)


@torch.no_grad()
def in_context_accuracy(model: nn.Module, batches: Iterable[Mapping[str, Any]], end_length: int = 500) -> float | None:
    """Return ``acc_end`` of a model over batches of the task; None without a position of it.

    The model is in evaluation mode for it, and then again as it was.
    """
    right, positions = 0, 0
    with evaluating(model):
        for sample in batches:
            predicted = model(**sample["net_input"])[0].argmax(-1)
            found = in_context_sum(triggered(sample), predicted, end_length)
            right, positions = right + int(found.total), positions + int(found.positions)
    return right / positions if positions else None


def packed(sums: Mapping[str, Sum], names: Sequence[str]) -> Float[Tensor, "n 2"]:
    """Return totals and counts in float64, in the order of names; those that are missing are 0."""
    table = [torch.stack([part.double() for part in sums[name]]) if name in sums else None for name in names]
    zeros = next((row.new_zeros(2) for row in table if row is not None), torch.zeros(2, dtype=torch.float64))
    return torch.stack([zeros if row is None else row for row in table])


def summed(logs: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """Return name -> total and count over the logs of several batches or processes, from their ``TABLES``."""
    found: dict[str, tuple[float, float]] = {}
    for key, names in TABLES.items():
        if tables := [log[key] for log in logs if key in log]:
            found |= {name: (total, count) for name, (total, count) in zip(names, sum(tables).tolist(), strict=True)}
    return found


def ratios(sums: Mapping[str, tuple[float, float]]) -> dict[str, float | None]:
    """Return name -> total / count; None where the count is 0."""
    return {name: total / count if count else None for name, (total, count) in sums.items()}


def _share(hit: Bool[Tensor, "B T"], where: Bool[Tensor, "B T"]) -> Sum:
    return Sum((hit & where).sum(), where.sum())


def _total(values: Float[Tensor, "B T"], where: Bool[Tensor, "B T"]) -> Sum:
    return Sum(torch.where(where, values, 0.0).sum(dtype=torch.float64), where.sum())
