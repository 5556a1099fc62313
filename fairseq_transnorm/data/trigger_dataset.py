"""Sequences with triggers as a data set of fairseq's: each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset

from .trigger_sequences import Sampler

SPLITS = {"train": 0, "valid": 1, "test": 2}


class TriggerDataset(FairseqDataset):
    """Sequence i of an epoch follows from the seed, the split, the epoch and i alone, whoever asks for it.

    Its generator is ``numpy.random.default_rng([seed, split, epoch, i])`` with the number of the split in ``SPLITS``.
    The epoch is fairseq's, from 1, in training, and 0 in the other splits, whose sequences never change.

    Args:
        sampler: draws the sequences.
        split: one of ``SPLITS``.
        count: sequences of an epoch.
        seed: of the data, 0 or more.
    """

    def __init__(self, sampler: Sampler, split: str, count: int, seed: int) -> None:
        self.sampler, self.split, self.count, self.seed = sampler, split, count, seed
        self.length = sampler.settings.length
        self.epoch = 1 if split == "train" else 0
        self.sizes = np.broadcast_to(np.int64(self.length), (count,))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several sequences, as torch's loader asks for those of a batch."""
        rngs = [np.random.default_rng([self.seed, SPLITS[self.split], self.epoch, int(i)]) for i in indices]
        tensors = map(torch.from_numpy, self.sampler.sequences(rngs))
        return [
            {"id": int(index), "tokens": tokens, "counters": counters, "triggers": triggers}
            for index, tokens, counters, triggers in zip(indices, *tensors, strict=True)
        ]

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; all sequences have the same length, so that nothing is padded."""
        if not samples:
            return {}
        tokens = torch.stack([sample["tokens"] for sample in samples])
        return {
            "id": torch.tensor([sample["id"] for sample in samples]),
            "nsentences": len(samples),
            "ntokens": len(samples) * self.length,
            "net_input": {
                "src_tokens": tokens[:, :-1].contiguous(),
                "src_lengths": torch.full((len(samples),), self.length),
            },
            "target": tokens[:, 1:].contiguous(),
            "counters": torch.stack([sample["counters"] for sample in samples]),
            "triggers": torch.stack([sample["triggers"] for sample in samples]),
        }

    def num_tokens(self, index: int) -> int:
        """Return the tokens of an input."""
        return self.length

    size = num_tokens

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return those of several."""
        return self.sizes[indices]

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """No: processes that load data would go on with the sequences of the epoch in which they started."""
        return False

    def set_epoch(self, epoch: int) -> None:
        """Make the sequences of an epoch, from 1, in training."""
        if self.split == "train":
            self.epoch = epoch
