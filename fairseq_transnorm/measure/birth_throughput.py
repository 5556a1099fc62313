"""Sequences a second of training an induction-head model: fairseq-train's own path beside a plain loop, in turns.

Both train ``ihead_basic`` with frozen embeddings and output on bigram sequences with five fixed triggers, learning from
outputs from their second occurrence on. The one is what fairseq-train runs: task, data set in a process of its own,
criterion, trainer. The other is one process with nothing but torch: it draws a batch with the reference sampler, then
computes every product, all weights and all logits by themselves, as the formulas read.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.trigger_sequences import ReferenceSampler
from .paired_training import Batch, FairseqTraining, check_agreement, turns

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.03, 0.9, 1e-4
SEED = 42  # of the data


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        corpus: text, or a ``.json`` of its statistics.
        width: D, of the model.
        length: T, tokens of a sequence.
        batch: sequences of an update.
        held: most sequences that fairseq's path holds at once, ``--batch-size``; ``--update-freq`` makes up the rest.
        updates: of a turn, which is an epoch of fairseq's.
        sampler: of fairseq's path, ``vectorised`` or ``reference``.
    """

    corpus: str
    width: int = 256
    length: int = 256
    batch: int = 512
    held: int = 64
    updates: int = 10
    sampler: str = "vectorised"

    def __post_init__(self) -> None:
        if self.batch % min(self.batch, self.held):
            raise ValueError(
                f"--held {self.held} sequences at once do not divide the --batch {self.batch} of an update"
            )

    @property
    def micro_batches(self) -> int:
        """Of an update."""
        return self.batch // min(self.batch, self.held)

    def flags(self) -> list[str]:
        """Return the command line of fairseq-train."""
        source = "--bigram-stats" if self.corpus.endswith(".json") else "--corpus"
        values = {
            "--task": "bigram_icl",
            source: self.corpus,
            "--num-triggers": 5,
            "--tokens-per-sample": self.length,
            "--epoch-sequences": self.batch * self.updates,
            "--data-seed": SEED,
            "--sampler": self.sampler,
            "--arch": "ihead_basic",
            "--ihead-dim": self.width,
            "--criterion": "bigram_icl",
            "--optimizer": "sgd",
            "--lr": LEARNING_RATE,
            "--momentum": MOMENTUM,
            "--weight-decay": WEIGHT_DECAY,
            "--lr-scheduler": "fixed",
            "--batch-size": self.batch // self.micro_batches,
            "--update-freq": self.micro_batches,
            "--required-batch-size-multiple": 1,
            "--num-workers": 1,
        }
        switches = ["--fixed-triggers", "--freeze-embeddings", "--freeze-output", "--loss-head-only"]
        return [*(str(part) for pair in values.items() for part in pair), *switches]


class PlainModel(nn.Module):
    """The formulas of ``ihead_basic``, each product by itself; its parameters have the names that they have there."""

    positions: Tensor

    def __init__(self, vocabulary: int, width: int, length: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.register_buffer("positions", torch.zeros(length, width))
        names = ("wk", "wv", "wo")
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(width, width, bias=False) for name in names}) for _ in range(2)
        )
        self.output = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T N"]:
        """Return all logits."""
        x = self.embed_tokens(tokens) + self.positions[: tokens.shape[1]]
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            scores = x @ layer["wk"](x).transpose(1, 2) / x.shape[-1] ** 0.5
            weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
            x = x + layer["wo"](layer["wv"](weights @ x))
        return self.output(x)


class PlainTraining:
    """Training of ``PlainModel`` in one process.

    Args:
        model: an ``ihead_basic`` whose values, and whose choice of what is trained, are copied.
        sampler: of its sequences.
        batch: sequences of an update.
    """

    def __init__(self, model: nn.Module, sampler: ReferenceSampler, batch: int) -> None:
        values: Any = model.state_dict()
        length, width = values["positions"].shape
        self.model = PlainModel(len(values["embed_tokens.weight"]), width, length)
        self.model.load_state_dict(values)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        own = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(own, lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.sampler, self.rngs = sampler, [np.random.default_rng([SEED, 0])] * batch

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens, next tokens and counters of a batch, ``B T`` each."""
        tokens, counters, _ = map(torch.from_numpy, self.sampler.sequences(self.rngs))
        return tokens[:, :-1], tokens[:, 1:], counters

    def learn(self, batches: Sequence[Batch]) -> float:
        """Make one update from batches of fairseq's."""
        parts = [(b["net_input"]["src_tokens"], b["target"], b["counters"]) for b in batches]
        return self.update(*map(torch.cat, zip(*parts, strict=True)))

    def update(self, tokens: Tensor, targets: Tensor, counters: Tensor) -> float:
        """Make one update and return the loss before it, in nats."""
        known = counters >= 2
        loss = F.cross_entropy(self.model(tokens)[known], targets[known])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def turn(self, updates: int) -> dict[str, float]:
        """Train, and return the seconds that it took and those of drawing the data."""
        start, drawing = time.perf_counter(), 0.0
        for _ in range(updates):
            before = time.perf_counter()
            batch = self.draw()
            drawing += time.perf_counter() - before
            self.update(*batch)
        return {"seconds": time.perf_counter() - start, "data_seconds": drawing}


@contextmanager
def both_trainings(setting: Setting) -> Iterator[tuple[FairseqTraining, PlainTraining]]:
    """Yield the two trainings, from the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        ours = FairseqTraining(setting.flags(), folder)
        sampler = ReferenceSampler(ours.task.statistics, ours.task.settings("train"))
        yield ours, PlainTraining(ours.model, sampler, setting.batch)


def throughput_rows(setting: Setting, repeats: int) -> list[dict[str, Any]]:
    """Train both forms in turns, after one turn on the same batches in which they must agree.

    Args:
        setting: of both.
        repeats: timed turns of each.

    Returns:
        Rows as of :func:`turns`, each with the differences of :func:`check_agreement`.
    """
    with both_trainings(setting) as (ours, plain):
        agreement = check_agreement(ours, plain)
        rows = turns(ours, plain, setting.updates, setting.batch * setting.updates, repeats)
    return [row | agreement for row in rows]
