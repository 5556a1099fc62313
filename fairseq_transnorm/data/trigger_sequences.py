"""Sequences in which each trigger is always followed by the same output: characters of a bigram model with a rule.

With the vocabulary ``a b c d``, the trigger ``b`` and the output ``d``, a sequence of ``length`` 6 may be::

    tokens    a b d b d c a     inputs are the first 6, targets the last 6
    counters  0 1 0 2 0 0       of the inputs: 0, or how often this trigger has occurred

What follows a trigger can be told from its second occurrence on, by who finds the first one in the sequence.
Source: Bietti et al. 2023, arXiv:2306.00802.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .bigram_statistics import BigramStatistics
from .trigger_settings import TriggerSettings, fixed_triggers, output_part


class TriggerSequences(NamedTuple):
    """Sequences, all int64.

    Attributes:
        tokens: ``B T+1``.
        counters: of the inputs, the first T tokens, ``B T``.
        triggers: in their order, ``B K``.
    """

    tokens: np.ndarray
    counters: np.ndarray
    triggers: np.ndarray


class Sampler:
    """What both samplers look up.

    Args:
        statistics: of a text.
        settings: of the sequences, which must be possible: see :func:`check_settings`.
    """

    def __init__(self, statistics: BigramStatistics, settings: TriggerSettings) -> None:
        self.statistics, self.settings = statistics, settings
        self.size = len(statistics.vocab)
        self.fixed = np.array(fixed_triggers(statistics, settings), np.int64) if settings.fixed else None

    def pool(self, trigger: int) -> np.ndarray:
        """Return the possible outputs of a trigger in ascending order."""
        found = np.array(output_part(self.size, self.settings.part))
        return found[found != trigger] if self.settings.no_repeat else found

    def sequences(self, rngs: Sequence[np.random.Generator]) -> TriggerSequences:
        """Draw a sequence with each of the generators."""
        raise NotImplementedError

    def triggers(self, rng: np.random.Generator) -> np.ndarray:
        """Return the triggers of a sequence, ``K``."""
        if self.fixed is not None:
            return self.fixed
        return rng.choice(self.size, size=self.settings.num_triggers, replace=False, p=self.statistics.unigram)


class ReferenceSampler(Sampler):
    """Draws one sequence after the other, draw by draw: what every other sampler must agree with."""

    def sequence(self, rng: np.random.Generator) -> TriggerSequences:
        """Draw a sequence, without the dimension B; the generator then stands where the next one begins."""
        bigram, settings = self.statistics.bigram, self.settings
        triggers = self.triggers(rng)
        outputs = {int(trigger): self._output(rng, trigger) for trigger in triggers}
        tokens = [weighted_draw(rng, self.statistics.unigram)]
        while len(tokens) < settings.length + 1 - settings.prefix:
            last = tokens[-1]
            tokens.append(outputs[last] if last in outputs else weighted_draw(rng, bigram[last]))
        seen = dict.fromkeys(outputs, 0)
        counters = []
        for token in tokens[:-1]:
            if token in seen:
                seen[token] = 1 if settings.no_counter else seen[token] + 1
            counters.append(seen.get(token, 0))
        if settings.show_triggers:
            tokens = [*triggers.tolist(), *tokens]
            counters = [-1] * len(triggers) + counters
        return TriggerSequences(np.array(tokens, np.int64), np.array(counters, np.int64), triggers)

    def sequences(self, rngs: Sequence[np.random.Generator]) -> TriggerSequences:
        """Draw a sequence with each of the generators."""
        return TriggerSequences(*map(np.stack, zip(*map(self.sequence, rngs), strict=True)))

    def _output(self, rng: np.random.Generator, trigger: int) -> int:
        pool = self.pool(trigger)
        if self.settings.distribution == "uniform":
            return int(pool[rng.integers(0, len(pool))])
        return int(pool[weighted_draw(rng, self.statistics.bigram[trigger, pool])])


def weighted_draw(rng: np.random.Generator, weights: np.ndarray) -> int:
    """Draw an index with one uniform number u: how many entries of the cumulative distribution are at most u."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative / cumulative[-1], rng.random(), side="right"))


class VectorisedSampler(Sampler):
    """The same sequences, token for token, but all of a batch together and each choice by looking it up.

    A generator serves for one sequence only: more numbers are taken from it than the reference would take.
    """

    def __init__(self, statistics: BigramStatistics, settings: TriggerSettings) -> None:
        super().__init__(statistics, settings)
        self.first, self.next = _Choices(statistics.unigram[None]), _Choices(statistics.bigram)
        part = output_part(self.size, settings.part)
        symbols = np.arange(self.size)
        excluded = settings.no_repeat & (symbols >= part.start) & (symbols < part.stop)
        self.lowest, self.pool_sizes = part.start, len(part) - excluded
        self.left_out = np.where(excluded, symbols, self.size)  # the symbol that a trigger's pool lacks

    @cached_property
    def answers(self) -> _Choices:
        """Outputs with the weights of the text, a row a trigger."""
        weights = self.statistics.bigram.copy()
        if self.settings.no_repeat:
            np.fill_diagonal(weights, 0)
        weights[weights.sum(1) == 0] = 1  # never a trigger: see check_settings
        return _Choices(weights)

    def sequences(self, rngs: Sequence[np.random.Generator]) -> TriggerSequences:
        """Draw a sequence with each of the generators."""
        settings, batch = self.settings, np.arange(len(rngs))
        length = settings.length + 1 - settings.prefix
        triggers, outputs, numbers = self._draws(rngs, length)
        answers = np.full((len(rngs), self.size), -1)
        answers[batch[:, None], triggers] = outputs
        answers, occurrences = answers.ravel(), np.zeros(answers.size, np.int64)
        tokens = np.empty((length, len(rngs)), np.int64)
        counters = np.empty((length - 1, len(rngs)), np.int64)
        tokens[0] = self.first.draw(np.zeros_like(batch), numbers[:, 0])
        numbers, place = numbers.ravel(), batch * length + 1
        for step, token in enumerate(tokens[:-1]):
            own = batch * self.size + token
            answer = answers[own]
            is_trigger = answer >= 0
            occurrences[own] += is_trigger
            counters[step] = occurrences[own]
            tokens[step + 1] = np.where(is_trigger, answer, self.next.draw(token, numbers[place]))
            place += ~is_trigger
        if settings.no_counter:
            counters = np.minimum(counters, 1)
        if settings.show_triggers:
            tokens = np.concatenate([triggers.T, tokens])
            counters = np.concatenate([np.full_like(triggers.T, -1), counters])
        return TriggerSequences(np.ascontiguousarray(tokens.T), np.ascontiguousarray(counters.T), triggers)

    def _draws(self, rngs: Sequence[np.random.Generator], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw triggers and outputs, ``B K``, and the numbers for the tokens, ``B length``, as the reference does.

        A generator gives many numbers at once as it gives them one by one.
        """
        count, uniform = self.settings.num_triggers, self.settings.distribution == "uniform"
        triggers = np.empty((len(rngs), count), np.int64)
        places = np.empty((len(rngs), count), np.int64 if uniform else np.float64)
        numbers = np.empty((len(rngs), length))
        for row, rng in enumerate(rngs):
            triggers[row] = self.triggers(rng)
            places[row] = rng.integers(0, self.pool_sizes[triggers[row]]) if uniform else rng.random(count)
            rng.random(out=numbers[row])
        if not uniform:
            return triggers, self.answers.draw(triggers, places), numbers
        outputs = self.lowest + places
        return triggers, outputs + (outputs >= self.left_out[triggers]), numbers


class _Choices:
    """Weighted draws of one of M symbols, with the numbers given: exactly as :func:`weighted_draw` looks them up.

    Args:
        weights: ``N M``, a distribution a row, not normalised.
    """

    def __init__(self, weights: np.ndarray) -> None:
        cumulative = weights.cumsum(1)
        cumulative /= cumulative[:, -1:]
        self.columns = weights.shape[1]
        # In a row, the symbol i is drawn from bounds[i] on; the last bound, 1, is never reached.
        self.bounds = np.pad(cumulative, ((0, 0), (1, 0)))[:, :-1].ravel()
        # All rows one after the other, so that one search serves for draws from different rows.
        self.line = (cumulative + np.arange(len(weights))[:, None]).ravel()

    def draw(self, rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Draw from a row with each number in [0, 1); both have the shape of the result."""
        found = np.searchsorted(self.line, rows + numbers, side="right") - rows * self.columns
        # Rounding keeps the order of the sums: no bound is missed, but one that is hardly above the number, or one of
        # the next row, may be counted too.
        found = np.minimum(found, self.columns - 1)
        start = rows * self.columns
        while (over := self.bounds[start + found] > numbers).any():
            found -= over
        return found
