"""Samples of masked language models that read documents: pairs of runs of sentences, in order or swapped, and masked.

A sample is a run of sentences of one document, cut in two; one document of three sentences gives, for example::

    document        how now ? / the dog is old . / it sleeps .
    src_tokens      <s> the dog is <mask> . it sleeps . </s> how now ? </s>
    segment_ids      0   0   0  0    0    0  0    0   0   0   1   1  1   1
    target           .   .   .  .   old   .  .    .   .   .   .   .  .   .
    sop_target      1, since what came first in the document stands last

Which sentences make a sample, where it is cut and what is masked is drawn anew in each epoch and depends on nothing but
the seed, the epoch and the sample's number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils
from torch import Tensor

from .word_masking import WordMasking


@dataclass(frozen=True)
class Documents:
    """Runs of sentences that samples are made of.

    Attributes:
        starts: number of the first sentence of each.
        ends: number after that of its last.
        short: documents left out since they have too few sentences.
        long: documents left out since one of their sentences is too long.
        sentences: sentences in all documents, those left out included.
    """

    starts: np.ndarray
    ends: np.ndarray
    short: int
    long: int
    sentences: int

    @classmethod
    def of(cls, sizes: np.ndarray, min_sentences: int, max_sentence_tokens: int) -> Documents:
        """Find the documents between the boundaries, which are lone ``</s>``.

        Args:
            sizes: tokens of each sentence with its ``</s>``.
            min_sentences: fewest sentences of a document.
            max_sentence_tokens: most tokens of each of its sentences, ``</s>`` not counted.
        """
        boundaries = np.flatnonzero(sizes == 1)
        starts = np.concatenate(([0], boundaries + 1))
        ends = np.concatenate((boundaries, [len(sizes)]))
        starts, ends = starts[ends > starts], ends[ends > starts]
        if not len(starts):
            return cls(starts, ends, 0, 0, 0)
        short = ends - starts < min_sentences
        # up to the next start: the boundary in between, of length 1, changes no maximum
        long = ~short & (np.maximum.reduceat(sizes, starts) - 1 > max_sentence_tokens)
        usable = ~(short | long)
        return cls(starts[usable], ends[usable], int(short.sum()), int(long.sum()), int((ends - starts).sum()))


class Samples(NamedTuple):
    """The samples of an epoch, in the order of the text; all arrays have one entry a sample.

    Attributes:
        starts: number of its first sentence.
        ends: number after that of its last.
        targets: tokens that it was meant to have, special symbols not counted.
        lengths: tokens that it has, special symbols not counted; at most ``targets``.
    """

    starts: np.ndarray
    ends: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray


def draw_samples(
    sizes: np.ndarray,
    documents: Documents,
    length: int,
    short_seq_prob: float,
    min_sentences: int,
    rng: np.random.Generator,
) -> Samples:
    """Cut all documents into samples.

    Sentences are added until they have the target length, there are ``min_sentences`` of them, and the document has as
    many left for the next sample; or until it ends. The target is ``length``, or with probability ``short_seq_prob`` a
    length from 2 to that, drawn for each sample.

    Args:
        sizes: tokens of each sentence with its ``</s>``.
        documents: found with the same ``min_sentences``.
        length: tokens of a full sample, special symbols not counted.
        short_seq_prob: see above.
        min_sentences: see above.
        rng: source of randomness.
    """
    before = np.zeros(len(sizes) + 1, dtype=np.int64)  # tokens of the text before each sentence
    np.cumsum(sizes - 1, out=before[1:])
    position, end = documents.starts, documents.ends
    rounds: list[Samples] = [Samples(*np.zeros((4, 0), dtype=np.int64))]
    while len(position):  # one sample of every document that has something left
        short = rng.random(len(position)) < short_seq_prob
        targets = np.where(short, rng.integers(2, length + 1, size=len(position)), length)
        stop = np.searchsorted(before, before[position] + targets)
        stop = np.maximum(stop, position + min_sentences)
        stop = np.where(end - stop < min_sentences, end, stop)
        rounds.append(Samples(position, stop, targets, np.minimum(before[stop] - before[position], targets)))
        more = stop < end
        position, end = stop[more], end[more]
    starts, ends, targets, lengths = (np.concatenate(part) for part in zip(*rounds, strict=True))
    order = np.argsort(starts)
    return Samples(starts[order], ends[order], targets[order], lengths[order])


def truncate(
    first: np.ndarray, second: np.ndarray, length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shorten two parts to ``length`` tokens together.

    As if one token after the other were taken from the longer part, from the second if they are equally long, each time
    from its front or its back with probability 1/2.

    Args:
        first: tokens in the last dimension.
        second: the same.
        length: most tokens of both together.
        rng: source of randomness.
    """
    kept = min(second.shape[-1], max(length // 2, length - first.shape[-1]))
    return shorten(first, length - kept, rng), shorten(second, kept, rng)


def shorten(part: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Take tokens from front or back, each time with probability 1/2, until at most ``length`` are left."""
    surplus = part.shape[-1] - length
    if surplus <= 0:
        return part
    front = int(rng.binomial(surplus, 0.5))
    return part[..., front : front + length]


@dataclass(eq=False)
class SentencePairs(FairseqDataset):
    """Dataset of the samples described at the head of this file.

    Attributes:
        sentences: indexed dataset of sentences, each with ``</s>`` at its end; a lone ``</s>`` ends a document.
        word_starts: says of the tokens of a sentence, ``T``, which begin a word, bool ``T``.
        masking: chooses and replaces tokens.
        bos: number of ``<s>``.
        eos: number of ``</s>``.
        tokens_per_sample: most tokens of a sample, special symbols included.
        short_seq_prob: probability of a shorter target length, for each sample.
        max_sentence_tokens: a document with a longer sentence is left out.
        pairs: whether samples are pairs; else they are ``<s> sentences </s>`` without order to predict, and documents
            of one sentence are taken too.
        seed: of all that is drawn.
    """

    sentences: Any
    word_starts: Callable[[np.ndarray], np.ndarray]
    masking: WordMasking
    bos: int
    eos: int
    tokens_per_sample: int = 512
    short_seq_prob: float = 0.1
    max_sentence_tokens: int = 512
    pairs: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        self.documents = Documents.of(self.sentences.sizes, self.min_sentences, self.max_sentence_tokens)
        self.epoch = 0
        self.set_epoch(1)

    @property
    def min_sentences(self) -> int:
        """Fewest sentences of a sample."""
        return 2 if self.pairs else 1

    @property
    def num_special(self) -> int:
        """Special symbols of a sample."""
        return 3 if self.pairs else 2

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """No: another epoch has other samples, and another number of them."""
        return False

    def set_epoch(self, epoch: int) -> None:
        """Draw the samples of an epoch."""
        if epoch == self.epoch:
            return
        self.epoch = epoch
        rng = np.random.default_rng([self.seed, epoch, 0])
        length = self.tokens_per_sample - self.num_special
        self.samples = draw_samples(
            self.sentences.sizes, self.documents, length, self.short_seq_prob, self.min_sentences, rng
        )
        self.order = rng.permutation(len(self))

    def __len__(self) -> int:
        return len(self.samples.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample; ``src_tokens``, ``segment_ids`` and ``target`` are ``T``, ``sop_target`` is 0 or 1."""
        rng = np.random.default_rng([self.seed, self.epoch, 1 + index])
        start, end, target_length = (int(part[index]) for part in self.samples[:3])
        parts, swapped = self._parts([self._sentence(i) for i in range(start, end)], target_length, rng)
        end_of_part = np.array([[self.eos], [1]])
        tokens, begins = np.hstack([[[self.bos], [1]], *(p for part in parts for p in (part, end_of_part))])
        source, target = self.masking(tokens, begins.astype(bool), target_length, rng)
        segments = np.arange(len(tokens)) >= parts[0].shape[1] + 2
        sample = {
            "id": index,
            "src_tokens": torch.from_numpy(source),
            "segment_ids": torch.from_numpy(segments.astype(np.int64)),
            "target": torch.from_numpy(target),
        }
        return sample | ({"sop_target": int(swapped)} if self.pairs else {})

    def _sentence(self, index: int) -> np.ndarray:
        """Return a sentence without ``</s>``, ``2 T``: its tokens, and 1 where one begins a word."""
        tokens = self.sentences[index].numpy()[:-1]
        return np.stack((tokens, self.word_starts(tokens)))

    def _parts(
        self, sentences: Sequence[np.ndarray], length: int, rng: np.random.Generator
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """Return the parts of a sample, ``2 T`` each, in the order in which they are read; whether they are swapped."""
        if not self.pairs:
            return (shorten(np.hstack(sentences), length, rng),), False
        cut = int(rng.integers(1, len(sentences)))
        first, second = np.hstack(sentences[:cut]), np.hstack(sentences[cut:])
        swapped = bool(rng.random() < 0.5)
        if swapped:
            first, second = second, first
        return truncate(first, second, length, rng), swapped

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch, padded on the right to its longest sample; the segment of padding is 0."""
        if not samples:
            return {}

        def padded(name: str, pad: int) -> Tensor:
            return data_utils.collate_tokens([sample[name] for sample in samples], pad)

        lengths = torch.tensor([len(sample["src_tokens"]) for sample in samples])
        batch = {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(lengths.sum()),
            "net_input": {
                "src_tokens": padded("src_tokens", self.masking.pad),
                "src_lengths": lengths,
                "segment_ids": padded("segment_ids", 0),
            },
            "target": padded("target", self.masking.pad),
        }
        if self.pairs:
            batch["sop_target"] = torch.tensor([sample["sop_target"] for sample in samples])
        return batch

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each sample, special symbols included."""
        return self.samples.lengths + self.num_special

    def num_tokens(self, index: int) -> int:
        """Return the tokens of a sample, special symbols included."""
        return int(self.samples.lengths[index]) + self.num_special

    size = num_tokens

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return the tokens of several samples, special symbols included."""
        return self.sizes[indices]

    def ordered_indices(self) -> np.ndarray:
        """Return all samples in random order, the same for the same seed and epoch."""
        return self.order
