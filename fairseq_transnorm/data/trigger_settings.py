"""How sequences with triggers are made, and which settings a text cannot serve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bigram_statistics import BigramStatistics

DISTRIBUTIONS = ("uniform", "bigram")
PARTS = ("all", "train", "test")
TRAIN_SHARE = 0.75  # of the vocabulary, from its beginning, in the part "train"


@dataclass(frozen=True)
class TriggerSettings:
    """The options of :mod:`fairseq_transnorm.tasks.bigram_icl` that decide a sequence.

    Attributes:
        num_triggers: K, in each sequence.
        length: T, tokens of an input.
        show_triggers: whether a sequence begins with its triggers, with the counter -1.
        fixed: the same triggers in all sequences, the most frequent symbols; else drawn for each sequence.
        rank_offset: how many of the most frequent symbols are passed over for fixed triggers.
        no_counter: counters are 1 at every trigger.
        no_repeat: a trigger is never its own output.
        distribution: of outputs: ``uniform``, or ``bigram``, that of what follows the trigger in the text.
        part: of the vocabulary in which outputs are: ``all``, ``train``, ``test``.
    """

    num_triggers: int = 5
    length: int = 256
    show_triggers: bool = False
    fixed: bool = False
    rank_offset: int = 0
    no_counter: bool = False
    no_repeat: bool = False
    distribution: str = "uniform"
    part: str = "all"

    @property
    def prefix(self) -> int:
        """Tokens before those of the bigram model."""
        return self.num_triggers if self.show_triggers else 0

    @property
    def never_again(self) -> str | None:
        """Why no trigger of any sequence can have the counter 2, as the options that say so; None where one can."""
        if not self.num_triggers:
            return "--num-triggers 0"
        if self.no_counter:
            return "--no-output-counter"
        # at the soonest, a trigger follows itself, or its output
        if self.length - self.prefix < (3 if self.no_repeat else 2):
            options = ["--show-latents"] * self.show_triggers + ["--no-repeat-output"] * self.no_repeat
            return " and ".join([f"--tokens-per-sample {self.length}", *options])
        return None


def fixed_triggers(statistics: BigramStatistics, settings: TriggerSettings) -> list[int]:
    """Return the most frequent symbols after the ``rank_offset`` most frequent ones, rarest first; ties by number."""
    last = len(statistics.vocab) - settings.rank_offset
    order = np.argsort(statistics.unigram, kind="stable")
    return order[last - settings.num_triggers : last].tolist()


def output_part(size: int, part: str) -> range:
    """Return the symbols of a part of a vocabulary of ``size`` symbols."""
    cut = int(TRAIN_SHARE * size)
    return range(cut if part == "test" else 0, cut if part == "train" else size)


def check_settings(statistics: BigramStatistics, settings: TriggerSettings, prefix: str = "--") -> None:
    """Refuse what has no meaning, or what a text cannot serve.

    Args:
        statistics: of the text.
        settings: how sequences are to be made.
        prefix: of the options ``output-dist`` and ``output-split`` that these settings are from.

    Raises:
        ValueError: the message names the option, its value and what would do.
    """
    try:
        _check_triggers(statistics, settings)
        _check_outputs(statistics, settings, f"{prefix}output-dist", f"{prefix}output-split")
    except ValueError as error:
        raise ValueError(f"bigram_icl: {error}") from None


def _check_triggers(statistics: BigramStatistics, settings: TriggerSettings) -> None:
    count, offset, size = settings.num_triggers, settings.rank_offset, len(statistics.vocab)
    occurring = int((statistics.unigram_counts > 0).sum())
    if settings.length < 1:
        raise ValueError(f"--tokens-per-sample {settings.length}: at least 1")
    if count < 0:
        raise ValueError(f"--num-triggers {count}: 0 (bigram sequences without triggers) or more")
    if count > size:
        raise ValueError(
            f"--num-triggers {count} is more than the vocabulary, {size} symbols; at most {size}, or a larger text"
        )
    if offset < 0:
        raise ValueError(f"--trigger-rank-offset {offset}: 0 or more")
    if offset and not settings.fixed:
        raise ValueError(f"--trigger-rank-offset {offset} is for --fixed-triggers; give both or none of them")
    if count + offset > occurring:
        passed = f" and --trigger-rank-offset {offset}" if offset else ""
        raise ValueError(
            f"--num-triggers {count}{passed} need {count + offset} symbols, but only {occurring} occur in the text; "
            "make them fewer, or give a larger text"
        )
    if settings.show_triggers and count >= settings.length:
        raise ValueError(
            f"--show-latents with --num-triggers {count} leaves nothing of --tokens-per-sample {settings.length} for "
            f"the sequence; raise the latter above {count}"
        )


def _check_outputs(statistics: BigramStatistics, settings: TriggerSettings, dist_flag: str, part_flag: str) -> None:
    size, part = len(statistics.vocab), output_part(len(statistics.vocab), settings.part)
    if settings.distribution == "bigram" and settings.part != "all":
        raise ValueError(
            f"{dist_flag} bigram does not go with {part_flag} {settings.part}, for a symbol may be followed by none of "
            f"them; {part_flag} all, or {dist_flag} uniform"
        )
    if not settings.num_triggers:
        return
    if not len(part):
        raise ValueError(f"{part_flag} {settings.part} is empty: the vocabulary has {size} symbols; {part_flag} all")
    if not settings.no_repeat:
        return
    triggers = fixed_triggers(statistics, settings) if settings.fixed else np.flatnonzero(statistics.unigram_counts)
    weights, columns = np.zeros((size, size)), slice(part.start, part.stop)
    weights[:, columns] = statistics.bigram[:, columns] if settings.distribution == "bigram" else 1
    np.fill_diagonal(weights, 0)
    if stuck := [statistics.vocab[trigger] for trigger in triggers if not weights[trigger].any()]:
        given = f"with {dist_flag} bigram" if settings.distribution == "bigram" else f"with {part_flag} {settings.part}"
        why = "as the text has no other symbol" if size == 1 else given
        raise ValueError(
            f"--no-repeat-output leaves no output for the trigger {stuck[0]!r} {why}; leave it out, or give a larger "
            "text"
        )
