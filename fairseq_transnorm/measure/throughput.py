"""How much faster the measures of saturation are with sentences in batches than one by one, in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .batches import sentence_batches
from .checkpoints import load_run
from .efficiency import median_times
from .layer_saturation import FairseqStack, layer_rows
from .saturated_heads import head_rows

SATURATION, HEADS = "layer saturation", "attention heads"
BATCHED, ONE_BY_ONE = "batched", "one by one"


def measure(
    name: str,
    checkpoint: str | Path,
    *,
    data: str | Path | None = None,
    text: Sequence[str] | str = "valid",
    limit: int | None = 100,
    measures: Sequence[str] = (SATURATION, HEADS),
    repeats: int = 3,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Time the measures on a model, both forms taking turns; each form scales the parameters once.

    Args:
        name: for the column ``model``.
        checkpoint: of fairseq's; for the heads, of a model with a softmax.
        data: data folder, when not the one of the training.
        text: sentences, or the name of a split.
        limit: most sentences; None for all.
        measures: ``layer saturation`` and ``attention heads``.
        repeats: timed turns; there is one more before them.
        device: where the model runs.

    Returns:
        A row a measure and form: ``seconds``, the median of the turns, ``sentences_per_second`` and ``ratio``, the
        throughput over that of the sentences one by one.

    Raises:
        FileNotFoundError: the checkpoint, the data folder or the split is missing.
        ValueError: there are no sentences, or the model has nothing to measure.
    """
    run = load_run(checkpoint, data, device)
    together = sentence_batches(run, text, limit)
    forms = {ONE_BY_ONE: replace(together, batch_tokens=1), BATCHED: together}
    known: dict[str, Callable[..., object]] = {
        SATURATION: partial(layer_rows, FairseqStack(run.model)),
        HEADS: partial(head_rows, run, name),
    }
    rows = []
    for what in measures:
        times = median_times({form: partial(known[what], batches) for form, batches in forms.items()}, repeats)
        for form, seconds in times.items():
            speed = {"seconds": seconds, "sentences_per_second": len(together.rows) / seconds}
            about = {"model": name, "measure": what, "form": form, "sentences": len(together.rows)}
            rows.append(about | {"tokens": together.tokens} | speed | {"ratio": times[ONE_BY_ONE] / seconds})
    return rows
