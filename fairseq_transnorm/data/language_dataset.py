"""Sequences of a formal language and their outputs as a data set of fairseq's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from fairseq.data import FairseqDataset

from .languages import Language


class LanguageDataset(FairseqDataset):
    """All samples of a split, in memory.

    Inputs are padded with ``len(language.symbols)``, targets with ``len(language.classes)``. A batch of ``sort_10_bos``
    with the one sequence ``ba`` has the inputs ``[[10, 1, 0]]`` and the targets ``[[10, 0, 1]]``.

    Args:
        language: of the sequences.
        texts: sequences without ``BOS``.
        shuffle: whether each epoch has another order, drawn from numpy's generator, as fairseq seeds it.

    Raises:
        ValueError: the function of the language returns something else than one of its classes at each position.
    """

    def __init__(self, language: Language, texts: Sequence[str], shuffle: bool = False) -> None:
        self.language, self.texts, self.shuffle = language, texts, shuffle
        self.sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + language.bos
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.tokens = _encode_inputs(language, texts)
        self.targets = _encode_outputs(language, texts)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> int:
        return int(index)  # the batch is cut out as a whole

    def collater(self, samples: Sequence[int]) -> dict[str, Any]:
        """Return a batch, with ``attention_targets`` (``B M T T``) where the language is supervised."""
        if not len(samples):
            return {}
        rows = np.asarray(samples)
        sizes = self.sizes[rows]
        columns = np.arange(sizes.max())
        padding = columns >= sizes[:, None]
        cells = np.where(padding, 0, self.starts[rows][:, None] + columns)

        def padded(values: np.ndarray, filler: int) -> torch.Tensor:
            return torch.from_numpy(np.where(padding, filler, values[cells]).astype(np.int64))

        tokens, lengths = padded(self.tokens, len(self.language.symbols)), torch.from_numpy(sizes)
        batch = {
            "id": torch.from_numpy(rows),
            "nsentences": len(rows),
            "ntokens": int(sizes.sum()),
            "net_input": {"src_tokens": tokens, "src_lengths": lengths},
            "target": padded(self.targets, len(self.language.classes)),
        }
        if self.language.supervised:
            batch["attention_targets"] = self.language.attention_targets(tokens, lengths)
        return batch

    def num_tokens(self, index: int) -> int:
        """Return the tokens of an input, ``BOS`` included."""
        return int(self.sizes[index])

    size = num_tokens

    def num_tokens_vec(self, indices: np.ndarray) -> np.ndarray:
        """Return those of several."""
        return self.sizes[indices]

    def ordered_indices(self) -> np.ndarray:
        """Return the order in which samples are cut into batches."""
        return np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))  # noqa: NPY002

    @property
    def can_reuse_epoch_itr_across_epochs(self) -> bool:
        """No: fairseq would only shuffle the batches of the first epoch."""
        return not self.shuffle


def _encode_inputs(language: Language, texts: Sequence[str]) -> np.ndarray:
    codes = np.array([ord(symbol) for symbol in language.symbols])
    numbers = np.zeros(codes.max() + 1, np.int32)
    numbers[codes] = np.arange(len(codes))
    joined = "".join(map(language.with_bos, texts))
    return numbers[np.frombuffer(joined.encode("utf-32-le"), np.uint32)]


def _encode_outputs(language: Language, texts: Sequence[str]) -> np.ndarray:
    numbers = {symbol: number for number, symbol in enumerate(language.classes)}
    outputs = list(map(language.outputs, texts))
    try:
        return np.fromiter(map(numbers.__getitem__, chain.from_iterable(outputs)), np.int32)
    except KeyError:
        for text, found in zip(texts, outputs, strict=True):
            if unknown := [symbol for symbol in found if symbol not in numbers]:
                raise ValueError(
                    f"{language.task} returned {unknown[0]!r} for {text!r}, which is none of its output "
                    f"classes {language.classes}; register it among them"
                ) from None
        raise
