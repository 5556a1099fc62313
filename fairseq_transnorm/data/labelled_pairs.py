"""Sentence pairs and multiple choice for fine-tuning as in BERT: ``[CLS] A [SEP] B [SEP]`` with segment ids.

fairseq's own tasks cut an example after it was joined, and with it the last ``</s>``, or that of an option, on which
the segments depend. Here the parts are cut before they are joined. ``<s>`` stands for [CLS], ``</s>`` for [SEP].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary, FairseqDataset, data_utils
from torch import Tensor


def join(first: Tensor, second: Tensor | None, max_length: int, bos: int, eos: int) -> tuple[Tensor, Tensor]:
    """Return the tokens of an example and their segments, both ``T`` long.

    ``<s> A </s> B </s>``, or ``<s> A </s>`` without B. When the tokens before the last ``</s>`` reach ``max_length``,
    only ``max_length - 1`` of them are kept, so that B is cut before A. Segments are 0 up to and including the first
    ``</s>``, 1 after it. For A = [7, 8], B = [9] and ``max_length`` 5: <s> 7 8 </s> </s>, with segments 0 0 0 0 1.

    Args:
        first: ids of A, without ``</s>``.
        second: ids of B, or None.
        max_length: most tokens, at least 2.
        bos: id of ``<s>``.
        eos: id of ``</s>``.
    """
    parts = [first.new_tensor([bos]), first]
    if second is not None:
        parts += [first.new_tensor([eos]), second]
    tokens = torch.cat([torch.cat(parts)[: max_length - 1], first.new_tensor([eos])])
    segments = torch.zeros_like(tokens)
    segments[len(first) + 2 :] = 1
    return tokens, segments


def joined_length(first: np.ndarray, second: np.ndarray | None, max_length: int) -> np.ndarray:
    """Return how long :func:`join` makes examples whose A and B have these numbers of tokens."""
    return np.minimum(first + 2 if second is None else first + second + 3, max_length)


class PairDataset(FairseqDataset):
    """Sentences, pairs of them, or several choices with one text, with a class or a number each.

    An example has one sequence for each of its ``firsts``, which becomes A; ``second`` is B of all of them. A batch has
    ``id``; ``net_input`` with ``src_tokens`` and ``segment_ids`` (padded with ``<pad>`` and 0), both ``(B C) T`` with
    the C sequences of an example one after the other, and ``src_lengths``; ``target`` where there are labels;
    ``ntokens`` (of all sequences) and ``nsentences`` (B).

    Args:
        firsts: data sets of A, each item with a ``</s>`` at its end; C of them, 1 but for multiple choice.
        second: data set of B, or None.
        targets: one of each example, or None.
        dictionary: of the tokens.
        max_length: most tokens of a sequence; longer ones are cut.
        max_first: most tokens of A, which is cut to them before it is joined; None for no such limit.
        shuffle: fill batches in an order drawn with ``seed``; else by length, which pads least.
        seed: of the order.

    Raises:
        ValueError: ``max_length`` has no room, or there are not as many of each part.
    """

    def __init__(
        self,
        firsts: Sequence[Any],
        second: Any,
        targets: Tensor | None,
        dictionary: Dictionary,
        max_length: int,
        max_first: int | None = None,
        shuffle: bool = False,
        seed: int = 1,
    ) -> None:
        if max_length < 3:
            raise ValueError(f"--max-positions {max_length}: at least 3, since <s> and </s> stand beside a sentence")
        if max_first is not None and not 1 <= max_first <= max_length - 3:
            raise ValueError(
                f"--max-option-length {max_first} with --max-positions {max_length}: 1 to {max_length - 3}, since <s> "
                "and two </s> stand beside an option"
            )
        parts = [*firsts, *([] if second is None else [second]), *([] if targets is None else [targets])]
        if len(set(map(len, parts))) > 1:
            raise ValueError(f"inputs and labels of an example differ in number, {[len(p) for p in parts]} rows")
        self.firsts, self.second, self.targets = firsts, second, targets
        self.dictionary, self.max_length, self.max_first = dictionary, max_length, max_first
        longest = np.maximum.reduce([np.asarray(first.sizes) for first in firsts]) - 1
        if max_first is not None:
            longest = np.minimum(longest, max_first)
        self.sizes = joined_length(longest, None if second is None else np.asarray(second.sizes) - 1, max_length)
        if shuffle:
            self.order = np.random.default_rng(seed).permutation(len(self))
        else:
            self.order = np.argsort(self.sizes, kind="stable")

    def __len__(self) -> int:
        return len(self.firsts[0])

    def __getitem__(self, index: int) -> dict[str, Any]:
        second = None if self.second is None else self._bare(self.second[index])
        bos, eos = self.dictionary.bos(), self.dictionary.eos()
        firsts = [self._bare(first[index])[: self.max_first] for first in self.firsts]
        rows = [join(first, second, self.max_length, bos, eos) for first in firsts]
        return {"id": index, "rows": rows, "target": None if self.targets is None else self.targets[index]}

    def _bare(self, item: Tensor) -> Tensor:
        if not len(item) or item[-1] != self.dictionary.eos():
            raise ValueError("an item of the data folder does not end in </s>; make it with fairseq-preprocess")
        return item[:-1].long()

    def collater(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch; an empty dictionary without examples, as where another process has one batch more."""
        if not samples:
            return {}
        rows = [row for sample in samples for row in sample["rows"]]
        lengths = torch.tensor([len(tokens) for tokens, _ in rows])
        net_input = {
            "src_tokens": data_utils.collate_tokens([tokens for tokens, _ in rows], self.dictionary.pad()),
            "src_lengths": lengths,
            "segment_ids": data_utils.collate_tokens([segments for _, segments in rows], 0),
        }
        batch = {"id": torch.tensor([sample["id"] for sample in samples]), "net_input": net_input}
        if self.targets is not None:
            batch["target"] = torch.stack([sample["target"] for sample in samples])
        return batch | {"ntokens": int(lengths.sum()), "nsentences": len(samples)}

    def num_tokens(self, index: int) -> int:
        """Return the tokens of an example, all of its sequences being as long as the longest."""
        return len(self.firsts) * self.size(index)

    def size(self, index: int) -> int:
        """Return the tokens of an example's longest sequence."""
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """Return the indices in the order in which batches are filled."""
        return self.order
