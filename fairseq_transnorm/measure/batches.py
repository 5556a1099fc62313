"""Sentences as padded batches of tokens, as a language model or masked language model reads them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ..data import tokenizers
from ..data.folder import NOTE, read_note
from ..modules.growth_attention import GrowthAttention
from .checkpoints import Run, data_folder
from .evaluation import load_split

logger = logging.getLogger(__name__)

BATCH_TOKENS = 512  # positions of a batch, padding included; on a CPU larger ones leave the cache and are slower
_MANY_UNKNOWN = 0.05  # share of the words from which a text is probably not the model's


class Batch(NamedTuple):
    """Some sentences of about one length.

    Attributes:
        tokens: ids, padded on the right.
        keep: True at the tokens, False at padding.
    """

    tokens: Int[Tensor, "B T"]
    keep: Bool[Tensor, "B T"]


@dataclass(frozen=True)
class SentenceBatches:
    """Batches of sentences, the shortest first; iterating gives them as often as one likes.

    Attributes:
        rows: token ids of each sentence in the order of the text, special symbols included.
        pad: id of padding.
        batch_tokens: most positions of a batch; a longer sentence is a batch of its own.
        device: where the batches go.
        equal: only sentences of one length share a batch, so that nothing is padded.
        words: symbols of the text, special ones not counted.
        unknown: how many of them are not in the dictionary.
        cut: how many sentences were longer than the model's positions and lost their ends.
    """

    rows: list[list[int]]
    pad: int
    batch_tokens: int = BATCH_TOKENS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    equal: bool = False
    words: int = 0
    unknown: int = 0
    cut: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Pad and yield batch after batch."""
        for numbers in self.numbers():
            yield self.batch(numbers)

    def numbers(self) -> Iterator[list[int]]:
        """Yield which sentences stand in each batch, by their numbers in ``rows``."""
        batch: list[int] = []
        for number in sorted(range(len(self.rows)), key=lambda i: len(self.rows[i])):
            length = len(self.rows[number])
            full = (len(batch) + 1) * length > self.batch_tokens
            if batch and (full or (self.equal and length != len(self.rows[batch[-1]]))):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return the sentences with these numbers as one batch."""
        rows = [self.rows[number] for number in numbers]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.full((len(rows), int(lengths.max())), self.pad)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
        keep = torch.arange(tokens.shape[1]) < lengths[:, None]
        return Batch(tokens.to(self.device), keep.to(self.device))

    @property
    def tokens(self) -> int:
        """How many tokens the model reads, special symbols included and padding not."""
        return sum(map(len, self.rows))


def sentence_batches(
    run: Run, sentences: Sequence[str] | str, limit: int | None = None, batch_tokens: int = BATCH_TOKENS
) -> SentenceBatches:
    """Return sentences as the run's model reads them, each on its own.

    A language model gets ``</s> words``, as fairseq's task gives it a line of text without the last target (and
    ``<s> </s> words`` with ``--add-bos-token``, the words alone with ``--sentence-layout original``), a masked language
    model ``<s> words </s>`` without masks. Text is cut into symbols as the note ``tokenizer.json`` of the run's data
    folder says, at spaces without one. Empty lines of a split are left out. For a model that attends to padding, such
    as those with the multiplicative mask, nothing is padded; one that attends to the other sentences of a batch is
    warned of.

    Args:
        run: a language model or masked language model, of this package or of fairseq.
        sentences: text, or the name of a split of the run's data folder.
        limit: read only the first so many sentences.
        batch_tokens: most positions of a batch, padding included.

    Raises:
        FileNotFoundError: the data folder lacks the split, or a file of its tokenizer.
        ValueError: there are no sentences, ``limit`` or ``batch_tokens`` is below 1, or the model is no such model.
        ImportError: the package of the tokenizer is missing; the message names the extra.
    """
    if batch_tokens < 1 or (limit is not None and limit < 1):
        raise ValueError(f"asked for {limit} sentences in batches of {batch_tokens} tokens; both must be at least 1")
    bare = _of_split(run, sentences, limit) if isinstance(sentences, str) else _of_text(run, sentences[:limit])
    if not bare:
        raise ValueError(f"no sentences to read for {run.path}")
    prefix, suffix = _surroundings(run)
    room = run.model.max_positions() - len(prefix) - len(suffix)
    dictionary = run.task.source_dictionary
    made = SentenceBatches(
        rows=[prefix + row[:room] + suffix for row in bare],
        pad=dictionary.pad(),
        batch_tokens=batch_tokens,
        device=next(run.model.parameters()).device,
        equal=_attends_to_padding(run.model),
        words=sum(map(len, bare)),
        unknown=sum(row.count(dictionary.unk()) for row in bare),
        cut=sum(len(row) > room for row in bare),
    )
    _warn(made, run, text=not isinstance(sentences, str))
    return made


def _of_text(run: Run, sentences: Sequence[str]) -> list[list[int]]:
    encode, dictionary = _encoder(run), run.task.source_dictionary
    return [[dictionary.index(symbol) for symbol in encode(text).split()] for text in sentences]


def _encoder(run: Run) -> Callable[[str], str]:
    folder = data_folder(run)
    if not (folder / NOTE).is_file():
        return lambda text: text
    note = read_note(folder)
    return tokenizers.load(note["kind"], folder, bool(note.get("pre_split", False)))


def _of_split(run: Run, split: str, limit: int | None) -> list[list[int]]:
    dataset, eos = load_split(run, split), run.task.source_dictionary.eos()
    found: list[list[int]] = []
    for i in range(len(dataset)):
        row = dataset[i].tolist()
        if row and row[-1] == eos:
            row.pop()
        if row:
            found.append(row)
        if len(found) == limit:
            break
    return found


def without_ends(run: Run) -> bool:
    """Return whether a language model was trained on sentences without ``</s>``, as by the original code."""
    return str(run.cfg.task.get("sentence_layout", "fairseq")) == "original"


def _surroundings(run: Run) -> tuple[list[int], list[int]]:
    """Return the symbols before and after each sentence."""
    dictionary, model = run.task.source_dictionary, run.model
    decoder, encoder = getattr(model, "decoder", None), getattr(model, "encoder", None)
    if decoder is not None and encoder is None:
        if without_ends(run):
            return [], []
        with_bos = run.cfg.task.get("add_bos_token", False)
        return ([dictionary.bos(), dictionary.eos()] if with_bos else [dictionary.eos()]), []
    if encoder is not None and decoder is None:
        return [dictionary.bos()], [dictionary.eos()]
    raise ValueError(
        f"{run.path} is neither a language model (a decoder alone) nor a masked language model (an encoder alone), "
        f"but a {type(model).__name__}; its input cannot be made of sentences here"
    )


def _attends_to_padding(model: nn.Module) -> bool:
    growth = [module for module in model.modules() if isinstance(module, GrowthAttention)]
    return any(module.axis == "batch" or module.mask == "multiplicative" for module in growth)


def _warn(made: SentenceBatches, run: Run, text: bool) -> None:
    if made.cut:
        logger.warning(
            f"{made.cut} of {len(made.rows)} sentences are longer than the {run.model.max_positions()} positions of "
            f"{run.path} and were cut"
        )
    if any(getattr(module, "axis", None) == "batch" for module in run.model.modules()):
        logger.warning(f"{run.path} attends over the batch: its numbers depend on which sentences share one")
    if text:
        warn_of_unknown(made, f"dictionary of {run.path}")


def warn_of_unknown(made: SentenceBatches, vocabulary: str) -> None:
    """Say where so many words are unknown that the text is probably not the model's."""
    if made.unknown > _MANY_UNKNOWN * made.words:
        logger.warning(
            f"{made.unknown / made.words:.1%} of the {made.words} words are unknown to the {vocabulary}; "
            "is the text prepared like that of the training (case, punctuation)?"
        )
