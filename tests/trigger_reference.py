"""Sequences with triggers, written down step by step and in plain Python: what the samplers must agree with."""

from pathlib import Path

import numpy as np

from fairseq_transnorm.data.bigram_statistics import BigramStatistics, count_file
from fairseq_transnorm.data.trigger_settings import TriggerSettings

LIGHTHOUSE = Path(__file__).parent / "data/lighthouse.txt"  # 2,612 characters, 76 symbols, 489 pairs


def lighthouse() -> BigramStatistics:
    """Statistics of the tests' own text."""
    return count_file(LIGHTHOUSE)


def pick(rng: np.random.Generator, weights: list[float]) -> int:
    """A weighted draw with one uniform number."""
    number, sums = rng.random(), []
    for weight in weights:
        sums.append((sums[-1] if sums else 0.0) + float(weight))
    return sum(value / sums[-1] <= number for value in sums)


def slow_sequence(
    rng: np.random.Generator, statistics: BigramStatistics, settings: TriggerSettings
) -> tuple[list[int], list[int], list[int]]:
    """Return the T + 1 tokens, the counters of the first T, and the triggers of one sequence."""
    size = len(statistics.vocab)
    unigram = [count / statistics.total for count in statistics.unigram_counts.tolist()]
    bigram = []
    for row in statistics.bigram_counts.tolist():
        bigram.append([count / sum(row) for count in row] if sum(row) else unigram)
    if settings.fixed:
        by_frequency = sorted(range(size), key=lambda token: (unigram[token], token))
        last = size - settings.rank_offset
        triggers = by_frequency[last - settings.num_triggers : last]
    else:
        triggers = [int(t) for t in rng.choice(size, size=settings.num_triggers, replace=False, p=unigram)]
    outputs = []
    for trigger in triggers:
        pool = [token for token in range(size) if not (settings.no_repeat and token == trigger)]
        if settings.part == "train":
            pool = [token for token in pool if token < int(0.75 * size)]
        if settings.part == "test":
            pool = [token for token in pool if token >= int(0.75 * size)]
        if settings.distribution == "uniform":
            outputs.append(pool[int(rng.integers(0, len(pool)))])
        else:
            outputs.append(pool[pick(rng, [bigram[trigger][token] for token in pool])])
    tokens = list(triggers) if settings.show_triggers else []
    counters = [-1] * len(tokens)
    current = pick(rng, unigram)
    seen: dict[int, int] = {}
    while True:
        tokens.append(current)
        if len(tokens) == settings.length + 1:
            return tokens, counters, triggers
        if current in triggers:
            seen[current] = seen.get(current, 0) + 1
            counters.append(1 if settings.no_counter else seen[current])
            current = outputs[triggers.index(current)]
        else:
            counters.append(0)
            current = pick(rng, bigram[current])
