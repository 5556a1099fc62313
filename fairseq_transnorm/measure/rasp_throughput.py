"""Sequences a second of learning a formal language: fairseq-train's own path beside a loop over samples, in turns.

Both train ``rasp_transformer`` on the same language. The one is what fairseq-train runs: task, data set, criterion,
trainer, batches without most of their padding. The other is one process with nothing but torch: it goes through the
sequences of a batch one by one, without any padding, and computes all weights as the formula reads.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .paired_training import Batch, FairseqTraining, check_agreement, turns

ADAM: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8}
# both forms are compared by this: Adam would blow up rounding errors where the gradient is 0, as that of key biases
SGD: dict[str, Any] = {"lr": 0.1}
SEED = 1


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        language: one without supervision.
        layers, heads, width: L, H and D of the model; its feed-forward has 2 D channels.
        dropout: of the model.
        max_length: most symbols of a sequence.
        batch: sequences of an update.
        updates: of a turn, which is an epoch of fairseq's.
        optimizer: ``adam`` or ``sgd``.
    """

    language: str = "reverse_100"
    layers: int = 2
    heads: int = 1
    width: int = 50
    dropout: float = 0.1
    max_length: int = 100
    batch: int = 50
    updates: int = 1000
    optimizer: str = "adam"

    def flags(self) -> list[str]:
        """Return the command line of fairseq-train."""
        values = {
            "--task": "rasp_lang",
            "--language": self.language,
            "--max-length": self.max_length,
            "--train-size": self.batch * self.updates,
            "--arch": "rasp_transformer",
            "--rasp-layers": self.layers,
            "--rasp-heads": self.heads,
            "--rasp-dim": self.width,
            "--dropout": self.dropout,
            "--criterion": "rasp_loss",
            "--optimizer": self.optimizer,
            "--lr-scheduler": "rasp_exponential",
            "--batch-size": self.batch,
            "--num-workers": 1,
            "--seed": SEED,
        }
        if self.optimizer == "adam":
            values |= {"--adam-betas": str(ADAM["betas"]), "--adam-eps": ADAM["eps"], "--lr": ADAM["lr"]}
        else:
            values |= {"--lr": SGD["lr"]}
        return [str(part) for pair in values.items() for part in pair]


class PlainModel(nn.Module):
    """The formulas of ``rasp_transformer`` for one sequence; its parameters have the names that they have there."""

    def __init__(self, symbols: int, classes: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.embed_tokens = nn.Embedding(symbols, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attn": nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)}),
                    "ffn": nn.ModuleDict({"inner": nn.Linear(width, 2 * width), "out": nn.Linear(2 * width, width)}),
                    "attn_norm": nn.LayerNorm(width),
                    "ffn_norm": nn.LayerNorm(width),
                }
            )
            for _ in range(layers)
        )
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens: Int[Tensor, " n"]) -> Float[Tensor, "n C"]:
        """Return the logits of a sequence."""
        x = self.embed_tokens(tokens)
        x = x + sinusoids(*x.shape)
        for layer in self.layers:
            x = self._layer(layer, x)
        return self.classifier(x)

    def _layer(self, layer: Any, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in layer["attn"]["qkv"](x).chunk(3, -1)
        )
        weights = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
        read = layer["attn"]["out"]((self._drop(weights) @ v).transpose(0, 1).flatten(1))
        x = layer["attn_norm"](x + self._drop(read))
        hidden = self._drop(torch.relu(layer["ffn"]["inner"](x)))
        return layer["ffn_norm"](x + self._drop(layer["ffn"]["out"](hidden)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout)


def sinusoids(length: int, width: int) -> Float[Tensor, "n D"]:
    """Return component 2i ``sin(t 10000^(-2i/D))`` and 2i + 1 the cosine; an odd D is rounded up and cut."""
    even = width + width % 2
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, even, 2) / even)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class PlainLoop:
    """Training of ``PlainModel`` in one process, a sequence at a time.

    Args:
        ours: a training by fairseq, whose values and samples are copied.
        setting: of it.
    """

    def __init__(self, ours: FairseqTraining, setting: Setting) -> None:
        task = ours.task
        sizes = len(task.source_dictionary), len(task.target_dictionary)
        self.model = PlainModel(*sizes, setting.width, setting.layers, setting.heads, setting.dropout)
        self.model.load_state_dict(ours.model.state_dict())
        parameters = self.model.parameters()
        adam = setting.optimizer == "adam"
        self.optimizer = torch.optim.Adam(parameters, **ADAM) if adam else torch.optim.SGD(parameters, **SGD)
        self.batch = setting.batch
        self.samples = [single(task.dataset("train"), i) for i in range(len(task.dataset("train")))]

    def learn(self, batches: Sequence[Batch]) -> float:
        """Make one update from batches of fairseq's."""
        sequences = []
        for batch in batches:
            rows = zip(
                batch["net_input"]["src_tokens"], batch["target"], batch["net_input"]["src_lengths"], strict=True
            )
            sequences += [(tokens[:length], target[:length]) for tokens, target, length in rows]
        return self.update(sequences)

    def update(self, sequences: Sequence[tuple[Tensor, Tensor]]) -> float:
        """Make one update and return the loss before it: the mean over sequences of their means over positions."""
        self.optimizer.zero_grad()
        total = 0.0
        for tokens, target in sequences:
            loss = F.cross_entropy(self.model(tokens), target) / len(sequences)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return total

    def turn(self, updates: int) -> dict[str, float]:
        """Train on batches of all samples in another order; return the seconds that it took."""
        order = random.sample(range(len(self.samples)), updates * self.batch)
        start = time.perf_counter()
        for first in range(0, len(order), self.batch):
            self.update([self.samples[i] for i in order[first : first + self.batch]])
        return {"seconds": time.perf_counter() - start, "data_seconds": 0.0}


def single(dataset: Any, index: int) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the input and the target of a sample."""
    batch = dataset.collater([index])
    return batch["net_input"]["src_tokens"][0], batch["target"][0]


@contextmanager
def both_trainings(setting: Setting) -> Iterator[tuple[FairseqTraining, PlainLoop]]:
    """Yield the two trainings, from the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        ours = FairseqTraining(setting.flags(), folder)
        yield ours, PlainLoop(ours, setting)


def throughput_rows(setting: Setting, repeats: int, compared: int = 20) -> list[dict[str, Any]]:
    """Train both forms in turns, after ``compared`` updates on the same batches in which they must agree.

    Those are without dropout and by SGD.

    Returns:
        Rows as of :func:`turns`, each with the differences of :func:`check_agreement`.

    Raises:
        ValueError: the two do not compute the same.
    """
    short = replace(setting, updates=min(compared, setting.updates), dropout=0.0, optimizer="sgd")
    with both_trainings(short) as (ours, plain):
        agreement = check_agreement(ours, plain)
    with both_trainings(setting) as (ours, plain):
        rows = turns(ours, plain, setting.updates, setting.batch * setting.updates, repeats)
    return [row | agreement for row in rows]
