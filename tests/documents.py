"""Documents of a small corpus, in memory and as a data folder."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.helpers import sentences

EOS = 2


class Sentences:
    """What an indexed dataset of fairseq is for its readers; each document ends in a lone ``</s>``."""

    def __init__(self, documents: Sequence[Sequence[Sequence[int]]]):
        self.lines = [[*line, EOS] for document in documents for line in (*document, [])]
        self.sizes = np.array(list(map(len, self.lines)), dtype=np.int32)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.lines[index])

    def __len__(self) -> int:
        return len(self.lines)


def text_documents(count: int, seed: int) -> list[list[str]]:
    """Draw documents of 1 to 9 English-like sentences; the same seed gives the same ones everywhere."""
    rng = random.Random(seed)
    return [sentences(rng.randint(1, 9), seed=rng.randrange(1 << 30)) for _ in range(count)]


def build_document_data(folder: Path, rows: Mapping[str, int]) -> Path:
    """Write a data folder of documents without a note, as fairseq-preprocess makes it of the text.

    Args:
        folder: made when missing.
        rows: split -> number of documents.
    """
    from fairseq.data import Dictionary

    from fairseq_transnorm.data.classification import write_dataset

    folder.mkdir(parents=True, exist_ok=True)
    texts = {split: text_documents(count, seed) for seed, (split, count) in enumerate(rows.items())}
    dictionary = Dictionary()
    for word in sorted({word for text in texts.values() for lines in text for line in lines for word in line.split()}):
        dictionary.add_symbol(word)
    dictionary.save(str(folder / "dict.txt"))
    for split, documents in texts.items():
        write_dataset(folder / split, dictionary, [line for lines in documents for line in (*lines, "")])
    return folder
