"""Sentences in rows of one length, as the original code of the norm-growth experiments trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset
from torch import Tensor


class PaddedSentences(FairseqDataset):
    """Rows of ``length`` tokens without ``</s>``: longer sentences are cut, the rest of a row is the filler F.

    A row without its last token is the input, without its first the target. Of the original's weights, which are those
    of the inputs, the first F after a sentence is a target as well. With length 6, the sentence "a b c" gives::

        input   a b c F F      src_lengths    3: a b c
        target  b c F _ _      target_lengths 2: b c

    The ``_`` are fairseq's padding, which no criterion counts; the first F is that padding too when F is.

    Args:
        sentences: each a tensor of ids, with a ``</s>`` at its end or without.
        length: tokens of a row, two or more.
        filler: id of F.
        pad, eos: ids of fairseq's padding and of ``</s>``.
        seed: of the order, which is another one in each epoch; None for the order of the file.
    """

    def __init__(
        self, sentences: Sequence[Tensor], length: int, filler: int, pad: int, eos: int, seed: int | None = None
    ) -> None:
        if length < 2:
            raise ValueError(
                f"normgrowth_lm: --tokens-per-sample {length}: at least 2, of which one is predicted from the other"
            )
        self.sentences, self.length = sentences, length
        self.filler, self.pad, self.eos, self.seed = filler, pad, eos, seed
        self.epoch = 1
        self.sizes = np.full(len(sentences), length - 1)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> dict[str, Any]:
        words = self.sentences[index]
        words = words[: len(words) - int(len(words) > 0 and int(words[-1]) == self.eos)][: self.length].long()
        row = torch.full((self.length,), self.filler)
        row[: len(words)] = words
        target = row[1:].clone()
        target[len(words) :] = self.pad
        lengths = min(len(words), self.length - 1), max(len(words) - 1, 0)
        return {"id": index, "source": row[:-1], "target": target, "lengths": lengths}

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; ``ntokens`` counts the words that are predicted."""
        if not samples:
            return {}
        inputs, targets = torch.tensor([sample["lengths"] for sample in samples]).unbind(1)
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": int(targets.sum()),
            "net_input": {"src_tokens": torch.stack([sample["source"] for sample in samples]), "src_lengths": inputs},
            "target": torch.stack([sample["target"] for sample in samples]),
            "target_lengths": targets,
        }

    def num_tokens(self, index: int) -> int:
        """Return the positions of a row."""
        return self.length - 1

    size = num_tokens

    def ordered_indices(self) -> Any:
        """Return the order of this epoch, of which batches are made."""
        if self.seed is None:
            return np.arange(len(self))
        return np.random.RandomState([self.seed, self.epoch]).permutation(len(self))

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """No, where each epoch has its own order."""
        return self.seed is None

    def set_epoch(self, epoch: int) -> None:
        """Take the order of an epoch, from 1."""
        self.epoch = epoch
