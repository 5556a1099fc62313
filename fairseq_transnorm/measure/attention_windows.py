"""Where the attention of a model of ``bigram_icl`` looks, on one sequence to be drawn and on many to be counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.trigger_dataset import SPLITS
from .attention import each_attention
from .checkpoints import Run, load_run
from .copying import Triggered, attention_sums
from .own_attention import attended_positions

Rows = list[dict[str, Any]]
TASK = "bigram_icl"
SIGNED = "linear"  # the kind of attention whose weights have signs and no sum
_BATCH = 32  # sequences that are counted at once
SHARES = ("score_acc", "score2_acc")


class Window(NamedTuple):
    """A part of a sequence, queries and keys.

    Attributes:
        start: its first position.
        size: positions in it.
    """

    start: int
    size: int


def load_trigger_run(path: str | Path, data: str | Path | None = None, device: str = "cpu") -> Run:
    """Load a checkpoint of a model of sequences with triggers; arguments as of :func:`load_run`.

    Raises:
        ValueError: it was trained on another task; and as of :func:`load_run`.
    """
    run = load_run(path, data, device)
    if (task := run.cfg.task._name) != TASK:
        raise ValueError(f"checkpoint {path} was trained on the task {task!r}; give one of {TASK}")
    return run


def generated(run: Run, items: Sequence[int], split: str = "test", seed: int = 0) -> Triggered:
    """Return sequences of a run's task.

    Args:
        run: of :func:`load_trigger_run`.
        items: their numbers in the split.
        split: one of ``SPLITS``.
        seed: of the data; that of the training was its ``--data-seed``.

    Raises:
        ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    run.task.load_dataset(split)
    dataset = run.task.dataset(split)
    dataset.seed = seed
    batch = dataset.collater(dataset.__getitems__(list(items)))
    return Triggered(batch["net_input"]["src_tokens"], batch["target"], batch["counters"])


def check_item(run: Run, item: int, split: str = "test") -> None:
    """Raise ValueError where a split has no sequence of that number."""
    run.task.load_dataset(split)
    if item >= (size := len(run.task.dataset(split))):
        raise ValueError(f"no sequence {item} in the split {split!r} of {run.path}: they are numbered 0 to {size - 1}")


def given(run: Run, text: str, triggers: str | None = None) -> Triggered:
    """Return a text as one sequence; after its last character comes nothing.

    Args:
        run: of :func:`load_trigger_run`.
        text: characters of the run's corpus, at most as many as the model takes.
        triggers: characters to count; None for the fixed triggers of the run, if it has any.

    Raises:
        ValueError: a character that the corpus does not have, or a text that is too long or has fewer than two.
    """
    longest = run.task.cfg.tokens_per_sample
    tokens, counted = _numbers(run, text), _numbers(run, triggers or "") or (run.task.fixed_triggers or [])
    if not 2 <= len(tokens) <= longest:
        raise ValueError(f"a text of {len(tokens)} characters; the model of {run.path} takes 2 to {longest}")
    seen = dict.fromkeys(counted, 0)
    counters = []
    for token in tokens:
        if token in seen:
            seen[token] += 1
        counters.append(seen.get(token, 0))
    x = torch.tensor([tokens])
    return Triggered(x, torch.cat([x[:, 1:], torch.full_like(x[:, :1], -1)], 1), torch.tensor([counters]))


def window_rows(run: Run, label: str, sequence: Triggered, window: Window) -> Rows:
    """Return the attention within a window of one sequence as flat rows: one a layer, head, query and key.

    Args:
        run: of :func:`load_trigger_run`.
        label: name of the model.
        sequence: with one sequence.
        window: which part of it; cut to what there is.

    Returns:
        Rows with ``model``, ``updates``, ``layer`` and ``head`` (from 1), ``kind`` (as of ``each_attention``),
        ``query``, ``query_token``, ``query_counter``, ``key``, ``key_token``, ``weight``, and ``before_is_query``:
        whether the token before the key is the query's, which was a trigger before: what an induction head looks at.

    Raises:
        ValueError: the window begins after the end.
    """
    x, _, c = (part[0].tolist() for part in sequence)
    if window.start >= len(x):
        raise ValueError(f"the window begins at position {window.start}, and the sequence has {len(x)} positions")
    places = range(window.start, min(len(x), window.start + window.size))
    symbols = run.task.source_dictionary.symbols
    device = next(run.model.parameters()).device
    rows = []
    for number, found in enumerate(each_attention(run.model, sequence.x.to(device), lambda weights: weights[0].cpu())):
        for head, weights in enumerate(found.value.tolist(), 1):
            name = {"model": label, "updates": run.updates, "layer": number + 1, "head": head, "kind": found.kind}
            rows += [
                name
                | {"query": t, "query_token": symbols[x[t]], "query_counter": c[t]}
                | {"key": j, "key_token": symbols[x[j]], "weight": weights[t][j]}
                | {"before_is_query": c[t] >= 2 and 1 <= j <= t and x[j - 1] == x[t]}
                for t in places
                for j in places
                if j <= t or weights[t][j]
            ]
    return rows


@torch.no_grad()
def head_shares(run: Run, sequences: Triggered) -> dict[tuple[int, int], dict[str, float | None]]:
    """Return (layer, head), from 1 -> shares of positions where a head looks as one of an induction head's does.

    ``score_acc`` is the share of positions after a trigger that look most at that trigger, ``score2_acc`` that of the
    triggers seen before that look most at a token that came after the same trigger; see :mod:`.copying`. Attention
    over the sequences of a batch has no share.
    """
    sums: dict[tuple[int, int], Any] = {}
    device = next(run.model.parameters()).device
    for parts in zip(*(part.to(device).split(_BATCH) for part in sequences), strict=True):
        batch = Triggered(*parts)
        with attended_positions(run.model) as attended:
            logits = run.model(batch.x)[0]
        for layer, positions in enumerate(attended, 1):
            for head in range(positions.shape[1]):
                own = positions[:, head]
                found = attention_sums(batch, logits.argmax(-1), own, own)
                now = torch.stack([torch.stack([*found[name]]).double() for name in SHARES])
                sums[layer, head + 1] = sums.get((layer, head + 1), 0) + now
    return {
        place: {name: float(hits / count) if count else None for name, (hits, count) in zip(SHARES, table, strict=True)}
        for place, table in sums.items()
    }


def _numbers(run: Run, text: str) -> list[int]:
    known = {symbol: number for number, symbol in enumerate(run.task.source_dictionary.symbols)}
    if unknown := sorted({repr(letter) for letter in text if letter not in known}):
        verb = "is" if len(unknown) == 1 else "are"
        there = "".join(known)
        raise ValueError(
            f"{', '.join(unknown)} {verb} not in the corpus of {run.path}; leave out what is none of {there[:200]!r}"
        )
    return [known[letter] for letter in text]
